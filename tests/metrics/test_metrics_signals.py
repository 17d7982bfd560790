"""PSNR, SSIM and CRPS against torchmetrics, closed forms and quadrature."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
import torchmetrics.functional as reference

from condiff.errors import BadValue, NonFinite
from condiff.metrics import crps, crps_quantiles, pinball, psnr, ssim


def pair(*shape, seed=0, noise=0.3):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(*shape, generator=g, dtype=torch.float64) * 2 - 1
    return a, (a + noise * torch.randn(*shape, generator=g, dtype=torch.float64)).clamp(-1, 1)


def test_psnr():
    a = torch.zeros(3, 1, 4, 4)
    b = torch.stack([torch.full((1, 4, 4), v) for v in (0.0, 0.2, 2.0)])
    torch.testing.assert_close(
        psnr(a, b), torch.tensor([math.inf, 20.0, 0.0], dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    a, b = pair(5, 3, 12, 12)
    for x, y, ours in zip(a, b, psnr(a, b), strict=True):
        torch.testing.assert_close(ours, reference.peak_signal_noise_ratio(x, y, data_range=2.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(4, 3, 24, 20), (3, 1, 11, 15), (2, 2, 14, 12, 13)])
@pytest.mark.parametrize("data_range", [2.0, 1.0])
def test_ssim_equals_torchmetrics(shape, data_range):
    a, b = pair(*shape)
    _, full = reference.image.structural_similarity_index_measure(
        a, b, data_range=data_range, sigma=1.5, kernel_size=11, reduction="none", return_full_image=True
    )
    inside = full[(..., *(slice(5, -5),) * (len(shape) - 2))]  # they pad by reflection; the paper doesn't
    torch.testing.assert_close(ssim(a, b, data_range), inside.flatten(1).mean(1), rtol=1e-6, atol=1e-9)


def direct_ssim(a, b, window, sigma, c1, c2):
    """Wang 2004 for two sequences, position by position."""
    w = torch.exp(-0.5 * ((torch.arange(window).double() - (window - 1) / 2) / sigma) ** 2)
    w, out = w / w.sum(), []
    for i in range(len(a) - window + 1):
        x, y = a[i : i + window], b[i : i + window]
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
        out.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return torch.stack(out).mean()


def test_ssim_of_sequences():
    a, b = pair(2, 1, 30)
    for i in range(2):
        expected = direct_ssim(a[i, 0], b[i, 0], 7, 1.2, 0.02**2, 0.06**2)
        torch.testing.assert_close(ssim(a, b, window=7, sigma=1.2)[i], expected, rtol=1e-10, atol=0)


def test_ssim_of_equal_shifted_and_opposite_signals():
    a, _ = pair(2, 1, 16, 16)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    # A constant against another one: only the luminance term is left.
    x, y, c1 = torch.full((1, 1, 12, 12), 0.5), torch.full((1, 1, 12, 12), 0.3), 0.02**2
    expected = torch.tensor([(2 * 0.15 + c1) / (0.34 + c1)], dtype=torch.float64)
    torch.testing.assert_close(ssim(x, y), expected, rtol=1e-6, atol=0)
    positive = (a + 1) / 2
    assert (ssim(positive, 1 - positive) < 0).all()  # equal means, opposite structure


@pytest.mark.parametrize(
    ("a", "b", "options", "match"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), {}, "at most 8"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), {"window": 4}, "odd"),
        (torch.zeros(2, 16), torch.zeros(2, 16), {}, r"compares \(B, C, L\)"),
        (torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 15), {}, "must have one shape"),
        (torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16), {"data_range": 0.0}, "data_range"),
    ],
)
def test_faults_of_ssim(a, b, options, match):
    with pytest.raises(BadValue, match=match):
        ssim(a, b, **options)
    with pytest.raises(NonFinite):
        psnr(torch.full((1, 2), math.nan), torch.zeros(1, 2))


# CRPS


def crps_normal(mean, std, y):
    """Gneiting & Raftery (2007), eq. 21."""
    z = (y - mean) / std
    return std * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / math.pi**0.5)


def test_crps_of_a_normal_forecast():
    members = 2 + 3 * torch.randn(400000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([-1.0, 2.0, 9.0])
    expected = torch.tensor([crps_normal(2, 3, float(v)) for v in y], dtype=torch.float64)
    found = crps(members[:, None].expand(-1, 3), y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    quantiles = torch.from_numpy(scipy.stats.norm.ppf(levels.numpy(), 2, 3))
    torch.testing.assert_close(crps_quantiles(quantiles[:, None].expand(-1, 3), levels, y), expected, rtol=0, atol=1e-3)


def test_crps_is_the_integral_of_the_squared_step():
    x, y = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)

    def square(u):
        return (float((x <= u).double().mean()) - (u >= 0.5)) ** 2

    expected = scipy.integrate.quad(square, -1, 2, points=[0.3, 0.5, 0.7])[0]
    assert float(crps(x, y, unbiased=False)) == pytest.approx(expected, rel=1e-8)


def test_crps_is_the_double_sum_and_torchmetrics():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, 3, generator=g), torch.randn(4, 3, generator=g)
    gaps = (x[:, None] - x[None]).abs().double()
    near = (x - y).abs().double().mean(0)
    torch.testing.assert_close(crps(x, y), near - 0.5 * gaps.sum((0, 1)) / 30, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(crps(x, y, unbiased=False), near - 0.5 * gaps.mean((0, 1)), rtol=1e-6, atol=1e-7)
    from torchmetrics.functional.regression import continuous_ranked_probability_score as theirs

    ours = crps(x.flatten(1), y.flatten(), unbiased=False).mean()
    torch.testing.assert_close(ours.float(), theirs(x.flatten(1).T.contiguous(), y.flatten()), rtol=1e-5, atol=0)


def test_fair_crps_doesnt_depend_on_the_size_of_the_ensemble():
    g = torch.Generator().manual_seed(1)
    y = torch.randn(40000, generator=g, dtype=torch.float64)
    small = crps(torch.randn(2, 40000, generator=g, dtype=torch.float64), y)
    error = float(small.std()) / 200
    assert abs(float(small.mean()) - 1 / math.pi**0.5) < 4 * error  # E CRPS of the true law is E|X - X'| / 2
    assert float(crps(torch.randn(2, 40000, generator=g, dtype=torch.float64), y, unbiased=False).mean()) > 0.7


def test_point_forecasts_and_faults():
    y = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(crps(torch.zeros(1, 2), y, unbiased=False), y.double())
    with pytest.raises(BadValue, match="at least 2 members"):
        crps(torch.zeros(1, 2), y)
    with pytest.raises(BadValue, match="y's shape"):
        crps(torch.zeros(3, 3), y)
    with pytest.raises(NonFinite):
        crps(torch.full((3, 2), math.nan), y)
    with pytest.raises(BadValue, match=r"lie in \(0, 1\)"):
        pinball(torch.zeros(1, 2), torch.tensor([1.0]), y)
    with pytest.raises(BadValue, match="quantiles"):
        pinball(torch.zeros(3, 2), torch.tensor([0.5]), y)
    torch.testing.assert_close(
        pinball(torch.zeros(1, 2), torch.tensor([0.9]), y)[0], 0.9 * y.double(), rtol=1e-6, atol=0
    )
