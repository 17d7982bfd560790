"""DiT on ImageNet's classes: ``python examples/pretrained/dit.py --label "golden retriever" 360 --steps 25``."""

from common import draw, load, options, save_pictures
from diffusers import DiTPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "facebook/DiT-XL-2-256", "dit.png", steps=25)
    parser.add_argument("--label", nargs="+", default=["207", "360"], help="numbers of classes, or their names")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(DiTPipeline, args))
    labels = [int(one) if one.isdigit() else one for one in args.label]
    save_pictures(draw(model, args, model.encode(labels)), args.out)


if __name__ == "__main__":
    main()
