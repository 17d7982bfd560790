"""From stored numbers to the model's numbers: explicit, checked, invertible."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, NonFinite, unknown

RANGES = ("keep", "standardise")


class Affine(NamedTuple):
    """``x scale + shift`` in float32; integers that are kept (tokens) stay integers."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        if self == IDENTITY:
            return x.float() if x.dtype.is_floating_point else x.long()
        return x.float() * self.scale + self.shift

    def inverse(self, x: Tensor) -> Tensor:
        """Model values back to stored values."""
        return (x - self.shift) / self.scale


IDENTITY = Affine()


def check_finite(x: Tensor, what: str) -> None:
    """Raises :class:`NonFinite`, naming the first row and position with NaN or infinity."""
    if not x.dtype.is_floating_point:
        return
    bad = ~torch.isfinite(x)
    if bad.any():
        where = tuple(torch.nonzero(bad)[0].tolist())
        rows = int(bad.reshape(len(x), -1).any(dim=1).sum())
        raise NonFinite(f"{what} holds NaN or infinity in {rows} of {len(x)} rows, first at index {where}")


def _from_bounds(low: float, high: float, what: str) -> Affine:
    if not low < high:
        raise BadValue(f"{what}: range=(low, high) needs low < high, got ({low}, {high})")
    return Affine(2.0 / (high - low), -(high + low) / (high - low))


def to_model_range(x: Tensor, range: str | tuple[float, float] | None, what: str = "x") -> Affine:
    """How x becomes values in [-1, 1].

    Args:
        x: all samples.
        range: ``(low, high)``: the interval that becomes [-1, 1], and which must hold all of x;
            ``"keep"``: as they are (any floats, or integer tokens);
            ``"standardise"``: minus the mean, over the standard deviation, of all of x;
            None: uint8 means (0, 255), booleans (0, 1), and floats must lie in [-1, 1] already.

    Raises:
        NonFinite: NaN or infinity, naming the index.
        BadValue: values outside, an unknown word.
        BadType: integers or complex numbers without a declared range.
    """
    if x.dtype.is_complex:
        raise BadType(f"{what} is complex: store the real and imaginary part as channels")
    check_finite(x, what)
    if isinstance(range, str):
        if range not in RANGES:
            raise unknown("range", range, RANGES)
        if range == "keep":
            return IDENTITY
        mean, std = float(x.double().mean()), float(x.double().std(correction=0))
        if std == 0.0:
            raise BadValue(f"{what} is constant ({mean}): it can't be standardised")
        return Affine(1.0 / std, -mean / std)
    if range is None and x.dtype in (torch.uint8, torch.bool):
        range = (0.0, 255.0) if x.dtype == torch.uint8 else (0.0, 1.0)
    low, high = float(x.min()), float(x.max())
    if range is None and not x.dtype.is_floating_point:
        raise BadType(
            f"{what} holds {x.dtype} from {low:g} to {high:g}: say what they mean with range=(low, high), which "
            "becomes [-1, 1], or range='keep' for tokens"
        )
    if range is None:
        if low < -1.0 or high > 1.0:
            raise BadValue(
                f"{what} runs from {low:g} to {high:g}, outside [-1, 1]: give range=({low:g}, {high:g}) or the "
                "interval that should become [-1, 1], range='standardise', or range='keep'"
            )
        return IDENTITY
    if low < range[0] or high > range[1]:
        raise BadValue(f"{what} runs from {low:g} to {high:g}, outside the declared range {tuple(range)}")
    return _from_bounds(float(range[0]), float(range[1]), what)
