"""Linear combinations with weights that are numbers (one time for all) or tensors (a time per row, per frame).

Weights are computed in float64 and meet the state only here. A float weight multiplies a tensor of any
dtype without changing it; a tensor weight of shape ``(B,)`` or ``(B, F)`` is matched to the leading
dimensions of the state and cast to its dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weight = float | Tensor


def match(weight: Tensor, x: Tensor) -> Tensor:
    """A weight over leading dimensions, reshaped to broadcast against ``x`` and cast to its dtype and device."""
    weight = weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    return weight.to(device=x.device, dtype=x.dtype)


def scale(weight: Weight, x: Tensor) -> Tensor:
    """``weight * x``."""
    if isinstance(weight, Tensor):
        return match(weight, x) * x
    return x if weight == 1.0 else x * weight


def combine(*terms: tuple[Weight, Tensor]) -> Tensor:
    """``sum_i weight_i * tensor_i``; terms whose weight is the number 0 are not read."""
    out: Tensor | None = None
    for weight, x in terms:
        if isinstance(weight, Tensor):
            term = match(weight, x) * x
            out = term if out is None else out + term
        elif weight == 0.0:
            continue
        elif out is None:
            out = x if weight == 1.0 else x * weight
        else:
            out = torch.add(out, x, alpha=weight)
    return torch.zeros_like(terms[0][1]) if out is None else out


# Reading values. A check of values is made where that is free: on an accelerator it would wait for the device, and
# while torch.compile or torch.func traces there are none.


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, ...) -> (B, 1, ...)."""
    return x.flatten(1).square().mean(1).sqrt().reshape(-1, *(1,) * (x.ndim - 1))


def row_quantile(x: Tensor, q: float) -> Tensor:
    """The q-quantile of each row, linearly interpolated; of any length (torch.quantile stops at 16 M numbers)."""
    place = q * (x.shape[1] - 1)
    low, high = math.floor(place), math.ceil(place)
    below = x.kthvalue(low + 1, dim=1).values
    return below if low == high else below.lerp(x.kthvalue(high + 1, dim=1).values, place - low)


def readable(x: Tensor) -> bool:
    """Whether the values may be read at no cost."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]: no stub
    )


def holds(condition: bool | Tensor) -> bool:
    """Whether a check holds everywhere; where the values can't be read it is taken to."""
    if isinstance(condition, Tensor):
        return not readable(condition) or bool(condition.all())
    return condition


def finite(w: Weight) -> bool:
    """Whether a weight is finite everywhere, as far as it can be read."""
    return holds(torch.isfinite(w)) if isinstance(w, Tensor) else math.isfinite(w)


# Elementary functions of a weight, whichever of the two it is.


def where(condition, a: Weight, b: Weight) -> Weight:
    """``a if condition else b``, elementwise for tensors."""
    if isinstance(condition, Tensor):
        a = torch.as_tensor(a, dtype=torch.float64)
        return torch.where(condition, a, torch.as_tensor(b, dtype=torch.float64))
    return a if condition else b


def exp(w: Weight) -> Weight:
    return torch.exp(w) if isinstance(w, Tensor) else math.exp(w)


def expm1(w: Weight) -> Weight:
    return torch.expm1(w) if isinstance(w, Tensor) else math.expm1(w)


def log(w: Weight) -> Weight:
    """Natural logarithm, with ``log(0) = -inf``."""
    if isinstance(w, Tensor):
        return torch.log(w)
    return math.log(w) if w > 0.0 else -math.inf


def sqrt(w: Weight) -> Weight:
    """Square root of a non-negative weight; round-off below zero counts as zero."""
    return torch.sqrt(w.clamp_min(0.0)) if isinstance(w, Tensor) else math.sqrt(max(w, 0.0))


def divide(a: Weight, b: Weight) -> Weight:
    """``a / b`` with ``0 / 0 = 0`` (a term that is absent stays absent) and ``a / 0 = inf``."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
        return torch.where((a == 0) & (b == 0), torch.zeros_like(a), a / b)
    if b == 0.0:
        return 0.0 if a == 0.0 else math.copysign(math.inf, a)
    return a / b
