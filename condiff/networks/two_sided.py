"""One network for two intervals of time that meet at the data: ``y <- x0 -> z`` (Lyu 2024, consecutive bridges).

A process leads from x0 to either of two ends. The network is told the place on the doubled axis,
``(1 + side t) / 2`` with side = -1 or 1: 0 is y, 1/2 the data, 1 is z.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from condiff.conditions import Conditions, as_conditions
from condiff.errors import BadType, BadValue
from condiff.fields import checked
from condiff.networks.base import configured


@dataclass(frozen=True, kw_only=True)
@checked
class TwoSidedConfig:
    """A :class:`TwoSided`.

    Args:
        network: configuration of the network inside.
        side: name of the condition, -1 or 1 for each row, that says which end a row is on its way to.
    """

    network: Any
    side: str = "side"

    def __post_init__(self) -> None:
        if not hasattr(self.network, "build"):
            raise BadType(f"network= takes a configuration such as UNetConfig(...), got {self.network!r}")
        if self.side in self.network.conditions:
            raise BadValue(f"the network inside has a condition {self.side!r} of its own: give side= another name")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.network.shape

    @property
    def outputs(self) -> int:
        """Targets predicted side by side."""
        return self.network.outputs

    @property
    def conditions(self) -> Mapping[str, Any]:
        """Those of the network inside."""
        return self.network.conditions

    def build(self) -> TwoSided:
        return TwoSided(self)


class TwoSided(nn.Module):
    """``TwoSided(network=UNetConfig(shape=(3, 64, 64)))``: see :class:`TwoSidedConfig`.

    ``net(x, time, cond)`` with ``cond["side"]`` (B,) of -1 and 1 is the inner network at ``(1 + side time) / 2``.

    Raises:
        BadValue: no side, or one that is neither -1 nor 1.
    """

    def __init__(self, config: TwoSidedConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = configured(TwoSidedConfig, config, fields)
        self.network = self.config.network.build()

    @property
    def condition_kinds(self) -> Mapping[str, str]:
        """Those of the network inside, and the side."""
        return {**self.network.condition_kinds, self.config.side: "scalar"}

    @property
    def any_size(self) -> bool:
        """Whether the network inside takes other spatial sizes than the configured one."""
        return self.network.any_size

    def forward(self, x: Tensor, time: Tensor, cond: Any = None, **options: Any) -> Any:
        cond = as_conditions(cond, self.condition_kinds, x.device)
        side = self._side(cond, time)
        rest = Conditions({name: entry for name, entry in cond.items() if name != self.config.side})
        return self.network(x, 0.5 * (1.0 + side * time), rest, **options)

    def _side(self, cond: Conditions, time: Tensor) -> Tensor:
        entry = cond.get(self.config.side)
        if entry is None or entry.keep is not None:
            raise BadValue(f"this network is told a side for every row: give a condition {self.config.side!r}, -1 or 1")
        if entry.value.shape != time.shape[:1]:
            raise BadValue(f"{self.config.side!r} has shape {tuple(entry.value.shape)}, for {time.shape[0]} rows")
        if entry.value.device.type == "cpu" and not bool((entry.value.abs() == 1.0).all()):
            raise BadValue(f"a side is -1 or 1, got {entry.value.tolist()}")
        return entry.value.to(time).reshape(-1, *(1,) * (time.ndim - 1))
