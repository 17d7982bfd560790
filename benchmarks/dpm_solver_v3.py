"""Error of DPM-Solver-v3 at few evaluations, beside diffusers' UniPC, DPM-Solver++ and DEIS.

``python benchmarks/dpm_solver_v3.py [--json OUT] [--nfe 5 8 10] [--samples 64] [--states 128] [--nodes 100]``

Error is the root mean square distance, over samples and coordinates, between where a sampler ends and where the
probability-flow ODE is at that level from the same initial state, on the linear table of 1000 levels (DDPM): for two
oracles, whose denoiser is exact, and for a network trained on digits, plain and guided (scale 3). Each side may choose,
for every number of evaluations, the best of its settings: orders 2 and 3, and diffusers its spacings, sigmas and last
level, ours four grids. Both run in one process on the same denoiser.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sampling_error import TABLE, Counted, oracles, run_scheduler
from torch import Tensor

from condiff.guidance import Free
from condiff.methods import ddpm, experiment
from condiff.sampling import DDIM, DPMSolverV3, ModelStatistics, RungeKutta, measure_statistics, sample

NFE = (5, 8, 10)
SPACINGS = ("trailing", "linspace", "leading")
SIGMAS = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class Problem:
    """A denoiser, what it is measured on, and where its ODE ends."""

    name: str
    model: Any
    statistics: ModelStatistics
    x: Tensor
    cond: Any
    exact: Tensor  # at the last numbered level
    clean: Tensor  # at t = 0
    seconds: float  # of the measurement


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    for name in ("2-D mixture", "digits, 64-D points"):
        oracle = oracles(TABLE)[name]
        data = oracle.sample(args.states, rng=1, dtype=torch.float64)
        x = torch.randn(args.samples, *oracle.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        yield problem(name, oracle, x, None, {"data": data, "nodes": args.nodes}, 300)
    lab = experiment.Digits("dpm-solver-v3", "small", steps=args.training)
    model = lab.train(ddpm.recipe(lab.facts), 0).denoiser  # predicts the noise
    x = torch.randn(args.samples, *lab.facts.shape, generator=torch.Generator().manual_seed(1))
    labels = {"label": lab.labels(args.samples)}
    batch = lab.data.batch(range(args.states))  # type: ignore[union-attr]
    known = {"data": batch["x"], "cond": batch["cond"], "nodes": args.nodes}
    yield problem("learned digits", model, x, labels, known, 100)
    on_path = {"cond": {"label": lab.labels(args.states)}, "nodes": args.nodes}
    yield problem("learned digits, guided 3", Free(model, scale=3.0), x, labels, on_path, 100)


def problem(name: str, model: Any, x: Tensor, cond: Any, known: dict[str, Any], fine: int) -> Problem:
    started = time.perf_counter()
    statistics = measure_statistics(model, rng=0, batch=256, **known)
    seconds = time.perf_counter() - started
    print(f"{name}: measured in {seconds:.0f} s", flush=True)
    grid, rule = statistics.grid("log_snr"), RungeKutta("rk4")
    exact = sample(model, solver=rule, grid=grid, steps=fine, initial=x, cond=cond)
    clean = sample(model, solver=DDIM(), grid=[statistics.end, 0.0], initial=exact, cond=cond)
    return Problem(name, model, statistics, x, cond, exact, clean, seconds)


def error(end: Tensor, exact: Tensor) -> float:
    return float((end.double() - exact.double()).square().mean().sqrt())


def ours(p: Problem, nfe: int) -> dict[str, Any]:
    """The best of two orders, as recommended for guided and for plain models, and four grids."""
    found = []
    for order, spacing in itertools.product((2, 3), ("log_snr", "time", "quadratic", "karras")):
        solver = DPMSolverV3(p.statistics, order=order, pseudo_corrector=order == 2)
        end = sample(p.model, solver=solver, grid=p.statistics.grid(spacing), steps=nfe, initial=p.x, cond=p.cond)
        found.append({"error": error(end, p.exact), "setting": f"order {order}, {spacing}"})
    return min(found, key=lambda row: row["error"])


class Told:
    """A denoiser with its conditions, as the loop of :mod:`sampling_error` calls it."""

    def __init__(self, p: Problem) -> None:
        self.p, self.process = p, p.model.process
        self.shape, self.kinds = p.model.shape, p.model.kinds

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Any:
        return self.p.model(x.to(self.p.x.dtype), t, self.p.cond)


def schedulers() -> Iterator[tuple[str, str, Any]]:
    """``(name, setting, make)`` over orders, spacings and sigmas."""
    import diffusers as d

    classes = {
        "DPM-Solver++": d.DPMSolverMultistepScheduler,
        "UniPC": d.UniPCMultistepScheduler,
        "DEIS": d.DEISMultistepScheduler,
    }
    settings = [{"timestep_spacing": s} for s in SPACINGS] + [{f"use_{s}_sigmas": True} for s in SIGMAS]
    for (name, cls), order, setting in itertools.product(classes.items(), (2, 3), settings):
        last = {} if name == "DEIS" else {"final_sigmas_type": "sigma_min"}
        for ends in [{}] if name == "DEIS" else [{}, last]:
            words = " ".join(str(v) if k == "timestep_spacing" else k.split("_")[1] for k, v in setting.items())
            label = f"order {order}, {words}{', to sigma_min' if ends else ''}"
            yield name, label, lambda c=cls, o={"solver_order": order} | setting | ends: c(**o)


def theirs(p: Problem, nfe: int) -> dict[str, dict[str, Any]]:
    """The best setting of each scheduler with at most ``nfe`` evaluations."""
    best: dict[str, dict[str, Any]] = {}
    for name, setting, make in schedulers():
        counted = Counted(Told(p))
        counted.process = TABLE
        scheduler = make()
        try:
            with torch.no_grad():
                end = run_scheduler(scheduler, counted, p.x, nfe)
        except (ValueError, IndexError, ArithmeticError):
            continue
        if counted.calls > nfe or not bool(torch.isfinite(end).all()):
            continue
        wanted = p.clean if float(scheduler.sigmas[-1]) == 0.0 else p.exact
        row = {"error": error(end, wanted), "setting": setting}
        if name not in best or row["error"] < best[name]["error"]:
            best[name] = row
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "dpm_solver_v3.json")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--states", type=int, default=128, help="states that the statistics are measured on")
    parser.add_argument("--nodes", type=int, default=100, help="intervals of the tables")
    parser.add_argument("--training", type=int, default=400, help="training steps of the network")
    args = parser.parse_args()
    import diffusers

    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    rows = []
    for p in problems(args):
        print(f"\n{p.name}\n{'NFE':24s}" + "".join(f"{n:>12d}" for n in args.nfe))
        table = {str(n): {"ours": ours(p, n), "diffusers": theirs(p, n)} for n in args.nfe}
        for row in table.values():
            row["ratio"] = row["ours"]["error"] / min(r["error"] for r in row["diffusers"].values())
        print(f"{'ours DPM-Solver-v3':24s}" + "".join(f"{r['ours']['error']:12.2e}" for r in table.values()))
        for name in ("UniPC", "DPM-Solver++", "DEIS"):
            cells = (f"{r['diffusers'][name]['error']:12.2e}" for r in table.values())
            print(f"{'diffusers ' + name:24s}" + "".join(cells))
        print(f"{'ours / best diffusers':24s}" + "".join(f"{r['ratio']:12.3f}" for r in table.values()), flush=True)
        rows.append({"problem": p.name, "measured_seconds": p.seconds, "nfe": table})
    result = {
        "what": "root mean square error of the end of the probability-flow ODE, by number of network evaluations",
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
