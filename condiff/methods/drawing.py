"""Drawing from a trained run: which labels, which conditions, with what sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data import Data, DataMoments
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Superpose
from condiff.methods.drawn import Drawing, Part, Plan, gather
from condiff.methods.kinds import kind_of
from condiff.methods.names import class_number
from condiff.methods.names import solver as solver_of
from condiff.methods.recipe import Recipe, Sampler
from condiff.process import PrincipalLaw, Teleport
from condiff.sampling import DDPM, Tail, start_index
from condiff.sampling.loop import as_grid


def choose_labels(data: Data, wanted: Sequence[str], num: int) -> Tensor | None:
    """Labels of ``num`` samples: the wanted classes in turn, or all of them; None for data without labels.

    Raises:
        BadValue: an unknown class, with the nearest names.
    """
    if not data.classes:
        if wanted:
            made = isinstance(data.shape, dict) and "label" in data.shape  # beside the samples, not told
            raise BadValue(f"the run has no classes: leave --label out{', or say --known label=CLASS' if made else ''}")
        return None
    pool = torch.tensor([class_number(name, data.classes) for name in wanted] or list(range(len(data.classes))))
    return pool[torch.arange(num) % len(pool)]


def choose_conditions(
    data: Data, wanted: Sequence[str], num: int, given: Collection[str] = ()
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The conditions of ``num`` samples, and the real samples that they belong to.

    Labels alone are taken in turn. Other conditions come from the rows of ``data``, in turn, with their truth; those
    that are ``given`` are left out where no others are wanted.
    """
    labels = choose_labels(data, wanted, num)
    if set(data.kinds) <= {"label", *given}:
        return ({} if labels is None else {"label": labels}), None
    rows = data.batch(torch.arange(num) % len(data))
    cond = dict(rows["cond"])
    if wanted and labels is not None:
        cond["label"] = labels
    return cond, rows["x"] if data.paired else None


def superposed(denoiser: Denoises, data: Data, wanted: Sequence[str], mode: str, scale: float) -> tuple[Superpose, str]:
    """The model told each of the wanted classes at once, and what to call its samples.

    Raises:
        BadValue: fewer than two classes, an unknown mode.
    """
    classes = choose_labels(data, wanted, len(wanted))
    if classes is None or len(set(classes.tolist())) < 2:
        raise BadValue("--superpose takes two classes or more: --label A --label B")
    conds = [{"label": [i]} for i in classes.tolist()]
    return Superpose(denoiser, conds, mode=mode, scale=scale), f"-{mode}-".join(data.classes[i] for i in classes)


def for_superposing(sampler: Sampler, solver: str | None, steps: int | None) -> Sampler:
    """The sampler, with one whose noise tells densities, and enough steps, in place of what wasn't asked for."""
    own = sampler.solver.relative_noise == 1.0
    return replace(
        sampler,
        solver=sampler.solver if solver or own else DDPM(),
        steps=sampler.steps if steps else max(sampler.steps, 200),
    )


def override(sampler: Sampler, *, solver: str | None = None, steps: int | None = None, guidance: float | None = None):
    """The sampler with what was asked for in place of its own."""
    changes = {"solver": solver_of(solver) if solver else None, "steps": steps, "guidance": guidance}
    return replace(sampler, **{k: v for k, v in changes.items() if v is not None})


def late(sampler: Sampler, process: Any, start: float | None, init: Path | None) -> Sampler:
    """The sampler from a later level, and from the data's moments in a file, in place of pure noise at t = 1."""
    grid = sampler.grid if start is None else sampler.grid.starting(start, process)
    prior = sampler.prior if init is None else DataMoments.load(init).prior()
    return replace(sampler, grid=grid, prior=prior)


def teleported(
    sampler: Sampler, denoiser: Any, data: Data, law: Path, sigma: float | None, wanted: Sequence[str] = ()
) -> Sampler:
    """The sampler from a later level that is reached in closed form: that of ``sigma``, or the latest that will do.

    Raises:
        BadValue: statistics that don't fit the model, a start outside the grid or too late.
        Incompatible: a stochastic solver, guidance.
    """
    if sampler.guidance != 1.0:
        raise Incompatible(
            f"guidance of scale {sampler.guidance:g} doesn't follow the law of the data, which teleportation needs: "
            "use --guidance 1"
        )
    one = PrincipalLaw.load(law)
    times, device = as_grid(sampler.grid, sampler.steps, denoiser.process), device_of(denoiser)
    cond, _ = choose_conditions(data, wanted, 8)
    skip = "auto" if sigma is None else None
    index = start_index(denoiser, one, times, solver=sampler.solver, skip=skip, sigma=sigma, cond=cond, device=device)
    return replace(sampler, grid=Tail(sampler.grid, skip=index), prior=Teleport(one, float(times[0])))


def check_guidance(denoiser: Denoises, sampler: Sampler) -> None:
    """
    Raises:
        BadValue: guidance of a model that is told nothing.
    """
    if sampler.guidance != 1.0 and not getattr(denoiser, "kinds", None):
        raise BadValue(
            f"guidance of scale {sampler.guidance:g} needs a condition, and this model has none: leave --guidance out"
        )


def plan_samples(
    denoiser: Denoises,
    recipe: Recipe,
    data: Data,
    *,
    num: int,
    wanted: Sequence[str] = (),
    sampler: Sampler | None = None,
    seed: int = 0,
    batch: int = 512,
    given: Mapping[str, Tensor] | None = None,
    superpose: str | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """What it takes to draw ``num`` samples; sample i depends on ``seed + i`` only.

    Args:
        data: where classes, and conditions other than labels, come from.
        wanted: names or indices of classes, taken in turn; all classes without.
        sampler: instead of the recipe's.
        batch: rows a network call.
        given: conditions of the ``num`` samples, in place of those of ``data``.
        superpose: a mode of :class:`Superpose`: the wanted classes all at once, in place of one after the other.
        frames: length of clips, given frames included.
        known: tokens of the ``num`` samples, and where they are given, both (num, L): these stay.
        progress: called with (steps that are done, all steps) behind each.
    """
    if num < 1 or batch < 1:
        raise BadValue(f"num and batch must be at least 1, got {num} and {batch}")
    sampler = sampler or recipe.sampler
    check_guidance(denoiser, sampler)
    cond, truth = choose_conditions(data, wanted, num, given or ())
    cond, truth = {**cond, **(given or {})}, None if given else truth
    labels = cond.get("label") if data.classes else None  # else it is something known of the sample itself
    guided, together = recipe.guided(denoiser, sampler.guidance), None
    if superpose is not None:
        guided, together = superposed(denoiser, data, wanted, superpose, sampler.guidance)
        cond.pop("label", None)
        labels = None
    names = None if together is None else [together] * num
    if labels is not None:
        names = [data.classes[i] for i in labels.tolist()]
    kinds = min(len(set(wanted)) or len(data.classes), 20) if labels is not None else 1
    device = device_of(denoiser)
    return Plan(
        denoiser=guided,
        recipe=recipe,
        sampler=sampler,
        times=as_grid(sampler.grid, sampler.steps, denoiser.process),
        data=data,
        num=num,
        seed=seed,
        batch=kind_of(data).rows_at_once(data, batch),
        device=device,
        codec=recipe.build_codec(device),
        cond=cond,
        truth=truth,
        known=known,
        frames=frames,
        progress=progress,
        labels=labels,
        names=names,
        columns=kinds if kinds > 1 else None,  # a column a class
    )


@torch.no_grad()
def draw_parts(plan: Plan, blocks: Sequence[range]) -> list[Part]:
    """Some blocks of a plan's samples, one after the other."""
    kind = kind_of(plan.data)
    return [kind.draw(plan, rows) for rows in blocks]


def draw_samples(denoiser: Denoises, recipe: Recipe, data: Data, *, num: int, **how: Any) -> Drawing:
    """Draw ``num`` samples; sample i depends on ``seed + i`` only. Arguments are those of :func:`plan_samples`."""
    plan, started = plan_samples(denoiser, recipe, data, num=num, **how), time.perf_counter()
    parts = draw_parts(plan, plan.blocks())
    return gather(plan, parts, time.perf_counter() - started)
