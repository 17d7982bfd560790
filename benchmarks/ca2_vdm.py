"""Frames per second and memory of a rollout as its context grows: keys and values kept, against recomputing.

``python benchmarks/ca2_vdm.py [--side 16] [--width 96] [--depth 4] [--chunks 8] [--steps 10] [--json OUT]``

Both sides in one process with one network (random weights: time doesn't depend on them), a chunk of one after a chunk
of the other, the fastest of a few rolls; the context is never cut. The videos must be equal to 1e-4 of their maximum.
Seconds of a chunk, of its steps and of what it leaves for the next: a line is linear where the context is kept, since
attention along time reads it, and quadratic in all where it goes through the network again in each step of each chunk.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sampling_overhead import hardware
from volume_memory import MIB, peak

from condiff.data import moving_digits
from condiff.methods import Facts, ca2_vdm
from condiff.methods.recipe import Sampler
from condiff.methods.rolling import rollout
from condiff.sampling import DDIM, Spaced
from condiff.video import Rollout

SIDES = ("cached", "recomputed")


def rolls(args: argparse.Namespace) -> tuple[dict[str, Rollout], torch.Tensor]:
    """A rollout of each side over the same network, and the first frame of stochastic moving digits."""
    frames = 1 + args.chunks * args.chunk
    data = moving_digits(args.rows, frames=frames, side=args.side, given=1)
    chosen = ca2_vdm.recipe(Facts.of(data), chunk=args.chunk)
    network = replace(chosen.network, width=args.width, depth=args.depth, max_frames=frames, learned_variance=False)
    sampler = Sampler(solver=DDIM(), grid=Spaced("trailing"), steps=args.steps)
    chosen = replace(chosen, network=network, target="v", sampler=sampler)
    denoiser = ca2_vdm.shaken(chosen.denoiser(0).eval().to(args.device), 1)
    made = {
        name: rollout(denoiser, chosen, context=name, max_context=frames - args.chunk, perturb=0.0) for name in SIDES
    }
    return made, data.batch(range(args.rows))["cond"]["first"].to(args.device)


def seconds(both: dict[str, Rollout], first: torch.Tensor, chunks: int, rounds: int) -> dict[str, list[float]]:
    """The fastest seconds of every chunk, of both sides in turn; refuses videos that differ."""
    best = {name: [float("inf")] * chunks for name in both}
    for _ in range(rounds):
        for roll in both.values():
            roll.start(first, seed=0)
        for k in range(chunks):
            clips = {}
            for name, roll in both.items():
                started = time.perf_counter()
                clips[name] = roll.advance()
                if first.is_cuda:
                    torch.cuda.synchronize()
                best[name][k] = min(best[name][k], time.perf_counter() - started)
            apart = float((clips["cached"] - clips["recomputed"]).abs().max() / clips["recomputed"].abs().max())
            if not apart < 1e-4:
                raise SystemExit(f"chunk {k}: the videos differ by {apart:.2g} of their maximum")
    return best


def memory(both: dict[str, Rollout], first: torch.Tensor, chunks: int) -> dict[str, list[float]]:
    """MiB that are allocated at once while a chunk is made, at most, beyond those before it; and what is kept."""
    out: dict[str, list[float]] = {**{name: [] for name in both}, "cache": []}
    for name, roll in both.items():
        roll.start(first, seed=0)
        for _ in range(chunks):
            out[name].append(peak(roll.advance, first.device) / MIB)
            if name == "cached":
                out["cache"].append(roll.context.nbytes / MIB)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults: dict[str, Any] = {"side": 16, "width": 96, "depth": 4, "chunk": 4, "chunks": 8, "steps": 10, "rows": 1}
    for name, value in {**defaults, "rounds": 3, "threads": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    both, first = rolls(args)
    spent, held = seconds(both, first, args.chunks, args.rounds), memory(both, first, args.chunks)
    print(f"frames of {args.side} x {args.side}, chunks of {args.chunk}, {args.steps} steps, {args.rows} rows")
    print(" context    cached   recomp.  ratio        frames/s  cache MiB   peak MiB, both")
    for k in range(args.chunks):
        fast, slow = spent["cached"][k], spent["recomputed"][k]
        rates = f"{args.chunk * args.rows / fast:7.2f} {args.chunk * args.rows / slow:7.2f}"
        print(
            f"{1 + k * args.chunk:8d} {fast:8.3f}s {slow:8.3f}s {slow / fast:6.2f} {rates} {held['cache'][k]:10.2f} "
            f"{held['cached'][k]:8.1f} {held['recomputed'][k]:7.1f}"
        )
    growth = {name: values[-1] / values[0] for name, values in spent.items()}
    print(f"last chunk over first: cached {growth['cached']:.2f}, recomputed {growth['recomputed']:.2f}")
    if args.json:
        facts = {"setting": {k: v for k, v in vars(args).items() if k != "json"}, "hardware": hardware()}
        args.json.write_text(json.dumps({**facts, "seconds": spent, "MiB": held}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
