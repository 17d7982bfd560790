"""What goes with what: every pair of a process, a target, a guidance, a solver and a condition, tried on exact models.

A pair *runs* when samples have the law that they should have: with Gaussian data every denoiser here is affine, so the
law of a sampler is worked out exactly (:func:`~condiff.sampling.affine_law`), must come close to that of the data, or
of the guided flow (:func:`~condiff.sampling.continuous_law`), and closer with twice the steps. Tokens, joint states,
Langevin steps and Student-t noise are checked on drawn samples. A pair that has no meaning is *refused*, and the error
says why. ``composition.json`` holds the outcome of all pairs, :func:`table` makes it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.errors import CondiffError, Incompatible, NonFinite
from condiff.methods import compositions as axes
from condiff.methods.compositions import TokenTwin, Told, Twins
from condiff.process import Joint, Moments, Prior, TokenProcess
from condiff.sampling import GaussianLaw, Solver, affine_law, continuous_law, sample

STEPS = 30
CLOSE = 0.2  # of a standard deviation or a variance, with twice as many steps
EXACT = 0.02  # below this an error need not fall any more
DRAWN, TOKENS = 2000, 1000
# Times that are tried in turn: fields may be singular where there is no data left, or no noise.
ENDS = {"runs": (1.0, 0.0), "runs below t = 1": (0.995, 0.0), "runs between the ends": (0.995, 0.002)}
AXES = {
    "process": axes.PROCESSES,
    "target": axes.TARGETS,
    "guidance": axes.GUIDANCES,
    "solver": axes.SOLVERS,
    "condition": axes.CONDITIONS,
}
PAIRS = tuple(itertools.combinations(AXES, 2))


@dataclass(frozen=True)
class Outcome:
    """Of one pair: ``"runs"``, perhaps with where, or ``"refused"``; why, or the distance from the right law."""

    outcome: str
    why: str = ""
    distance: float = 0.0


def stored() -> dict[str, dict[str, dict[str, list[str]]]]:
    """The table that comes with this version: ``{"process x solver": {row: {column: [outcome, why]}}}``."""
    return json.loads(resources.files("condiff.methods").joinpath("composition.json").read_text(encoding="utf-8"))


def table(first: str, second: str) -> dict[str, dict[str, list[str]]]:
    """All pairs of two axes, tried now."""
    rows = {}
    for a in AXES[first]:
        outcomes = {b: outcome(**{first: a, second: b}) for b in AXES[second]}
        rows[a] = {b: [found.outcome, found.why] for b, found in outcomes.items()}
    return rows


def outcome(**chosen: str) -> Outcome:
    """What happens with a choice of two or more of the axes by name; the others are chosen to suit.

    Raises:
        AssertionError: a combination that runs and gives samples of another law.
    """
    case = axes.complete(chosen)
    why = ""
    for name, ends in ENDS.items():
        try:
            return Outcome(name, distance=_distance(case, ends))
        except NonFinite as error:
            raise AssertionError(f"{case}: {error}") from error
        except CondiffError as error:
            why = str(error)
    return Outcome("refused", _sentence(why, case))


def _sentence(text: str, case: Mapping[str, str]) -> str:
    """What is said before advice follows, with the process and the solver by their names in the table."""
    process = axes.PROCESSES[case["process"]]()
    parts = [process, *process.processes.values()] if isinstance(process, Joint) else [process]
    for part in parts:
        text = text.replace(repr(part), "this process")
    with contextlib.suppress(CondiffError):
        solver = axes.SOLVERS[case["solver"]](SimpleNamespace(process=process))
        text = text.replace(repr(solver), case["solver"])
    return text.split(". ")[0].split("; ")[0].strip()


def _grid(ends: tuple[float, float], steps: int) -> Tensor:
    """Uniform; closer towards both ends where the grid starts below t = 1, because a field is singular there."""
    u = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    if ends[0] < 1.0:
        u = torch.sin(0.5 * math.pi * u) ** 2
    return ends[0] + (ends[1] - ends[0]) * u


def _distance(case: Mapping[str, str], ends: tuple[float, float]) -> float:
    """How far the samples' law is from the right one.

    Raises:
        CondiffError: what doesn't go together.
        AssertionError: too far.
    """
    process = axes.PROCESSES[case["process"]]()
    cond = axes.conditions(case)
    if isinstance(process, TokenProcess):
        return _tokens(case, process, cond)
    if isinstance(process, Joint):
        return _joint(case, process, cond, ends)
    start = process.at(ends[0])
    told = Told(process, case["target"], axes.dims(case))
    model = axes.GUIDANCES[case["guidance"]](told)
    make = axes.SOLVERS[case["solver"]]
    if not process.noise_law.gaussian or case["solver"] in axes.NOT_AFFINE:
        _refuse_point(told.prior_law(start, cond), make(model))
        right = _right(case, told, model, cond, ends, make(model))
        return _close(_drawn(model, make(model), cond, ends, told.prior(start, cond)).distance(right), case)
    laws = []
    for steps in (STEPS, 2 * STEPS):
        solver = make(model)
        laws.append(affine_law(model, solver=solver, grid=_grid(ends, steps), cond=cond, prior=told.prior(start, cond)))
        _refuse_point(told.prior_law(start, cond), solver)
    right = _right(case, told, model, cond, ends, make(model))
    first, second = (law.distance(right) for law in laws)
    if not (second < EXACT or second < 0.75 * first):
        raise AssertionError(f"{dict(case)}: no convergence, {first} and {second}")
    # What a rule of order 1 would give without its leading error: a slow rule may still be on its way.
    limit = GaussianLaw(2.0 * laws[1].mean - laws[0].mean, 2.0 * laws[1].cov - laws[0].cov)
    return _close(min(second, limit.distance(right)), case)


def _refuse_point(start: GaussianLaw, solver: Solver) -> None:
    if not (solver.stochastic or bool(start.cov.any())):
        raise Incompatible("a deterministic solver makes one sample of an endpoint: start below t = 1")


def _close(distance: float, case: Mapping[str, str]) -> float:
    if not distance < CLOSE:
        raise AssertionError(f"{dict(case)}: samples are {distance:.3f} standard deviations from their law")
    return distance


def _right(
    case: Mapping[str, str], told: Told, model: Any, cond: Conditions, ends: tuple[float, float], solver: Solver
) -> GaussianLaw:
    """The law that samples should have: the data's at the last time, or what the guided flow leads to."""
    last = model.process.at(ends[1])
    if case["guidance"] in axes.UNGUIDED:
        return told.law(last, cond)
    first = model.process.at(ends[0])
    start = told.law(first, cond) if isinstance(told.prior(first, cond), Moments) else told.prior_law(first, cond)
    noise = 1.0 if solver.stochastic else 0.0
    return continuous_law(model, start, grid=ends, cond=cond, noise=noise, nodes=500)


def _drawn(model: Any, solver: Solver, cond: Conditions, ends: tuple[float, float], prior: Prior | None) -> GaussianLaw:
    many = cond.map(lambda v: v.expand(DRAWN, *v.shape[1:]))
    x = sample(
        model, solver=solver, grid=_grid(ends, 2 * STEPS), cond=many, num=DRAWN, seed=0, dtype=torch.float64,
        prior=prior,
    )  # fmt: skip
    return GaussianLaw(x.mean(0), x.mT.cov())


def _tokens(case: Mapping[str, str], process: TokenProcess, cond: Conditions) -> float:
    """The share of samples that would have to change to have the right frequencies."""
    twin = TokenTwin(process, case["target"])
    model = axes.GUIDANCES[case["guidance"]](twin)
    many = cond.map(lambda v: v.expand(TOKENS, *v.shape[1:]))
    x = sample(model, solver=axes.SOLVERS[case["solver"]](model), steps=STEPS, cond=many, num=TOKENS, seed=0)
    drawn = torch.bincount(twin.index(x), minlength=len(twin.law)).double() / TOKENS
    return _close(float((drawn - twin.law).abs().sum() / 2), case)


def _joint(case: Mapping[str, str], process: Joint, cond: Conditions, ends: tuple[float, float]) -> float:
    twins = Twins(process, case["target"])
    model = axes.GUIDANCES[case["guidance"]](twins)
    many = cond.map(lambda v: v.expand(DRAWN, *v.shape[1:]))
    x = sample(
        model, solver=axes.SOLVERS[case["solver"]](model), grid=_grid(ends, 2 * STEPS), cond=many, num=DRAWN, seed=0,
        shape=twins.shape,
    )  # fmt: skip
    laws = {name: GaussianLaw(part.double().mean(0), part.double().mT.cov()) for name, part in x.items()}
    return _close(max(laws[name].distance(twins.parts[name].law(process[name].at(ends[1]), cond)) for name in x), case)


def main() -> None:
    """Print the table as JSON: ``python -m condiff.methods.composition > condiff/methods/composition.json``."""
    print(json.dumps({f"{a} x {b}": table(a, b) for a, b in PAIRS}, indent=1))


if __name__ == "__main__":
    main()
