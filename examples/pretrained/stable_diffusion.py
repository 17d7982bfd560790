"""Stable Diffusion 1.5 (2.1 by ``--checkpoint``): ``python examples/pretrained/stable_diffusion.py --steps 12``."""

from common import draw, load, options, save_pictures, size
from diffusers import StableDiffusionPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "stable-diffusion-v1-5/stable-diffusion-v1-5", "stable_diffusion.png")
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    parser.add_argument("--negative", help="what the reference of the guidance is told")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(StableDiffusionPipeline, args), size=size(args))
    negative = None if args.negative is None else [args.negative]
    save_pictures(draw(model, args, model.encode(args.prompt), negative=negative), args.out)


if __name__ == "__main__":
    main()
