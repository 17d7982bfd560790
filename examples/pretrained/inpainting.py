"""Inpainting: ``python examples/pretrained/inpainting.py --image photo.png --mask white_where_new.png``."""

from common import draw, load, options, save_pictures, size
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "stable-diffusion-v1-5/stable-diffusion-inpainting", "inpainting.png")
    parser.add_argument("--image", required=True, help="of the size sampled")
    parser.add_argument("--mask", required=True, help="of the same size, white where something is to be made")
    parser.add_argument("--prompt", nargs="+", default=["a red fox in the snow, photograph"])
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(StableDiffusionInpaintPipeline, args), size=size(args))
    cond = model.encode(args.prompt, image=Image.open(args.image), mask=Image.open(args.mask))
    save_pictures(draw(model, args, cond), args.out)


if __name__ == "__main__":
    main()
