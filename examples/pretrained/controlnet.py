"""Stable Diffusion with ControlNets: ``python examples/pretrained/controlnet.py --control edges.png``."""

from common import draw, load, options, save_pictures, size
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "stable-diffusion-v1-5/stable-diffusion-v1-5", "controlnet.png")
    parser.add_argument("--controlnet", nargs="+", default=["lllyasviel/sd-controlnet-canny"])
    parser.add_argument(
        "--control", nargs="+", required=True, help="a picture for each ControlNet, of the size sampled"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of the ControlNets")
    parser.add_argument("--until", type=float, default=0.0, help="the time, from 1 to 0, down to which they act")
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    args = parser.parse_args(argv)
    nets = [ControlNetModel.from_pretrained(one, use_safetensors=True) for one in args.controlnet]
    several = len(nets) > 1
    pipe = load(StableDiffusionControlNetPipeline, args, controlnet=nets if several else nets[0])
    model = cd.interop.wrap(pipe, size=size(args))
    pictures = [Image.open(one) for one in args.control]
    control = [[one] for one in pictures] if several else pictures[0]
    cond = model.encode(args.prompt, control=control, scale=args.strength, interval=(args.until, 1.0))
    save_pictures(draw(model, args, cond), args.out)


if __name__ == "__main__":
    main()
