"""Frames a second and latency of a stream batch against the sequential loop, and of residual against full guidance.

``python benchmarks/streamdiffusion.py [--json OUT] [--frames 24] [--rounds 5] [--threads 1] [--device cpu]``

One network with random weights and one set of frames; both sides make the same pictures (checked). The sequential loop
takes every frame through its n steps in n calls of one row, the stream takes n frames in one call of n rows. Rounds of
the two alternate in one process and the fastest of each counts. Latency is the time from a frame's coming in to its
picture, at the side's own rate: n calls of one row in the loop, n ticks in the stream.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sampling_overhead import hardware, keep
from torch import Tensor

import condiff as cd
from condiff.conditions import Condition
from condiff.guidance import ANCHOR
from condiff.methods.streamdiffusion import guided, times_of
from condiff.random import Tape
from condiff.sampling import Consistency, sample
from condiff.streaming import Stream

STEPS = {1: (32,), 2: (32, 45), 4: (0, 16, 32, 45)}
SHAPES = {"UNet, 4x16x16": (4, 16, 16), "DiT, 4x16x16": (4, 16, 16), "MLP, 1x8x8": (1, 8, 8)}


def network(name: str, device: str) -> Any:
    torch.manual_seed(0)
    shape, label = SHAPES[name], {"label": cd.conditions.Label(10)}
    if name.startswith("UNet"):
        net: Any = cd.networks.UNet(shape=shape, width=32, conditions=label)
    elif name.startswith("DiT"):
        net = cd.networks.DiT(shape=shape, width=128, depth=6, heads=4, patch=2, conditions=label)
    else:
        net = cd.networks.MLP(shape=shape, width=256, depth=4, conditions=label)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    process = cd.process.Gaussian(cd.process.Discrete.stable_diffusion())
    return cd.Denoiser(net.eval(), process, "v", shape=shape).to(device)


def sides(model: Any, kind: str, n: int, frames: Tensor) -> dict[str, Callable[[], Tensor]]:
    """All frames through the loop one by one, and through a stream."""
    told, times = {"label": torch.tensor([3])}, times_of(model.process, STEPS[n])
    denoiser = guided(model, kind, scale=1.4, negative={} if kind == "full" else None)
    stream = Stream(denoiser, times).start(told, rng=0, check=False)
    first, noise = model.process.levels(times)[0], stream.noise

    def loop() -> Tensor:
        out = []
        for z in frames:
            x = model.process.forward(z, first, noise=noise[:1]).x_t
            cond = {**told, ANCHOR: Condition(z, "map")} if kind == "self" else told
            tape = Tape([*noise[1:, None]])
            out.append(sample(denoiser, initial=x, cond=cond, grid=times, solver=Consistency(), rng=tape))
        return torch.cat(out)

    def streamed() -> Tensor:
        out = [x for z in frames if (x := stream.push(z)) is not None]
        return torch.cat([*out, *stream.drain()])

    return {"loop": loop, "stream": streamed}


def fastest(runs: dict[Any, Callable[[], Tensor]], rounds: int, device: str) -> dict[Any, float]:
    """Seconds of the fastest round of each, rounds taken in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def measure(name: str, count: int, rounds: int, device: str) -> list[dict[str, Any]]:
    model, rows = network(name, device), []
    frames = torch.randn(count, 1, *SHAPES[name], generator=torch.Generator().manual_seed(1)).to(device)
    for n in STEPS:
        both = {kind: sides(model, kind, n, frames) for kind in ("none", "self", "full")}
        runs = {(kind, side): run for kind, pair in both.items() for side, run in pair.items()}
        for kind in ("none", "self", "full"):
            a, b = runs[kind, "loop"](), runs[kind, "stream"]()
            assert float((a - b).abs().max()) < 1e-3 * float(a.abs().max()), (name, n, kind)
        best = fastest(runs, rounds, device)
        rate = {side: count / best["none", side] for side in ("loop", "stream")}
        tick = best["none", "stream"] / (count + n - 1)
        rows.append({
            "network": name, "steps": n,
            "loop_frames_per_second": round(rate["loop"], 2),
            "stream_frames_per_second": round(1.0 / tick, 2),
            "throughput_ratio": round(1.0 / tick / rate["loop"], 2),
            "loop_latency_ms": round(1e3 / rate["loop"], 2),
            "stream_latency_ms": round(1e3 * n * tick, 2),
            "self_over_full": round(best["full", "stream"] / best["self", "stream"], 2),
            "self_over_full_in_the_loop": round(best["full", "loop"] / best["self", "loop"], 2),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "streamdiffusion.json")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        rows = [row for name in SHAPES for row in measure(name, args.frames, args.rounds, args.device)]
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else hardware()
    result = {
        "hardware": where,
        "threads": args.threads,
        "torch": torch.__version__,
        "frames": args.frames,
        "rows": rows,
    }
    keep(result, args.json)


if __name__ == "__main__":
    main()
