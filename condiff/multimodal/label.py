"""Labels beside other data: a fixed code in the latent, a classifier as the head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from condiff import conditions
from condiff.errors import BadType, BadValue
from condiff.multimodal.heads import PooledHead
from condiff.multimodal.modality import Encoder, Modality
from condiff.process.algebra import Weight, readable
from condiff.random import Source
from condiff.typing import Float, Int


@dataclass(frozen=True)
class Label(Modality):
    """One of ``classes`` classes, by its number (B,).

    Its code is a fixed table of normal draws, one row a class, brought to mean 0 and variance 1 over the classes in
    every coordinate. What is said is (B, classes) logits, compared by cross-entropy in nats.

    Args:
        classes: at least 2.
        own: channels of the latent that carry the code alone; 0 adds it onto everything there is.
        seed: of the table.
    """

    classes: int
    own: int = 0
    seed: int = 0
    kind: ClassVar[str] = "label"
    loss_weight: ClassVar[float] = 0.1  # nats, and where there is much noise log(classes) of them

    def __post_init__(self) -> None:
        if self.classes < 2 or self.own < 0:
            raise BadValue(f"a label has at least 2 classes and own >= 0 channels, got {self.classes} and {self.own}")

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def own_channels(self) -> int:
        return self.own

    def check(self, name: str, x: Tensor) -> None:
        if x.dtype.is_floating_point or x.dtype == torch.bool or x.ndim != 1:
            raise BadType(f"{name!r} holds the numbers of classes, integers (B,), got {x.dtype} {tuple(x.shape)}")
        if readable(x) and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.classes:
            raise BadValue(f"{name!r} lies in 0 ... {self.classes - 1}, got {int(x.min())} ... {int(x.max())}")

    def condition(self) -> conditions.Label:
        return conditions.Label(self.classes)

    def encoder(self, part: tuple[int, ...]) -> Codes:
        return Codes(self.classes, part, self.seed)

    def head(self, network: Any, part: tuple[int, ...]) -> PooledHead:
        return PooledHead(network.config.width, self.classes)

    def shown(self, x: Int[Tensor, " batch"], mask: Tensor | None) -> Tensor:
        return x

    def loss(self, said: Tensor, x: Tensor, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
        nats = F.cross_entropy(said.float(), x, reduction="none")
        return nats if mask is None else torch.where(mask.bool(), nats, 0.0)

    def log_prob(self, said: Tensor, x: Tensor, std: Weight) -> Float[Tensor, " batch"]:
        return said.double().log_softmax(-1).gather(1, x[:, None])[:, 0]

    def decode(self, said: Tensor, rng: Source | None, std: Weight) -> Int[Tensor, " batch"]:
        scores = said.double() if rng is None else said.double() + rng.gumbel(said.shape, said.device)
        return scores.argmax(-1)


class Codes(Encoder):
    """The table of codes, (classes, *part)."""

    table: Tensor

    def __init__(self, classes: int, part: tuple[int, ...], seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        table = torch.randn(classes, math.prod(part), generator=rng, dtype=torch.float64)
        table = (table - table.mean(0)) / table.std(0, correction=0)
        self.register_buffer("table", table.float().unflatten(1, part))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        code = self.table[x]
        return code if mask is None else code * mask.to(code).reshape(-1, *(1,) * (code.ndim - 1))

    def expected(self, said: Tensor) -> Tensor:
        """The mean of the codes under the predicted probabilities."""
        return torch.tensordot(said.softmax(-1).to(self.table.dtype), self.table, dims=1)
