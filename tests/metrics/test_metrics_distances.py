"""Distances between samples against closed forms, brute force and invariances."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from condiff.errors import BadType, BadValue, NonFinite
from condiff.metrics import (
    RBF,
    Polynomial,
    checks,
    energy_distance,
    frechet,
    frechet_gaussian,
    kernel_distance,
    mmd2,
    sliced_wasserstein,
    wasserstein_1d,
)


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed, d, rank):
    root = normal(d, rank, seed=seed)
    return root @ root.T


# Fréchet


def test_frechet_of_scalars_and_of_commuting_covariances():
    assert frechet_gaussian(
        torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([[9.0]])
    ) == pytest.approx(4 + 1, abs=1e-12)
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 1.0, 2.0])
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    zero = torch.zeros(3)
    assert frechet_gaussian(zero, a.diag(), zero, b.diag()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("d", "rank_a", "rank_b"), [(6, 6, 6), (6, 2, 6), (6, 2, 3), (20, 20, 5)])
def test_frechet_equals_scipys_square_root(d, rank_a, rank_b):
    cov_a, cov_b = covariance(1, d, rank_a), covariance(2, d, rank_b)
    mean_a, mean_b = normal(d, seed=3), normal(d, seed=4)
    # sqrtm of a singular product is inaccurate; its eigenvalues are not.
    eigenvalues = scipy.linalg.eigvals((cov_a @ cov_b).numpy()).real.clip(0)
    cross = np.sqrt(eigenvalues[eigenvalues > 1e-9 * eigenvalues.max()]).sum()
    if min(rank_a, rank_b) == d:
        root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy())
        assert np.trace(root).real == pytest.approx(cross, rel=1e-9)
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * cross
    assert frechet_gaussian(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (5, 40, 8), (3, 4, 30)])
def test_frechet_of_features_is_that_of_their_moments(n, m, d):
    a, b = normal(n, d, seed=1) @ covariance(5, d, d), normal(m, d, seed=2, shift=1.0)
    expected = frechet_gaussian(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_is_zero_symmetric_and_invariant():
    a, b = normal(50, 6, seed=1), normal(60, 6, seed=2, scale=2.0)
    assert frechet(a, a[torch.randperm(50)]) < 1e-12
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    rotation = torch.linalg.qr(normal(6, 6, seed=3)).Q
    assert frechet(a @ rotation + 5, b @ rotation + 5) == pytest.approx(frechet(a, b), rel=1e-10)
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b), rel=1e-10)
    assert frechet(a.float().reshape(50, 2, 3), b.float().reshape(60, 2, 3)) == pytest.approx(frechet(a, b), rel=1e-5)


def test_faulty_features():
    a = normal(5, 3)
    with pytest.raises(BadValue, match=r"\(3,\) and features_b \(4,\)"):
        frechet(a, normal(5, 4))
    with pytest.raises(BadValue, match="at least 2 rows"):
        frechet(a[:1], a)
    a[3, 1] = math.nan
    with pytest.raises(NonFinite, match=r"features_b holds NaN .* the first is row 3"):
        frechet(normal(5, 3), a)
    with pytest.raises(BadType, match="must be a tensor"):
        checks.as_rows([1.0], "x")
    eye = torch.eye(2)
    for cov in (torch.ones(2, 3), torch.tensor([[1.0, 2.0], [0.0, 1.0]]), -eye):
        with pytest.raises(BadValue):
            frechet_gaussian(torch.zeros(2), cov, torch.zeros(2), eye)
    with pytest.raises(BadValue, match="one number of features"):
        frechet_gaussian(torch.zeros(3), eye, torch.zeros(2), eye)


# Kernels


def rbf_gap(shift, d, bandwidth, scale=1.0):
    """MMD^2 of N(0, s^2 I) and N(shift e, s^2 I) under an RBF kernel: E k = (h^2 / (h^2 + 2 s^2))^(d/2) exp(...)."""
    h2, spread = bandwidth**2, 2 * scale**2
    within = (h2 / (h2 + spread)) ** (d / 2)
    return 2 * within * (1 - math.exp(-(shift**2) / (2 * (h2 + spread))))


def test_mmd_of_shifted_gaussians():
    d, shift, values = 3, 1.0, []
    for seed in range(20):
        a, b = normal(300, d, seed=seed), normal(200, d, seed=100 + seed)
        b[:, 0] += shift
        values.append(mmd2(a, b, RBF(bandwidth=1.5)))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - rbf_gap(shift, d, 1.5)) < 4 * error < 0.02


def test_mmd_is_the_double_sum():
    a, b = normal(7, 4, seed=1), normal(9, 4, seed=2)
    for kernel in (Polynomial(), RBF(bandwidth=0.7)):
        kaa, kbb, kab = kernel(a, a), kernel(b, b), kernel(a, b)
        biased = kaa.mean() + kbb.mean() - 2 * kab.mean()
        unbiased = (kaa.sum() - kaa.trace()) / 42 + (kbb.sum() - kbb.trace()) / 72 - 2 * kab.mean()
        assert mmd2(a, b, kernel, unbiased=False) == pytest.approx(float(biased), rel=1e-10)
        assert mmd2(a, b, kernel) == pytest.approx(float(unbiased), rel=1e-10)
    assert mmd2(a, a.clone(), RBF(bandwidth=1.0), unbiased=False) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(a, b) == mmd2(a, b, Polynomial())
    expected = (1 + (a[0] * b[0]).sum() / 4) ** 3
    torch.testing.assert_close(Polynomial()(a[:1], b[:1])[0, 0], expected)
    with pytest.raises(BadValue, match="bandwidth"):
        RBF(bandwidth=0.0)


def test_unbiased_distances_average_to_zero_on_equal_laws():
    kid, energy = [], []
    for seed in range(60):
        a, b = normal(30, 2, seed=seed), normal(40, 2, seed=1000 + seed)
        kid.append(kernel_distance(a, b))
        energy.append(energy_distance(a, b))
    for values in (kid, energy):
        assert abs(np.mean(values)) < 4 * np.std(values) / 60**0.5
        assert min(values) < 0


# Energy


def test_energy_of_shifted_normals():
    """E|X - Y| of N(0,1) and N(m,1) is the mean of a folded normal with variance 2."""
    m, values = 1.5, []
    folded = 2 / math.pi**0.5 * math.exp(-(m**2) / 4) + m * (1 - 2 * scipy.stats.norm.cdf(-m / 2**0.5))
    expected = 2 * folded - 4 / math.pi**0.5
    for seed in range(20):
        values.append(energy_distance(normal(600, seed=seed), normal(600, seed=500 + seed, shift=m)))
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / 20**0.5 < 0.1


def test_energy_is_twice_cramers_distance_in_one_dimension():
    a, b = normal(30, seed=1), normal(21, seed=2)
    expected = scipy.stats.energy_distance(a.numpy(), b.numpy()) ** 2
    assert energy_distance(a, b, unbiased=False) == pytest.approx(expected, rel=1e-10)


# Wasserstein


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 7), (6, 4), (1, 9)])
def test_wasserstein_of_samples_of_any_sizes(n, m):
    a, b = normal(n, 3, seed=1), normal(m, 3, seed=2, shift=0.5)
    # Repeating every row makes sizes equal without changing the laws; then it is a sorted matching.
    long_a, long_b = a.repeat(m, 1).sort(0).values, b.repeat(n, 1).sort(0).values
    for p in (1.0, 2.0, 3.0):
        expected = (long_a - long_b).abs().pow(p).mean(0)
        torch.testing.assert_close(wasserstein_1d(a, b, p), expected, rtol=1e-12, atol=1e-14)
    for column in range(3):
        w1 = scipy.stats.wasserstein_distance(a[:, column].numpy(), b[:, column].numpy())
        assert float(wasserstein_1d(a, b, 1.0)[column]) == pytest.approx(w1, rel=1e-10)


def test_sliced_wasserstein_of_a_shift():
    """Slices of a shift by v see (v.theta)^2, which averages to |v|^2 / D."""
    a = normal(50, 16, seed=1)
    shift = normal(16, seed=2)
    found = sliced_wasserstein(a, a + shift, projections=20000)
    assert found == pytest.approx(float(shift.norm()) / 4, rel=0.02)
    assert sliced_wasserstein(a, a[torch.randperm(50)]) < 1e-12
    assert (
        sliced_wasserstein(a, a + shift) == sliced_wasserstein(a, a + shift) != sliced_wasserstein(a, a + shift, rng=1)
    )
    for bad in (dict(projections=0), dict(p=0.5)):
        with pytest.raises(BadValue):
            sliced_wasserstein(a, a, **bad)


def test_blocks_change_nothing(monkeypatch):
    a, b = normal(40, 300, seed=1), normal(30, 300, seed=2)
    whole = energy_distance(a, b), mmd2(a, b, RBF(bandwidth=10.0)), checks.nearest(a, a, 3, skip_self=True)
    monkeypatch.setattr(checks, "BLOCK", 100)
    parts = energy_distance(a, b), mmd2(a, b, RBF(bandwidth=10.0)), checks.nearest(a, a, 3, skip_self=True)
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-10)
    torch.testing.assert_close(parts[2], whole[2])


def test_wide_rows_have_the_same_distances():
    a, b = 100 + normal(5, 400, seed=1), 100 + normal(6, 400, seed=2)
    torch.testing.assert_close(checks.distances(a, b), (a[:, None] - b[None]).norm(dim=-1), rtol=1e-10, atol=1e-10)
