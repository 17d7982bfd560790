"""Refinement in data space on Gaussian data: closed gradients and laws; grids of released samplers."""

import math

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue
from condiff.guidance import SquaredError
from condiff.process import Discrete, Gaussian, oracles
from condiff.random import Tape
from condiff.sampling import DDIM, Descent, Langevin, Spaced, denoising_energy, refine, sample, typical_time

PROCESS = Gaussian(Discrete.ddpm(100, 1e-4, 0.1))
STD = 0.5
ORACLE = oracles.gaussian(PROCESS, torch.ones(3, dtype=torch.float64), std=STD)
T = 0.4
LEVEL = PROCESS.at(T)
NONE = Conditions()
DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, generator=DRAWS, dtype=torch.float64)
Z = torch.randn(4, 3, generator=DRAWS, dtype=torch.float64)


def gain():
    """d noise_hat / d x0 of unit-mean data: ``noise a / (a^2 sd^2 + noise^2)``."""
    a, s = LEVEL.data, LEVEL.noise
    return s * a / (a * a * STD * STD + s * s)


def expected_energy(x, z):
    a, s = LEVEL.data, LEVEL.noise
    said = s * (a * (x - 1.0) + s * z) / (a * a * STD * STD + s * s)
    return (z - said).square().sum(1)


def test_the_energy_and_a_step_are_the_closed_forms():
    torch.testing.assert_close(denoising_energy(ORACLE, X, LEVEL, Z, NONE), expected_energy(X, Z))
    u = X.clone().requires_grad_()
    expected_energy(u, Z).sum().backward()
    xi = torch.randn(4, 3, generator=DRAWS, dtype=torch.float64)
    got = refine(ORACLE, X, at=T, steps=1, rule=Langevin(step=0.2, noise=0.3), rng=Tape([Z, xi]))
    torch.testing.assert_close(got, X - 0.2 * u.grad + math.sqrt(0.4) * 0.3 * xi)


def test_what_holds_samples_near_is_added():
    anchor = Condition(torch.zeros_like(X), "observation", mask=torch.tensor([True, False, True]).expand(4, 3))
    got = refine(ORACLE, X, at=T, steps=1, rule=Descent(0.1), near=SquaredError(), cond={"y": anchor}, rng=Tape([Z]))
    plain = refine(ORACLE, X, at=T, steps=1, rule=Descent(0.1), rng=Tape([Z]))
    torch.testing.assert_close(got, plain - 0.1 * 2.0 * X * torch.tensor([1.0, 0.0, 1.0]))


def test_langevin_settles_on_the_law_of_the_affine_map():
    """``y - 1 -> (1 - 2 step k^2) (y - 1) + 2 step k (...) z + sqrt(2 step) noise xi``: mean 1, a variance by hand."""
    k, step, noise = gain(), 0.1, 0.1
    shrink = 1.0 - 2.0 * step * k * k
    through = 2.0 * step * k * (1.0 - LEVEL.noise**2 / (LEVEL.data**2 * STD**2 + LEVEL.noise**2))
    want = (through**2 + 2.0 * step * noise**2) / (1.0 - shrink**2)
    x = torch.zeros(20_000, 3, dtype=torch.float64)
    end = refine(ORACLE, x, at=T, steps=200, rule=Langevin(step, noise), rng=1)
    assert float(end.mean()) == pytest.approx(1.0, abs=4.0 * math.sqrt(want / 60_000) + 1e-6)
    assert float(end.var()) == pytest.approx(want, rel=0.03)


def test_each_sample_has_its_own_step():
    """A row that has stopped improving slows down; another, still far away, doesn't."""
    rule, y = Descent(step=1.0, factor=0.5, patience=2), torch.zeros(2, 1)
    memory, energies = None, [(3.0, 9.0), (3.0, 8.0), (3.0, 7.0), (3.0, 6.0), (3.0, 5.0)]
    moved = []
    for pair in energies:
        y_new, memory = rule.move(y, torch.ones(2, 1), torch.tensor(pair), memory, None)
        moved.append((y - y_new).flatten().tolist())
    assert moved == [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.5, 1.0]]


def test_a_sample_is_refined_by_its_own_seed():
    both = refine(ORACLE, X[:2], at=T, steps=3, rng=[5, 6])
    torch.testing.assert_close(refine(ORACLE, X[1:2], at=T, steps=3, rng=[6]), both[1:])


def test_the_typical_time_has_the_average_loss():
    times = PROCESS.schedule.at_index(torch.arange(100))
    data = 1.0 + STD * torch.randn(4000, 3, generator=DRAWS, dtype=torch.float64)
    a, s = PROCESS.schedule.alpha(times), PROCESS.schedule.sigma(times)
    loss = a**2 * STD**2 / (a**2 * STD**2 + s**2)  # the posterior variance of the noise
    want = float(times[int((loss - loss.mean()).abs().argmin())])
    assert abs(typical_time(ORACLE, data, times, rng=0) - want) <= 0.02
    mask = torch.tensor([True, True, False])
    broken = torch.where(mask, data, 9.0)
    assert abs(typical_time(ORACLE, broken, times, mask=mask, rng=0) - want) <= 0.02
    assert abs(typical_time(ORACLE, broken, times, rng=0) - want) > 0.05


def test_refinements_of_nothing_are_refused():
    for options in ({"at": T, "steps": 0}, {"at": 0.0}):
        with pytest.raises(BadValue):
            refine(ORACLE, X, **options)
    for make in (
        lambda: Langevin(step=0.0),
        lambda: Descent(factor=0.0),
        lambda: typical_time(ORACLE, X, torch.ones(0)),
    ):
        with pytest.raises(BadValue):
            make()


# The released samplers


def test_grids_are_the_released_ones():
    process = Gaussian(Discrete.ddpm(20))
    assert Spaced("quadratic").indices(process, 5).tolist() == [16, 9, 4, 1, 0]
    assert Spaced("leading").indices(process, 5).tolist() == [16, 12, 8, 4, 0]
    crowded = Spaced("quadratic").indices(process, 15)  # indices repeat
    want = {math.floor(p + 1e-9) for p in (torch.linspace(0, math.sqrt(20 - 20 / 15), 15).double() ** 2).tolist()}
    assert crowded.tolist() == sorted(want, reverse=True)
    assert Spaced("quadratic").indices(process, 1).tolist() == [0]


def test_ddim_is_its_closed_form():
    """Every step from the linear update by hand, eta = 0, and the variance of eta = 1."""
    table = torch.cat([PROCESS.schedule.table.flip(0), torch.ones(1, dtype=torch.float64)])
    x = X.clone()
    for i in range(100):
        a, b = table[i], table[i + 1]
        eps = ORACLE(x, float(PROCESS.schedule.at_index(99 - i))).noise
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    got = sample(ORACLE, solver=DDIM(), grid=Spaced("leading"), steps=100, initial=X)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    levels = PROCESS.levels(PROCESS.schedule.at_index(torch.arange(99, -2, -1)))
    betas = PROCESS.schedule.betas.flip(0)
    for i, c in enumerate(DDIM(eta=1.0).plan(levels)):
        a, b = table[i], table[i + 1]
        assert c.std**2 == pytest.approx(float(betas[i] * (1 - b) / (1 - a)), rel=1e-9, abs=1e-15)
