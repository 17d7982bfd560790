"""Heads: several denoisers of one state, each for a quantity of its own, as one denoiser of two fields or more.

RDDM's residual and noise networks, the velocity and the noise of a stochastic interpolant: networks that share neither
weights nor, with :class:`~condiff.denoiser.Told`, what they are told of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoiser
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process.gaussian import Process
from condiff.process.level import Time
from condiff.process.prediction import Prediction
from condiff.typing import Float


class Heads(nn.Module):
    """``Heads(residual, noise)``: the predictions of both, beside each other.

    The objective of a denoiser without a ``target`` sums the losses of all fields, so that the denoisers are trained
    at once, on the same times and noise. Conditions that only some were built for are given to these.

    Args:
        denoisers: on one process and samples of one shape, with different targets.

    Raises:
        BadType: something that isn't a :class:`~condiff.denoiser.Denoiser`.
        BadValue: fewer than two, or a target twice.
        Incompatible: different processes, shapes, or kinds of a condition.

    Example:
        >>> r = Denoiser(UNet(shape=(3, 64, 64)), process, "residual", Told("source"))
        >>> e = Denoiser(UNet(shape=(3, 64, 64)), process, "noise", Told("noise"))
        >>> model = Heads(r, e)
    """

    def __init__(self, *denoisers: Denoiser) -> None:
        super().__init__()
        for one in denoisers:
            if not isinstance(one, Denoiser):
                raise BadType(f"Heads takes denoisers, got {type(one).__name__}")
        if len(denoisers) < 2:
            raise BadValue(f"Heads takes at least two denoisers, got {len(denoisers)}")
        targets = [name for one in denoisers for name in one.targets]
        if len(set(targets)) != len(targets):
            raise BadValue(f"heads predict different quantities, got {targets}")
        first = denoisers[0]
        for one in denoisers[1:]:
            if one.process != first.process or one.shape != first.shape:
                raise Incompatible(
                    f"heads share a process and a shape: {first.process}, {first.shape} and {one.process}, {one.shape}"
                )
        self.heads = nn.ModuleList(denoisers)
        self.kinds = self._kinds()

    def _kinds(self) -> dict[str, str]:
        kinds: dict[str, str] = {}
        for one in self.denoisers:
            for name, kind in one.kinds.items():
                if kinds.setdefault(name, kind) != kind:
                    raise Incompatible(f"condition {name!r} is a {kinds[name]} for one head and a {kind} for another")
        return kinds

    @property
    def denoisers(self) -> list[Denoiser]:
        """The denoisers in order."""
        return [one for one in self.heads if isinstance(one, Denoiser)]

    @property
    def process(self) -> Process:
        """The one of all heads."""
        return self.denoisers[0].process

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one sample."""
        return self.denoisers[0].shape

    @property
    def targets(self) -> tuple[str, ...]:
        """The quantities of all heads."""
        return tuple(name for one in self.denoisers for name in one.targets)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Time, cond: Mapping[str, Any] | Conditions | None = None
    ) -> Prediction:
        cond, level = as_conditions(cond, self.kinds, x_t.device), self.process.at(t)
        said = [one(x_t, level, self._told(one, cond)) for one in self.denoisers]
        values = {kind: value for one in said for kind, value in one.values.items()}
        aux = {kind: value for one in said for kind, value in one.aux.items()}
        return Prediction(x_t, level, values, said[0].source, aux)

    def _told(self, one: Denoiser, cond: Conditions) -> Conditions:
        """Without what only other heads know; endpoints are everybody's."""
        mine = {n: c for n, c in cond.items() if n in one.kinds or n not in self.kinds or c.kind == "endpoint"}
        return Conditions(mine)

    def on(self, process: Process) -> Heads:
        """The same networks on another process: another order of the same two clocks, for heads that are told theirs.

        Nothing is converted; see :class:`condiff.process.Retimed` for that.
        """
        return Heads(*(one.on(process) for one in self.denoisers)).train(self.training)

    def config(self) -> dict[str, Any]:
        """Everything needed to build it again, weights apart; see :meth:`from_config`."""
        return {"heads": [one.config() for one in self.denoisers]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Heads:
        """The heads of a :meth:`config`, with fresh weights."""
        return cls(*(Denoiser.from_config(one) for one in config["heads"]))
