"""Paired rows in our own attention: see :mod:`condiff.networks.pairing`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.networks.attention import Attention
from condiff.networks.pairing import Exchange, LowRank, Pairing, Site


class PairedAttention(Site):
    """An :class:`Attention` in whose place it stands, and joint attention between the rows that a pairing ties.

    ``paired(x, context, mask=, rotary=, pairing=)``; without a pairing it is the attention.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    @property
    def crosses(self) -> bool:
        return self.attention.cross

    def layers(self) -> dict[str, Any]:
        names = ("q", "kv", "out") if self.crosses else ("qkv", "out")
        return {name: getattr(self.attention, name) for name in names}

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, pairing: Pairing | None = None, **options: Any
    ) -> Tensor:
        if pairing is None:
            return self.attention(x, context, **options)
        out = self._own(x, context, pairing, **options) if pairing.own else self.attention(x, context, **options)
        if self.crosses or not pairing.pairs:
            return out
        return out + self.listen(x, pairing, self._attend(x, pairing, options.get("rotary")))

    def _own(
        self,
        x: Tensor,
        context: Tensor | None,
        pairing: Pairing,
        mask: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """The attention itself, with the updates of the variables that have some."""
        attention = self.attention

        def layer(name: str, value: Tensor) -> Tensor:
            low_rank = lambda adapter: self.own[adapter][name]  # type: ignore[index]
            return getattr(attention, name)(value) + pairing.update(value, low_rank)

        if context is not None:
            (k, v), q = self._heads(layer("kv", context), 2), self._heads(layer("q", x), 1)[0]
            q, k = attention.prepare(q, 0, rotary), attention.prepare(k, 1, None)
        else:
            q, k, v = self._heads(layer("qkv", x), 3)
            q, k = attention.prepare(q, 0, rotary), attention.prepare(k, 1, rotary)
        return layer("out", attention.attend(q, k, v, mask))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (parts, self.attention.heads, -1)).unbind(2)

    def _attend(self, x: Tensor, pairing: Pairing, rotary: Tensor | None) -> Any:
        """Each side's queries over the other's keys and values; the update is that of whose tokens they are."""
        attention, blocks = self.attention, pairing.blocks(x)
        projected = pairing.blocks(attention.qkv(x))

        def tokens(index: int, low_rank: LowRank) -> tuple[Tensor, Tensor, Tensor]:
            turn = _of_block(rotary, index, pairing.count)
            q, k, v = self._heads(projected[index] + low_rank(blocks[index]), 3)
            return attention.prepare(q, 0, turn), attention.prepare(k, 1, turn), v

        def attend(exchange: Exchange, i: int, j: int) -> tuple[Tensor, Tensor]:
            first: Any = exchange.first
            second: Any = exchange.second
            (q1, k1, v1), (q2, k2, v2) = tokens(i, first["qkv"]), tokens(j, second["qkv"])
            both = attention.attend(torch.cat([q1, q2]), torch.cat([k2, k1]), torch.cat([v2, v1]))
            a, b = both.chunk(2)
            left, right = attention.out(both).chunk(2)
            return left + first["out"](a), right + second["out"](b)

        return attend


def _of_block(rotary: Tensor | None, index: int, count: int) -> Tensor | None:
    """The factors of one variable's rows, where rows have factors of their own: (2, rows, N, 1, d)."""
    if rotary is None or rotary.ndim < 5:
        return rotary
    return rotary.chunk(count, dim=1)[index]
