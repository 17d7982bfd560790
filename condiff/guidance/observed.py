"""Energies of observed entries: how far a denoised sample is from what is known of it, per sample.

They read the condition of kind ``"observation"``: its value, and its mask, true where observed. An unconditional model
is told nothing of it; :class:`condiff.guidance.Energy` draws its samples there::

    guided = Energy(model, Quantile(levels), scale=4.0, shift="mean")
    sample(guided, solver=DDPM(), steps=100, cond={"observed": Condition(y, "observation", mask=known)})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue
from condiff.typing import Float


class Observed(ABC):
    """Base: ``E(x0) = sum over observed entries of a loss``, (B,)."""

    @abstractmethod
    def loss(self, x0: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]) -> Tensor:
        """Elementwise, of the shape of both."""

    def __call__(self, x0: Tensor, level: Any, cond: Conditions) -> Tensor:
        """
        Raises:
            BadValue: no observation among the conditions, or several; another shape than the sample's.
        """
        value, mask = observation(cond, x0)
        # The difference is taken where something is observed only: what isn't may hold anything, NaN too.
        return torch.where(mask, self.loss(x0, torch.where(mask, value, x0.detach())), 0.0).flatten(1).sum(1)


@dataclass(frozen=True)
class SquaredError(Observed):
    """``sum (x0 - y)^2``, without a factor 1/2."""

    def loss(self, x0: Tensor, y: Tensor) -> Tensor:
        return (x0 - y).square()


@dataclass(frozen=True, eq=False)
class Quantile(Observed):
    """``sum max(k (y - x0), (k - 1) (y - x0))``: each sample is drawn to its own quantile k of what is observed.

    Args:
        levels: k of each row, (B,), between 0 and 1; see :func:`quantile_levels`.

    Raises:
        BadType, BadValue: levels that aren't (B,) numbers between 0 and 1.
    """

    levels: Float[Tensor, " batch"]

    def __post_init__(self) -> None:
        if not isinstance(self.levels, Tensor) or not self.levels.dtype.is_floating_point:
            raise BadType(f"levels are a tensor of floats, (B,), got {self.levels!r}")
        if self.levels.ndim != 1 or not bool(((self.levels > 0.0) & (self.levels < 1.0)).all()):
            raise BadValue(f"levels are (B,) numbers between 0 and 1, got {self.levels}")

    def loss(self, x0: Tensor, y: Tensor) -> Tensor:
        if len(self.levels) != len(x0):
            raise BadValue(f"{len(self.levels)} quantile levels came to {len(x0)} samples: one for each row")
        k = self.levels.to(x0).reshape(-1, *(1,) * (x0.ndim - 1))
        error = y - x0
        return torch.maximum(k * error, (k - 1.0) * error)


def quantile_levels(members: int, groups: int = 1) -> Tensor:
    """``j / (S + 1)``, j = 1 ... S, for the S members of each of several groups, one group after the other."""
    if members < 1 or groups < 1:
        raise BadValue(f"members and groups are at least 1, got {members} and {groups}")
    return (torch.arange(1, members + 1, dtype=torch.float64) / (members + 1)).repeat(groups)


def observation(cond: Conditions, like: Tensor) -> tuple[Tensor, Tensor]:
    """Value and mask of the one entry of kind 'observation', in the dtype and on the device of a sample like ``like``.

    Raises:
        BadValue: none, several, or one of another shape.
    """
    found: list[tuple[str, Condition]] = [(n, c) for n, c in cond.items() if c.kind == "observation"]
    if len(found) != 1:
        raise BadValue(
            f"guidance by observations reads one condition of kind 'observation', and {len(found) or 'none'} came: "
            f'give {{"observed": Condition(y, "observation", mask=known)}}; got {cond}'
        )
    name, entry = found[0]
    if entry.value.shape != like.shape:
        raise BadValue(f"{name!r} of shape {tuple(entry.value.shape)} must have the sample's, {tuple(like.shape)}")
    mask = torch.ones_like(entry.value, dtype=torch.bool) if entry.mask is None else entry.mask.bool()
    mask = mask.expand(entry.value.shape) & entry.kept().reshape(-1, *(1,) * (like.ndim - 1))
    return entry.value.to(like), mask.to(like.device)
