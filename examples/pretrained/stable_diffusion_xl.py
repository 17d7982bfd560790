"""Stable Diffusion XL: ``python examples/pretrained/stable_diffusion_xl.py --dtype float16 --steps 20``."""

from common import draw, load, options, save_pictures, size
from diffusers import StableDiffusionXLPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "stabilityai/stable-diffusion-xl-base-1.0", "stable_diffusion_xl.png")
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    parser.add_argument("--negative", help="what the reference of the guidance is told")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(StableDiffusionXLPipeline, args), size=size(args))
    negative = None if args.negative is None else [args.negative]
    save_pictures(draw(model, args, model.encode(args.prompt), negative=negative), args.out)


if __name__ == "__main__":
    main()
