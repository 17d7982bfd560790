"""Discrete tables equal those of diffusers; indices and times are one another's exact inverse."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from condiff.errors import BadType, BadValue
from condiff.process import Discrete, Gaussian, Prediction

STEPS = (10, 50, 1000)
RULES = {
    "linear": (Discrete.ddpm, {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (Discrete.stable_diffusion, {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": (Discrete.cosine, {}),
    "sigmoid": (Discrete.sigmoid, {"beta_start": 1e-4, "beta_end": 0.02}),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("zero", [False, True])
def test_tables_equal_those_of_diffusers(rule, steps, zero):
    make, betas = RULES[rule]
    ours = make(steps, **betas, zero_terminal_snr=zero)
    theirs = DDPMScheduler(steps, beta_schedule=rule, rescale_betas_zero_snr=zero, **betas)
    # diffusers works in float32: each factor 1 - beta is off by up to 6e-8, and a product of N by up to N times that.
    # The rescaling divides by the range of sqrt(table), which is small when 10 steps carry the betas of 1000.
    ends = make(steps, **betas).table[[0, -1]].sqrt()
    spread = float(ends[0] - ends[1]) if zero else 1.0
    room = 6e-8 * (1.0 + steps) / spread
    torch.testing.assert_close(ours.table.float(), theirs.alphas_cumprod, rtol=room, atol=1e-7)
    # Betas near 0 come out of a ratio near 1: one rounding of float32 without, five with the rescaling.
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=room, atol=5 * 6e-8 / spread if zero else 6e-8)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rule", RULES)
def test_rescaling_equals_that_of_diffusers_in_double_precision(rule, steps):
    make, options = RULES[rule]
    betas = rescale_zero_terminal_snr(make(steps, **options).betas)
    ours = make(steps, **options, zero_terminal_snr=True)
    torch.testing.assert_close(ours.table, torch.cumprod(1.0 - betas, 0), rtol=1e-10, atol=1e-15)
    assert float(ours.table[-1]) == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_tables_in_double_precision_match_the_formula(rule):
    make, options = RULES[rule]
    steps = 100
    if rule == "squaredcos_cap_v2":
        f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1.0 - b / a, 0.999) for a, b in pairwise(f)]
    else:
        lo, hi = options["beta_start"], options["beta_end"]
        u = [i / (steps - 1) for i in range(steps)]
        betas = {
            "linear": [lo + (hi - lo) * x for x in u],
            "scaled_linear": [(lo**0.5 + (hi**0.5 - lo**0.5) * x) ** 2 for x in u],
            "sigmoid": [lo + (hi - lo) / (1 + math.exp(6 - 12 * x)) for x in u],
        }[rule]
    schedule, product = make(steps, **options), 1.0
    for i, beta in enumerate(betas):
        product *= 1.0 - beta
        t = schedule.at_index(i)
        assert float(schedule.alpha(t)) ** 2 == pytest.approx(product, rel=3e-13)
        assert float(schedule.sigma(t)) ** 2 == pytest.approx(1.0 - product, rel=3e-12)


@pytest.mark.parametrize("steps", [1, 3, 7, 49, 1000, 4000])
def test_indices_and_times(steps):
    schedule = Discrete.ddpm(steps)
    index = torch.arange(-1, steps, dtype=torch.float64)
    t = schedule.at_index(index)
    assert torch.equal(schedule.model_time(t), index)
    assert torch.equal(t, (index + 1) / steps)
    assert float(schedule.model_time(torch.tensor(0.5 / steps, dtype=torch.float64))) == pytest.approx(-0.5)
    assert Gaussian(schedule).at(float(t[-1])).model_time == steps - 1
    nodes = schedule.alpha(t[1:]) ** 2
    torch.testing.assert_close(nodes, schedule.table, rtol=1e-15, atol=0.0)


def test_log_alpha_is_linear_between_the_nodes():
    schedule = Discrete.ddpm(10)
    for i in range(-1, 9):
        a, m, b = (torch.log(schedule.alpha(schedule.at_index(x))) for x in (i, i + 0.25, i + 1))
        torch.testing.assert_close(m, 0.75 * a + 0.25 * b, rtol=1e-13, atol=1e-16)


def test_the_last_piece_of_a_zero_terminal_table_is_linear_in_alpha():
    schedule = Discrete.stable_diffusion(1000, zero_terminal_snr=True)
    last = schedule.alpha(schedule.at_index(torch.tensor([998.0, 998.5, 999.0], dtype=torch.float64)))
    torch.testing.assert_close(last[1], 0.5 * last[0], rtol=1e-9, atol=0.0)
    assert float(last[2]) == 0.0
    level = Gaussian(schedule).at(1.0)
    assert (level.data, level.noise, level.log_snr) == (0.0, 1.0, -math.inf)
    # v-prediction gives x0 there: the state says nothing, the network all.
    x, v = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3).double()
    torch.testing.assert_close(Prediction(x, level, {"v": v}).x0, -v)


def test_any_time_is_a_fractional_index():
    schedule = Discrete.stable_diffusion()
    assert schedule.model_time(torch.tensor([0.25, 0.2504], dtype=torch.float64)).tolist() == pytest.approx(
        [249, 249.4]
    )


def test_given_tables():
    betas = torch.linspace(0.01, 0.3, 12, dtype=torch.float64)
    from_betas = Discrete.from_betas(betas)
    torch.testing.assert_close(from_betas.betas, betas, rtol=1e-13, atol=0.0)
    from_products = Discrete.from_alphas_cumprod(torch.cumprod(1.0 - betas, 0))
    assert from_products == from_betas
    theirs = DDPMScheduler(12, trained_betas=betas.tolist()).alphas_cumprod
    torch.testing.assert_close(from_betas.table.float(), theirs, rtol=1e-6, atol=0.0)
    rescaled = Discrete.from_betas(betas, zero_terminal_snr=True)
    assert float(rescaled.table[-1]) == 0.0
    torch.testing.assert_close(rescaled.table[0], from_betas.table[0])


def test_a_level_holds_per_row_indices():
    process = Gaussian(Discrete.ddpm(10))
    level = process.at(process.schedule.at_index(torch.tensor([0, 4, 9])))
    assert level.model_time.tolist() == [0.0, 4.0, 9.0]
    torch.testing.assert_close(level.data**2, process.schedule.table[[0, 4, 9]])


def test_the_posterior_is_ddpms():
    # Ho 2020, eq. 7, between neighbouring indices.
    schedule = Discrete.ddpm(50)
    process, table, betas = Gaussian(schedule), schedule.table, schedule.betas
    for i in (1, 20, 49):
        t, s = process.at(float(schedule.at_index(i))), process.at(float(schedule.at_index(i - 1)))
        expected = betas[i] * (1.0 - table[i - 1]) / (1.0 - table[i])
        assert process.posterior_std(t, s) ** 2 == pytest.approx(float(expected), rel=1e-11)
        assert process.kernel(s, t)[1] ** 2 == pytest.approx(float(betas[i]), rel=1e-11)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Discrete(rule="lineer"), BadValue, "linear"),
        (lambda: Discrete.ddpm(0), BadValue, "steps >= 1"),
        (lambda: Discrete.ddpm(10.0), BadType, "integer"),
        (lambda: Discrete.ddpm(beta_start=0.5, beta_end=0.1), BadValue, "beta_start"),
        (lambda: Discrete.ddpm(1, zero_terminal_snr=True), BadValue, "two levels"),
        (lambda: Discrete.from_betas([0.1, 0.0]), BadValue, r"\(0, 1\]"),
        (lambda: Discrete.from_betas([0.1, 1.0, 0.1]), BadValue, "fall strictly"),
        (lambda: Discrete.from_alphas_cumprod([0.9, 0.95]), BadValue, "fall strictly"),
        (lambda: Discrete.from_alphas_cumprod([0.9, math.nan]), BadValue, "fall strictly"),
        (lambda: Discrete.from_alphas_cumprod([1.1, 0.5]), BadValue, "fall strictly"),
        (lambda: Discrete(rule="custom"), BadValue, "custom"),
        (lambda: Discrete(rule="linear", alphas_cumprod=(0.5,)), BadValue, "custom"),
        (lambda: Discrete(rule="custom", alphas_cumprod=(0.5,)), BadValue, "1 levels"),
        (lambda: Discrete.ddpm(10).at_index(10), BadValue, r"\[-1, 9\]"),
        (lambda: Discrete.ddpm(10).at_index(-1.5), BadValue, r"\[-1, 9\]"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_table_is_told_in_a_line():
    assert repr(Discrete.ddpm()) == "Discrete(rule='linear', steps=1000, beta_start=0.0001, beta_end=0.02)"
    cosine = Discrete.cosine(steps=9, zero_terminal_snr=True)
    assert repr(cosine) == "Discrete(rule='cosine', steps=9, zero_terminal_snr=True)"
    long = Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert repr(long) == "Discrete(rule='custom', steps=1000, alphas_cumprod=0.9999 .. 4.03583e-05)"
