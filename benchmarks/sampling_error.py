"""Error against network evaluations on oracles: every solver of ours beside diffusers' schedulers at their best.

``python benchmarks/sampling_error.py [--json OUT] [--nfe 5 8 10 15 20 50] [--samples 64]``

Error is the root mean square distance, over samples and coordinates, between where a sampler ends and where the
probability-flow ODE ends from the same initial state (an adaptive Runge-Kutta rule of order 8, tolerance 1e-9).
Everything is float64 where diffusers allows it. Each side may choose, for every number of evaluations, the best of its
settings: diffusers over schedulers, spacing and sigmas, ours over solvers and grids. Two families of paths: the linear
table of 1000 levels (DDPM), and the rectified path of flow models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.process import EDM, Discrete, Gaussian, Rectified
from condiff.process.oracles import empirical, gaussian, mixture
from condiff.sampling import (
    DDIM,
    AdamsBashforth,
    Adaptive,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Grid,
    Heun,
    Karras,
    Power,
    RungeKutta,
    Shifted,
    Solver,
    Spaced,
    Uniform,
    UniformLogSNR,
    UniPC,
    sample,
)

Sampler = Callable[[int], Tensor]  # steps -> final state
TABLE, FLOW = Gaussian(Discrete.ddpm()), Gaussian(Rectified())
NFE = (5, 8, 10, 15, 20, 50)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0
        self.process, self.shape, self.kinds = inner.process, inner.shape, inner.kinds

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.inner(x, t, cond)


# Oracles


def oracles(process: Gaussian) -> dict[str, Any]:
    """The three data laws under a process."""
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().data) / 8.0 - 1.0
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4.0)
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    spectrum = torch.logspace(-4.0, 0.0, 16, dtype=torch.float64)
    return {
        "2-D mixture": mixture(process, ring, stds=0.1),
        "digits, 64-D points": empirical(process, digits),
        "Gaussian, condition 1e4": gaussian(process, torch.zeros(16), (turn * spectrum) @ turn.T),
    }


def reference(name: str, process: Gaussian, x: Tensor) -> Tensor:
    """Where the probability-flow ODE ends.

    It doesn't depend on how alpha and the time run between two noise-to-data ratios, so the table, whose velocity has
    a kink at each of its levels, is replaced by the smooth variance-exploding path over the same ratios.
    """
    start = process.at(1.0)
    if start.data > 0.0:
        process, x = Gaussian(EDM(sigma_max=start.noise / start.data)), x / start.data
    solver = Adaptive(rtol=1e-9, atol=1e-9, method="dopri8", floor=1e-5)
    return sample(oracles(process)[name], solver=solver, grid=[1.0, 0.0], initial=x)


# Ours


def our_samplers(oracle: Counted, x: Tensor) -> Iterator[tuple[str, str, Sampler]]:
    """``(solver, grid, sampler)`` for every solver of ours on its grids."""
    for (solver_name, solver), (grid_name, grid) in itertools.product(SOLVERS.items(), our_grids(oracle).items()):

        def run(steps: int, solver: Solver = solver, grid: Grid = grid) -> Tensor:
            return sample(oracle, solver=solver, grid=grid, steps=steps, initial=x)

        yield solver_name, grid_name, run


SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "Euler": Euler(),
    "Heun": Heun(),
    "DPM-Solver++ 2M": DPMSolverPP(),
    "DPM-Solver++ 2M adams": DPMSolverPP(rule="adams"),
    "DPM-Solver++ 3M": DPMSolverPP(order=3),
    "DPM-Solver 2": DPMSolver(),
    "DPM-Solver 3": DPMSolver(order=3),
    "DPM-Solver 2 adams": DPMSolver(rule="adams"),
    "DPM-Solver 3 adams": DPMSolver(order=3, rule="adams"),
    "UniPC 2": UniPC(),
    "UniPC 3": UniPC(order=3),
    "Adams-Bashforth 2": AdamsBashforth(),
    "Adams-Bashforth 3": AdamsBashforth(order=3),
    "Runge-Kutta 2": RungeKutta("midpoint"),
    "Runge-Kutta 4": RungeKutta("rk4"),
}


def our_grids(oracle: Counted) -> dict[str, Grid]:
    if oracle.process is TABLE:
        return {
            "trailing": Spaced(),
            "linspace": Spaced(spacing="linspace"),
            "leading": Spaced(spacing="leading", one_more=True),
            "uniform": Uniform(),
            "quadratic": Power(),
            "karras": Karras(),
            "log-snr": UniformLogSNR(),
        }
    return {
        "uniform": Uniform(),
        "shifted 3": Shifted(),
        "quadratic": Power(),
        "karras": Karras(sigma_max=200.0, sigma_min=0.002),
        "log-snr": UniformLogSNR(sigma_max=200.0, sigma_min=0.002),
    }


# Diffusers


def diffusers_samplers(oracle: Counted, x: Tensor) -> Iterator[tuple[str, str, Sampler]]:
    """``(scheduler, setting, sampler)`` over spacing and sigmas."""
    settings = table_schedulers() if oracle.process is TABLE else flow_schedulers()
    for name, setting, make in settings:
        yield name, setting, lambda steps, make=make: run_scheduler(make(), oracle, x, steps)


def table_schedulers() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    import diffusers as d

    spacings = ("trailing", "linspace", "leading")
    spaced = [{"timestep_spacing": s} for s in spacings]
    sigmas = [{f"use_{s}_sigmas": True} for s in ("karras", "exponential", "beta")]
    both = [a | b for a, b in itertools.product(spaced, sigmas)]
    lu = [{"use_lu_lambdas": True}]
    third = {"solver_order": 3}
    # Where a scheduler's own sigmas replace the spaced timesteps, one spacing stands for all.
    rows: list[tuple[str, Any, dict[str, Any], list[dict[str, Any]]]] = [
        ("DDIM", d.DDIMScheduler, {"clip_sample": False}, spaced),
        ("PNDM", d.PNDMScheduler, {"skip_prk_steps": True}, spaced),
        ("Euler", d.EulerDiscreteScheduler, {}, spaced + both),
        ("Heun", d.HeunDiscreteScheduler, {}, spaced + both),
        ("LMS", d.LMSDiscreteScheduler, {}, spaced + both),
        ("DPM-Solver++ 2M", d.DPMSolverMultistepScheduler, {}, spaced + sigmas + lu),
        ("DPM-Solver++ 3M", d.DPMSolverMultistepScheduler, third, spaced + sigmas + lu),
        ("DPM-Solver++ 2S", d.DPMSolverSinglestepScheduler, {}, [{}, *sigmas]),
        ("DEIS 3", d.DEISMultistepScheduler, third, spaced + sigmas),
        ("UniPC 2", d.UniPCMultistepScheduler, {}, spaced + sigmas),
        ("UniPC 3", d.UniPCMultistepScheduler, third, spaced + sigmas),
    ]
    for name, cls, options, settings in rows:
        for setting in settings:
            words = " ".join(str(v) if k == "timestep_spacing" else k.split("_")[1] for k, v in setting.items())
            yield name, words or "linspace", lambda c=cls, o=options | setting: c(**o)


def flow_schedulers() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    import diffusers as d

    for flag in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}):
        name = next(iter(flag), "use_uniform_sigmas").split("_")[1]
        for shift in (1.0, 3.0):
            yield "Euler", f"{name} {shift:g}", lambda f=flag, s=shift: d.FlowMatchEulerDiscreteScheduler(shift=s, **f)
    for shift in (1.0, 3.0):
        yield "Heun", f"{shift:g}", lambda s=shift: d.FlowMatchHeunDiscreteScheduler(shift=s)
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        yield "DPM-Solver++ 2M", f"{shift:g}", lambda f=flow: d.DPMSolverMultistepScheduler(**f)
        yield "UniPC 2", f"{shift:g}", lambda f=flow: d.UniPCMultistepScheduler(**f)


def run_scheduler(scheduler: Any, oracle: Counted, x: Tensor, steps: int) -> Tensor:
    """A pipeline's loop. The oracle is told the noise level that the scheduler works with, not its rounded timestep."""
    scheduler.set_timesteps(steps)
    state = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        said = oracle(given.double(), scheduler_time(scheduler, oracle.process, i, t))
        value = said.noise if oracle.process is TABLE else said.velocity
        state = scheduler.step(value, t, state, return_dict=False)[0]
    return state.double()


def scheduler_time(scheduler: Any, process: Gaussian, i: int, t: Tensor) -> float:
    """Our time of a scheduler's i-th evaluation."""
    if process is FLOW:
        return float(scheduler.sigmas[i])
    if not hasattr(scheduler, "sigmas"):
        return (float(t) + 1.0) / 1000.0
    return float(process.time(-2.0 * torch.log(scheduler.sigmas[i].double())))


# Measuring


def best_within(run: Sampler, oracle: Counted, budget: int, wanted: Tensor) -> float | None:
    """The error with the most steps that cost at most ``budget`` evaluations, None where a sampler can't."""
    steps = budget
    while steps >= 1:
        cost, end = attempt(run, oracle, steps)
        if cost <= budget:
            fine = end is not None and bool(torch.isfinite(end).all())
            return float((end - wanted).square().mean().sqrt()) if fine else None
        # Evaluations grow in proportion to steps, less one or two at the end.
        steps = min(steps - 1, (budget * steps) // cost + 1)
    return None


def attempt(run: Sampler, oracle: Counted, steps: int) -> tuple[int, Tensor | None]:
    """The evaluations and the end of a run; no end where the scheduler or the grid refuses so few steps."""
    oracle.calls = 0
    try:
        end = run(steps)
    except (ValueError, IndexError, ArithmeticError):
        end = None
    return oracle.calls, end


def table(samplers: Any, oracle: Counted, wanted: Tensor, budgets: list[int]) -> dict[str, dict[str, Any]]:
    """For every solver and budget the best setting with its error."""
    out: dict[str, dict[str, Any]] = {}
    for name, setting, run in samplers:
        for budget in budgets:
            error = best_within(run, oracle, budget, wanted)
            best = out.setdefault(name, {}).get(str(budget))
            if error is not None and (best is None or error < best["error"]):
                out[name][str(budget)] = {"error": error, "setting": setting}
    return out


def winner(rows: dict[str, dict[str, Any]], budget: int) -> dict[str, Any]:
    entries = [{"solver": name, **row[str(budget)]} for name, row in rows.items() if str(budget) in row]
    return min(entries, key=lambda e: e["error"])


def show(title: str, ours: dict[str, Any], theirs: dict[str, Any], budgets: list[int]) -> None:
    print(f"\n{title}\n{'NFE':28s}" + "".join(f"{b:>11d}" for b in budgets))
    for side, rows in (("ours", ours), ("diffusers", theirs)):
        for name, row in rows.items():
            cells = "".join(f"{row[str(b)]['error']:11.2e}" if str(b) in row else f"{'-':>11s}" for b in budgets)
            print(f"{side + ' ' + name:28s}" + cells)
    ratios = [ratio(winner(ours, b)["error"], winner(theirs, b)["error"]) for b in budgets]
    cells = "".join(f"{'exact':>11s}" if r is None else f"{r:11.3f}" for r in ratios)
    print(f"{'best ours / best diffusers':28s}" + cells, flush=True)


def ratio(ours: float, theirs: float) -> float | None:
    """None where both end on the reference to its own accuracy."""
    return None if max(ours, theirs) < 1e-7 else ours / max(theirs, 1e-7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sampling_error.json")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    import diffusers

    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    rows = []
    for family, process in (("table of 1000 levels", TABLE), ("rectified path", FLOW)):
        for name, inner in oracles(process).items():
            oracle = Counted(inner)
            shape = (args.samples, *inner.shape)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            wanted = reference(name, process, x)
            ours = table(our_samplers(oracle, x), oracle, wanted, args.nfe)
            theirs = table(diffusers_samplers(oracle, x), oracle, wanted, args.nfe)
            show(f"{family}, {name}", ours, theirs, args.nfe)
            best = {str(b): {"ours": winner(ours, b), "diffusers": winner(theirs, b)} for b in args.nfe}
            for pair in best.values():
                pair["ratio"] = ratio(pair["ours"]["error"], pair["diffusers"]["error"])
            rows.append({"path": family, "oracle": name, "ours": ours, "diffusers": theirs, "best": best})
    result = {
        "what": "root mean square error of the end of the probability-flow ODE, by number of network evaluations",
        "samples": args.samples,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "rows": rows,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
