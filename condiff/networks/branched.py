"""One encoder, a decoder for each output (RDDM's shared network, Liu 2023): a UNet that splits after its middle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.errors import BadType, BadValue, unknown
from condiff.fields import checked
from condiff.networks.base import configured, freeze
from condiff.networks.unet import SKIPS, UNet, UNetConfig, UNetHidden


@dataclass(frozen=True, kw_only=True)
@checked
class BranchedConfig:
    """A :class:`Branched`.

    Args:
        network: the UNet; its ``skip`` and ``outputs`` aren't used.
        skips: how each decoder sees the encoder, one decoder and one output each. By default the first not at all:
            RDDM's residual, beside its noise.
    """

    network: UNetConfig
    skips: tuple[str, ...] = ("none", "concat")

    def __post_init__(self) -> None:
        freeze(self, "skips")
        if not isinstance(self.network, UNetConfig):
            raise BadType(f"network= takes a UNetConfig, got {self.network!r}")
        for skip in self.skips:
            if skip not in SKIPS:
                raise unknown("skip", skip, SKIPS)
        if not self.skips or self.network.learned_variance:
            raise BadValue("a branched UNet has at least one decoder, and no learned variance")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.network.shape

    @property
    def outputs(self) -> int:
        """Targets predicted side by side."""
        return len(self.skips)

    @property
    def conditions(self) -> Mapping[str, Any]:
        """Name -> spec."""
        return self.network.conditions

    def build(self) -> Branched:
        return Branched(self)


class Decoder(nn.Module):
    """The way up of a UNet, and its head."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.up, self.norm, self.output = net.up, net.norm, net.output


class Branched(nn.Module):
    """``Branched(network=UNetConfig(shape=(3, 64, 64)))``: see :class:`BranchedConfig`.

    ``net(x, time, cond)`` as :class:`UNet`, with the outputs of all decoders side by side in dimension 1.
    """

    any_size: ClassVar[bool] = True

    def __init__(self, config: BranchedConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = configured(BranchedConfig, config, fields)
        kinds = {skip: replace(c.network, skip=skip, outputs=1) for skip in c.skips}
        # The trunk is a whole UNet, whose own decoder is the first that looks at the encoder: it keeps activations.
        self.own = next((i for i, skip in enumerate(c.skips) if skip != "none"), 0)
        self.trunk = UNet(kinds[c.skips[self.own]])
        others = [skip for i, skip in enumerate(c.skips) if i != self.own]
        self.decoders = nn.ModuleList(Decoder(UNet(kinds[skip])) for skip in others)

    @property
    def condition_kinds(self) -> Mapping[str, str]:
        """Name -> kind of the conditions that it was built for."""
        return self.trunk.condition_kinds

    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        hidden = self.trunk.begin(x, time, cond)
        for layer in (*self.trunk.down, *self.trunk.middle):
            self.trunk.step(layer, hidden)
        decoders: list[Any] = [*self.decoders]
        decoders.insert(self.own, self.trunk)
        outs = [self._decode(decoder, hidden) for decoder in decoders]
        return self.trunk.layout.restore(torch.cat(outs, dim=1), len(outs))

    def _decode(self, decoder: Decoder | UNet, hidden: UNetHidden) -> Tensor:
        mine = replace(hidden, skips=list(hidden.skips), sizes=list(hidden.sizes))
        for layer in decoder.up:
            self.trunk.step(layer, mine)
        return decoder.output(F.silu(decoder.norm(mine.x)))
