"""What a sampling step costs beside the network: our loop, diffusers' schedulers, plain loops, azula's samplers.

``python benchmarks/sampling_overhead.py [--json OUT] [--steps 50] [--rounds 30]``

The network is free: it returns one stored tensor. All sides run in one process, a trajectory of one after a trajectory
of the other, and the fastest of each counts. Two figures per side, in microseconds a step: ``loop``, from the end of
the first step to the end of the last; and ``all``, the whole trajectory with its preparation (grid, coefficients,
``set_timesteps``), which every generation pays. azula is measured where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.process import EDM, Discrete, Gaussian, Prediction, Rectified
from condiff.sampling import DDIM, DPMSolverPP, Euler, Karras, Spaced, Uniform, UniPC, trajectory

SHAPES = {"1 x 4x8x8": (1, 4, 8, 8), "64 x 3x32x32": (64, 3, 32, 32)}
METHODS = ("DDIM", "DPM-Solver++ 2M", "UniPC", "Euler", "flow Euler")
Loop = Callable[[int], Iterator[None]]  # steps -> a generator that yields after each step


class Free:
    """A denoiser that costs nothing."""

    kinds = None

    def __init__(self, process: Gaussian, kind: str, value: Tensor) -> None:
        self.process, self.kind, self.value, self.shape = process, kind, value, tuple(value.shape[1:])

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Prediction:
        return Prediction(x, t, {self.kind: self.value})


def condiff_loop(method: str, x: Tensor, value: Tensor) -> Loop:
    """Our sampler: the loop that users call, with its hooks, counters and checks."""
    table, flow, edm = Gaussian(Discrete.ddpm()), Gaussian(Rectified()), Gaussian(EDM())
    denoiser, solver, grid = {
        "DDIM": (Free(table, "noise", value), DDIM(), Spaced()),
        "DPM-Solver++ 2M": (Free(table, "noise", value), DPMSolverPP(), Spaced()),
        "UniPC": (Free(table, "noise", value), UniPC(), Spaced()),
        "Euler": (Free(edm, "x0", value), DDIM(), Karras()),
        "flow Euler": (Free(flow, "velocity", value), Euler(), Uniform()),
    }[method]

    def run(steps: int) -> Iterator[None]:
        for _ in trajectory(denoiser, x, solver=solver, grid=grid, steps=steps, rng=0):
            yield

    return run


def diffusers_loop(method: str, x: Tensor, value: Tensor) -> Loop:
    """The loop of a diffusers pipeline around its scheduler."""
    import diffusers

    kwargs: dict[str, Any] = {"timestep_spacing": "trailing"}
    scheduler = {
        "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False, **kwargs),
        "DPM-Solver++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(**kwargs),
        "UniPC": lambda: diffusers.UniPCMultistepScheduler(**kwargs),
        "Euler": lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **kwargs),
        "flow Euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    }[method]()

    def run(steps: int) -> Iterator[None]:
        scheduler.set_timesteps(steps)
        state = x
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(state, t)
            state = scheduler.step(value, t, state, return_dict=False)[0]
            yield

    return run


def plain_loop(method: str, x: Tensor, value: Tensor) -> Loop | None:
    """A function of a few lines with tensors of noise levels, in the manner of k-diffusion."""

    def karras(steps: int) -> Tensor:
        ramp = torch.linspace(0, 1, steps)
        sigmas = (80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return value

    def euler(steps: int) -> Iterator[None]:
        sigmas, state = karras(steps), x
        ones = x.new_ones([x.shape[0]])
        for i in range(steps):
            denoised = model(state, sigmas[i] * ones)
            slope = (state - denoised) / sigmas[i].reshape(1, 1, 1, 1)
            state = state + slope * (sigmas[i + 1] - sigmas[i])
            yield

    def dpm_2m(steps: int) -> Iterator[None]:
        sigmas, state, old = karras(steps), x, None
        ones = x.new_ones([x.shape[0]])
        log = -sigmas.log()
        for i in range(steps):
            denoised = model(state, sigmas[i] * ones)
            h = log[i + 1] - log[i]
            if old is None or sigmas[i + 1] == 0:
                mixed = denoised
            else:
                r = (log[i] - log[i - 1]) / h
                mixed = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
            state = (sigmas[i + 1] / sigmas[i]) * state - (-h).expm1() * mixed
            old = denoised
            yield

    def flow(steps: int) -> Iterator[None]:
        times, state = torch.linspace(1, 0, steps + 1), x
        ones = x.new_ones([x.shape[0]])
        for i in range(steps):
            velocity = model(state, times[i] * ones)
            state = state + (times[i + 1] - times[i]) * velocity
            yield

    return {"Euler": euler, "DPM-Solver++ 2M": dpm_2m, "flow Euler": flow}.get(method)


def azula_loop(method: str, x: Tensor, value: Tensor) -> Loop | None:
    """azula's sampler, stepped by hand as its __call__ does."""
    if method not in ("DDIM", "Euler") or importlib.util.find_spec("azula") is None:
        return None
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler, EulerSampler

    class FreeDenoiser(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
            return DiracPosterior(mean=value)

    cls = {"DDIM": DDIMSampler, "Euler": EulerSampler}[method]
    denoiser = FreeDenoiser()

    def run(steps: int) -> Iterator[None]:
        sampler = cls(denoiser, steps=steps, silent=True)
        state = x
        for t, s in sampler.timesteps.unfold(0, 2, 1).unbind():
            state = sampler.step(state, t, s)
            yield

    return run


def clock(loop: Loop, steps: int) -> tuple[float, float]:
    """``(loop, all)`` in microseconds a step."""
    start = time.perf_counter()
    run = loop(steps)
    next(run)
    first = time.perf_counter()
    for _ in run:
        pass
    end = time.perf_counter()
    return 1e6 * (end - first) / (steps - 1), 1e6 * (end - start) / steps


def measure(method: str, shape: tuple[int, ...], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """The fastest trajectory of every side."""
    generator = torch.Generator().manual_seed(0)
    x, value = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    sides = {"condiff": condiff_loop, "diffusers": diffusers_loop, "plain": plain_loop, "azula": azula_loop}
    loops = {name: loop for name, make in sides.items() if (loop := make(method, x, value)) is not None}
    best = {name: (float("inf"), float("inf")) for name in loops}
    with torch.no_grad():
        for _ in range(rounds):
            for name, loop in loops.items():
                best[name] = tuple(map(min, best[name], clock(loop, steps)))  # type: ignore[assignment]
    return {name: {"loop": round(a, 1), "all": round(b, 1)} for name, (a, b) in best.items()}


def keep(result: dict, path: Path) -> None:
    """Write a benchmark's figures, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sampling_overhead.json")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import diffusers

    rows = []
    print(f"{'':32s}{'condiff':>16s}{'diffusers':>16s}{'ratio':>8s}{'plain':>16s}{'azula':>16s}   microseconds a step")
    for shape_name, shape in SHAPES.items():
        for method in METHODS:
            times = measure(method, shape, args.steps, args.rounds)
            ratio = {k: round(times["condiff"][k] / times["diffusers"][k], 3) for k in ("loop", "all")}
            rows.append({"shape": shape_name, "method": method, "microseconds": times, "ratio_to_diffusers": ratio})
            cells = [f"{t['loop']:7.1f}/{t['all']:7.1f}" if t else "-" for t in map(times.get, ("plain", "azula"))]
            ours, theirs = times["condiff"], times["diffusers"]
            print(
                f"{shape_name:14s}{method:18s}{ours['loop']:8.1f}/{ours['all']:7.1f}"
                f"{theirs['loop']:8.1f}/{theirs['all']:7.1f}{ratio['loop']:8.2f}{cells[0]:>16s}{cells[1]:>16s}",
                flush=True,
            )
    result = {
        "what": "microseconds a step without a network: loop alone / with the preparation of the grid",
        "hardware": hardware(),
        "threads": args.threads,
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
        "steps": args.steps,
        "rounds": args.rounds,
        "rows": rows,
    }
    keep(result, args.json)


if __name__ == "__main__":
    main()
