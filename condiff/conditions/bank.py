"""The bank that embeds all conditions of a network.

A :class:`ConditionBank` turns a batch of :class:`Conditions` into what networks use: the sum of all vectors, a row of
tokens, and channels to put beside the state. An entry that is absent for a row is replaced by something learned or
flagged, whatever its value was: a null vector, one null token, an indicator channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condiff.conditions.condition import BELONGING, Conditions
from condiff.conditions.embeddings import LevelEmbedding
from condiff.conditions.specs import Spec
from condiff.errors import BadType, BadValue, unknown


class Embedded(NamedTuple):
    """What a network gets: (B, width), (B, L, width), its (B, L) mask, channels to put beside the state."""

    vector: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    maps: tuple[Tensor, ...]


class ConditionBank(nn.Module):
    """Embeds all conditions of a network.

    Args:
        specs: name -> :class:`Spec`.
        width: of vectors and tokens.
        tokens, maps: whether the network can take tokens, channels beside the state.

    Raises:
        BadType: something that isn't a spec. BadValue: a spec that the network can't take.
    """

    def __init__(self, specs: Mapping[str, Any], width: int, *, tokens: bool = True, maps: bool = True) -> None:
        super().__init__()
        for name, spec in specs.items():
            if not isinstance(spec, Spec):
                raise BadType(f"condition {name!r} is declared by a spec such as Label(10), got {spec!r}")
            if (spec.role == "tokens" and not tokens) or (spec.role == "map" and not maps):
                raise BadValue(f"this network takes no {spec.kind} conditions, got {name}={spec}")
        self.specs = dict(specs)
        self.kinds = {name: spec.kind for name, spec in specs.items()}
        self.entries = nn.ModuleDict({name: spec.build(width) for name, spec in specs.items()})
        self.levels = nn.ModuleDict(
            {name: LevelEmbedding(width) for name, spec in specs.items() if getattr(spec, "level", False)}
        )

    @property
    def extra_channels(self) -> int:
        """Channels beside the state, of all entries."""
        return sum(spec.extra_channels for spec in self.specs.values())

    @property
    def has_tokens(self) -> bool:
        return any(spec.role == "tokens" for spec in self.specs.values())

    def check(self, cond: Conditions, batch: int) -> None:
        """Refuse entries of unknown names, of another kind, or for another number of rows."""
        for name, entry in cond.items():
            if name not in self.specs:
                if entry.kind in BELONGING:  # read by the process or by guidance, not by this network
                    continue
                raise unknown("condition", name, self.specs)
            if entry.kind != self.kinds[name]:
                raise BadValue(f"condition {name!r} was declared as {self.kinds[name]!r}, got {entry.kind!r}")
            if entry.batch != batch:
                raise BadValue(f"condition {name!r} has {entry.batch} rows, the state has {batch}")

    def forward(
        self, cond: Conditions, like: Tensor, channel_first: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Embedded:
        """Embed a batch; ``like`` is the state, channels first, and ``channel_first`` brings maps to its order."""
        batch = like.shape[0]
        self.check(cond, batch)
        vector, tokens, maps = None, [], []
        for name, module in self.entries.items():
            spec, entry = self.specs[name], cond.get(name)
            if spec.role == "vector":
                part = module(entry, batch)
                vector = part if vector is None else vector + part
            elif spec.role == "tokens":
                tokens.append(module(entry, batch))
            elif spec.extra_channels:
                maps.extend(module(entry, like, channel_first))
        for name, module in self.levels.items():
            part = module(cond.get(name), batch)
            vector = part if vector is None else vector + part
        return Embedded(vector, *_join(tokens), tuple(maps))


def _join(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    """Several rows of tokens one after the other."""
    if not parts:
        return None, None
    if len(parts) == 1:
        return parts[0]
    tokens = torch.cat([x for x, _ in parts], dim=1)
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [x.new_ones(x.shape[:2], dtype=torch.bool) if m is None else m for x, m in parts]
    return tokens, torch.cat(masks, dim=1)
