"""Shape annotations: jaxtyping's where it is installed, plain tensors where it isn't.

``Float[Tensor, "batch *shape"]`` documents a shape everywhere and is checked in the test suite, which installs
jaxtyping's import hook. At run time nothing is checked by annotation.
"""

from __future__ import annotations

from torch import Tensor

try:
    from jaxtyping import Bool, Float, Int, Num, Shaped
except ImportError:  # pragma: no cover - exercised by the bare-install check

    class _Plain:
        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Num = Shaped = _Plain  # type: ignore[misc, assignment]

__all__ = ["Bool", "Float", "Int", "Num", "Shaped", "Tensor"]
