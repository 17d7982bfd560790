"""Sampling of several modalities: their latent from noise to its first level, then what each head decodes there.

Known modalities are told to a network that was trained for it. Two shortcuts for networks that weren't put them into
the latent instead; they are approximations, and strongly biased ones: for two unit Gaussians of correlation 0.8 and
x_2 = 1.5 they give x_1 a mean of 0.75 where it is 1.2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import device_of
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.guidance.guided import Guided
from condiff.process import Prediction
from condiff.process.table import table_size
from condiff.random import as_source
from condiff.sampling.grid import Uniform
from condiff.sampling.inpaint import Inpaint
from condiff.sampling.loop import Hook, Run, Times, as_grid, sample
from condiff.sampling.solver import Solver
from condiff.sampling.solvers.ddpm import DDPM

HOWS = ("told", "replaced", "overwritten")
AGGREGATES = ("latent", "heads")
DECODES = ("mode", "draw")
FIRST = 1e-3  # the first level of a process without a table

Known = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Aggregated(Hook):
    """The predicted drive made of what the heads say, ``sum_i w_i E_i(x_hat_i)``, with known modalities in their place.

    Args:
        modalities: of the denoiser.
        known: name -> the true samples, a row for each.
        rule: another aggregate, ``rule(prediction, run) -> E_hat``.

    For a network that isn't told, ``known`` is the replacement that the module warns of.
    """

    modalities: Any
    known: Mapping[str, Tensor] | None = None
    rule: Callable[[Prediction, Run], Tensor] | None = None

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        if self.rule is not None:
            return prediction.set("x0", self.rule(prediction, run))
        said = prediction.aux["modalities"]
        return prediction.set("x0", self.modalities.expected(said, self.known).to(prediction.x_t.dtype))


def sample_modalities(
    denoiser: Any,
    num: int | None = None,
    *,
    known: Known | None = None,
    mask: Mapping[str, Tensor] | None = None,
    how: str | None = None,
    aggregate: str | Callable[[Prediction, Run], Tensor] | None = None,
    decode: str = "mode",
    cond: Mapping[str, Any] | Conditions | None = None,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Times = None,
    hooks: Sequence[Hook] = (),
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    rng: Any = None,
    progress: bool | Callable[[int, int], None] = False,
) -> dict[str, Tensor]:
    """All modalities of ``num`` samples, jointly or given some of them, a dictionary.

    Args:
        denoiser: a :class:`~condiff.multimodal.MultiModal`, or guidance around one.
        num: how many; by default as many as known rows.
        known: name -> samples (num, ...), or one for all. They come back bit for bit.
        mask: name -> booleans that broadcast to those samples, true where they are known: a masked view. The rest isn't
            read, and comes back as the modality's mean.
        how: ``"told"``: the network is told them, and samples their conditional law as it learnt it. ``"replaced"``:
            they replace their predictions in the aggregate of an untold network. ``"overwritten"``: they are noised
            and put into their channels before every prediction (RePaint; repeats of the grid make it better). Told by
            default where the network can be, else replaced, with a warning: the two aren't exact.
        aggregate: where the predicted drive comes from: the trunk's ``"latent"``, the ``"heads"`` with what is known in
            its place, or a function. By default the heads, whose losses count at every level alike, where the
            latent's noise says little of a class at much noise; the latent under guidance, which changes that.
        decode: the ``"mode"`` of what the heads say, or a ``"draw"``.
        solver: ancestral sampling by default.
        steps: of the latent; by default all of the process's table.
        grid: times, the last of which is the level that is decoded; above 0.
        hooks, seed, seeds, rng, progress, cond: as in :func:`sample`.

    Raises:
        BadValue: all modalities known, unknown names, samples or masks that don't fit, unknown options.
        Incompatible: a network that can't be told.
    """
    model, options = multimodal_in(denoiser), {"how": (how, (None, *HOWS)), "decode": (decode, DECODES)}
    for what, (given, names) in options.items():
        if given not in names:
            raise unknown(what, given, [n for n in names if n])
    if not callable(aggregate) and aggregate not in (None, *AGGREGATES):
        raise unknown("aggregate", aggregate, AGGREGATES)
    given, mask = _rows(model, known or {}, mask or {}, num, seeds), mask or {}
    if len(given) == len(model.modalities):
        raise BadValue(f"all of {sorted(model.modalities)} are known: there is nothing to sample")
    if how is not None and not given:
        raise BadValue(f"how={how!r} says what is done with known modalities, and none are known")
    num = len(next(iter(given.values()))) if given else num if num is not None else len(seeds) if seeds else 1
    how = _how(model, how) if given else None
    draws = [r for r in (seed, seeds, rng) if r is not None]
    if len(draws) > 1:
        raise BadValue("give one of seed=, seeds=, rng=")
    source = as_source(draws[0] if draws else None)
    if denoiser is not model and (how == "replaced" or aggregate == "heads"):
        raise Incompatible("guidance changes the latent's prediction, which aggregates of what the heads say overrule")
    if aggregate is None:
        aggregate = "heads" if denoiser is model else "latent"
    told = as_conditions(cond, model.kinds, device_of(model))
    if how == "told":
        told = told.replace(**model.modalities.known(given))
    added = _hooks(model, given, mask, how, aggregate)
    times = _times(model, grid, steps)
    z = sample(
        denoiser,
        num=num,
        cond=told,
        solver=solver or DDPM(),
        grid=times,
        rng=source,
        hooks=[*added, *hooks],
        progress=progress,
    )
    return decoded(model, z, float(times[-1]), told, given, source if decode == "draw" else None)


@torch.no_grad()
def decoded(model: Any, z: Tensor, t: float, cond: Any, known: Mapping[str, Tensor], rng: Any) -> dict[str, Tensor]:
    """What the heads decode of the latent at t, with known samples as they are."""
    prediction = model(z, t, cond)
    out = model.modalities.decode(model.said(prediction), prediction.level, rng)
    return {**out, **known}


def multimodal_in(denoiser: Any) -> Any:
    """The multimodal denoiser inside guidance.

    Raises:
        BadType: there is none.
    """
    inside = denoiser
    while isinstance(inside, Guided):
        inside = inside.members[0]
    if not hasattr(inside, "modalities"):
        raise BadType(f"sample_modalities takes a MultiModal, or guidance around one, got {type(denoiser).__name__}")
    return inside


def _rows(model: Any, known: Known, masks: Mapping[str, Tensor], num: int | None, seeds: Any) -> dict[str, Tensor]:
    """Known samples on the model's device, a row for each; one is repeated. What masks leave out has the mean."""
    out: dict[str, Tensor] = {}
    for name, value in known.items():
        shape = model.modalities[name].shape
        value = torch.as_tensor(value, device=device_of(model))
        out[name] = value[None] if value.ndim == len(shape) else value
    for name, seen in masks.items():
        if name not in out:
            raise BadValue(f"mask= says what of a known modality is seen, and {name!r} isn't known")
        out[name] = _seen(name, model.modalities[name], out[name], seen)
    model.modalities.check(out, whole=False)
    wanted = [n for n in (num, len(seeds) if seeds else None, *(len(v) for v in out.values() if len(v) > 1)) if n]
    rows = wanted[0] if wanted else 1
    if any(n != rows for n in wanted):
        raise BadValue(f"as many known samples as num= and seeds=, or one for all, are wanted; got {wanted}")
    return {name: value.expand(rows, *value.shape[1:]) for name, value in out.items()}


def _seen(name: str, modality: Any, value: Tensor, mask: Tensor) -> Tensor:
    if not modality.shape:
        raise BadValue(f"{name!r} is known or isn't: leave it out of known= where it isn't, mask= is for parts")
    fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == value.ndim
    if not fits or not all(m in (1, n) for m, n in zip(mask.shape, value.shape, strict=True)):
        raise BadValue(f"mask of {name!r} must be booleans that broadcast to its samples {tuple(value.shape)}")
    return modality.shown(value, mask.to(value.device))


def _how(model: Any, how: str | None) -> str:
    if how == "told" and not model.told:
        raise Incompatible(
            "this network can't be told of known modalities, so their conditional law isn't learnt: train one with "
            "conditions=modalities.conditions(), or use how='replaced' or 'overwritten', which are approximations"
        )
    if how is None and not model.told:
        warnings.warn(
            "this network was not trained with known modalities: they replace their predictions in the aggregate, "
            "which is an approximation and strongly biased (how='replaced')",
            stacklevel=3,
        )
    return how or ("told" if model.told else "replaced")


def _hooks(
    model: Any, known: Mapping[str, Tensor], seen: Mapping[str, Tensor], how: str | None, aggregate: Any
) -> list[Any]:
    modalities = model.modalities
    if how == "overwritten":
        masks = [modalities.own(name, len(value), seen.get(name)) for name, value in known.items()]
        mask = torch.stack(masks).any(0).to(device_of(model))
        placed = torch.stack([modalities.encode(name, value) for name, value in known.items()]).sum(0)
        return [Inpaint(placed, mask), *_hooks(model, {}, {}, None, aggregate)]
    if callable(aggregate):
        rule: Any = aggregate
        return [Aggregated(modalities, rule=rule)]
    if how == "replaced" or aggregate == "heads":
        return [Aggregated(modalities, known)]
    return []


def _times(model: Any, grid: Times, steps: int | None) -> Tensor:
    size = table_size(model.process)
    first = FIRST if size is None else 1.0 / size
    if grid is None and steps is None:
        steps = 100 if size is None else max(1, size - 1)
    times = as_grid(Uniform(end=first) if grid is None else grid, steps, model.process)
    if times.ndim != 1 or not float(times[-1]) > 0.0:
        raise BadValue("data is decoded from a latent with some noise: let the grid end above 0, one time for all rows")
    return times
