"""Drawing from a trained run: which labels, which seeds, in batches that don't change the result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.codecs import Codec
from condiff.conditions import as_conditions
from condiff.data import Data, DataMoments, encode_conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadValue, Incompatible, unknown
from condiff.guidance import Superpose
from condiff.methods.names import solver as solver_of
from condiff.methods.recipe import Recipe, Sampler
from condiff.process import PrincipalLaw, Teleport
from condiff.random import PerSample
from condiff.sampling import DDPM, Tail, infill, start_index, trajectory
from condiff.sampling.loop import as_grid

MOST_NUMBERS = 2**25  # of volumes in one network call


@dataclass(frozen=True)
class Drawing:
    """Samples and how they were made.

    ``truth`` are the real samples whose conditions were used, if they were; ``calls`` (N,) the network calls that each
    sample took, where samples differ in that.
    """

    x: Tensor
    labels: Tensor | None
    truth: Tensor | None
    names: list[str] | None
    nfe: int
    seconds: float
    columns: int | None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    calls: Tensor | None = None


def rows_at_once(shape: Sequence[int], batch: int) -> int:
    """The rows of a network call: fewer where samples are volumes. Samples don't depend on it."""
    return batch if len(shape) != 4 else max(1, min(batch, MOST_NUMBERS // math.prod(shape)))


def middle(made: Drawing) -> Drawing:
    """The same samples, seen in the middle of their first axis."""
    cut = lambda x: x[:, :, x.shape[2] // 2] if isinstance(x, Tensor) and x.ndim == 5 else x
    return replace(made, x=cut(made.x), truth=cut(made.truth), cond={n: cut(v) for n, v in made.cond.items()})


def save_grid(made: Drawing, path: Path) -> Path:
    """A grid of samples; where pictures were given, beside them and beside the true one. Volumes in their middle."""
    made = middle(made)
    seen = {name: v for name, v in made.cond.items() if v.shape == made.x.shape}
    if not seen:
        return figures.grid(made.x, path, labels=made.names, columns=made.columns)
    given = {"given": next(iter(seen.values()))} if len(seen) == 1 else seen
    parts = {**given, "sample": made.x, "true": made.truth}
    parts = {word: x for word, x in parts.items() if x is not None}
    x = torch.stack(list(parts.values()), 1).flatten(0, 1)
    across = max(1, min(3, round(math.sqrt(len(made.x) / len(parts)))))
    return figures.grid(x, path, labels=list(parts) * len(made.x), columns=len(parts) * across)


def choose_labels(data: Data, wanted: Sequence[str], num: int) -> Tensor | None:
    """Labels of ``num`` samples: the wanted classes in turn, or all of them; None for data without labels.

    Raises:
        BadValue: an unknown class, with the nearest names.
    """
    if not data.classes:
        if wanted:
            raise BadValue("the run has no classes: leave --label out")
        return None
    pool = torch.tensor([_class(data, name) for name in wanted] or list(range(len(data.classes))))
    return pool[torch.arange(num) % len(pool)]


def _class(data: Data, name: str) -> int:
    classes = list(data.classes)
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    raise unknown("class", name, classes)


def choose_conditions(data: Data, wanted: Sequence[str], num: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """The conditions of ``num`` samples, and the real samples that they belong to.

    Labels alone are taken in turn. Other conditions come from the rows of ``data``, in turn, with their truth.
    """
    labels = choose_labels(data, wanted, num)
    if set(data.kinds) <= {"label"}:
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


def draw_samples(
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
) -> Drawing:
    """Draw ``num`` samples; sample i depends on ``seed + i`` only.

    Args:
        data: where classes, and conditions other than labels, come from.
        wanted: names or indices of classes, taken in turn; all classes without.
        sampler: instead of the recipe's.
        batch: rows a network call.
        given: conditions of the ``num`` samples, in place of those of ``data``.
        superpose: a mode of :class:`Superpose`: the wanted classes all at once, in place of one after the other.
        known: tokens of the ``num`` samples, and where they are given, both (num, L): these stay.
    """
    if num < 1 or batch < 1:
        raise BadValue(f"num and batch must be at least 1, got {num} and {batch}")
    sampler = sampler or recipe.sampler
    cond, truth = choose_conditions(data, wanted, num)
    cond, truth = {**cond, **(given or {})}, None if given else truth
    labels = cond.get("label")
    guided, together = recipe.guided(denoiser, sampler.guidance), None
    if superpose is not None:
        guided, together = superposed(denoiser, data, wanted, superpose, sampler.guidance)
        cond.pop("label", None)
        labels = None
    times = as_grid(sampler.grid, sampler.steps, denoiser.process)
    device = device_of(denoiser)
    codec, batch = recipe.build_codec(device), rows_at_once(data.shape, batch)
    started, parts, counts, nfe = time.perf_counter(), [], [], 0
    for first in range(0, num, batch):
        rows = range(first, min(first + batch, num))
        mine = {name: value[rows.start : rows.stop].to(device) for name, value in cond.items()}
        if codec is not None:
            mine = encode_conditions(codec, mine, data.kinds, data.shape)
        x, nfe, calls = _batch(guided, sampler, times, rows, seed, mine, device, recipe.objective.transform, known)
        parts.append((x if codec is None else _decoded(codec, x)).cpu())
        counts.append(calls)
    names = None if together is None else [together] * num
    if labels is not None:
        names = [data.classes[i] for i in labels.tolist()]
    kinds = min(len(set(wanted)) or len(data.classes), 20) if labels is not None else 1
    return Drawing(
        x=torch.cat(parts),
        labels=labels,
        truth=truth,
        names=names,
        nfe=nfe,
        seconds=time.perf_counter() - started,
        columns=kinds if kinds > 1 else None,  # a column a class
        cond=cond,
        calls=torch.cat(counts) if all(isinstance(c, Tensor) for c in counts) else None,
    )


@torch.no_grad()
def _decoded(codec: Codec, x: Tensor) -> Tensor:
    return codec.decode(x)


@torch.no_grad()
def _batch(
    guided: Any,
    sampler: Sampler,
    times: Tensor,
    rows: range,
    seed: int,
    cond: dict[str, Tensor],
    device: Any,
    transform: Any,
    known: tuple[Tensor, Tensor] | None = None,
):
    rng = PerSample(seed + i for i in rows)
    mine = as_conditions(cond, guided.kinds, device)
    if transform is not None:  # what it does outside training: an endpoint chosen, a fixed corruption
        mine = transform(mine, t=None, rng=rng, training=False)
    process, shape = guided.process, (len(rows), *guided.shape)
    start = process.levels(times[:1])[0]
    held = None
    if known is None:
        x = (sampler.prior or process.prior()).sample(start, shape, rng, source=mine.source, device=device)
    else:
        tokens, held = (part[rows.start : rows.stop].to(device) for part in known)
        x = infill(process, tokens, held, rng)
    nfe, calls = 0, None
    run = trajectory(guided, x, solver=sampler.solver, cond=mine, grid=times, hooks=sampler.hooks, rng=rng, held=held)
    for step in run:
        x, nfe, calls = step.x_s, step.nfe, step.state.extra.get("nfe")
    return x, nfe, None if calls is None else calls.cpu()
