"""Stable Diffusion 3: ``python examples/pretrained/stable_diffusion_3.py --dtype float16 --steps 28``."""

from common import draw, load, options, save_pictures, size
from diffusers import StableDiffusion3Pipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(
        __doc__, "stabilityai/stable-diffusion-3-medium-diffusers", "stable_diffusion_3.png", solver="euler", steps=28
    )
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    parser.add_argument("--negative", help="what the reference of the guidance is told")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(StableDiffusion3Pipeline, args), size=size(args))
    negative = None if args.negative is None else [args.negative]
    save_pictures(draw(model, args, model.encode(args.prompt), negative=negative), args.out)


if __name__ == "__main__":
    main()
