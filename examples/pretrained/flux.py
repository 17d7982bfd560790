"""FLUX.1-dev, or schnell by ``--checkpoint``: ``python examples/pretrained/flux.py --dtype bfloat16 --offload``."""

from common import draw, load, options, save_pictures, size
from diffusers import FluxPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "black-forest-labs/FLUX.1-dev", "flux.png", solver="euler", steps=28)
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    parser.add_argument("--length", type=int, help="tokens of a prompt; schnell takes 256")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(FluxPipeline, args), size=size(args), length=args.length)
    save_pictures(draw(model, args, model.encode(args.prompt)), args.out)


if __name__ == "__main__":
    main()
