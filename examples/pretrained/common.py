"""What the scripts here share: their options, loading, sampling and writing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import condiff as cd
from condiff import figures
from condiff.video import write_frames

SOLVERS = {
    "ddim": cd.DDIM(),
    "euler": cd.Euler(),
    "dpm++": cd.DPMSolverPP(2),
    "unipc": cd.UniPC(2),
}


def options(about: str, checkpoint: str, out: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options of all scripts; ``defaults`` are of this one."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--checkpoint", default=checkpoint, help="repository on the Hub, or a folder")
    parser.add_argument("--solver", choices=SOLVERS, default=defaults.get("solver", "unipc"))
    parser.add_argument("--steps", type=int, default=defaults.get("steps", 20))
    parser.add_argument("--scale", type=float, help="of the guidance; the pipeline's own unless given")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels; as trained unless given"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--offload", action="store_true", help="keep weights on the CPU until they are called")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def load(kind: Any, args: argparse.Namespace, **parts: Any) -> Any:
    """The pipeline, where it computes. Safetensors only."""
    dtype = getattr(torch, args.dtype)
    pipe = kind.from_pretrained(args.checkpoint, torch_dtype=dtype, use_safetensors=True, **parts)
    if args.offload:
        pipe.enable_model_cpu_offload(device=args.device)
        return pipe
    return pipe.to(args.device)


def draw(model: cd.interop.Wrapped, args: argparse.Namespace, cond: Any, **guidance: Any) -> torch.Tensor:
    """Samples on the pipeline's own grid, guided as it guides, decoded."""
    guided = model.guided(args.scale, **guidance)
    x = cd.sample(
        guided,
        cond=cond,
        solver=SOLVERS[args.solver],
        grid=model.grid(args.steps),
        seed=args.seed,
        device=args.device,
        progress=True,
    )
    with torch.no_grad():
        return x if model.codec is None else model.codec.decode(x)


def size(args: argparse.Namespace) -> tuple[int, int] | None:
    return None if args.size is None else (args.size[0], args.size[1])


def save_pictures(x: torch.Tensor, out: Path) -> None:
    """Pictures (B, C, H, W) in [-1, 1] side by side."""
    figures.grid(x.float().clamp(-1.0, 1.0).cpu(), out)
    print(f"wrote {out}")


def save_clip(x: torch.Tensor, out: Path, rate: float) -> None:
    """The clip (F, C, H, W) in [-1, 1], as an animated picture (.gif, .webp) or a folder of frames."""
    write_frames(x.float().clamp(-1.0, 1.0).cpu(), out, rate)
    print(f"wrote {out}")
