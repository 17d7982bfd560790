"""A picture that moves: ``python examples/pretrained/stable_video_diffusion.py --image photo.png --dtype float16``."""

from common import draw, load, options, save_clip, size
from diffusers import StableVideoDiffusionPipeline
from PIL import Image

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(
        __doc__, "stabilityai/stable-video-diffusion-img2vid-xt", "stable_video_diffusion.gif", solver="ddim", steps=25
    )
    parser.add_argument("--image", required=True, help="of the size sampled, 576 x 1024 unless given")
    parser.add_argument("--frames", type=int, help="as trained unless given")
    parser.add_argument("--fps", type=float, default=7.0)
    parser.add_argument("--motion", type=float, default=127.0, help="how much moves, from 1 to 255")
    parser.add_argument("--noise", type=float, default=0.02, help="on the picture")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(StableVideoDiffusionPipeline, args), size=size(args), frames=args.frames)
    picture = [Image.open(args.image)]
    cond = model.encode(picture, fps=args.fps, motion=args.motion, noise=args.noise, rng=args.seed)
    save_clip(draw(model, args, cond)[0], args.out, args.fps)


if __name__ == "__main__":
    main()
