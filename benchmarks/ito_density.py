"""What a log-density along a trajectory costs and how sharp it is: the Itô estimator beside divergences.

``python benchmarks/ito_density.py [--json OUT] [--steps 20] [--rounds 5]``

Cost: milliseconds a step that a log-density adds to the evaluation of a network: the Itô estimator (one dot product),
one Hutchinson probe (a graph and a backward pass), and the exact divergence (a backward pass per dimension). All in one
process, in turn, the fastest of each counts. Error: RMSE in nats of log p at the end of the path, on a mixture in 16
dimensions whose densities are known, at equal numbers of steps.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sampling_overhead import hardware, keep
from torch import Tensor

from condiff import oracles
from condiff.denoiser import Denoiser
from condiff.derivatives import divergence, draw_probes
from condiff.networks import DiT, UNet
from condiff.process import Cosine, Gaussian
from condiff.random import as_source
from condiff.sampling import SDE, Euler, Hook, ItoDensity, Run, Step, Uniform, trajectory

PROCESS = Gaussian(Cosine())
GRID = Uniform(start=0.9, end=0.1)
SIDES: dict[str, tuple[Any, Callable[[Any], ItoDensity]]] = {
    "Itô": (SDE(), lambda prior: ItoDensity(prior=prior)),
    "Itô, kernels": (SDE(), lambda prior: ItoDensity(spread=0.5, prior=prior)),
    "Hutchinson, 1 probe": (Euler(), lambda prior: ItoDensity(divergence="hutchinson", prior=prior)),
    "exact divergence": (Euler(), lambda prior: ItoDensity(divergence="exact", prior=prior)),
}


def networks() -> dict[str, tuple[Denoiser, int]]:
    """Models with their batch sizes."""
    dit = DiT(shape=(1, 8, 8), width=96, depth=3)
    unet = UNet(shape=(3, 32, 32), width=32)
    return {
        "DiT, 1x8x8": (Denoiser(dit, PROCESS, "v", shape=(1, 8, 8)), 64),
        "UNet, 3x32x32": (Denoiser(unet, PROCESS, "v", shape=(3, 32, 32)), 8),
    }


class Timed(Hook):
    """A hook beside the time that it takes: a difference of two whole trajectories would drown in their noise."""

    def __init__(self, inner: ItoDensity) -> None:
        self.inner, self.seconds = inner, 0.0

    def start(self, run: Run) -> None:
        self.inner.start(run)

    def after(self, step: Step, run: Run) -> Tensor:
        begin = time.perf_counter()
        x = self.inner.after(step, run)
        self.seconds += time.perf_counter() - begin
        return x


def ito(model: Any, x: Tensor, name: str, steps: int) -> float:
    """Milliseconds a step of the hook alone."""
    solver, hook = SIDES[name]
    timed = Timed(hook(0.0))
    for _ in trajectory(model, x, solver=solver, grid=GRID, steps=steps, rng=0, hooks=[timed]):
        pass
    return 1e3 * timed.seconds / steps


def evaluation(model: Any, x: Tensor) -> float:
    """Milliseconds of one evaluation of the network."""
    begin = time.perf_counter()
    model(x, 0.5)
    return 1e3 * (time.perf_counter() - begin)


def with_divergence(model: Any, x: Tensor, name: str) -> float:
    """Milliseconds of one evaluation with the divergence of its velocity."""
    probes = draw_probes(1, "rademacher", x, as_source(0)) if "Hutchinson" in name else None
    begin = time.perf_counter()
    divergence(model, x, 0.5, probes=probes)
    return 1e3 * (time.perf_counter() - begin)


@torch.no_grad()
def cost(model: Any, batch: int, steps: int, rounds: int) -> tuple[float, dict[str, float]]:
    """``(one evaluation, what each side adds to it)``, the fastest of each; exact divergences of few dimensions."""
    x = torch.randn(batch, *model.shape, generator=torch.Generator().manual_seed(0))
    large = x[0].numel() > 256
    plain, best = float("inf"), {name: float("inf") for name in SIDES if not (large and name == "exact divergence")}
    for turn in range(rounds):
        plain = min(plain, evaluation(model, x))
        for name in best:
            if name == "exact divergence" and turn > 1:
                continue
            found = ito(model, x, name, steps) if name.startswith("Itô") else with_divergence(model, x, name)
            best[name] = min(best[name], found)
    return plain, {name: value if name.startswith("Itô") else value - plain for name, value in best.items()}


def error(name: str, steps: int, dims: int = 16, num: int = 200) -> float:
    """RMSE in nats at the end of the path."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(5, dims, generator=generator)
    model = oracles.mixture(PROCESS, means, stds=0.3)
    x = PROCESS.forward(model.sample(num, 0, dtype=torch.float64), 0.9, rng=1).x_t
    solver, hook = SIDES[name]
    density = hook(model.log_prob(x, 0.9))
    *_, last = trajectory(model, x, solver=solver, grid=GRID, steps=steps, rng=2, hooks=[density])
    gap = density.log_prob[:, 0] - model.log_prob(last.x_s, last.s)
    return round(float(gap.square().mean().sqrt()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ito_density.json")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*log-densities read off a path are noisy.*")

    rows = []
    for network, (model, batch) in networks().items():
        plain, extra = cost(model, batch, args.steps, args.rounds)
        ratio = {name: round(extra["Itô"] / value, 4) for name, value in extra.items()}
        extra = {name: round(value, 3) for name, value in extra.items()}
        rows.append(
            {"network": network, "batch": batch, "evaluation": round(plain, 3), "extra": extra, "ito_over": ratio}
        )
        print(f"{network}, batch {batch}: an evaluation takes {plain:.2f} ms")
        for name, value in extra.items():
            print(f"    {name:22s} + {value:9.3f} ms   Itô costs {ratio[name]:.4f} of it", flush=True)
    errors = {}
    for steps in (100, 400):
        errors[steps] = {name: error(name, steps) for name in SIDES}
        print(f"RMSE in nats, {steps} steps: {errors[steps]}", flush=True)
    result = {
        "what": "milliseconds a step that a density adds to an evaluation; RMSE in nats of log p, 16 dimensions",
        "hardware": hardware(),
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cost": rows,
        "rmse": errors,
    }
    keep(result, args.json)


if __name__ == "__main__":
    main()
