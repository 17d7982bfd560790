"""Closed-form and tabulated schedules: derivatives, inverses, exact ends, configuration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from condiff.config import from_config, to_config
from condiff.errors import BadValue
from condiff.process import (
    EDM,
    VE,
    Cosine,
    Discrete,
    Gaussian,
    OffsetCosine,
    Rectified,
    Sigmoid,
    SubVP,
    Tabulated,
    VPLinear,
)


def _between_nodes(start, stop, num):
    """Times clear of the corners of a table of up to 1000 levels."""
    t = torch.linspace(start, stop, num, dtype=torch.float64)
    return (torch.floor(t * 1000) + 0.3 + 0.2 * t) / 1000


GRID = torch.linspace(0.0, 1.0, 33, dtype=torch.float64)


def _table(steps=16):
    return Tabulated(times=GRID[:: 32 // steps], alphas=1.0 - GRID[:: 32 // steps] ** 2, sigmas=GRID[:: 32 // steps])


SMOOTH = [
    VPLinear(),
    VPLinear(beta_min=1.0, beta_max=1.0),
    SubVP(),
    Cosine(),
    Cosine(shift=0.3),
    OffsetCosine(),
    OffsetCosine(offset=0.0),
    Sigmoid(),
    Sigmoid(start=0.0, end=3.0, tau=0.7),
    Sigmoid(tau=0.1),
    Rectified(),
    Rectified(shift=3.0),
    Rectified(shift=0.2),
    EDM(),
    EDM(sigma_max=10.0, rho=1.0),
    VE(),
    VE(clean=False),
]
TABLES = [
    Discrete.ddpm(),
    Discrete.stable_diffusion(zero_terminal_snr=True),
    Discrete.cosine(10),
    Discrete.sigmoid(50),
    Discrete.ddpm(1),
    Discrete.from_betas([0.1, 0.2, 1.0]),
    _table(),
]
ALL = SMOOTH + TABLES
PRESERVING = [s for s in ALL if isinstance(s, VPLinear | Cosine | OffsetCosine | Sigmoid | Discrete)]


def named(schedules):
    return pytest.mark.parametrize("schedule", schedules, ids=lambda s: repr(s)[:60])


def curves(schedule):
    return [
        (schedule.alpha, schedule.d_alpha),
        (schedule.sigma, schedule.d_sigma),
        (lambda t: 0.5 * schedule.sigma(t) ** 2, schedule.sigma_d_sigma),
    ]


@named(ALL)
def test_derivatives_are_those_of_the_curves(schedule):
    t = _between_nodes(0.01, 0.99, 41).requires_grad_()
    for value, slope in curves(schedule):
        (automatic,) = torch.autograd.grad(value(t).sum() + 0.0 * t.sum(), t)
        torch.testing.assert_close(slope(t.detach()), automatic, rtol=1e-11, atol=1e-11)


@named(ALL)
def test_derivatives_agree_with_central_differences(schedule):
    h, t = 1e-6, _between_nodes(0.05, 0.95, 23)
    for value, slope in curves(schedule):
        numeric = (value(t + h) - value(t - h)) / (2.0 * h)
        torch.testing.assert_close(slope(t), numeric, rtol=1e-6, atol=1e-6 * float(slope(t).abs().max()))


@named(ALL)
def test_time_inverts_log_snr_and_log_snr_falls(schedule):
    # Both ways: t comes back, and so does the log-SNR; the ends map to the ends, also where the log-SNR is infinite.
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert bool((log_snr.diff() < 0.0).all())
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=1e-10, atol=1e-13)
    assert schedule.time(log_snr[[0, -1]]).tolist() == pytest.approx([0.0, 1.0], abs=1e-15)
    inner = t[1:-1]
    back = schedule.log_snr(schedule.time(log_snr[1:-1]))
    torch.testing.assert_close(back, log_snr[1:-1], rtol=1e-11, atol=1e-11)
    expected = 2.0 * (torch.log(schedule.alpha(inner)) - torch.log(schedule.sigma(inner)))
    torch.testing.assert_close(log_snr[1:-1], expected, rtol=1e-12, atol=1e-12)


@named(ALL)
def test_beyond_the_ends_time_is_clipped_and_nan_stays(schedule):
    beyond = torch.tensor([math.inf, -math.inf, math.nan], dtype=torch.float64)
    out = schedule.time(beyond)
    assert out[:2].tolist() == [0.0, 1.0]
    assert math.isnan(float(out[2]))


@named(ALL)
def test_the_clean_end_is_exact(schedule):
    zero = torch.tensor(0.0, dtype=torch.float64)
    assert float(schedule.alpha(zero)) == 1.0
    if not (isinstance(schedule, VE) and not schedule.clean):
        assert float(schedule.sigma(zero)) == 0.0


ENDS_IN_NOISE = [s for s in ALL if isinstance(s, Cosine | OffsetCosine | Sigmoid | Rectified | Tabulated)]
ENDS_IN_NOISE += [Discrete.stable_diffusion(zero_terminal_snr=True), Discrete.from_betas([0.1, 0.2, 1.0])]


@named(ENDS_IN_NOISE)
def test_the_noisy_end_is_exact(schedule):
    one = torch.tensor(1.0, dtype=torch.float64)
    assert (float(schedule.alpha(one)), float(schedule.sigma(one))) == (0.0, 1.0)
    assert float(schedule.log_snr(one)) == -math.inf


@named(PRESERVING)
def test_variance_is_preserved(schedule):
    total = schedule.alpha(GRID) ** 2 + schedule.sigma(GRID) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=4e-15, atol=0.0)


@named([*SMOOTH, _table()])
def test_curves_keep_relative_precision_close_to_both_ends(schedule):
    # A curve that vanishes at an end does so as its leading power there: halving the distance halves it (or
    # divides it by 2^p with p = rate) with all digits. Subtractions such as 1 - alpha^2 or cos(pi t / 2) lose them.
    d = torch.tensor([2.0**-40, 2.0**-41, 2.0**-42], dtype=torch.float64)
    for curve, t in ((schedule.sigma, d), (schedule.alpha, 1.0 - d)):
        values = curve(t)
        if float(curve(t.new_tensor(round(float(t[0]))))) == 0.0:
            power = torch.log2(values[:-1] / values[1:])
            assert float((power[0] - power[1]).abs()) < 1e-8


def test_closed_forms():
    t = GRID[1:-1]
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 9.95 * t**2
    torch.testing.assert_close(VPLinear().alpha(t) ** 2, torch.exp(-integral))
    torch.testing.assert_close(SubVP().sigma(t), 1.0 - torch.exp(-integral))
    # Song 2021, table 1: the diffusion of sub-VP is beta (1 - exp(-2 B)).
    levels = Gaussian(SubVP()).at(t)
    torch.testing.assert_close(levels.process.diffusion2(levels), beta * (1.0 - torch.exp(-2.0 * integral)))
    levels = Gaussian(VPLinear()).at(t)
    torch.testing.assert_close(levels.process.diffusion2(levels), beta)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(OffsetCosine().alpha(t) ** 2, f)
    start, end, tau = -3.0, 3.0, 0.9
    v0, v1 = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
    gamma = (v1 - torch.sigmoid((t * (end - start) + start) / tau)) / (v1 - v0)
    torch.testing.assert_close(Sigmoid(tau=tau).alpha(t) ** 2, gamma)
    torch.testing.assert_close(VE(clean=False).sigma(t), 0.01 * 5000.0**t)
    torch.testing.assert_close(VE().sigma(t) ** 2, (0.01 * 5000.0**t) ** 2 - 1e-4)
    torch.testing.assert_close(Cosine(shift=0.5).log_snr(t), Cosine().log_snr(t) + 2.0 * math.log(0.5))
    torch.testing.assert_close(Rectified(shift=3.0).log_snr(t), Rectified().log_snr(t) - 2.0 * math.log(3.0))


def test_sigma_d_sigma_is_finite_where_d_sigma_is_not():
    zero = torch.tensor(0.0, dtype=torch.float64)
    for schedule in (VPLinear(), OffsetCosine(), Sigmoid(), VE(), Discrete.ddpm()):
        assert math.isinf(float(schedule.d_sigma(zero)))
        assert 0.0 < float(schedule.sigma_d_sigma(zero)) < math.inf


# Tabulated


def test_tabulated_takes_its_values_at_the_nodes_and_is_exact_on_cubics():
    t = torch.tensor([0.0, 0.1, 0.35, 0.7, 1.0], dtype=torch.float64)
    alpha, sigma = (1.0 - t) ** 3, t + t**2 - t**3 / 2
    exact = Tabulated(
        times=t, alphas=alpha, sigmas=sigma, d_alphas=-3.0 * (1.0 - t) ** 2, d_sigmas=1.0 + 2.0 * t - 1.5 * t**2
    )
    assert exact.alpha(t).tolist() == alpha.tolist()
    assert exact.sigma(t).tolist() == sigma.tolist()
    torch.testing.assert_close(exact.alpha(GRID), (1.0 - GRID) ** 3, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(exact.d_sigma(GRID), 1.0 + 2.0 * GRID - 1.5 * GRID**2, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("values", [[0.0, 0.1, 0.11, 0.8, 1.0], [1.0, 3.0, 0.5, 0.5, 0.7], [0.0, 0.9, 0.95, 1.0, 1.0]])
def test_monotone_slopes_are_scipys(values):
    from condiff.process.tabulated import monotone_slopes

    t = torch.tensor([0.0, 0.1, 0.35, 0.7, 1.0], dtype=torch.float64)
    ours = monotone_slopes(t, torch.tensor(values, dtype=torch.float64))
    theirs = PchipInterpolator(t.numpy(), values).derivative()(t.numpy())
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


def test_a_linear_table_is_the_rectified_path():
    table = Tabulated(times=GRID, alphas=1.0 - GRID, sigmas=GRID)
    t = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("alpha", "sigma", "d_alpha", "d_sigma", "log_snr"):
        torch.testing.assert_close(getattr(table, name)(t), getattr(Rectified(), name)(t), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"times": (0.0, 0.6, 0.5, 1.0)}, "rise strictly"),
        ({"times": (0.1, 0.5, 0.6, 1.0)}, "from 0 to 1"),
        ({"alphas": (1.0, 0.5, 0.2)}, "as many entries"),
        ({"alphas": (1.0, 0.5, math.nan, 0.0)}, "finite"),
        ({"alphas": (1.0, 0.5, -0.2, 0.0)}, ">= 0"),
        ({"alphas": (1.0, 0.2, 0.5, 0.0)}, "fall strictly"),
        ({"sigmas": (0.0, 0.0, 0.5, 1.0)}, "fall strictly"),
        ({"alphas": (0.0, 0.0, 0.0, 0.0)}, "fall strictly"),
    ],
)
def test_tabulated_refuses(change, match):
    fields = {"times": (0.0, 0.3, 0.6, 1.0), "alphas": (1.0, 0.7, 0.4, 0.0), "sigmas": (0.0, 0.3, 0.6, 1.0)}
    Tabulated(**fields)
    with pytest.raises(BadValue, match=match):
        Tabulated(**{**fields, **change})


# Bad parameters, configuration, properties


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (VPLinear, {"beta_min": 0.0}),
        (VPLinear, {"beta_max": 0.01}),
        (VPLinear, {"beta_max": math.nan}),
        (SubVP, {"beta_min": -1.0}),
        (Cosine, {"shift": 0.0}),
        (OffsetCosine, {"offset": -0.1}),
        (OffsetCosine, {"offset": math.nan}),
        (Sigmoid, {"start": 3.0, "end": -3.0}),
        (Sigmoid, {"tau": 0.0}),
        (Sigmoid, {"tau": 1e-4}),
        (Rectified, {"shift": -1.0}),
        (Rectified, {"shift": math.nan}),
        (EDM, {"sigma_max": math.inf}),
        (EDM, {"rho": 0.0}),
        (VE, {"sigma_min": 0.0}),
        (VE, {"sigma_max": 0.001}),
    ],
)
def test_bad_parameters_are_refused(cls, fields):
    with pytest.raises(BadValue, match=r"needs|must be finite"):
        cls(**fields)


@named(ALL)
def test_configuration_round_trip(schedule):
    import json

    back = from_config(json.loads(json.dumps(to_config(schedule))))
    assert back == schedule
    assert hash(back) == hash(schedule)
    assert torch.equal(back.alpha(GRID), schedule.alpha(GRID))


def test_a_table_is_stored_as_its_rule():
    assert len(str(to_config(Discrete.stable_diffusion(zero_terminal_snr=True)))) < 250


@settings(max_examples=60, deadline=None)
@given(
    t=st.floats(0.0, 1.0),
    shift=st.floats(0.05, 20.0),
    low=st.floats(0.01, 5.0),
    extra=st.floats(0.0, 40.0),
    tau=st.floats(0.2, 5.0),
)
def test_inverse_for_any_parameters(t, shift, low, extra, tau):
    at = torch.tensor([t], dtype=torch.float64)
    schedules = [VPLinear(beta_min=low, beta_max=low + extra), SubVP(beta_min=low, beta_max=low + extra)]
    schedules += [Cosine(shift=shift), Rectified(shift=shift), Sigmoid(tau=tau), OffsetCosine(offset=low)]
    for schedule in schedules:
        # The inverse is as good as the log-SNR allows: an ulp of it moves t by ulp / |slope|.
        log_snr = schedule.log_snr(at)
        a, s = schedule.alpha(at), schedule.sigma(at)
        slope = 2.0 * (schedule.d_alpha(at) / a - schedule.d_sigma(at) / s).abs()
        room = 1e-15 if not bool(torch.isfinite(log_snr)) else 8e-16 * (1.0 + float(log_snr.abs() / slope.clamp(1.0)))
        assert abs(float(schedule.time(log_snr)) - t) <= 20.0 * room
