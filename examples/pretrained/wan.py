"""Wan 2.1: ``python examples/pretrained/wan.py --prompt "a fox runs" --dtype bfloat16 --offload``."""

from common import draw, load, options, save_clip, size
from diffusers import WanPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan.gif", solver="unipc", steps=50)
    parser.add_argument("--prompt", default="a red fox runs through deep snow")
    parser.add_argument("--negative", help="what the reference of the guidance is told")
    parser.add_argument("--frames", type=int, help="as trained unless given")
    parser.add_argument("--length", type=int, help="tokens of a prompt, 512 unless given")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(WanPipeline, args), size=size(args), frames=args.frames, length=args.length)
    negative = None if args.negative is None else [args.negative]
    save_clip(draw(model, args, model.encode([args.prompt]), negative=negative)[0], args.out, 16.0)


if __name__ == "__main__":
    main()
