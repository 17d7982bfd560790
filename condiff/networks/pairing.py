"""Joint attention between aligned rows: one network, several variables, tied where a pair says so (UniCon, Li 2025).

A batch holds the rows of one variable after those of another. In every self-attention of the network, after
normalisation h, the rows of two paired variables also attend to each other, x to y and y to x, with the frozen weights
of that self-attention plus low-rank updates, one for tokens of x and one for tokens of y:

    ``z <- z + a + strength weight post(attention(q = h_x, k = v = h_y))``      a: the self-attention, post = 0 at first

Which rows are paired is a :class:`Pairing`, which goes through the network's call; without one the network is what it
was, bit for bit. The weights lie in the network's :class:`Site` s, by the adapter's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condiff.errors import BadValue, Incompatible, unknown
from condiff.networks.adapters import check_rank
from condiff.networks.base import zeroed
from condiff.random import seeded_weights

POSTS = ("fuse", "shared")


@dataclass(frozen=True)
class Tie:
    """Two variables that hear each other.

    Args:
        first, second: their names.
        weights: of what the first hears of the second, and the other way.
        adapter: the name of the weights, as :func:`~condiff.networks.add_pair` was told.
        own: whether the second's own rows have an adapter too.
    """

    first: str
    second: str
    weights: tuple[float, float] = (1.0, 1.0)
    adapter: str = "pair"
    own: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != 2:
            raise BadValue(f"a tie has two weights, one for each side, got {self.weights}")


@dataclass(frozen=True)
class Pair:
    """Two variables by their numbers, the weights of what each hears of the other, and the adapter that ties them."""

    first: int
    second: int
    weights: tuple[float, float] = (1.0, 1.0)
    adapter: str = "pair"


@dataclass(frozen=True, eq=False)
class Pairing:
    """How the rows of one call belong together.

    Args:
        count: variables; a batch of ``count B`` rows holds those of one variable after those of another.
        pairs: who hears whom. What several pairs say to a variable is summed.
        strength: of the joint attention, a number or one per row (B,).
        own: adapters of the rows of single variables, by their numbers.
        before: tokens of text that come before a row's own, in networks that have both in one sequence.

    Raises:
        BadValue: the number of a variable that isn't there.
    """

    count: int
    pairs: Sequence[Pair] = ()
    strength: float | Tensor = 1.0
    own: Mapping[int, str] = field(default_factory=dict)
    before: int = 0

    def __post_init__(self) -> None:
        for index in (*(i for p in self.pairs for i in (p.first, p.second)), *self.own):
            if not 0 <= index < self.count:
                raise BadValue(f"a pair names variable {index}, and there are {self.count}")
        if any(p.first == p.second for p in self.pairs):
            raise BadValue("a pair ties two different variables")

    def blocks(self, x: Tensor) -> list[Tensor]:
        """The rows of each variable."""
        if x.shape[0] % self.count:
            raise BadValue(f"a batch of {x.shape[0]} rows doesn't hold {self.count} variables")
        return list(x.chunk(self.count))

    def weight(self, x: Tensor) -> float | Tensor:
        """The strength beside tokens (B, N, C)."""
        if not isinstance(self.strength, Tensor):
            return self.strength
        return self.strength.to(x).reshape(-1, 1, 1)

    def update(self, x: Tensor, low_rank: Callable[[str], LowRank]) -> Tensor:
        """What the variables' own adapters add to a layer's output for x, 0 for variables without one."""
        blocks = self.blocks(x)
        updates = {i: low_rank(name)(blocks[i]) for i, name in self.own.items()}
        like = next(iter(updates.values()))
        zeros = like.new_zeros(like.shape)
        return torch.cat([updates.get(i, zeros) for i in range(self.count)])


class LowRank(nn.Module):
    """``(alpha / rank) B A x`` beside a linear layer, with peft's names and start: A gaussian, B = 0.

    Args:
        linear: the layer, which isn't kept.
        alpha: the rank when None.
    """

    def __init__(self, linear: Any, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, dtype=dtype)
        self.lora_B = zeroed(nn.Linear(rank, linear.out_features, bias=False, dtype=dtype))
        nn.init.normal_(self.lora_A.weight, std=1.0 / rank)
        self.to(linear.weight.device)  # drawn on the CPU, so that the seed alone decides
        self.scale = (rank if alpha is None else alpha) / rank

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))).to(x.dtype)


class Fuse(nn.Module):
    """``Linear(2C, 2C)`` of both sides' tokens beside each other, for pairs that are aligned place by place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(2 * width, 2 * width, bias=False))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.linear(torch.cat([first, second], dim=-1)).chunk(2, dim=-1)
        return a, b


class Shared(nn.Module):
    """One ``Linear(C, C)`` for each side's tokens, for pairs of one subject that aren't aligned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(width, width, bias=False))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(first), self.linear(second)


class Exchange(nn.Module):
    """The weights of one pair at one site: low-rank updates for tokens of the first and the second, and the post
    projection.

    Args:
        layers: the projections of the attention, by name.
        width: of the tokens.
        post: ``"fuse"`` or ``"shared"``.
    """

    def __init__(self, layers: Mapping[str, Any], width: int, rank: int, post: str) -> None:
        super().__init__()
        self.first, self.second = (low_rank_of(layers, rank) for _ in range(2))
        self.post = Fuse(width) if post == "fuse" else Shared(width)
        weight = next(iter(layers.values())).weight
        self.post.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def low_rank_of(layers: Mapping[str, Any], rank: int) -> nn.ModuleDict:
    """An update of each layer."""
    return nn.ModuleDict({name: LowRank(layer, rank) for name, layer in layers.items()})


class Site(nn.Module, ABC):
    """Base: a self-attention whose rows may be paired, or a cross-attention whose rows may have adapters of their own.

    ``exchanges``: the weights of pairs, by adapter; ``own``: those of single variables.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exchanges, self.own = nn.ModuleDict(), nn.ModuleDict()

    @abstractmethod
    def layers(self) -> dict[str, Any]:
        """The linear projections by name, dots as ``_``."""

    def own_layers(self) -> dict[str, Any]:
        """Those that a variable's own adapter updates."""
        return self.layers()

    @property
    @abstractmethod
    def crosses(self) -> bool:
        """Whether it attends to something else than its own tokens: then pairs aren't tied here."""

    def layer_path(self, name: str) -> str:
        """The path of a projection inside the attention."""
        return name

    @property
    def width(self) -> int:
        """Of the tokens."""
        return next(iter(self.layers().values())).in_features

    def listen(
        self, x: Tensor, pairing: Pairing, attend: Callable[[Exchange, int, int], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """What the rows hear of each other: the weighted sum over pairs.

        Args:
            pairing: with one pair at least.
            attend: the two results for the blocks of a pair, each (B, N, C).
        """
        heard: dict[int, Tensor] = {}
        strength = pairing.weight(x)
        for pair in pairing.pairs:
            exchange: Any = self.exchanges[pair.adapter]
            sides = exchange.post(*(v.to(exchange.post.linear.weight.dtype) for v in attend(exchange, *_ids(pair))))
            for index, said, weight in zip(_ids(pair), sides, pair.weights, strict=True):
                update = weight * said.to(x.dtype)
                heard[index] = heard[index] + update if index in heard else update
        silent = torch.zeros_like(next(iter(heard.values())))
        return torch.cat([strength * heard[i] if i in heard else silent for i in range(pairing.count)])

    def add(self, name: str, rank: int, post: str, own: bool) -> None:
        """Weights for one more pair; with ``own`` also for the second variable's own rows."""
        if not self.crosses:
            self.exchanges[name] = Exchange(self.layers(), self.width, rank, post)
        if own:
            self.own[name] = low_rank_of(self.own_layers(), rank)

    def remove(self, name: str) -> None:
        for parts in (self.exchanges, self.own):
            if name in parts:
                del parts[name]


def _ids(pair: Pair) -> tuple[int, int]:
    return pair.first, pair.second


# A network's sites


def sites_of(network: Any) -> dict[str, Site]:
    """The sites of a network by their paths; they are made at the first call.

    Raises:
        Incompatible: a network that can't be paired.
    """
    make = getattr(network, "make_sites", None)
    if make is None:
        raise Incompatible(
            f"{type(network).__name__} has no joint attention: use a DiT without token conditions beside the sequence, "
            "or a wrapped pipeline: Stable Diffusion, XL, 3, DiT, FLUX"
        )
    return make()


def add_pair(network: Any, name: str, rank: int = 64, post: str = "fuse", own: bool = False, seed: int = 0) -> None:
    """Joint attention under a name at every site of a network, changing nothing yet.

    Args:
        rank: of the low-rank updates.
        post: ``"fuse"`` for variables aligned place by place, ``"shared"`` for others.
        own: whether the second variable, where it isn't a natural picture, has an adapter of its own besides.
        seed: of A.

    Raises:
        BadValue: an unknown post projection, a rank below 1, a name that is taken or no name of a module.
        Incompatible: a network that can't be paired.
    """
    if post not in POSTS:
        raise unknown("post projection", post, POSTS)
    check_rank(rank)
    sites = sites_of(network)
    if not name or "." in name or any(name in site.exchanges for site in sites.values()):
        raise BadValue(f"the adapter of a pair has a name of its own without dots, got {name!r}")
    with seeded_weights(seed):
        for site in sites.values():
            site.add(name, rank, post, own)


def remove_pair(network: Any, name: str) -> None:
    """Take an adapter's weights away again.

    Raises:
        BadValue: there are none of that name.
    """
    check_adapter(network, name)
    for site in sites_of(network).values():
        site.remove(name)


def check_adapter(network: Any, name: str) -> None:
    """
    Raises:
        BadValue: no adapter of that name.
    """
    known = {name for site in sites_of(network).values() for name in site.exchanges}
    if name not in known:
        raise unknown("adapter", name, known)
