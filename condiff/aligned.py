"""Aligned: one network as the denoiser of several variables at once, tied by joint attention.

A picture and its depth map, two pictures of one person, frames of a clip: all of one shape, each with a time of its
own. Their rows go through the network together; see :mod:`condiff.networks.pairing` for what ties them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from condiff.conditions import Condition, Conditions, as_conditions, cat
from condiff.denoiser import Denoiser, part_config
from condiff.errors import BadType, BadValue, unknown
from condiff.networks.pairing import Pair, Pairing, Tie, check_adapter
from condiff.process.joint import Joint
from condiff.process.level import Level
from condiff.process.prediction import Prediction

STRENGTH = "joint"


class Aligned(nn.Module):
    """``Aligned(denoiser, ("image", "depth"), [Tie("image", "depth")])``: a denoiser of a dictionary of variables.

    ``model(x_t, t, cond)`` takes dictionaries over the variables, and gives one of predictions; samplers, guidance and
    :class:`condiff.training.JointDenoising` take it as any denoiser of joint states. Every variable is on the process
    of the denoiser, which is shared, not copied.

    Conditions of the denoiser are told to all variables; under ``"depth.prompt"`` to that one alone. ``cond["joint"]``
    (B,) is the strength of the joint attention in each row, 1 by default: a row where it is dropped is evaluated
    without (guidance by what the other variables say).

    Args:
        denoiser: of one variable; its network has the adapters that the ties name.
        variables: their names.
        ties: which pairs hear each other; none leaves them independent.

    Raises:
        BadValue: fewer than two names or one twice, a tie between others, an unknown adapter.
        Incompatible: a network that can't be paired.
    """

    def __init__(self, denoiser: Denoiser, variables: Sequence[str], ties: Sequence[Tie] = ()) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise BadType(f"Aligned takes a Denoiser, got {type(denoiser).__name__}")
        self.variables, self.ties = tuple(variables), tuple(ties)
        if isinstance(variables, str) or len(set(self.variables)) != len(self.variables) or len(self.variables) < 2:
            raise BadValue(f"aligned variables are two or more different names, got {variables!r}")
        for tie in self.ties:
            for name in (tie.first, tie.second):
                if name not in self.variables:
                    raise unknown("variable", name, self.variables)
            check_adapter(denoiser.network, tie.adapter)
        self.denoiser = denoiser
        self.process = Joint(dict.fromkeys(self.variables, denoiser.process))
        self.pairing = Pairing(len(self.variables), self._pairs(), own=self._own())

    def _number(self, name: str) -> int:
        return self.variables.index(name)

    def _pairs(self) -> list[Pair]:
        return [Pair(self._number(t.first), self._number(t.second), t.weights, t.adapter) for t in self.ties]

    def _own(self) -> dict[int, str]:
        return {self._number(tie.second): tie.adapter for tie in self.ties if tie.own}

    @property
    def shape(self) -> dict[str, tuple[int, ...]] | None:
        """Of one sample of each variable."""
        shape = self.denoiser.shape
        return None if shape is None else dict.fromkeys(self.variables, shape)

    @property
    def space(self) -> str | None:
        """What the samples are, where they are latents."""
        return self.denoiser.space

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the conditions: of all variables, of single ones, and the strength."""
        base = dict(self.denoiser.kinds)
        single = {f"{name}.{key}": kind for name in self.variables for key, kind in base.items()}
        return {**base, **single, STRENGTH: "strength"}

    def forward(
        self, x_t: Mapping[str, Tensor], t: Any, cond: Mapping[str, Any] | Conditions | None = None
    ) -> dict[str, Prediction]:
        """
        Raises:
            BadValue: states of different shapes, other names than the variables', an unknown condition.
        """
        self.process.check("the state", x_t)
        levels = self.process.at(t)
        first = x_t[self.variables[0]]
        if any(x.shape != first.shape for x in x_t.values()):
            shapes = {name: tuple(x.shape) for name, x in x_t.items()}
            raise BadValue(f"aligned variables have states of one shape, got {shapes}")
        cond = as_conditions(cond, self.kinds, first.device)
        rows = torch.cat([x_t[name] for name in self.variables])
        level = _stacked([levels[name] for name in self.variables], len(first))
        said = self.denoiser(rows, level, self._told(cond, len(first)), **self._paired(cond))
        return {name: self._part(said, i, x_t[name], levels[name]) for i, name in enumerate(self.variables)}

    def _paired(self, cond: Conditions) -> dict[str, Pairing]:
        """The pairing of this call; none where there is nothing to tie."""
        if not self.ties:
            return {}
        entry = cond.get(STRENGTH)
        if entry is None:
            return {"pairing": self.pairing}
        return {"pairing": replace(self.pairing, strength=torch.where(entry.kept(), entry.value, 0.0))}

    def _told(self, cond: Conditions, rows: int) -> Conditions:
        """What the denoiser is told of each variable, one after the other."""
        names = [name for name in cond if name != STRENGTH]
        for name in names:
            if name not in self.kinds:
                raise unknown("condition of aligned variables", name, self.kinds)
        keys = dict.fromkeys(name.split(".", 1)[-1] if "." in name else name for name in names)
        parts = [{key: cond.get(f"{one}.{key}", cond.get(key)) for key in keys} for one in self.variables]
        some = {key: next(entry for p in parts if (entry := p[key]) is not None) for key in keys}
        filled = [{key: entry or _absent(some[key]) for key, entry in p.items()} for p in parts]
        return cat([Conditions(p) for p in filled]) if keys else Conditions()

    def _part(self, said: Prediction, index: int, x: Tensor, level: Level) -> Prediction:
        rows = slice(index * len(x), (index + 1) * len(x))
        values = {kind: value[rows] for kind, value in said.values.items()}
        total = said.x_t.shape[0]
        aux = {k: v[rows] if isinstance(v, Tensor) and v.ndim and len(v) == total else v for k, v in said.aux.items()}
        return Prediction(x, level, values, aux=aux)

    def config(self) -> dict[str, Any]:
        """What it is, weights apart, as JSON-ready data."""
        return {
            "aligned": self.denoiser.config(),
            "variables": list(self.variables),
            "ties": [part_config(tie) for tie in self.ties],
        }

    def extra_repr(self) -> str:
        return f"variables={self.variables}, ties={self.ties}"


def _stacked(levels: Sequence[Level], rows: int) -> Level:
    """The levels of variables of ``rows`` rows each, as those of the rows of all."""
    columns = list(zip(*(level[:-1] for level in levels), strict=True))
    where = next((v.device for column in columns for v in column if isinstance(v, Tensor)), None)

    def per_row(value: Any) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64, device=where)
        return value.expand(rows) if value.ndim == 0 else value

    return Level._make((*(torch.cat([per_row(v) for v in column]) for column in columns), levels[0].process))


def _absent(like: Condition) -> Condition:
    return replace(like, keep=torch.zeros(like.batch, dtype=torch.bool, device=like.value.device))
