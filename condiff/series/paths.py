"""Sample paths of windows of which a part is observed.

An unconditional model is led by its own denoised sample to what is observed (Kollovieh 2023): one training serves any
pattern of missing values. A conditional one, which declares the condition ``features``, is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from condiff.conditions import Condition, Conditions
from condiff.data.windows import Window, features
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadValue, NonFinite, unknown
from condiff.fields import checked
from condiff.guidance import Energy, Quantile, SquaredError, quantile_levels
from condiff.process.algebra import finite
from condiff.random import derive_seed
from condiff.sampling import DDPM, Grid, Solver, Spaced, sample
from condiff.typing import Float, Int, Tensor

BY = ("quantile", "squares")
SHIFTS = ("mean", "state", "score")


@dataclass(frozen=True, kw_only=True)
@checked
class SelfGuidance:
    """How an unconditional model is led to what is observed.

    Args:
        by: ``"quantile"``: each sample path to a quantile of its own; ``"squares"``: all to the observed values.
        scale: strength; the paper's for quantiles lie between 1 and 8. Squares diverge from about 10 on.
        shift: what is displaced: ``"mean"`` of a step, the paper's for DDPM; ``"state"``, its released code;
            ``"score"``, for solvers without noise. None for the mean with DDPM and the score otherwise.
    """

    by: str = "quantile"
    scale: float = 4.0
    shift: str | None = None

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise unknown("guidance of a series", self.by, BY)
        if self.shift is not None and self.shift not in SHIFTS:
            raise unknown("shift", self.shift, SHIFTS)
        if not self.scale >= 0.0:
            raise BadValue(f"scale must be at least 0, got {self.scale}")

    def around(self, denoiser: Denoises, solver: Solver, levels: Tensor) -> Energy:
        """The guided denoiser of rows with the given quantile levels."""
        shift = self.shift or ("mean" if isinstance(solver, DDPM) else "score")
        return Energy(denoiser, Quantile(levels) if self.by == "quantile" else SquaredError(), self.scale, shift=shift)


def paths(
    denoiser: Denoises,
    window: Window,
    names: Sequence[Any],
    *,
    members: int = 100,
    seed: int = 0,
    **how: Any,
) -> Float[Tensor, "members batch length"]:
    """Sample paths of the series in each window, in its own units, float64.

    Args:
        denoiser: of windows, unconditional or told ``features``.
        window: B windows with what is observed of them.
        names: one for each window; a path depends on (seed, name, member) and its window only.
        members: S, paths of each window.
        how: guidance, solver, grid, steps, batch: see :func:`path_each`.

    Raises:
        BadValue: fewer than one member, a window of another shape than the model's.
    """
    check_members(members)
    count = len(names)
    seeds = [derive_seed(seed, name, j) for name in names for j in range(members)]
    rows = torch.arange(count).repeat_interleave(members)
    found = path_each(denoiser, window, quantile_levels(members, count), seeds, rows=rows, **how)
    return found.unflatten(0, (count, members)).movedim(1, 0)


def path_each(
    denoiser: Denoises,
    window: Window,
    levels: Float[Tensor, " batch"],
    seeds: Sequence[int],
    *,
    rows: Int[Tensor, " batch"] | None = None,
    guidance: SelfGuidance | None = None,
    solver: Solver | None = None,
    grid: Grid | None = None,
    steps: int = 100,
    batch: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "batch length"]:
    """Sample paths, each of one of the windows.

    Args:
        denoiser, window: as for :func:`paths`.
        levels: the quantile that each path is led to, between 0 and 1.
        seeds: one for each.
        rows: the number of each path's window; one path of each window by default.
        guidance: of an unconditional model, by quantiles at scale 4 by default.
        solver, grid, steps: DDPM on all of 100 levels of the model's table by default.
        batch: paths a network call.
        progress: called with (steps that are done, all steps) behind each.

    Raises:
        BadValue: windows of another shape than the model's, guidance of a conditional model.
        NonFinite: paths that diverge.
    """
    told, solver = is_told(denoiser), solver or DDPM()
    shape = (window.values.shape[1], 1 if told else window.values.shape[2])
    check_shape(denoiser, shape)
    check_batch(batch)
    if told and guidance is not None:
        raise BadValue("guidance by what is observed is for unconditional models; this one is told of it")
    device, out = device_of(denoiser), []
    chunks = torch.arange(len(seeds)).split(batch)
    for k, chunk in enumerate(chunks):
        part, guided = window.rows(chunk if rows is None else rows[chunk]), denoiser
        if told:
            cond = {"features": Condition(features(part, part.mask).float(), "map")}
        else:
            cond = {"observed": Condition(part.values.float(), "observation", mask=part.mask)}
            guided = (guidance or SelfGuidance()).around(denoiser, solver, levels[chunk])
        x = sample(
            guided,
            solver=solver,
            grid=Spaced("trailing") if grid is None else grid,
            steps=steps,
            shape=shape,
            cond=Conditions(cond).to(device),
            seeds=[seeds[i] for i in chunk.tolist()],
            progress=partial(_of_chunk, progress, k, len(chunks)) if progress is not None else False,
        )
        if not finite(x):
            raise NonFinite("sample paths diverged: use a smaller scale of guidance, or more steps")
        out.append(x[..., 0].double().cpu() * part.scale[:, None])
    return torch.cat(out)


def _of_chunk(progress: Callable[[int, int], None], k: int, chunks: int, done: int, steps: int) -> None:
    """Tell of all chunks where one of them is."""
    progress(k * steps + done, chunks * steps)


def is_told(denoiser: Any) -> bool:
    """Whether a model is conditional: told the history of its windows."""
    return "features" in (getattr(denoiser, "kinds", None) or {})


def refuse_told(denoiser: Any, what: str) -> None:
    """Raises :class:`BadValue` for a conditional model."""
    if is_told(denoiser):
        raise BadValue(
            f"a conditional model is told of the past only: {what} with an unconditional one, such as tsdiff"
        )


def check_shape(denoiser: Any, shape: tuple[int, ...]) -> None:
    """Raises :class:`BadValue` for windows of another shape than the model's."""
    if denoiser.shape is not None and tuple(denoiser.shape) != shape:
        raise BadValue(
            f"windows of {shape[0]} steps and {shape[1]} channels came to a model of {tuple(denoiser.shape)}: context, "
            "horizon and lags are those of its training"
        )


def check_members(members: Any) -> None:
    """Raises :class:`BadValue` for a number of samples that is none, or below 1."""
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise BadValue(f"the number of samples is at least 1, got {members!r}")


def check_batch(batch: Any) -> None:
    """Raises :class:`BadValue` for a number of paths a network call that is none, or below 1."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadValue(f"batch, the number of sample paths a network call, is at least 1, got {batch!r}")
