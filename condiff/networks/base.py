"""What all networks share: how they are called, walked block by block, and configured.

``net(x, time, cond)`` is ``start -> every layer -> head``. ``net.blocks(x, time, cond)`` is the same walk as a
generator: it yields ``(name, hidden)`` after each layer, the caller may look at ``hidden``, change it
(``hidden.x = ...``) or stop, and ``net.head(hidden)`` turns any of them into an output. Names are module names,
which hooks take too.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from condiff.conditions import ConditionBank, Conditions, as_conditions
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks.layout import Layout

Config = TypeVar("Config")


class Network(nn.Module, ABC):
    """Base of the networks. Subclasses give :meth:`start`, :meth:`layers`, :meth:`step` and :meth:`head`.

    Attributes:
        config: the frozen dataclass that builds it.
        layout: where the channels of a sample are.
        any_size: whether other spatial sizes than the configured one are taken.
        any_frames: whether other numbers of frames are, with options ``prefix``, ``first`` and ``cache`` of a call.
    """

    config: Any
    layout: Layout
    bank: ConditionBank
    any_size: ClassVar[bool] = False
    any_frames: ClassVar[bool] = False

    @property
    def condition_kinds(self) -> Mapping[str, str]:
        """Name -> kind of the conditions that it was built for."""
        return self.bank.kinds

    @abstractmethod
    def start(self, x: Tensor, time: Tensor, cond: Conditions, **options: Any) -> Any:
        """The hidden state before the first layer."""

    @abstractmethod
    def layers(self) -> list[tuple[str, nn.Module]]:
        """The layers in order, with their module names."""

    @abstractmethod
    def step(self, layer: nn.Module, hidden: Any) -> None:
        """One layer, in place of ``hidden``'s content."""

    @abstractmethod
    def head(self, hidden: Any) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The output, from the hidden state after any layer."""

    def begin(self, x: Tensor, time: Tensor, cond: Any = None, **options: Any) -> Any:
        """Check the inputs, then :meth:`start`."""
        self.layout.check(x)
        if not isinstance(time, Tensor) or not time.is_floating_point():
            raise BadType(f"time must be a tensor of floats, got {time.dtype if isinstance(time, Tensor) else time!r}")
        if time.ndim < 1 or time.shape[0] != x.shape[0]:
            raise BadValue(f"time has one entry per row, ({x.shape[0]}, ...), got shape {tuple(time.shape)}")
        return self.start(x, time, as_conditions(cond, self.condition_kinds, x.device), **options)

    def forward(self, x: Tensor, time: Tensor, cond: Any = None, **options: Any) -> Any:
        hidden = self.begin(x, time, cond, **options)
        for _, layer in self.layers():
            self.step(layer, hidden)
        return self.head(hidden)

    def blocks(self, x: Tensor, time: Tensor, cond: Any = None, **options: Any) -> Iterator[tuple[str, Any]]:
        """Walk the layers, yielding ``(name, hidden)`` after each."""
        hidden = self.begin(x, time, cond, **options)
        for name, layer in self.layers():
            self.step(layer, hidden)
            yield name, hidden

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """Call a layer, recomputing its activations in the backward pass when the configuration says so."""
        if self.config.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def extended(self, conditions: Mapping[str, Any]) -> Any:
        """The same network, told more: a copy with its weights and the embeddings of further conditions.

        Embeddings that begin at zero weight, as :class:`~condiff.conditions.GuidanceScale`'s, leave what it says as it
        was, bit for bit.

        Raises:
            Incompatible: conditions other than vectors, which would change the shape of other weights.
            BadValue: a name that is there already.
        """
        own = dict(self.config.conditions)
        for name, spec in conditions.items():
            if name in own:
                raise BadValue(f"this network is told {name!r} already, by {own[name]}")
            if getattr(spec, "role", None) != "vector":
                raise Incompatible(f"a trained network can be told labels, numbers and vectors besides, not {spec}")
        new = dataclasses.replace(self.config, conditions={**own, **conditions}).build()
        missing, surplus = new.load_state_dict(self.state_dict(), strict=False)
        assert not surplus and all(key.split(".")[2] in conditions for key in missing), (missing, surplus)
        first = next(self.parameters())
        return new.to(device=first.device, dtype=first.dtype).train(self.training)

    def extra_repr(self) -> str:
        return repr(self.config)


def configured(cls: type[Config], config: Config | None, fields: dict[str, Any]) -> Config:
    """The configuration given, or one built from keyword fields, not both."""
    if config is None:
        return cls(**fields)
    if fields or not isinstance(config, cls):
        raise BadType(f"give either a {cls.__name__} or its fields, got {config!r} and {sorted(fields)}")
    return config


def freeze(config: Any, *names: str) -> None:
    """Lists that came from a file or a caller, as tuples, in a frozen dataclass."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list | tuple) else value

    for name in names:
        object.__setattr__(config, name, frozen(getattr(config, name)))


def zeroed(layer: Any) -> Any:
    """A layer with weights and bias set to 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def split_variance(
    out: Tensor, layout: Layout, outputs: int, learned: bool
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Channel-first network output -> targets side by side, and with a learned variance its extra channels as aux."""
    if not learned:
        return layout.restore(out, outputs)
    values, variance = out.split([outputs * layout.channels, layout.channels], dim=1)
    return layout.restore(values, outputs), {"variance": layout.restore(variance)}
