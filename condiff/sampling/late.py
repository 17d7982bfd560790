"""Starting late: the tail of a grid, and the jump to it along the closed form of Gaussian data (teleportation).

At high noise the score of any data is that of the Gaussian with their mean and covariance, so the first steps of a
sampler follow an ODE whose solution is known (Wang & Vastola 2023, arXiv 2303.02490).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance.guided import Guided  # the module: its package imports this one
from condiff.process import Level, PrincipalLaw, Process, Teleport
from condiff.process.oracles import low_rank
from condiff.process.principal_law import check_path
from condiff.random import as_source
from condiff.sampling.grid import Grid, Uniform
from condiff.sampling.loop import as_grid, sample
from condiff.sampling.solver import Solver
from condiff.typing import Float, Tensor

Laws = PrincipalLaw | Sequence[PrincipalLaw]
FARTHEST = 0.5  # deviations of the data by which the two predictions of x0 may differ
PROBES = 8  # rows that the check looks at


@dataclass(frozen=True)
class Tail(Grid):
    """The end of another grid: from the first level with ``noise / data <= sigma``, or without its first steps.

    The number of steps that a sampler is given is that of the whole grid.
    """

    grid: Grid = field(default_factory=Uniform)
    skip: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        if (self.skip is None) == (self.sigma is None):
            raise BadValue(f"Tail takes either skip= or sigma=, got {self.skip} and {self.sigma}")
        if self.skip is not None and self.skip < 0:
            raise BadValue(f"skip must be >= 0, got {self.skip}")
        if self.sigma is not None and not self.sigma > 0.0:
            raise BadValue(f"sigma must be positive, got {self.sigma}")

    def times(self, process: Process, steps: int) -> Tensor:
        times = self.grid.times(process, steps)
        return times[first_index(process, times, self.skip, self.sigma) :]


def first_index(process: Process, times: Tensor, skip: int | None = None, sigma: float | None = None) -> int:
    """The index of a tail's first time.

    Raises:
        BadValue: outside the grid: above its first level, or so low that no step is left.
        Incompatible: a noise level, and tokens.
    """
    last = len(times) - 2
    if skip is not None and (isinstance(skip, bool) or not isinstance(skip, int) or skip < 0):
        raise BadValue(f"skip is a number of steps >= 0, got {skip!r}")
    if sigma is not None and not sigma > 0.0:
        raise BadValue(f"sigma is noise over data, above 0, got {sigma}")
    if sigma is None:
        index = skip or 0
    else:
        if not isinstance(process, Process):
            raise Incompatible(f"a tail below a noise level is of continuous states, not of {process}: give skip=")
        # data may be 0 at the first level, where noise / data is infinite
        low = [level.noise <= sigma * level.data * (1.0 + 1e-9) for level in process.levels(times)]
        first = process.at(float(times[0]))
        if first.noise < sigma * first.data * (1.0 - 1e-9):
            raise BadValue(f"sigma = {sigma} lies above the first level of the grid, {first.noise / first.data:.6g}")
        index = low.index(True) if any(low) else last + 1
    if index > last:
        place = f"skip={skip}" if sigma is None else f"sigma={sigma}"
        raise BadValue(f"a start at {place} leaves no step of the grid's {last + 1}")
    return index


class Likeness(NamedTuple):
    """How well a Gaussian law stands in for a denoiser at some states.

    explained: ``1 - sum |score - Gaussian score|^2 / sum |score|^2``.
    gap: root mean square difference of the two E[x0 | x_t], in deviations of the data.
    """

    explained: float
    gap: float


def likeness(
    denoiser: Denoises,
    law: Laws,
    x_t: Float[Tensor, "batch *shape"],
    t: Any,
    cond: Mapping[str, Any] | Conditions | None = None,
) -> Likeness:
    """Compare a denoiser with the Gaussian law of its data, at one level.

    High noise explains almost all of any score, which is why the early steps can be skipped; the gap says whether mean
    and range are those that the model was trained on.

    Args:
        law: of all data, or one for each class, chosen by the condition ``label``.

    Raises:
        BadValue: statistics of another shape, a law per class without labels, a level without data.
    """
    process = denoiser.process
    check_path(process)
    level = process.at(t)
    if isinstance(level.t, Tensor) or level.data == 0.0 or level.noise == 0.0:
        raise BadValue(f"the comparison is made at one level with data and noise, not at t = {level.t}")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x_t.device)
    start = _prior(law, cond, 1.0)
    with torch.no_grad():
        said = denoiser(x_t, level, cond).noise.double()
        away = said - _noise(start, process, x_t.double(), level)
    laws = [law] if isinstance(law, PrincipalLaw) else list(law)
    std = sum(one.std for one in laws) / len(laws)
    explained = 1.0 - float(away.square().sum() / said.square().sum())
    ratio = float(level.noise / level.data)
    return Likeness(explained, float(away.square().mean().sqrt()) * ratio / std)


def _noise(start: Teleport, process: Process, x: Tensor, level: Level) -> Tensor:
    """E[z | x_t] of each row's law."""
    if isinstance(start.law, PrincipalLaw):
        return low_rank(process, start.law)(x, level).noise
    assert start.label is not None
    rows = [low_rank(process, start.law[int(k)])(x[i : i + 1], level).noise for i, k in enumerate(start.label)]
    return torch.cat(rows)


def _prior(law: Laws, cond: Conditions, start: float) -> Teleport:
    if isinstance(law, PrincipalLaw):
        return Teleport(law, start)
    labels = [entry.value for entry in cond.values() if entry.kind == "label"]
    if len(labels) != 1:
        raise BadValue("a law for each class needs one condition of kind 'label', the class of each row")
    return Teleport(tuple(law), start, labels[0])


def teleport(
    denoiser: Denoises,
    law: Laws,
    *,
    solver: Solver,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    skip: int | str | None = "auto",
    sigma: float | None = None,
    cond: Mapping[str, Any] | Conditions | None = None,
    least: float = 0.999,
    force: bool = False,
    **options: Any,
) -> Tensor:
    """Sample without the first steps: pure noise is carried in closed form to a later level of the grid, and the solver
    runs over the same tail. Saves as many evaluations as those steps would have made.

    Before, the model's score is compared with the Gaussian one at the level of the start, on a few states of their own
    (8 rows, seed 0; one evaluation, or ``log2(steps)`` of them for ``"auto"``).

    Args:
        law: mean and principal components of the training data (``condiff.data.principal_law``), or one for each class.
        solver: a deterministic one.
        steps, grid: of the whole grid.
        skip: how many steps are left out; ``"auto"`` finds the most that ``least`` allows.
        sigma: instead: the start is the first level with ``noise / data <= sigma``.
        cond: conditions.
        least: share of the model's score that the Gaussian's has to explain at the start.
        force: teleport a guided denoiser, whose law isn't that of the data, and don't compare anything.
        options: as for :func:`sample`: ``num``, ``seed``, ``hooks``, ...

    Raises:
        Incompatible: a stochastic solver, a guided denoiser, an endpoint.
        BadValue: statistics of another shape or range than the model's, a start outside the grid or too late.

    Example:
        >>> law = condiff.data.principal_law(data)
        >>> x = teleport(model, law, solver=Heun(), grid=Karras(), steps=18, num=16, seed=0)
    """
    times = as_grid(grid, steps, denoiser.process)
    device = options.get("device") or device_of(denoiser)
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), device)
    if sigma is not None:
        skip = None if skip == "auto" else skip
    index = start_index(
        denoiser, law, times, solver=solver, skip=skip, sigma=sigma, cond=cond, least=least, force=force, device=device
    )
    options["shape"] = (law if isinstance(law, PrincipalLaw) else law[0]).shape
    prior = _prior(law, cond, float(times[0]))
    return sample(denoiser, solver=solver, grid=times[index:], prior=prior, cond=cond, **options)


def start_index(
    denoiser: Denoises,
    law: Laws,
    times: Tensor,
    *,
    solver: Solver,
    skip: int | str | None = "auto",
    sigma: float | None = None,
    cond: Mapping[str, Any] | Conditions | None = None,
    least: float = 0.999,
    force: bool = False,
    device: Any = "cpu",
) -> int:
    """The index of the grid ``times`` at which :func:`teleport` starts, after all its checks; its arguments.

    Raises:
        BadValue, Incompatible: as :func:`teleport`.
    """
    _check(denoiser, law, solver, force)
    if (skip is None) == (sigma is None):
        raise BadValue("say where to start with either skip= or sigma=")
    if isinstance(skip, str) and skip != "auto":
        raise BadValue(f"skip is a number of steps or 'auto', got {skip!r}")
    if times.ndim != 1 or not bool((times[1:] < times[:-1]).all()):
        raise BadValue("teleportation needs a grid of common times that fall")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), device)
    probe = _Probe(denoiser, law, times, cond, device)
    if isinstance(skip, str):
        return probe.latest(least)
    index = first_index(denoiser.process, times, skip, sigma)
    if index and not force:
        probe.check(index, least)
    return index


def _check(denoiser: Denoises, law: Laws, solver: Solver, force: bool) -> None:
    check_path(denoiser.process)
    if not isinstance(solver, Solver):
        raise BadType(f"solver= takes a solver such as Heun(), got {solver!r}")
    if solver.stochastic:
        raise Incompatible(
            f"{solver} draws noise, and the closed form is of the ODE: use a deterministic solver such as Heun() or "
            "DDIM(), or start from prior=Marginal(law)"
        )
    if isinstance(denoiser, Guided) and not force:
        raise Incompatible(
            f"{type(denoiser).__name__} doesn't follow the law of the data, so its early path is another one: teleport "
            "the plain denoiser, or say force=True, best with statistics of guided samples"
        )
    shapes = {one.shape for one in ([law] if isinstance(law, PrincipalLaw) else law)}
    if denoiser.shape is not None and shapes != {tuple(denoiser.shape)}:
        raise BadValue(f"statistics of samples {shapes} don't fit a model of samples {tuple(denoiser.shape)}")


class _Probe:
    """A few states on the closed-form path, at which the model is compared with the law."""

    def __init__(self, denoiser: Denoises, law: Laws, times: Tensor, cond: Conditions, device: Any) -> None:
        self.denoiser, self.law, self.levels = denoiser, law, denoiser.process.levels(times)
        rows = torch.arange(PROBES) % (cond.batch or PROBES)
        self.cond = cond.rows(rows.to(device)) if len(cond) else cond
        self.shape = (law if isinstance(law, PrincipalLaw) else law[0]).shape
        self.noise = as_source(0).normal((PROBES, *self.shape), torch.float32, device)
        self.start = _prior(law, self.cond, float(times[0]))

    def at(self, index: int) -> Likeness:
        top, level = self.levels[0], self.levels[index]
        x = self.start.carry(float(top.noise) * self.noise, top, level)
        return likeness(self.denoiser, self.law, x, level, self.cond)

    def check(self, index: int, least: float) -> None:
        """
        Raises:
            BadValue: the law doesn't stand in for the model here.
        """
        found, level = self.at(index), self.levels[index]
        if found.gap > FARTHEST:
            told = " A model told a class needs statistics of that class (`condiff statistics --label`, class_laws)."
            one_law = isinstance(self.law, PrincipalLaw)
            raise BadValue(
                f"at noise / data = {level.noise / level.data:.4g} the model's prediction of x0 is {found.gap:.2f} "
                f"deviations of the data away from that of the statistics (at most {FARTHEST}): are they of the data, "
                "and in the range (images in [-1, 1], scaled latents), that it was trained on? Was it trained enough?"
                + (told if one_law and "label" in self.cond else "")
            )
        if found.explained < least:
            raise BadValue(
                f"at noise / data = {level.noise / level.data:.4g} the Gaussian explains {found.explained:.4f} of the "
                f"model's score, less than {least}: start earlier, let skip='auto' find where, or lower least="
            )

    def latest(self, least: float) -> int:
        """The last index at which the law stands in for the model, by bisection.

        Raises:
            BadValue: it doesn't even at the first step.
        """
        self.check(1, least)
        low, high = 1, len(self.levels) - 2
        while low < high:
            middle = (low + high + 1) // 2
            found = self.at(middle)
            if found.explained >= least and found.gap <= FARTHEST:
                low = middle
            else:
                high = middle - 1
        return low
