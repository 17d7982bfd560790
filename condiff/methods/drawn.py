"""What is drawn: the plan of a batch of samples, its parts, and the samples with how they were made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.conditions import Conditions, as_conditions
from condiff.data import Data, encode_conditions
from condiff.methods.recipe import Recipe, Sampler
from condiff.random import PerSample, Source
from condiff.training.batch import each, leaves

Rows = Any  # of samples: a Tensor (N, ...), or a dictionary of them over the variables of a joint state


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``num`` samples that are to be drawn, settled down to the last draw: sample i depends on ``seed + i`` only.

    Args:
        denoiser: guided, or told several conditions at once.
        recipe, sampler, times: how; the sampler is the one asked for, and ``times`` its grid.
        data: what the samples are like.
        batch: rows a network call, at most.
        cond: conditions of the ``num`` samples, as the data has them.
        truth: the real samples that the conditions belong to, None where there are none.
        known: given values of the ``num`` samples, and where they are given, which stay; None for none.
        labels, names: classes of the samples, and what to call them.
        columns: of a picture of all samples.
        frames: of a clip, where clips of any length can be made; those of the data when None.
        progress: called with (steps that are done, all steps) of a network call's rows behind each.
    """

    denoiser: Any
    recipe: Recipe
    sampler: Sampler
    times: Any
    data: Data
    num: int
    seed: int
    batch: int
    device: Any
    codec: Any = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    truth: Rows | None = None
    known: tuple[Tensor, Tensor] | None = None
    labels: Tensor | None = None
    names: list[str] | None = None
    columns: int | None = None
    frames: int | None = None
    progress: Callable[[int, int], None] | None = None

    @property
    def steps(self) -> int:
        """Of a trajectory."""
        return len(next(iter(self.times.values())) if isinstance(self.times, Mapping) else self.times) - 1

    def blocks(self) -> list[range]:
        """The rows of each network call."""
        return [range(first, min(first + self.batch, self.num)) for first in range(0, self.num, self.batch)]

    def source(self, rows: range) -> Source:
        """Where the draws of some samples come from."""
        return PerSample(self.seed + i for i in rows)

    def conditions(self, rows: range, rng: Source) -> Conditions:
        """The conditions of some samples as the denoiser takes them: encoded, and with what the objective does to them
        outside training, such as an endpoint chosen or a fixed corruption."""
        mine = {name: value[rows.start : rows.stop].to(self.device) for name, value in self.cond.items()}
        if self.codec is not None:
            mine = encode_conditions(self.codec, mine, self.data.kinds, self.data.shape)
        told, transform = as_conditions(mine, self.denoiser.kinds, self.device), self.recipe.objective.transform
        return told if transform is None else transform(told, t=None, rng=rng, training=False)


@dataclass(frozen=True)
class Part:
    """Some of the samples of a plan, in the data's space and on the CPU.

    Args:
        x: the samples, (B, ...).
        nfe: network calls of the part.
        calls: (B,) those that each sample took, where samples differ in that.
    """

    x: Rows
    nfe: int
    calls: Tensor | None = None


@dataclass(frozen=True)
class Drawing:
    """Samples and how they were made.

    ``truth`` are the real samples whose conditions were used, if they were; ``calls`` (N,) the network calls that each
    sample took, where samples differ in that.
    """

    x: Rows
    labels: Tensor | None
    truth: Rows | None
    names: list[str] | None
    nfe: int
    seconds: float
    columns: int | None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    calls: Tensor | None = None

    @property
    def num(self) -> int:
        """How many samples there are."""
        return len(leaves(self.x)[0])


def gather(plan: Plan, parts: Sequence[Part], seconds: float) -> Drawing:
    """All samples of a plan, from its parts in order."""
    calls = [part.calls for part in parts]
    return Drawing(
        x=each(lambda *x: torch.cat(x), *(part.x for part in parts)),
        labels=plan.labels,
        truth=plan.truth,
        names=plan.names,
        nfe=parts[-1].nfe,
        seconds=seconds,
        columns=plan.columns,
        cond=plan.cond,
        calls=torch.cat([c for c in calls if c is not None]) if all(c is not None for c in calls) else None,
    )


def middle(made: Drawing) -> Drawing:
    """The same volumes, seen in the middle of their first axis."""
    cut = lambda x: x[:, :, x.shape[2] // 2] if isinstance(x, Tensor) and x.ndim == 5 else x
    return replace(made, x=cut(made.x), truth=cut(made.truth), cond={n: cut(v) for n, v in made.cond.items()})


def save_grid(made: Drawing, path: Path) -> Path:
    """A grid of pictures; where pictures were given, beside them and beside the true one."""
    seen = {name: v for name, v in made.cond.items() if v.shape == made.x.shape}
    if not seen:
        return figures.grid(made.x, path, labels=made.names, columns=made.columns)
    given = {"given": next(iter(seen.values()))} if len(seen) == 1 else seen
    parts = {**given, "sample": made.x, "true": made.truth}
    parts = {word: x for word, x in parts.items() if x is not None}
    x = torch.stack(list(parts.values()), 1).flatten(0, 1)
    across = max(1, min(3, round(math.sqrt(len(made.x) / len(parts)))))
    return figures.grid(x, path, labels=list(parts) * len(made.x), columns=len(parts) * across)
