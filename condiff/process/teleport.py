"""Priors made of a Gaussian law: the end of its ODE's closed form, or its marginal, at any level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from condiff.errors import BadType, BadValue
from condiff.process.level import Level
from condiff.process.principal_law import PrincipalLaw, check_path
from condiff.process.prior import Moments, Prior
from condiff.random import Source
from condiff.typing import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class Teleport(Prior):
    """Pure noise at the time ``start``, carried along the closed-form ODE of Gaussian data to the level that is asked
    for (Wang & Vastola 2023): where a deterministic sampler of a real model would be by then, as long as its score is
    that of the Gaussian. At ``start`` itself it is pure noise, draw for draw.

    Args:
        law: mean and principal components, or one of them for each class.
        start: the first time of the whole grid, whose tail is sampled.
        label: (B,) the class of each row, where there is a law per class.

    Example:
        >>> sample(model, prior=Teleport(law), grid=Tail(Karras(), sigma=8.0), steps=18, solver=Heun(), num=16)
    """

    law: PrincipalLaw | Sequence[PrincipalLaw]
    start: float = 1.0
    label: Int[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        laws = [self.law] if isinstance(self.law, PrincipalLaw) else list(self.law)
        if not laws or not all(isinstance(law, PrincipalLaw) for law in laws):
            raise BadType(f"law= takes a PrincipalLaw, or one for each class, got {self.law!r}")
        if len({law.shape for law in laws}) > 1:
            raise BadValue(f"the laws of all classes must be of one shape, got {sorted({law.shape for law in laws})}")
        if not 0.0 < self.start <= 1.0:
            raise BadValue(f"start must lie in (0, 1], got {self.start}")
        if not isinstance(self.law, PrincipalLaw) and self.label is None:
            raise BadValue("a law for each class needs label=, the class of each row")
        if self.label is not None and not bool(((self.label >= 0) & (self.label < len(laws))).all()):
            raise BadValue(f"labels must lie in [0, {len(laws)}), got {self.label.min()} .. {self.label.max()}")

    def sample(self, level, shape, rng: Source, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        check_path(level.process)
        top = level.process.at(self.start)
        if torch.as_tensor(level.t > top.t).any():
            raise BadValue(f"the sampler starts at t = {level.t}, before the teleport's own start at t = {top.t}")
        return self.carry(Moments().sample(top, shape, rng, dtype=dtype, device=device), top, level)

    def carry(self, x: Float[Tensor, "batch *shape"], t: Level, s: Level) -> Float[Tensor, "batch *shape"]:
        """States at level t to level s, each by its law."""
        if isinstance(self.law, PrincipalLaw):
            return self.law.to(x.device).transport(t.process, x, t, s)
        assert self.label is not None
        label = self.label.to(x.device)
        if len(label) != len(x):
            raise BadValue(f"{len(label)} labels for {len(x)} rows")
        out = x.clone()
        for k in label.unique().tolist():
            rows = label == k
            out[rows] = self.law[k].to(x.device).transport(t.process, x[rows], t, s)
        return out


@dataclass(frozen=True, eq=False)
class Marginal(Prior):
    """The Gaussian law's own marginal at the level, ``N(data mean, data^2 C + noise^2)``.

    What a stochastic sampler may start from late, where :class:`Teleport` would follow an ODE that it doesn't.
    """

    law: PrincipalLaw

    def sample(self, level, shape, rng: Source, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        check_path(level.process)
        z = rng.normal(shape, dtype, device)
        law: Any = self.law.to(z.device)
        law.check_state(z)
        along, rest = law.spread(level)
        x = law.scaled(z.flatten(1), (along.sqrt(), rest**0.5)) - law.away(torch.zeros_like(z), level)
        return x.reshape(z.shape)
