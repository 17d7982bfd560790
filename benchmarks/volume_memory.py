"""Memory and time of diffusion on a volume: in wavelet bands, and on its voxels, with the same network.

``python benchmarks/volume_memory.py [--side 32] [--width 16] [--device cpu] [--json OUT]``

Both sides in one process, one volume, three given scans. ``kept`` is what a training step keeps for its backward pass,
``peak`` the most that is allocated at once: on a GPU by its allocator's counter, on a CPU by the profiler's record of
every allocation.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data import phantoms
from condiff.methods import cwdm
from condiff.methods.experiment import Facts
from condiff.methods.recipe import Recipe

MIB = 2**20


def kept(work: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that a graph keeps, each storage once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = work()
    del loss
    return sum(seen.values())


def peak(work: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that are allocated at once while ``work`` runs, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    total = most = 0
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def fastest(work: Callable[[], Any], device: torch.device, times: int) -> float:
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return min(spent)


def measure(chosen: Recipe, side: int, device: torch.device, times: int) -> dict[str, float]:
    """The figures of one side."""
    denoiser = chosen.denoiser(0).to(device)
    row = chosen.encoded(phantoms(1, side)).batch([0])
    batch = {"x": row["x"].to(device), "cond": {k: v.to(device) for k, v in row["cond"].items()}}

    def train() -> None:
        denoiser.zero_grad(set_to_none=True)
        chosen.objective(denoiser, batch, rng=0).loss.backward()

    @torch.no_grad()
    def step() -> None:
        denoiser(batch["x"], 0.5, batch["cond"])

    train()
    step()
    return {
        "kept MiB": kept(lambda: chosen.objective(denoiser, batch, rng=0).loss) / MIB,
        "training peak MiB": peak(train, device) / MIB,
        "sampling peak MiB": peak(step, device) / MIB,
        "training step s": fastest(train, device, times),
        "sampling step s": fastest(step, device, times),
        "parameters M": sum(p.numel() for p in denoiser.parameters()) / 1e6,
    }


def sides(side: int, width: int | None) -> dict[str, Recipe]:
    """The recipes of both, with one network apart from its first and last layer."""
    facts = Facts.of(phantoms(1, side))
    both = {"wavelets": cwdm.recipe(facts), "voxels": cwdm.voxels(facts)}
    return both if width is None else {name: cwdm.with_width(chosen, width) for name, chosen in both.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--width", type=int, default=16, help="channels of the first level; 0 for the recipe's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    found = {
        name: measure(chosen, args.side, device, args.times)
        for name, chosen in sides(args.side, args.width or None).items()
    }
    print(f"one volume of {args.side}^3 voxels, three given, on {device}")
    print(f"{'':20} {'wavelets':>10} {'voxels':>10} {'ratio':>7}")
    ratios = {}
    for name, ours in found["wavelets"].items():
        theirs = found["voxels"][name]
        ratios[name] = ours / theirs
        print(f"{name:20} {ours:10.4g} {theirs:10.4g} {ratios[name]:7.3f}")
    if args.json:
        where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
        facts = {"side": args.side, "width": args.width, "device": where, "torch": torch.__version__}
        args.json.write_text(json.dumps({**facts, **found, "ratio": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
