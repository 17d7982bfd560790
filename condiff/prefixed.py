"""Prefixed: a denoiser of the frames behind given ones, made of one of all frames.

Three times are apart: the level of the given frames (clean, or perturbed a little), the time that the network is told
of them, and the sampler's own time, which is that of the frames behind. A sampler or an objective sees the latter only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process import Level, Prediction
from condiff.process.algebra import Weight
from condiff.typing import Float


class Prefixed:
    """``prefixed(x_t, t)`` is what ``denoiser([prefix | x_t], [clean | t])`` says about x_t.

    Args:
        denoiser: of states (B, F, ...) with a time per frame. One whose network is a
            :class:`condiff.networks.VideoTransformer` is told how long the prefix is.
        prefix: given frames, (B, P, ...); calls with a multiple of B rows (guidance) repeat them.
        clean: the time that is told of them, whatever their own level.
        first: number of the first given frame, for positions; None for 0.

    Raises:
        BadValue: frames of another shape, rows that are no multiple of the prefix's.
    """

    def __init__(
        self, denoiser: Any, prefix: Float[Tensor, "batch frames *shape"], clean: float = 0.0, first: int | None = None
    ) -> None:
        self.denoiser, self.prefix, self.first = denoiser, prefix, first
        self.process = denoiser.process
        self.clean: Level = self.process.at(clean)
        self._told = takes_frames(denoiser)

    @property
    def shape(self) -> None:
        """Any number of frames."""
        return None

    @property
    def kinds(self) -> Mapping[str, str]:
        return getattr(self.denoiser, "kinds", None) or {}

    @property
    def targets(self) -> Any:
        return getattr(self.denoiser, "targets", None)

    @property
    def space(self) -> str | None:
        return getattr(self.denoiser, "space", None)

    def parameters(self) -> Iterator[Tensor]:
        """Of the network inside."""
        if callable(getattr(self.denoiser, "parameters", None)):
            yield from self.denoiser.parameters()

    def __call__(self, x_t: Float[Tensor, "batch frames *shape"], t: Any, cond: Any = None) -> Prediction:
        given = for_rows(self.prefix, x_t.shape[0])
        if given.shape[2:] != x_t.shape[2:]:
            raise BadValue(f"frames {tuple(x_t.shape[2:])} don't follow given ones of {tuple(given.shape[2:])}")
        level, n = self.process.at(t), given.shape[1]
        options = {"prefix": n, "first": self.first} if self._told else {}
        both = side_by_side(self.clean, level, x_t.shape[0], (n, x_t.shape[1]), x_t.device)
        said = self.denoiser(torch.cat([given.to(x_t), x_t], dim=1), both, cond, **options)
        part = said.part((slice(None), slice(n, None)), level)
        return Prediction(x_t, level, part.values, part.source, part.aux)


def takes_frames(denoiser: Any) -> bool:
    """Whether the network takes any number of frames, and the options ``prefix``, ``first`` and ``cache``."""
    return getattr(getattr(denoiser, "network", None), "any_frames", False)


def for_rows(value: Tensor, rows: int) -> Tensor:
    """``value`` (B, ...) for a multiple of its rows: copies of the batch one after the other.

    Raises:
        BadValue: no multiple.
    """
    if rows % value.shape[0]:
        raise BadValue(f"{rows} rows came behind given frames of {value.shape[0]}: a batch keeps its size")
    return value if rows == value.shape[0] else torch.cat([value] * (rows // value.shape[0]))


def side_by_side(before: Level, after: Level, rows: int, frames: tuple[int, int], device: Any) -> Level:
    """One level (rows, frames) of two: each a number, a level per row, or per frame."""

    def spread(value: Weight, count: int) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64, device=device)
        return (value[:, None] if value.ndim == 1 else value).expand(rows, count)

    columns = zip(before[:-1], after[:-1], strict=True)
    joined = (torch.cat([spread(a, frames[0]), spread(b, frames[1])], dim=1) for a, b in columns)
    return Level._make((*joined, after.process))
