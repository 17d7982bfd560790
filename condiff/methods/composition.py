"""What goes with what: pairs of processes, targets, guidances, solvers, conditions, grids, hooks, on exact models.

A pair *runs* when samples have the law that they should have: with Gaussian data every denoiser here is affine, so the
law of a sampler is worked out exactly (:func:`~condiff.sampling.affine_law`), must come close to that of the data, or
of the guided flow (:func:`~condiff.sampling.continuous_law`), and closer with twice the steps. Tokens, joint states,
Langevin steps and Student-t noise are checked on drawn samples, and the rule of consistency models, which doesn't lead
to the data's law, against the law that it has on the same times. A pair that has no meaning is *refused*, and the error
says why. ``composition.json`` holds the outcome of all pairs, :func:`table` makes it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
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
from condiff.methods.composition_hooks import GRIDS, HOOKS, with_hook
from condiff.methods.composition_models import Parts, TokenTwin, Told
from condiff.process import ClippedCosine, Joint, Moments, TokenProcess
from condiff.sampling import Adaptive, GaussianLaw, Hook, JointSolver, Solver, affine_law, continuous_law, sample
from condiff.sampling.loop import as_grid

STEPS = (16, 32, 64, 128)  # tried with twice as many each, until samples are close to their law
CLOSE = 0.2  # of a standard deviation or a variance, with twice as many steps
EXACT = 0.02  # below this an error need not fall any more
DRAWN, DRAWN_STEPS, ADAPTIVE = 2500, 40, 5
JOINT, JOINT_STEPS = 1200, 25
TOKENS, TOKEN_STEPS = 600, 16
NODES = 150
# Times that are tried in turn: fields may be singular where there is no data left, or no noise.
ENDS = {"runs": (1.0, 0.0), "runs below t = 1": (0.995, 0.0), "runs between the ends": (0.995, 0.002)}
AXES = {
    "process": axes.PROCESSES,
    "target": axes.TARGETS,
    "guidance": axes.GUIDANCES,
    "solver": axes.SOLVERS,
    "condition": axes.CONDITIONS,
    "grid": GRIDS,
    "hook": HOOKS,
}
PAIRS = (
    *itertools.combinations([name for name in AXES if name not in ("grid", "hook")], 2),
    *(("process", "grid"), ("solver", "grid"), ("process", "hook"), ("guidance", "hook"), ("solver", "hook")),
)


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
    return _tried(tuple(sorted(axes.complete(chosen).items())))


@functools.cache
def _tried(items: tuple[tuple[str, str], ...]) -> Outcome:
    """Of a whole case; many pairs come to the same one."""
    case, why = dict(items), ""
    for name, (start, end) in ENDS.items():
        try:
            return Outcome(name, distance=_distance(case, (start, max(end, axes.LAST.get(case["process"], 0.0)))))
        except NonFinite as error:
            raise AssertionError(f"{case}: {error}") from error
        except CondiffError as error:
            why = str(error)
    return Outcome("refused", _sentence(why, case))


def _sentence(text: str, case: Mapping[str, str]) -> str:
    """What is said before advice follows, with the process and the solver by their names in the table."""
    process = axes.process(case["process"])
    parts = [process, *process.processes.values()] if isinstance(process, Joint) else [process]
    for part in parts:
        text = text.replace(repr(part), "this process").replace(repr(getattr(part, "schedule", part)), "its schedule")
    for plain in (True, False):
        with contextlib.suppress(CondiffError):
            solver = axes.SOLVERS[case["solver"]](SimpleNamespace(process=process, plain=plain))
            text = text.replace(repr(solver), case["solver"])
    return re.split(r"(?<!\.)\. |; ", text)[0].strip()


def _grid(process: Any, ends: tuple[float, float], steps: int) -> Any:
    """Uniform; closer towards both ends where the grid starts below t = 1, because a field is singular there.

    Uniform in log-SNR for the schedule that is made for such grids. Tokens of a joint state go all the way.
    """
    if isinstance(process, Joint):
        whole = {name: (1.0, 0.0) if isinstance(process[name], TokenProcess) else ends for name in process}
        return {name: _grid(process[name], each, steps) for name, each in whole.items()}
    u = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    if isinstance(getattr(process, "schedule", None), ClippedCosine):
        high, low = (process.at(t).log_snr for t in ends)
        return process.time(high + (low - high) * u)
    if ends[0] < 1.0:
        u = torch.sin(0.5 * math.pi * u) ** 2
    return ends[0] + (ends[1] - ends[0]) * u


def _times(case: Mapping[str, str], process: Any, ends: tuple[float, float], steps: int) -> Any:
    """The times of the grid that a case names, or those of :func:`_grid`."""
    return as_grid(GRIDS[case["grid"]](*ends), steps, process) if "grid" in case else _grid(process, ends, steps)


def _hooks(case: Mapping[str, str], times: Any, shape: Any) -> list[Hook]:
    """The hook that a case names."""
    if "hook" not in case:
        return []
    one = next(iter(times.values())) if isinstance(times, Mapping) else times
    return [HOOKS[case["hook"]](one, next(iter(shape.values())) if isinstance(shape, Mapping) else shape)]


def _distance(case: Mapping[str, str], ends: tuple[float, float]) -> float:
    """How far the samples' law is from the right one.

    Raises:
        CondiffError: what doesn't go together.
        AssertionError: too far.
    """
    process, cond = axes.process(case["process"]), axes.conditions(case, axes.dims(case))
    if isinstance(process, TokenProcess):
        return _tokens(case, process, cond)
    if isinstance(process, Joint):
        return _joint(case, process, cond, ends)
    told = Told(process, axes.TARGETS[case["target"]], axes.KINDS, axes.dims(case))
    model = axes.GUIDANCES[case["guidance"]](told)
    if ends[0] < 1.0:  # a re-timed model may begin later
        ends = (min(ends[0], getattr(model, "start_time", 1.0)), ends[1])
    if "grid" in case:
        times = _times(case, model.process, ends, STEPS[0])
        ends = (float(times[0]), float(times[-1]))
    make, start = axes.SOLVERS[case["solver"]], model.process.at(ends[0])
    _refuse_point(told.prior_law(start, cond), make(model))
    if not process.noise_law.gaussian or case["solver"] in axes.NOT_AFFINE:
        found = _drawn(case, model, make(model), cond, ends, told)
        right = _right(case, told, cond, ends, make(model))
        if "hook" in case:
            right = with_hook(case["hook"], right, model.process.at(ends[1]), cond.source)
        return _close(found.distance(GaussianLaw(right.mean[:2], right.cov[:2, :2])), case)
    laws = {}
    for steps in STEPS[:-1]:
        for n in {steps, 2 * steps} - set(laws):
            times = _times(case, model.process, ends, n)
            prior = told.prior(model.process.at(float(times[0])), cond)
            hooks = _hooks(case, times, told.shape)
            laws[n] = affine_law(model, solver=make(model), grid=times, cond=cond, prior=prior, hooks=hooks)
        right = _right(case, told, cond, ends, make(model), 2 * steps)
        if "hook" in case:
            right = with_hook(case["hook"], right, model.process.at(ends[1]), cond.source)
        distance = _apart(laws[steps], laws[2 * steps], right)
        if distance < CLOSE:
            break
    return _close(distance, case)


def _apart(first: GaussianLaw, second: GaussianLaw, right: GaussianLaw) -> float:
    """The distance of the law with twice the steps; infinite where it isn't nearer than that with fewer."""
    before, after = first.distance(right), second.distance(right)
    if not (after < EXACT or after < 0.75 * before):
        return math.inf
    # What a rule of order 1 would give without its leading error: a slow rule may still be on its way.
    limit = GaussianLaw(2.0 * second.mean - first.mean, 2.0 * second.cov - first.cov)
    return min(after, limit.distance(right))


def _refuse_point(start: GaussianLaw, solver: Solver) -> None:
    if not (solver.stochastic or bool(start.cov.any())):
        raise Incompatible("a deterministic solver makes one sample of an endpoint: start below t = 1")


def _close(distance: float, case: Mapping[str, str]) -> float:
    if not distance < CLOSE:
        raise AssertionError(
            f"{dict(case)}: samples are {distance:.3f} standard deviations from their law, or don't come nearer to it "
            "with more steps"
        )
    return distance


def _right(
    case: Mapping[str, str],
    told: Told,
    cond: Conditions,
    ends: tuple[float, float],
    solver: Solver,
    steps: int = DRAWN_STEPS,
    part: str | None = None,
) -> GaussianLaw:
    """The law that samples should have: the data's at the last time, or what the guided flow leads to.

    Args:
        steps: of a rule whose law depends on their number.
        part: a variable of a joint process, the one that ``told`` is a model of.
    """
    model = axes.GUIDANCES[case["guidance"]](told)
    if case["solver"] == "consistency":
        return _renoised(model, told, cond, _times(case, model.process, ends, steps))
    if case["guidance"] in axes.UNGUIDED:
        return told.law(model.process.at(ends[1]), cond)
    noise = 1.0 if solver.stochastic and case["solver"] not in axes.NO_NOISE else 0.0
    return _flow(case["process"], part, case["guidance"], case["condition"], axes.dims(case), ends, noise)


@functools.cache
def _flow(
    process: str, part: str | None, guidance: str, condition: str, dims: int, ends: tuple[float, float], noise: float
) -> GaussianLaw:
    """Where the guided flow leads, whatever is predicted and by which rule."""
    case = axes.complete({"process": process, "guidance": guidance, "condition": condition})
    cond = axes.conditions(case, dims)
    path = axes.process(process) if part is None else axes.process(process)[part]
    told = Told(path, axes.TARGETS[case["target"]], axes.KINDS, dims)
    level = path.at(ends[0])
    start = told.law(level, cond) if isinstance(told.prior(level, cond), Moments) else told.prior_law(level, cond)
    model = axes.GUIDANCES[axes.SAME_LAW.get(guidance, guidance)](told)
    return continuous_law(model, start, grid=ends, cond=cond, noise=noise, nodes=NODES)


@torch.no_grad()
def _renoised(model: Any, told: Told, cond: Conditions, grid: Tensor) -> GaussianLaw:
    """Of the rule "denoise, then noise afresh" on these very times: means and covariances, one step after another."""
    levels = model.process.levels(grid)
    prior = told.prior(levels[0], cond)
    law = told.law(levels[0], cond) if isinstance(prior, Moments) else told.prior_law(levels[0], cond)
    probes = torch.cat([torch.zeros(1, *told.shape), torch.eye(*told.shape)]).double()
    many = cond.map(lambda v: v.expand(len(probes), *v.shape[1:]))
    for t, s in itertools.pairwise(levels):
        said = model(probes, t, many)
        out = said.linear(x0=s.data, source=s.source)
        matrix = (out[1:] - out[0]).mT
        noise = s.noise**2 * torch.eye(*told.shape, dtype=torch.float64)
        law = GaussianLaw(matrix @ law.mean + out[0], matrix @ law.cov @ matrix.mT + noise)
    return law


def _drawn(
    case: Mapping[str, str], model: Any, solver: Solver, cond: Conditions, ends: tuple[float, float], told: Told
) -> GaussianLaw:
    num, steps = 2 * DRAWN // told.shape[0], ADAPTIVE if isinstance(solver, Adaptive) else DRAWN_STEPS
    many = cond.map(lambda v: v.expand(num, *v.shape[1:]))
    times = _times(case, model.process, ends, steps)
    x = sample(
        model, solver=solver, grid=times, cond=many, num=num, seed=0, dtype=torch.float64,
        prior=told.prior(model.process.at(float(times[0])), cond), hooks=_hooks(case, times, told.shape),
    )  # fmt: skip
    pairs = x.reshape(-1, 2)  # coordinates repeat
    return GaussianLaw(pairs.mean(0), pairs.mT.cov())


def _tokens(case: Mapping[str, str], process: TokenProcess, cond: Conditions) -> float:
    """The share of samples that would have to change to have the right frequencies."""
    twin = TokenTwin(process, axes.TARGETS[case["target"]], axes.KINDS)
    model = axes.GUIDANCES[case["guidance"]](twin)
    many = cond.map(lambda v: v.expand(TOKENS, *v.shape[1:]))
    times = _times(case, process, ENDS["runs"], TOKEN_STEPS)
    hooks = _hooks(case, times, twin.shape)
    x = sample(
        model, solver=axes.SOLVERS[case["solver"]](model), grid=times, cond=many, num=TOKENS, seed=0, hooks=hooks
    )
    return _close(twin.away(x), case)


def _joint(case: Mapping[str, str], process: Joint, cond: Conditions, ends: tuple[float, float]) -> float:
    """The largest distance of a variable."""
    all_of = Parts(process, axes.TARGETS[case["target"]], axes.KINDS)
    model = axes.GUIDANCES[case["guidance"]](all_of)
    many = cond.map(lambda v: v.expand(JOINT, *v.shape[1:]))
    solver = axes.SOLVERS[case["solver"]](model)
    finer = 4 if "grid" in case else 1 if any(isinstance(part, TokenTwin) for part in all_of.parts.values()) else 2
    times = _times(case, process, ends, finer * JOINT_STEPS)
    spans = {name: (float(t[0]), float(t[-1])) for name, t in times.items()}
    told = {name: part for name, part in all_of.parts.items() if isinstance(part, Told)}
    priors = {name: part.prior(process[name].at(spans[name][0]), cond) for name, part in told.items()}
    x = sample(
        model, solver=solver, grid=times, cond=many, num=JOINT, seed=0, shape=all_of.shape,
        prior={name: prior for name, prior in priors.items() if prior is not None},
        hooks=_hooks(case, times, all_of.shape),
    )  # fmt: skip
    rules = solver.named(list(process)) if isinstance(solver, JointSolver) else dict.fromkeys(process, solver)
    return _close(
        max(_off(case, all_of.parts[n], x[n], cond, spans[n], rules[n], n, finer * JOINT_STEPS) for n in process), case
    )


def _off(
    case: Mapping[str, str], part: Any, x: Tensor, cond: Conditions, ends: Any, solver: Solver, name: str, steps: int
) -> float:
    """The distance of one variable's samples from their law."""
    if isinstance(part, TokenTwin):
        return part.away(x)
    found = GaussianLaw(x.double().mean(0), x.double().mT.cov())
    return found.distance(_right(case, part, cond, ends, solver, steps, name))


def main() -> None:
    """Print the table as JSON: ``python -m condiff.methods.composition > condiff/methods/composition.json``."""
    print(json.dumps({f"{a} x {b}": table(a, b) for a, b in PAIRS}, indent=1))


if __name__ == "__main__":
    main()
