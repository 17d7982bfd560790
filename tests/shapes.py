"""Check the shapes that annotations promise while the tests run.

jaxtyping's import hook decorates every function of the rooms named below. Only array annotations count here
(``Float[Tensor, "batch *shape"]``). A call that breaks one must either be refused by the function's own error, which
then passes through, or the check fails: nothing with a wrong shape may be accepted in silence.
"""

import functools
import types

import jaxtyping
from beartype import beartype
from jaxtyping import TypeCheckError

# Networks end up inside torch.compile, which the checks don't survive.
ROOMS = [
    f"condiff.{room}"
    for room in (
        "process",
        "sampling",
        "guidance",
        "metrics",
        "data",
        "figures",
        "scoring",
        "codecs",
        "video",
        "distill",
    )
]
_jaxtyped = jaxtyping.jaxtyped


def _arrays_only(fn):
    kept = {k: v for k, v in fn.__annotations__.items() if "[Tensor" in str(v)}
    if not kept:
        return None
    copy = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    copy.__kwdefaults__, copy.__qualname__, copy.__module__ = fn.__kwdefaults__, fn.__qualname__, fn.__module__
    copy.__annotations__ = kept
    return _jaxtyped(copy, typechecker=beartype)


def jaxtyped(*, typechecker=None):
    def decorate(fn):
        checked = _arrays_only(fn) if isinstance(fn, types.FunctionType) else None
        if checked is None:
            return fn

        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            try:
                return checked(*args, **kwargs)
            except TypeCheckError:
                fn(*args, **kwargs)  # its own, clearer refusal goes first
                raise

        return wrapper

    return decorate


def install() -> None:
    """Decorate the rooms; call before anything of condiff is imported."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(ROOMS, "beartype.beartype")
