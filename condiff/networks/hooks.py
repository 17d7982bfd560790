"""Named, reversible access to activations: read what a module gives, replace it, and leave no trace.

Names are those of ``net.named_modules()``, such as ``"stack.3"``, ``"stack.3.attn"`` or ``"middle.0.attention"``; the
names that ``net.blocks(...)`` yields are among them. The softmax weights of an attention are the output of its
submodule ``weights`` while the ``"plain"`` kernel is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from condiff.errors import BadType, BadValue, unknown


def module(net: nn.Module, name: str) -> nn.Module:
    """The submodule with a name.

    Raises:
        BadValue: none has it; the message gives the nearest names.
    """
    found = dict(net.named_modules()).get(name) if name else None
    if found is None:
        raise unknown("module", name, (n for n, _ in net.named_modules() if n))
    return found


class Store(dict[str, Any]):
    """What was read: name -> the last output, or with ``every`` the list of all of them in order."""

    def __missing__(self, name: str) -> Any:
        raise BadValue(
            f"{name!r} has given nothing: it isn't read here, or hasn't run (read: {', '.join(self) or 'none'})"
        )


@contextmanager
def read(net: nn.Module, *names: str, every: bool = False, detach: bool = False) -> Iterator[Store]:
    """Keep the outputs of named modules: ``with read(net, "stack.3.attn") as store: net(x, t)``.

    Args:
        names: of modules.
        every: keep all outputs in a list per name, not only the last.
        detach: keep them without their graph.

    Raises:
        BadValue: an unknown name.
    """
    store = Store()

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output = _map(output, Tensor.detach) if detach else output
            if every:
                store.setdefault(name, []).append(output)
            else:
                store[name] = output

        return hook

    modules = [(name, module(net, name)) for name in names]
    handles = [found.register_forward_hook(keep(name)) for name, found in modules]
    try:
        yield store
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace(net: nn.Module, edits: Mapping[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Pass the outputs of named modules through functions: ``with replace(net, {"stack.3": lambda h: 1.4 * h}): ...``.

    A function gets a module's output and returns one of the same shape (it may be a closure over the time or the
    rows to act on). Edits are undone at the end, also after an error; they may be nested, the inner one acting last.

    Raises:
        BadValue: an unknown name, a function that changes the output's shape. BadType: not a function, no tensor.
    """

    def through(name: str, edit: Callable[[Any], Any]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            new = edit(output)
            _check_same(name, output, new)
            return new

        return hook

    for name, edit in edits.items():
        if not callable(edit):
            raise BadType(f"the edit of {name!r} must be a function of the activation, got {edit!r}")
    modules = [(name, module(net, name), edit) for name, edit in edits.items()]
    handles = [found.register_forward_hook(through(name, edit)) for name, found, edit in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def features(net: nn.Module, names: Sequence[str], *inputs: Any) -> tuple[Any, Store]:
    """``net(*inputs)`` and the outputs of the named modules during it."""
    with read(net, *names) as store:
        out = net(*inputs)
    return out, store


def _map(output: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    return tuple(_map(o, fn) for o in output) if isinstance(output, tuple) else fn(output)


def _check_same(name: str, old: Any, new: Any) -> None:
    if isinstance(old, tuple):
        if not isinstance(new, tuple) or len(new) != len(old):
            raise BadType(f"{name!r} gives {len(old)} tensors, its edit returned {type(new).__name__}")
        for a, b in zip(old, new, strict=True):
            _check_same(name, a, b)
    elif not isinstance(new, Tensor):
        raise BadType(f"the edit of {name!r} must return a tensor, got {type(new).__name__}")
    elif new.shape != old.shape:
        raise BadValue(f"{name!r} gives {tuple(old.shape)}, its edit returned {tuple(new.shape)}")
