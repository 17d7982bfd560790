"""Module surgery that can be undone: submodules of one type exchanged for others, without retraining."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from condiff.errors import BadType, BadValue


class Swap:
    """All submodules of a type replaced, until :meth:`undo` or the end of a ``with``.

    ``with Swap(net, nn.ReLU, lambda old: nn.GELU()): ...``. A module that is registered in several places is replaced
    in all of them by one new module. The old modules are kept and come back as they were.

    Args:
        net: the module to change, in place.
        old: the type to look for (and its subclasses).
        new: makes the replacement of one module.

    Attributes:
        names: of what was replaced.

    Raises:
        BadValue: nothing of that type inside, or the module itself is.
        BadType: ``new`` that gives no module.
    """

    def __init__(self, net: nn.Module, old: type[nn.Module], new: Callable[[nn.Module], nn.Module]) -> None:
        places = [
            (f"{path}.{name}".lstrip("."), parent, name, child)
            for path, parent in net.named_modules()
            for name, child in parent._modules.items()
            if isinstance(child, old)
        ]
        if not places:
            raise BadValue(f"no {old.__name__} among the submodules of {type(net).__name__}")
        made: dict[nn.Module, nn.Module] = {}
        for _, _, _, child in places:
            made.setdefault(child, new(child))
        if not all(isinstance(module, nn.Module) for module in made.values()):
            raise BadType("a replacement must be a module")
        self._places = places
        self.names = tuple(path for path, *_ in places)
        for _, parent, name, child in places:
            parent._modules[name] = made[child].train(child.training)

    def undo(self) -> None:
        """Put the old modules back; harmless when it was done already."""
        for _, parent, name, child in self._places:
            parent._modules[name] = child

    def __enter__(self) -> Swap:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def soften(net: nn.Module, beta: float, *inputs: Any) -> Swap | None:
    """Every ``nn.ReLU`` replaced by ``softplus_beta(z) = log(1 + exp(beta z)) / beta``, whose gradient is smooth.

    It differs from the ReLU by at most ``log(2) / beta``, at z = 0. Undo it with ``.undo()``, or use it in a ``with``.

    Args:
        beta: sharpness; infinity leaves the network as it is and returns None.
        inputs: of one forward call, by which a ReLU that is called as a function, and so isn't replaced, is found;
            there is a warning then.

    Raises:
        BadValue: beta <= 0, or a network without an ``nn.ReLU``.
    """
    if isinstance(beta, bool) or not beta > 0.0:
        raise BadValue(f"soften needs beta > 0, got {beta}")
    if math.isinf(beta):
        return None
    swap = Swap(net, nn.ReLU, lambda _: nn.Softplus(beta=beta))
    if inputs:
        used = operations(net, *inputs)
        left = used["relu"] + used["relu_"]
        if left:
            warnings.warn(
                f"{type(net).__name__} calls ReLU as a function {left} times in a forward pass: those stay as they are",
                stacklevel=2,
            )
    return swap


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operations(net: Callable[..., Any], *inputs: Any) -> Counter[str]:
    """How often a forward pass calls each of torch's operators, by their names: ``operations(net, x)["relu"]``."""
    with _Counting() as mode:
        net(*inputs)
    return mode.counts
