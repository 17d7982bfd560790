"""Processes with an endpoint: curves, kernels, posteriors, and predictions with one field or two."""

import itertools
import json
import math
import re

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process import (
    Bridge,
    Cosine,
    Discrete,
    Endpoint,
    Interpolant,
    Prediction,
    Ramps,
    Residual,
    StudentT,
    Tabulated,
)
from condiff.sampling import DDIM, sample

F64 = torch.float64
RAMPS = ("decreased", "increased", "average")
PATHS = [
    Interpolant(path, gamma, scale)
    for path, gamma, scale in itertools.product(
        ("linear", "trig", "encdec", "mirror"), ("brownian", "zero", "bsquared", "sinesquared", "sigmoid"), (0.7, 1.6)
    )
    if not (path == "trig" and gamma == "sinesquared" and scale >= 1.0)
    and not (path in ("encdec", "mirror") and gamma == "zero")
]
RESIDUALS = [
    Residual(),
    Residual(schedule=Ramps(variance=0.01, steps=1000)),
    *(
        Residual(schedule=Ramps(residual=a, noise=b))
        for a in ("increased", "average")
        for b in ("decreased", "average")
    ),
    Residual(schedule=Cosine()),
    Residual(schedule=Discrete.ddpm()),
]


def name(process):
    """An id without the addresses of functions, which differ from one test process to the next."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(process))[:70]


CUSTOM = Endpoint(
    data=(lambda t: (1 - t) ** 2, lambda t: 2 * (t - 1)),
    source=(lambda t: t, torch.ones_like),
    noise=(lambda t: t * (1 - t) + 0.1 * t, lambda t: 1.1 - 2 * t),
)
BRIDGES = [Bridge(), Bridge(variance=2.0)]
ALL = [*BRIDGES, *PATHS, *RESIDUALS, CUSTOM]
MARKOV = [*BRIDGES, Interpolant("linear", "brownian", 1.6), Interpolant("linear", "bsquared"), *RESIDUALS]


def named(processes):
    return pytest.mark.parametrize("process", processes, ids=name)


def _rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@named(ALL)
def test_derivatives_are_those_of_the_curves(process):
    t = torch.linspace(0.0123, 0.9877, 44, dtype=F64).requires_grad_()
    curves = process.curves(t)
    for value, slope in zip(curves[:3], curves[3:], strict=True):
        (automatic,) = torch.autograd.grad(value.sum() + 0.0 * t.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, automatic, rtol=1e-10, atol=1e-10)
    level = process.at(t.detach())
    torch.testing.assert_close(process.noise_d_noise(level), level.noise * level.d_noise, rtol=1e-12, atol=1e-13)
    one = process.at(0.3123)
    assert process.noise_d_noise(one) == pytest.approx(one.noise * one.d_noise, rel=1e-12)


@named([*BRIDGES, *PATHS, *RESIDUALS])
def test_both_ends_are_exact(process):
    start, end = process.at(0.0), process.at(1.0)
    assert (start.data, start.source, start.noise) == (1.0, 0.0, 0.0)
    if isinstance(process, Residual):
        assert end.noise > 0.0
        if not isinstance(process.schedule, Discrete):
            assert (end.data, end.source) == (0.0, 1.0)
        return
    mirror = getattr(process, "path", "") == "mirror"
    assert (end.data, end.source, end.noise) == ((1.0, 0.0, 0.0) if mirror else (0.0, 1.0, 0.0))
    assert all(math.isfinite(process.noise_d_noise(level)) for level in (start, end))


def test_gamma_gamma_dot_of_the_papers_table():
    t = torch.linspace(0.0, 1.0, 11, dtype=F64)
    for gamma, expected in {
        "brownian": 4.0 * (1 - 2 * t) / 2,
        "zero": 0 * t,
        "bsquared": 4.0 * t * (1 - t) * (1 - 2 * t),
        "sinesquared": 4.0 * math.pi * torch.sin(math.pi * t) ** 2 * torch.sin(2 * math.pi * t),
    }.items():
        process = Interpolant("linear", gamma, 2.0)
        torch.testing.assert_close(process.noise_d_noise(process.at(t)), expected, rtol=1e-13, atol=1e-13)


def test_paths_of_the_papers_table():
    # In the paper's time tau = 1 - t, b is on our data and a on our source.
    t = torch.tensor([0.1, 0.45, 0.55, 0.9], dtype=F64)
    tau, g = 1 - t, 0.5 * t * (1 - t)
    half, cosine = (tau > 0.5).double(), torch.cos(math.pi * tau) ** 2
    for path, b, a in (
        ("linear", tau, 1 - tau),
        (
            "trig",
            torch.sqrt(1 - g**2) * torch.sin(math.pi * tau / 2),
            torch.sqrt(1 - g**2) * torch.cos(math.pi * tau / 2),
        ),
        ("encdec", cosine * half, cosine * (1 - half)),
        ("mirror", 1 + 0 * t, 0 * t),
    ):
        level = Interpolant(path, "bsquared", 0.5).at(t)
        for ours, theirs in ((level.data, b), (level.source, a), (level.noise, g)):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_trig_preserves_variance_and_encdec_forgets_in_the_middle():
    t = torch.linspace(0.0, 1.0, 31, dtype=F64)
    level = Interpolant("trig", "brownian", 1.5).at(t)
    total = level.data**2 + level.source**2 + level.noise**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-15, atol=0.0)
    middle = Interpolant("encdec", "bsquared").at(0.5)
    assert (middle.data, middle.source, middle.noise) == (0.0, 0.0, 0.25)


# Kernels and posteriors


@named(MARKOV)
def test_kernels_compose(process):
    r, s, t = (process.at(x) for x in (0.15, 0.4, 0.85))
    (a, p), (b, q), (c, o) = process.kernel(r, s), process.kernel(s, t), process.kernel(r, t)
    assert a * b == pytest.approx(c, rel=1e-12)
    assert b**2 * p**2 + q**2 == pytest.approx(o**2, rel=1e-12)


@named(MARKOV)
def test_renoising_a_draw_gives_the_marginal(process):
    # Through s the coefficients of x0, y and both noises must make up those of t.
    x0, y, z1, z2 = (_rand(2, 3, seed=i) for i in range(4))
    at_s = process.forward(x0, 0.3, source=y, noise=z1)
    x_t = process.renoise(at_s.x_t, 0.3, 0.8, x0=x0, source=y, noise=z2)
    s, t = process.at(0.3), process.at(0.8)
    ratio, std = process.kernel(s, t)
    torch.testing.assert_close(x_t, t.data * x0 + t.source * y + ratio * s.noise * z1 + std * z2)
    assert math.hypot(ratio * s.noise, std) == pytest.approx(t.noise, rel=1e-12)


@named(MARKOV)
def test_the_posterior_is_bayes(process):
    x0, y, x_t = (_rand(2, 3, seed=i) for i in range(3))
    s, t = process.at(0.3), process.at(0.8)
    ratio, std = process.kernel(s, t)
    # x_s ~ N(m_s, noise_s^2) and x_t - (rest) = ratio x_s + std z: precisions add.
    m_s = s.data * x0 + s.source * y
    rest = (t.data - ratio * s.data) * x0 + (t.source - ratio * s.source) * y
    precision = 1.0 / s.noise**2 + ratio**2 / std**2
    mean = (m_s / s.noise**2 + ratio * (x_t - rest) / std**2) / precision
    ours, ours_std = process.posterior(Prediction(x_t, t, {"x0": x0}, source=y), s)
    torch.testing.assert_close(ours, mean, rtol=1e-11, atol=1e-11)
    assert ours_std == pytest.approx(precision**-0.5, rel=1e-11)


def test_the_bridge_has_the_covariance_of_brownian_motion():
    # Cov(x_s, x_t | both ends) = c s (1 - t) for s < t.
    c, process = 2.0, Bridge(variance=2.0)
    for s, t in ((0.2, 0.7), (0.01, 0.99)):
        expected = c * s * (1 - s) - (c * s * (1 - t)) ** 2 / (c * t * (1 - t))
        assert process.posterior_std(process.at(t), process.at(s)) ** 2 == pytest.approx(expected, rel=1e-12)
    assert process.posterior_std(process.at(1.0), process.at(0.4)) == process.at(0.4).noise
    upper, lower = torch.tensor([0.7, 1.0], dtype=F64), torch.tensor([0.2, 0.4], dtype=F64)
    mixed = process.posterior_std(process.at(upper), process.at(lower))
    assert mixed.tolist() == [process.posterior_std(process.at(a), process.at(b)) for a, b in ((0.7, 0.2), (1.0, 0.4))]
    assert process.diffusion2(process.at(1.0)) == process.diffusion2(process.at(0.3)) == c
    inside = process.at(0.3)
    generic = 2 * process.noise_d_noise(inside) - 2 * inside.noise**2 * process.drift(inside)
    assert generic == pytest.approx(c, rel=1e-14)


@pytest.mark.parametrize("steps", [5, 1000])
@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_rddms_tables_and_ancestral_step(steps, variance):
    i = torch.arange(1, steps + 1, dtype=F64)
    a, b2 = 2 * (steps - i + 1) / (steps * (steps + 1)), variance * 2 * i / (steps * (steps + 1))
    big_a, big_b2 = a.cumsum(0), b2.cumsum(0)
    process = Residual(schedule=Ramps(variance=variance, steps=steps))
    levels = process.levels(i / steps)
    torch.testing.assert_close(torch.tensor([x.source for x in levels], dtype=F64), big_a, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.tensor([x.noise for x in levels], dtype=F64) ** 2, big_b2, rtol=1e-12, atol=0.0)
    assert process.at(1.0).source == 1.0
    for k in {1, steps // 2, steps - 1}:
        x0, y, x_t = (_rand(2, 3, seed=j) for j in range(3))
        ours, std = process.posterior(Prediction(x_t, levels[k], {"x0": x0}, source=y), levels[k - 1])
        B2, B2_before = big_b2[k], big_b2[k - 1]
        mean = B2_before / B2 * x_t + b2[k] / B2 * x0
        mean = mean + (b2[k] * big_a[k - 1] - B2_before * a[k]) / B2 * (y - x0)
        torch.testing.assert_close(ours, mean, rtol=1e-11, atol=1e-11)
        assert std**2 == pytest.approx(float(b2[k] * B2_before / B2), rel=1e-10)


@pytest.mark.parametrize(("residual", "noise"), itertools.product(RAMPS, RAMPS))
@pytest.mark.parametrize("steps", [4, None])
def test_ramps_are_sums_of_linear_steps(residual, noise, steps):
    n = steps or 100_000  # without steps: the limit
    i = torch.arange(1, n + 1, dtype=F64)
    sizes = {"increased": 2 * i / (n * (n + 1)), "decreased": 2 * (n - i + 1) / (n * (n + 1)), "average": 0 * i + 1 / n}
    at = (torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=F64) * n).long() - 1
    level = Residual(schedule=Ramps(residual=residual, noise=noise, variance=0.3, steps=steps)).at((at + 1.0) / n)
    room = 1e-12 if steps else 4 / n  # (t + 1/n) / (1 + 1/n) against t, relative to t >= 1/4: up to 3 / n
    torch.testing.assert_close(level.source, sizes[residual].cumsum(0)[at], rtol=room, atol=1e-15)
    torch.testing.assert_close(level.noise**2, 0.3 * sizes[noise].cumsum(0)[at], rtol=room, atol=0.0)


def test_ddpm_read_as_residuals():
    # A = 1 - sqrt(abar), B = sqrt(1 - abar); with y = 0 the marginals are DDPM's.
    schedule = Discrete.ddpm()
    level = Residual(schedule=schedule).at(schedule.at_index(500))
    abar = schedule.table[500]
    torch.testing.assert_close(level.source, 1 - abar.sqrt())
    torch.testing.assert_close(level.noise, (1 - abar).sqrt())


def test_any_table_makes_a_residual_process():
    t = torch.linspace(0, 1, 9, dtype=F64)
    table = Tabulated(times=t, alphas=(1 - t) ** 1.5, sigmas=0.1 * t**0.5)
    process = Residual(schedule=table)
    torch.testing.assert_close(process.at(t).source, 1 - (1 - t) ** 1.5, rtol=1e-14, atol=1e-15)
    assert from_config(to_config(process)) == process


def test_kernels_that_do_not_exist_are_refused():
    process = Interpolant("linear", "sinesquared")  # sin^2 falls faster than 1 - t at the far end
    with pytest.raises(Incompatible, match="variance would be negative"):
        process.kernel(process.at(0.5), process.at(0.95))
    rows = process.at(torch.tensor([0.2, 0.5])), process.at(torch.tensor([0.4, 0.95]))
    with pytest.raises(Incompatible, match="variance would be negative"):
        process.posterior_std(rows[1], rows[0])
    heavy = Bridge(noise_law=StudentT(5.0))
    for call in (heavy.kernel, heavy.posterior_std):
        with pytest.raises(Incompatible, match="not closed under addition"):
            call(heavy.at(0.4), heavy.at(0.4))
    with pytest.raises(Incompatible, match="not closed under addition"):
        heavy.diffusion2(heavy.at(0.4))
    with pytest.raises(Degenerate, match="no value"):
        Interpolant("linear", "bsquared").diffusion2(Interpolant("linear", "bsquared").at(1.0))
    with pytest.raises(BadValue, match="needs x0="):
        Residual().renoise(_rand(2, 3), 0.2, 0.5, source=_rand(2, 3))
    with pytest.raises(BadValue, match="needs source="):
        Bridge().renoise(_rand(2, 3), 0.2, 0.5)


class Point:
    """All data at one point, with an endpoint: one step is exact."""

    shape, kinds = (3,), {}

    def __init__(self, process):
        self.process, self.point = process, torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"x0": self.point.expand_as(x)}, source=cond.source)


@pytest.mark.parametrize("process", [Bridge(), Residual(), Residual(schedule=Ramps(variance=0.01, steps=100))], ids=str)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_steps_have_the_marginals_of_the_process(process, eta):
    # From t = 1 to s = 0.3 in steps, all data at one point: x_s has mean data x0 + source y and variance noise^2.
    n, y = 40000, torch.tensor([0.5, 0.0, -1.0], dtype=F64)
    cond = Conditions({"y": Condition(y.expand(n, 3), "endpoint")})
    if process.at(1.0).noise == 0.0:
        eta = 1.0  # at y itself the noise is unknown: the first step must draw it all
    x = sample(Point(process), solver=DDIM(eta=eta), grid=[1.0, 0.7, 0.5, 0.3], cond=cond, seed=0, dtype=F64)
    level = process.at(0.3)
    mean = level.data * Point(process).point + level.source * y
    assert float((x.mean(0) - mean).abs().max()) < 5.0 * level.noise / n**0.5
    assert float((x.var(0) / level.noise**2 - 1).abs().max()) < 5.0 * (2 / n) ** 0.5


# Configuration and refusals


@named([*BRIDGES, *PATHS, *RESIDUALS, Bridge(noise_law=StudentT(4.0))])
def test_configuration_round_trip(process):
    back = from_config(json.loads(json.dumps(to_config(process))))
    assert back == process
    assert back.at(0.37)[:-1] == process.at(0.37)[:-1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Bridge(variance=0.0), "variance > 0"),
        (lambda: Bridge(variance=math.nan), "must be finite, got nan"),
        (lambda: Interpolant("liner"), "linear"),
        (lambda: Interpolant("linear", "brownain"), "brownian"),
        (lambda: Interpolant("linear", "brownian", 0.0), "scale > 0"),
        (lambda: Interpolant("trig", "brownian", 2.0), "gamma < 1"),
        (lambda: Interpolant("trig", "sinesquared"), "gamma < 1"),
        (lambda: Interpolant("encdec", "zero"), "noise in the middle"),
        (lambda: Ramps(residual="falling"), "ramp"),
        (lambda: Ramps(variance=-1.0), "variance > 0"),
        (lambda: Ramps(steps=0), "steps >= 1"),
        (lambda: Interpolant("mirror").prior(), "initial="),
        (lambda: Bridge().time(torch.zeros(1)), "log-SNR"),
        (lambda: to_config(CUSTOM), "can't store"),
    ],
)
def test_refusals(make, match):
    with pytest.raises((BadValue, BadType, Incompatible), match=match):
        make()
