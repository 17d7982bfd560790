"""TargetChoice: which of two quantities a network should predict, decided by training (RDDM's automatic selection).

One network's output f is read as both quantities at once, and a learned share says how much of each. The share moves
to the reading whose loss is smaller; once it has left a band around 1/2 the choice is made, and a fresh network is
trained on the chosen target alone (Liu 2023, arXiv 2308.13712).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condiff.denoiser import Denoiser, Plain
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process import KINDS, Prediction
from condiff.random import Source
from condiff.training.batch import Batch
from condiff.training.config import TrainConfig
from condiff.training.objective import Denoising, Losses
from condiff.training.times import UniformTimes
from condiff.training.trainer import Trainer


class TargetChoice(nn.Module):
    """With the share s, 1/2 at first, of the quantity a over the quantity b, and the network's output f::

        a_hat = s f + (1 - s) a(b = f)      b_hat = s b(a = f) + (1 - s) f
        loss = s d(a_hat, a) + (1 - s) d(b_hat, b)

    where ``a(b = f)`` is what follows for a if f is b. The share is trained with the network.

    Args:
        kinds: the two quantities a and b.
        objective: times, distance, weighting and what happens to conditions; its ``target`` isn't used. By default
            absolute differences at times up to 0.999: at t = 1, without data, noise says nothing of x0.
        band: how far from 1/2 the share has to move.
        clip: x0 is clipped to ``[-clip, clip]`` on the way from noise to another quantity; None for no clip.

    Raises:
        BadValue: unknown or equal kinds, a band outside (0, 1/2).
    """

    def __init__(
        self,
        kinds: tuple[str, str] = ("residual", "noise"),
        objective: Denoising | None = None,
        *,
        band: float = 0.01,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("quantity", kind, KINDS)
        if len(kinds) != 2 or kinds[0] == kinds[1]:
            raise BadValue(f"a choice is between two quantities, got {kinds}")
        if not 0.0 < band < 0.5:
            raise BadValue(f"band must lie between 0 and 1/2, got {band}")
        if clip is not None and not clip > 0.0:
            raise BadValue(f"clip must be > 0, got {clip}")
        objective = objective or Denoising(loss="l1", times=UniformTimes(low=0.001, high=0.999))
        if not isinstance(objective, Denoising):
            raise BadType(f"objective= takes a Denoising, got {type(objective).__name__}")
        self.kinds, self.band, self.clip = tuple(kinds), band, clip
        own = {f.name: getattr(objective, f.name) for f in fields(Denoising)}
        self.objective = _Shared(**{**own, "target": None}, choice=self)
        self.share = nn.Parameter(torch.tensor(0.5))

    @property
    def done(self) -> bool:
        """Whether the share has left the band; training ends then."""
        return abs(float(self.share.detach()) - 0.5) >= self.band

    @property
    def chosen(self) -> str:
        """The quantity that the share leans to."""
        return self.kinds[0 if float(self.share.detach()) > 0.5 else 1]

    def forward(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch.

        Raises:
            Incompatible: a denoiser of several targets, or with scalings around its network.
        """
        if len(getattr(denoiser, "targets", ())) != 1 or not isinstance(getattr(denoiser, "precondition", None), Plain):
            raise Incompatible("a choice of target is made for a network with one output and Plain() around it")
        return self.objective(denoiser, batch, rng, training)

    def read(self, said: Prediction) -> Prediction:
        """The mixture of both readings of what the network said, as a prediction of both quantities."""
        (f,), (a, b), s = said.values.values(), self.kinds, self.share
        as_a, as_b = (Prediction(said.x_t, said.level, {kind: f}, said.source) for kind in (a, b))
        values = {a: s * f + (1.0 - s) * self._other(as_b, a), b: s * self._other(as_a, b) + (1.0 - s) * f}
        return Prediction(said.x_t, said.level, values, said.source, said.aux)

    def _other(self, read: Prediction, kind: str) -> Tensor:
        """What follows for the other quantity; from noise through a clipped x0."""
        if self.clip is None or "noise" not in read.values:
            return read.to(kind)
        return read.set("x0", read.x0.clamp(-self.clip, self.clip)).to(kind)


@dataclass(frozen=True, kw_only=True)
class _Shared(Denoising):
    """The regression with both quantities' losses, weighted by their shares."""

    choice: Any

    def fields(self, said: Prediction, truth: Prediction, mask: Tensor | None) -> dict[str, Tensor]:
        both, (a, b), s = self.choice.read(said), self.choice.kinds, self.choice.share
        return {a: s * self.field(a, both, truth, mask), b: (1.0 - s) * self.field(b, both, truth, mask)}


class Choice(NamedTuple):
    """What was chosen: the target, the share of the first one in the end, after how many steps, and whether it had
    left the band by then (otherwise ``target`` is what it leaned to)."""

    target: str
    share: float
    steps: int
    decided: bool


def choose_target(
    make: Callable[[str], Denoiser], data: Any, choice: TargetChoice | None = None, **settings: Any
) -> Choice:
    """Train a network until it has chosen its target; the weights are thrown away.

    Args:
        make: a target to a fresh denoiser: afterwards ``make(choose_target(make, data).target)`` is the one to train.
        data: as :class:`Trainer` takes it.
        choice: the objective.
        settings: fields of :class:`TrainConfig`; ``steps`` is the most that it may take, and ``lr`` also says how
            fast the share can move: some ``band / lr`` steps. ``quiet`` and ``device`` as in :class:`Trainer`.

    Raises:
        SystemExit: a signal ended the training.
    """
    choice = choice or TargetChoice()
    rest = {name: settings.pop(name) for name in ("quiet", "device") if name in settings}
    config = TrainConfig(**{"ema": (), "schedule": "constant", **settings})
    trainer = Trainer(make(choice.kinds[0]), data, choice, config, **rest)
    status = trainer.fit()
    if status.stopped:
        raise SystemExit(status.exit_code)
    return Choice(choice.chosen, float(choice.share.detach()), status.step, choice.done)
