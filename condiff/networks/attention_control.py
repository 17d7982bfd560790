"""Attention control: rows of a batch that attend as other rows of it do (Hertz 2022, Prompt-to-Prompt).

A batch holds the rows of a source and, after them, those of one or several targets, row by row in the same order. With
A the maps softmax(q k^T / sqrt(d)) of one attention and v the targets' own values,

    self-attention:   A_target <- A_source
    cross-attention:  A_target <- A_source M diag(heard) + A_target diag(own)           over the condition's tokens

and the rows of the source, like those of a guidance's reference, attend as ever. Both are linear in the maps, so that
no map has to be written down: ``(A_source M diag(h) + A_target diag(o)) v = A_source (M h v) + A_target (o v)``, two
calls of the attention's own kernel on mixed values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condiff.errors import BadValue, Incompatible
from condiff.networks.attention import Attention, plain_weights
from condiff.networks.pairing import Site
from condiff.typing import Float

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Mixing:
    """How the cross-attention of K targets is made of the source's and their own.

    Args:
        heard: (K, P, L, M), ``M diag(heard)``: what a target's token takes of the maps of the source's tokens. P is
            the number of rows of a target, or 1 for all.
        own: (K, P, M), what it takes of its own map.
    """

    heard: Float[Tensor, "targets rows source_tokens tokens"]
    own: Float[Tensor, "targets rows tokens"]
    alone: bool = field(init=False)  # whether nothing of their own is left
    _rows: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.heard.shape[:2] != self.own.shape[:2] or self.heard.shape[3] != self.own.shape[2]:
            raise BadValue(f"maps are mixed by {tuple(self.heard.shape)} and {tuple(self.own.shape)}: they don't match")
        object.__setattr__(self, "alone", not bool((self.own != 0.0).any()))

    def rows(self, num: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """For the rows of all targets, ``num`` each: (K num, L, M) and (K num, M); kept for the next layer."""
        key = (num, like.device, like.dtype)
        if key not in self._rows:
            both = (self.heard, self.own)
            heard, own = (v.to(like).expand(-1, num, *v.shape[2:]).flatten(0, 1) for v in both)
            self._rows[key] = heard, own
        return self._rows[key]

    def maps(self, source: Tensor, targets: Tensor) -> Tensor:
        """The mixed maps of the targets, (K num, N, M), of the source's (num, N, L) and their own."""
        heard, own = self.rows(len(source), targets)
        return source.repeat(len(self.heard), 1, 1) @ heard + targets * own[:, None]


class AttentionControl:
    """What controlled attentions do, set for each step by who runs them, and the maps that they keep.

    Args:
        targets: K; a group of rows is those of the source and K times as many.
        largest: queries along a side; self-attention over more than ``largest**2`` isn't controlled, and maps of more
            aren't kept. A kept map takes ``rows queries tokens`` floats for each number of queries: at the sizes of
            Stable Diffusion, two rows and 77 tokens, 0.8 MB in all, whatever the number of steps and layers.

    Attributes:
        rows: of a group.
        last: whether the controlled group is the last of the batched call, as in diffusers' pipelines, not the first.
        mixing: of cross-attentions, None to leave them alone.
        tied: whether self-attentions of the targets are the source's.
        keep: whether maps of cross-attentions are kept.
        attentions: that are under this control now.
    """

    def __init__(self, targets: int = 1, largest: int = 32) -> None:
        if targets < 1 or largest < 1:
            raise BadValue(f"targets and largest are at least 1, got {targets} and {largest}")
        self.targets, self.largest = targets, largest
        self.rows, self.last = 1 + targets, False
        self.mixing: Mixing | None = None
        self.tied = self.keep = False
        self.attentions = 0
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def begin(self, rows: int, last: bool = False) -> None:
        """Forget the maps; from here on groups have ``rows`` rows.

        Raises:
            Incompatible: no attention is under this control.
            BadValue: rows that aren't those of a source and its targets.
        """
        if not self.attentions:
            raise Incompatible("no network is under this control: sample within `with edit.on(denoiser):`")
        if rows % (1 + self.targets):
            raise BadValue(
                f"a source and {self.targets} target{'s' if self.targets > 1 else ''} take a multiple of "
                f"{1 + self.targets} rows, the source's before the targets', got {rows}"
            )
        self.rows, self.last = rows, last
        self.sums, self.counts = {}, {}

    @contextmanager
    def over(self, attentions: int) -> Iterator[None]:
        """While that many attentions are under this control; afterwards it asks for nothing.

        Raises:
            Incompatible: it controls another network.
        """
        if self.attentions:
            raise Incompatible("this control is in use already: make one for each network")
        self.attentions = attentions
        try:
            yield
        finally:
            self.attentions = 0
            self.mixing, self.tied, self.keep = None, False, False

    @property
    def nbytes(self) -> int:
        """Of the kept maps."""
        return sum(kept.nbytes for kept in self.sums.values())

    def maps(self, queries: int) -> Float[Tensor, "rows queries tokens"]:
        """The kept maps of that many queries as they acted, averaged over steps, layers and heads.

        Raises:
            BadValue: none were kept.
        """
        if queries not in self.sums:
            raise BadValue(f"no maps of {queries} queries were kept, only of {sorted(self.sums)}")
        return self.sums[queries] / self.counts[queries]

    def acts(self, queries: int, cross: bool) -> bool:
        """Whether an attention has anything to do here."""
        small = queries <= self.largest**2
        return (self.mixing is not None or (self.keep and small)) if cross else self.tied and small

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: Attend, cross: bool) -> Tensor:
        """Attention (R, N, width) of (R, N, heads, d) queries to (R, M, heads, d) keys and values, with control.

        Args:
            mask: as the kernel takes it, or None; of R rows, it goes with the maps.
            attend: the kernel, ``attend(q, k, v, mask)``.
            cross: over the tokens of a condition.

        Raises:
            Incompatible: a batch that isn't made of groups, or other tokens than those that are mixed.
        """
        if not self.acts(q.shape[1], cross):
            return attend(q, k, v, mask)
        if q.shape[0] % self.rows:
            raise Incompatible(f"attention control expects groups of {self.rows} rows, got a batch of {q.shape[0]}")
        if not cross:
            return attend(self._tied(q), self._tied(k), v, self._tied(mask, len(q)))
        if self.mixing is not None and k.shape[1] not in self.mixing.own.shape[2:]:
            raise Incompatible(f"prompts of {self.mixing.own.shape[2]} tokens were aligned, got {k.shape[1]}")
        if self.keep and q.shape[1] <= self.largest**2:
            self._keep(q, k, mask)
        return attend(q, k, v, mask) if self.mixing is None else self._crossed(self.mixing, q, k, v, mask, attend)

    def _crossed(self, mixing: Mixing, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: Attend) -> Tensor:
        total = len(q)
        at, (heard, own) = self._targets(total), mixing.rows(self._num, v)
        values = self._put(v, torch.einsum("bst,bthd->bshd", heard, v[at]))
        out = attend(self._tied(q), self._tied(k), values, self._tied(mask, total))
        if mixing.alone:
            return out
        kept = mask[at] if mask is not None and len(mask) == total else mask
        return self._put(out, out[at] + attend(q[at], k[at], v[at] * own[:, :, None, None], kept))

    @property
    def _num(self) -> int:
        """Rows of the source."""
        return self.rows // (1 + self.targets)

    def _source(self, total: int) -> slice:
        start = total - self.rows if self.last else 0
        return slice(start, start + self._num)

    def _targets(self, total: int) -> slice:
        source = self._source(total)
        return slice(source.stop, source.start + self.rows)

    def _put(self, x: Tensor, rows: Tensor) -> Tensor:
        """x with other rows for the targets."""
        at = self._targets(len(x))
        return torch.cat([x[: at.start], rows, x[at.stop :]])

    def _tied(self, x: Any, total: int | None = None) -> Any:
        """x with the source's rows in place of the targets'; what doesn't have the batch's rows stays."""
        if x is None or (total is not None and len(x) != total):
            return x
        return self._put(x, x[self._source(len(x))].repeat(self.targets, *(1,) * (x.ndim - 1)))

    @torch.no_grad()
    def _keep(self, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        """The maps of the group, mean over heads, mixed as they act, are added to what is kept."""
        total = len(q)
        source, targets = self._source(total), self._targets(total)
        group = slice(source.start, targets.stop)
        seen = mask[group] if mask is not None and len(mask) == total else mask
        seen = seen[:, None, None, :] if seen is not None and seen.ndim == 2 else seen
        maps = plain_weights(q[group].transpose(1, 2), k[group].transpose(1, 2), seen).float().mean(1)
        if self.mixing is not None:
            maps = torch.cat([maps[: self._num], self.mixing.maps(maps[: self._num], maps[self._num :])])
        n = q.shape[1]
        self.sums[n] = self.sums[n] + maps if n in self.sums else maps
        self.counts[n] = self.counts.get(n, 0) + 1


@contextmanager
def control_attentions(network: nn.Module, control: AttentionControl) -> Iterator[None]:
    """Every :class:`Attention` of a network of ours under control; afterwards each computes as it did.

    Raises:
        Incompatible: none attends to condition tokens, or some are controlled or paired already.
    """
    found = [part for part in network.modules() if isinstance(part, Attention)]
    if not any(part.cross for part in found):
        raise Incompatible(f"this {type(network).__name__} attends to no condition: there is nothing to control")
    if any("attend" in vars(part) for part in found) or any(isinstance(part, Site) for part in network.modules()):
        raise Incompatible(f"the attention of this {type(network).__name__} is controlled or paired already")
    with control.over(len(found)):
        try:
            for part in found:
                part.attend = partial(_attend, part, control)
            yield
        finally:
            for part in found:
                vars(part).pop("attend", None)


def _attend(
    part: Attention,
    control: AttentionControl,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    kernel = lambda q, k, v, mask: Attention.attend(part, q, k, v, mask, causal)
    return control.attend(q, k, v, mask, kernel, part.cross)


def grid_of(queries: int, height: int, width: int) -> tuple[int, int, int] | None:
    """How a state of ``height x width`` is laid out in that many queries, ``(rows, columns, factor)``, the factor a
    power of 2 by which both sides are smaller (rounded up at each halving); None for other numbers.
    """
    factor = 1
    while height * width > queries and max(height, width) > 1:
        height, width, factor = math.ceil(height / 2), math.ceil(width / 2), 2 * factor
    return (height, width, factor) if height * width == queries else None
