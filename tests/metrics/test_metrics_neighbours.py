"""Precision, recall, density, coverage and memorisation against brute force and known answers."""

import numpy as np
import pytest
import torch

from condiff.errors import BadValue
from condiff.metrics import memorisation, nearest_rows, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(real, fake, k):
    """The definitions, one pair at a time."""

    def distance(x, y):
        return float((x - y).norm())

    def radius(points, i):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    real_radii, fake_radii = ([radius(p, i) for i in range(len(p))] for p in (real, fake))
    inside = np.array([[distance(f, r) <= radii for r, radii in zip(real, real_radii, strict=True)] for f in fake])
    recalled = [any(distance(r, f) <= q for f, q in zip(fake, fake_radii, strict=True)) for r in real]
    return inside.any(1).mean(), np.mean(recalled), inside.sum() / (k * len(fake)), inside.any(0).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_definitions(k):
    real, fake = normal(23, 3, seed=1), 0.8 * normal(17, 3, seed=2) + 0.3
    assert tuple(precision_recall(real, fake, k)) == pytest.approx(brute_force(real, fake, k), abs=1e-12)


def test_known_situations():
    real = normal(60, 4)
    same = precision_recall(real, real.clone())
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    far = precision_recall(real, real + 100)
    assert tuple(far) == (0.0, 0.0, 0.0, 0.0)
    one_mode = precision_recall(torch.cat([real, real + 50]), normal(120, 4, seed=3))
    assert one_mode.precision > 0.7 and one_mode.recall < 0.51 and one_mode.coverage < 0.51


def test_coverage_has_the_expectation_that_the_docstring_states():
    n, m, k, found = 30, 25, 3, []
    for seed in range(200):
        found.append(precision_recall(normal(n, 2, seed=seed), normal(m, 2, seed=5000 + seed), k).coverage)
    expected = 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 200**0.5


def test_too_few_rows_and_neighbours():
    with pytest.raises(BadValue, match="at least 6 rows"):
        precision_recall(normal(5, 2), normal(9, 2))
    with pytest.raises(BadValue, match="k must be at least 1"):
        precision_recall(normal(5, 2), normal(9, 2), k=0)
    with pytest.raises(BadValue, match="must have one shape"):
        precision_recall(normal(9, 2), normal(9, 3))


def test_memorisation_of_copies_and_of_fresh_samples():
    train, heldout, fresh = normal(400, 5, seed=1), normal(300, 5, seed=2), normal(300, 5, seed=3)
    copied = memorisation(train[:100], train, heldout)
    assert (copied.nn_ratio, copied.memorised_fraction, copied.nearer) == (0.0, 1.0, 1.0)
    honest = memorisation(fresh, train, heldout, level=0.05)
    assert honest.nn_ratio == pytest.approx(1.0, abs=0.1) and honest.nearer == pytest.approx(0.5, abs=0.1)
    assert 0.01 < honest.memorised_fraction < 0.12 and honest.level == 0.05
    half = memorisation(torch.cat([train[:50] + 1e-3, fresh[:50]]), train, heldout)
    assert half.memorised_fraction == pytest.approx(0.5, abs=0.05)
    away = memorisation(fresh + 10, train, heldout)
    assert away.nn_ratio > 3 and away.nearer == 0.0


def test_nearer_counts_ties_as_half():
    train = torch.tensor([[0.0], [100.0]], dtype=torch.float64)
    heldout, ours = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([[2.0]]).double()
    assert memorisation(ours, train, heldout).nearer == pytest.approx(0.5)


def test_faults_of_memorisation():
    train = normal(10, 2)
    with pytest.raises(BadValue, match="are in the training data"):
        memorisation(train, train, train[:4])
    with pytest.raises(BadValue, match="level"):
        memorisation(train, train, train + 1, level=1.0)
    with pytest.raises(BadValue, match="must have one shape"):
        memorisation(train, train, normal(10, 3))
    # Equal sizes in another layout are not the same kind of sample.
    with pytest.raises(BadValue, match="must have one shape"):
        memorisation(normal(4, 1, 2, 3), normal(4, 1, 2, 3), normal(4, 1, 3, 2))


def test_nearest_rows():
    train = normal(50, 1, 2, 2)
    index, distance = nearest_rows(train[[7, 3]] + 1e-3, train)
    assert index.tolist() == [7, 3]
    torch.testing.assert_close(distance, torch.full((2,), 2e-3, dtype=torch.float64), rtol=1e-9, atol=1e-12)
