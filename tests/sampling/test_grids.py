"""Grids: closed forms, ends, spacings on tables, and what is refused."""

import math

import pytest
import torch

from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import EDM, Cosine, Discrete, Gaussian, Rectified, VPLinear
from condiff.sampling import (
    BetaSigmas,
    Karras,
    Power,
    Shifted,
    Spaced,
    Uniform,
    UniformLogSNR,
    resolution_shift,
)
from condiff.sampling.loop import as_grid

VP, FLOW, VE = Gaussian(VPLinear()), Gaussian(Rectified()), Gaussian(EDM(sigma_max=80.0))
TABLE = Gaussian(Discrete.stable_diffusion())
GRIDS = [
    Uniform(), Uniform(start=0.7, end=0.1), Uniform(end=0.01, clean=True), Power(), Power(3.0, 0.9, 0.02, clean=True),
    Shifted(), Shifted(0.5, Power()), Karras(), Karras(last="sigma_min"), Karras(sigma_min=0.1, sigma_max=9.0, rho=5.0),
    UniformLogSNR(sigma_min=0.05), BetaSigmas(),
    Spaced(), Spaced("leading", offset=1), Spaced("linspace", one_more=True),
]  # fmt: skip


def close(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids_fall_from_start_to_end(grid, steps):
    times = grid.times(TABLE, steps)
    assert times.dtype == torch.float64 and times.shape == (steps + 1,)
    assert bool((times.diff() < 0.0).all()) and times[-1] >= 0.0 and times[0] <= 1.0
    assert from_config(to_config(grid)) == grid


def test_even_and_power():
    close(Uniform().times(VP, 4), [1.0, 0.75, 0.5, 0.25, 0.0])
    close(Uniform(0.1, 0.9).times(VP, 2), [0.1, 0.5, 0.9])
    close(Uniform(end=0.2, clean=True).times(VP, 3), [1.0, 0.6, 0.2, 0.0])
    close(Power(2.0).times(VP, 4), [1.0, 0.5625, 0.25, 0.0625, 0.0])
    close(Power(2.0, end=0.25).times(VP, 2), [1.0, 0.5625, 0.25])


def test_shift():
    """SD3: t = 3 u / (1 + 2 u) on an unshifted path is the even grid of the shifted one."""
    times = Shifted(3.0).times(FLOW, 4)
    close(times, [1.0, 0.9, 0.75, 0.5, 0.0])
    shifted = Gaussian(Rectified(shift=3.0)).levels(Uniform().times(FLOW, 4))
    close(times, [level.noise for level in shifted])
    assert math.log(resolution_shift(256)) == pytest.approx(0.5, abs=1e-12)
    assert math.log(resolution_shift(4096)) == pytest.approx(1.15, abs=1e-12)
    assert math.log(resolution_shift(2176)) == pytest.approx(0.825, abs=1e-12)


@pytest.mark.parametrize("process", [VP, FLOW, VE, Gaussian(Cosine()), TABLE], ids=str)
@pytest.mark.parametrize("grid", [Karras, UniformLogSNR, BetaSigmas])
def test_times_have_the_sigmas(process, grid):
    grid = grid(sigma_min=0.1, sigma_max=10.0)
    sigmas = grid.sigmas(process, 6)
    levels = process.levels(grid.times(process, 6))
    torch.testing.assert_close(torch.tensor([v.noise / v.data for v in levels], dtype=torch.float64), sigmas)
    assert sigmas[0] == pytest.approx(10.0) and sigmas[-2] == pytest.approx(0.1) and sigmas[-1] == 0.0


def test_sigmas_in_closed_form():
    close(Karras(sigma_min=0.002, sigma_max=80.0).sigmas(VE, 3),
          [80.0, ((80.0 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, 0.002, 0.0])  # fmt: skip
    close(UniformLogSNR(sigma_min=0.01, sigma_max=1.0, last="sigma_min").sigmas(VE, 2), [1.0, 0.1, 0.01])
    # Beta(1, 1) is uniform; Beta(1/2, 1/2) has the quantiles sin^2.
    close(BetaSigmas(1.0, 5.0, "sigma_min", alpha=1.0, beta=1.0).sigmas(VE, 4), [5.0, 4.0, 3.0, 2.0, 1.0])
    close(BetaSigmas(1.0, 2.0, "sigma_min", 0.5, 0.5).sigmas(VE, 2), [2.0, 1.0 + math.sin(math.pi / 4) ** 2, 1.0])


def test_sigma_ends_come_from_the_process():
    sigma = torch.sqrt(1.0 / TABLE.schedule.table - 1.0)
    sigmas = Karras().sigmas(TABLE, 5)
    close(sigmas[[0, 4]], sigma[[-1, 0]])
    assert Karras().sigmas(VE, 5)[[0, 4]].tolist() == pytest.approx([80.0, 0.002])


def test_indices_of_a_table():
    """Original and respaced numbers are both there: indices(...) and their position."""
    process = Gaussian(Discrete.ddpm(10))
    assert Spaced("trailing").indices(process, 4).tolist() == [9, 7, 4, 1]  # 10, 7.5 -> 8, 5, 2.5 -> 2, less one
    assert Spaced("leading").indices(process, 4).tolist() == [6, 4, 2, 0]
    assert Spaced("leading", offset=1).indices(process, 4).tolist() == [7, 5, 3, 1]
    assert Spaced("linspace").indices(process, 4).tolist() == [9, 6, 3, 0]
    assert Spaced("linspace", one_more=True).indices(process, 3).tolist() == [9, 6, 3]
    assert Spaced("leading").indices(process, 10).tolist() == list(range(9, -1, -1))
    times = Spaced("trailing", last="first").times(process, 5)
    close(times, [1.0, 0.8, 0.6, 0.4, 0.2, 0.1])
    assert process.schedule.model_time(times).tolist() == [9.0, 7.0, 5.0, 3.0, 1.0, 0.0]
    close(Spaced("trailing").times(process, 2), [1.0, 0.5, 0.0])


@pytest.mark.parametrize("steps", range(1, 51))
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_every_index_is_a_level_of_its_own(spacing, steps):
    indices = Spaced(spacing).indices(Gaussian(Discrete.ddpm(50)), steps)
    assert bool((indices.diff() < 0).all()) and len(indices) == steps


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Uniform(0.5, 0.5), BadValue, "two different times"),
        (lambda: Uniform(1.2), BadValue, "start=1.2"),
        (lambda: Uniform(clean=True), BadValue, "clean=True"),
        (lambda: Power(0.0), BadValue, "exponent"),
        (lambda: Shifted(-1.0), BadValue, "shift"),
        (lambda: Karras(sigma_min=0.0), BadValue, "positive"),
        (lambda: Karras(sigma_min=3.0, sigma_max=2.0), BadValue, "below sigma_max"),
        (lambda: Karras(rho=0.0), BadValue, "rho"),
        (lambda: Karras(last="zero"), BadValue, "unknown last level 'zero'"),
        (lambda: Karras().times(FLOW, 3), BadValue, "sigma is infinite at t = 1"),
        (lambda: Karras(sigma_max=100.0).times(VE, 3), BadValue, "up to 80"),
        (lambda: Spaced("trailling"), BadValue, "Did you mean 'trailing'"),
        (lambda: Spaced("trailing", offset=1), BadValue, "leading"),
        (lambda: Spaced("leading", offset=0.5), BadType, "integer"),
        (lambda: Spaced("trailing", one_more=True), BadValue, "one_more"),
        (lambda: Spaced().times(VP, 3), Incompatible, "no table"),
        (lambda: Spaced().times(TABLE, 1001), BadValue, "1001 steps"),
        (lambda: Spaced("leading", offset=60).times(TABLE, 20), BadValue, "visits the indices 1010"),
        (lambda: resolution_shift(0), BadValue, "tokens"),
    ],
)  # fmt: skip
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_user_lists():
    assert as_grid([1.0, 0.4, 0.6, 0.0], None, VP).tolist() == [1.0, 0.4, 0.6, 0.0]
    assert as_grid(torch.rand(5, 3, 2), None, VP).shape == (5, 3, 2)
    with pytest.raises(BadValue, match="at least two"):
        as_grid([1.0], None, VP)
    with pytest.raises(BadValue, match="leave steps"):
        as_grid([1.0, 0.0], 2, VP)
