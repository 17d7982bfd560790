"""Training throughput and peak memory of the UNet and the DiT beside diffusers', at one configuration.

``python benchmarks/networks.py [--json OUT] [--device cpu|cuda] [--rounds 5]``

Both sides run in one process, a step of one after a step of the other, and the fastest step of each counts. On a
machine that others use, too, the ratio of processor times says more than that of wall times.
A step is forward, mean squared error, backward and a fused AdamW update. Peak memory is measured in a process each:
the growth of the resident set over a step on a CPU, the allocator's maximum on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from condiff.conditions import Label
from condiff.networks import DiT, UNet

Step = Callable[[], None]
CASES: dict[str, dict[str, Any]] = {
    "dit-small": {"kind": "dit", "batch": 32, "size": 32, "channels": 4, "width": 192, "depth": 6, "heads": 3},
    "dit-base": {"kind": "dit", "batch": 8, "size": 32, "channels": 4, "width": 384, "depth": 6, "heads": 6},
    "unet-small": {"kind": "unet", "batch": 16, "size": 32, "channels": 3, "width": 64, "multipliers": (1, 2, 2)},
    "unet-base": {"kind": "unet", "batch": 4, "size": 32, "channels": 3, "width": 128, "multipliers": (1, 2, 2, 2)},
}
CLASSES = 10


def ours(case: dict[str, Any]) -> torch.nn.Module:
    """Our network of a case."""
    shape = (case["channels"], case["size"], case["size"])
    label = {"label": Label(CLASSES)}
    if case["kind"] == "dit":
        return DiT(shape=shape, width=case["width"], depth=case["depth"], heads=case["heads"], conditions=label)
    return UNet(
        shape=shape, width=case["width"], multipliers=case["multipliers"], attention_levels=(1,), conditions=label
    )


def theirs(case: dict[str, Any]) -> torch.nn.Module:
    """Diffusers' network of the same configuration."""
    import diffusers

    if case["kind"] == "dit":
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=case["heads"],
            attention_head_dim=case["width"] // case["heads"],
            in_channels=case["channels"],
            num_layers=case["depth"],
            sample_size=case["size"],
            patch_size=2,
            num_embeds_ada_norm=CLASSES,
        )
    levels = len(case["multipliers"])
    return diffusers.UNet2DModel(
        sample_size=case["size"],
        in_channels=case["channels"],
        out_channels=case["channels"],
        block_out_channels=tuple(case["width"] * m for m in case["multipliers"]),
        down_block_types=tuple("AttnDownBlock2D" if i == 1 else "DownBlock2D" for i in range(levels)),
        up_block_types=tuple("AttnUpBlock2D" if i == levels - 2 else "UpBlock2D" for i in range(levels)),
        layers_per_block=2,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=CLASSES + 1,
    )


def training_step(
    case: dict[str, Any], side: str, device: str, autocast: bool, channels_last: bool
) -> tuple[Step, int]:
    """One training step as a function, and the number of parameters."""
    net = (ours if side == "condiff" else theirs)(case).to(device).train()
    if side == "diffusers" and channels_last:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case["batch"], case["channels"], case["size"], case["size"], generator=generator).to(device)
    if side == "diffusers" and channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (case["batch"],), generator=generator).to(device)
    time01 = torch.rand(case["batch"], generator=generator).to(device)
    table_time = (time01 * 999).long()

    def output() -> torch.Tensor:
        if side == "condiff":
            return net(x, time01, {"label": labels})
        return net(x, table_time, class_labels=labels).sample[:, : case["channels"]]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = (output().float() - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in net.parameters())


def seconds(step: Step, device: str) -> tuple[float, float]:
    """Wall time and processor time (all threads) of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def throughput(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Interleaved minimum step times of both sides."""
    case, result = CASES[name], {}
    sides = ("condiff", "diffusers")
    steps = {}
    for side in sides:
        steps[side], parameters = training_step(case, side, args.device, args.bf16, args.channels_last)
        result[side] = {"parameters": parameters}
    for step in steps.values():
        for _ in range(3 if args.device == "cuda" else 1):
            step()
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            times[side].append(seconds(steps[side], args.device))
    for side in sides:
        wall, busy = (min(column) for column in zip(*times[side], strict=True))
        result[side] |= {"step_ms": 1e3 * wall, "cpu_ms": 1e3 * busy, "samples_per_s": case["batch"] / wall}
    result["throughput_ratio"] = result["condiff"]["samples_per_s"] / result["diffusers"]["samples_per_s"]
    result["cpu_time_ratio"] = result["diffusers"]["cpu_ms"] / result["condiff"]["cpu_ms"]
    return result


def peak_memory(name: str, side: str, args: argparse.Namespace) -> float:
    """MiB that training steps add to a process that holds the model."""
    step, _ = training_step(CASES[name], side, args.device, args.bf16, args.channels_last)
    if args.device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = resident_peak()
    for _ in range(2):
        step()
    return resident_peak() - before


def resident_peak() -> float:
    """MiB of the greatest resident set of this process (Linux; a child's ``ru_maxrss`` would include its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def measured_apart(name: str, side: str, args: argparse.Namespace) -> float:
    """:func:`peak_memory` in a process of its own."""
    flags = [f"--{flag}" for flag, on in (("bf16", args.bf16), ("channels-last", args.channels_last)) if on]
    command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads), *flags]
    done = subprocess.run([*command, "--peak", name, side], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where results are stored")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="autocast both sides to bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="give diffusers' UNet channels-last memory, too")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_memory(*args.peak, args))
        return
    results: dict[str, Any] = {
        "hardware": hardware(args.device),
        "threads": args.threads,
        "torch": torch.__version__,
        "bf16": args.bf16,
        "diffusers_channels_last": args.channels_last,
        "rounds": args.rounds,
        "load_average_at_start": os.getloadavg()[0],
        "cases": {},
    }
    for name in args.cases:
        result = throughput(name, args)
        if not args.no_memory:
            for side in ("condiff", "diffusers"):
                result[side]["peak_mib"] = measured_apart(name, side, args)
            result["memory_ratio"] = result["condiff"]["peak_mib"] / result["diffusers"]["peak_mib"]
        results["cases"][name] = {"config": CASES[name], **result}
        a, b = result["condiff"], result["diffusers"]
        print(
            f"{name:11s} {a['step_ms']:8.1f} ms | diffusers {b['step_ms']:8.1f} ms"
            f" | throughput x{result['throughput_ratio']:.2f}"
            f" (by processor time x{result['cpu_time_ratio']:.2f})"
            f" | parameters {a['parameters'] / 1e6:.2f} M, {b['parameters'] / 1e6:.2f} M"
            + ("" if args.no_memory else f" | peak {a['peak_mib']:.0f}, {b['peak_mib']:.0f} MiB"),
            flush=True,
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
