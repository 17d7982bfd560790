"""How alike two signals are, sample by sample: PSNR and SSIM in one, two or three dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from condiff.errors import BadValue
from condiff.metrics.checks import same_shape
from condiff.typing import Float


def _check_range(data_range: float) -> None:
    if not data_range > 0.0:
        raise BadValue(f"data_range is the width of the interval of values (2 for [-1, 1]), got {data_range}")


def psnr(a: Float[Tensor, "batch *shape"], b: Float[Tensor, "batch *shape"], data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(data_range^2 / MSE)`` in dB of each sample (B,); inf for equal ones.

    Average it over samples; a PSNR of the average error is another number.
    """
    _check_range(data_range)
    a, b = same_shape(a, b)
    mse = (a - b).square().flatten(1).mean(dim=1)
    return 10.0 * torch.log10(data_range**2 / mse)


def _gaussian(window: int, sigma: float, device: torch.device) -> Tensor:
    x = torch.arange(window, dtype=torch.float64, device=device) - (window - 1) / 2
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def _smooth(x: Tensor, weights: Tensor, ndim: int) -> Tensor:
    """Separable filtering of the last ``ndim`` axes where the window fits."""
    for axis in range(x.ndim - ndim, x.ndim):
        moved = x.movedim(axis, -1)
        lines = functional.conv1d(moved.reshape(-1, 1, moved.shape[-1]), weights[None, None])
        x = lines.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
    return x


def ssim(
    a: Float[Tensor, "batch channels *space"],
    b: Float[Tensor, "batch channels *space"],
    data_range: float = 2.0,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Structural similarity (Wang 2004, eq. 13) of each sample (B,), 1 for equal ones.

    Local moments under a Gaussian window, averaged over channels and the positions where the window fits, as in the
    paper (torchmetrics reflects at the border and averages over all positions).
    Signals (B, C, L), images (B, C, H, W) or volumes (B, C, D, H, W).

    Raises:
        BadValue: an even window or one larger than the image, shapes that differ.
    """
    _check_range(data_range)
    a, b = same_shape(a, b)
    ndim = a.ndim - 2
    if not 1 <= ndim <= 3:
        raise BadValue(f"ssim compares (B, C, L), (B, C, H, W) or (B, C, D, H, W), got {tuple(a.shape)}")
    if window % 2 == 0 or window < 1 or window > min(a.shape[2:]):
        raise BadValue(f"window must be odd and at most {min(a.shape[2:])}, the smallest side; got {window}")
    weights = _gaussian(window, sigma, a.device)
    # All five moments in one pass; about the mean, which the variances don't depend on, to keep digits.
    centre = (a.mean() + b.mean()) / 2
    a0, b0 = a - centre, b - centre
    mean_a, mean_b, aa, bb, ab = _smooth(torch.stack([a0, b0, a0 * a0, b0 * b0, a0 * b0]), weights, ndim)
    var = (aa - mean_a**2) + (bb - mean_b**2)
    cov = ab - mean_a * mean_b
    mean_a, mean_b = mean_a + centre, mean_b + centre
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * (2 * cov + c2) / (var + c2)
    return similarity.flatten(1).mean(dim=1)
