"""Pictures of a pixel model: ``python examples/pretrained/ddpm.py --num 4 --steps 50 --out cats.png``."""

from common import SOLVERS, load, options, save_pictures
from diffusers import DDPMPipeline

import condiff as cd


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, "google/ddpm-cat-256", "ddpm.png", solver="ddim", steps=50)
    parser.add_argument("--num", type=int, default=4, help="how many pictures")
    args = parser.parse_args(argv)
    model = cd.interop.wrap(load(DDPMPipeline, args))
    x = cd.sample(
        model.denoiser,
        num=args.num,
        solver=SOLVERS[args.solver],
        grid=cd.sampling.Spaced("trailing"),
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        hooks=model.hooks,
        progress=True,
    )
    save_pictures(x, args.out)


if __name__ == "__main__":
    main()
