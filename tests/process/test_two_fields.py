"""Predictions on processes with an endpoint: one field and the source, or two fields without it."""

import itertools

import pytest
import torch
from test_endpoint import ALL, BRIDGES, F64, RESIDUALS, _rand, named

from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process import Bridge, Interpolant, Prediction, Ramps, Residual
from condiff.process.prediction import row

KINDS = ("x0", "noise", "velocity", "v", "score", "residual", "mean_velocity")


def _independent(process, level, kinds):
    """Whether x_t and two kinds fix x0, y and z, well conditioned."""
    rows = torch.tensor([[float(w) for w in row(k, level)] for k in ("x_t", *kinds)], dtype=F64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return bool(torch.isfinite(rows).all()) and float(torch.linalg.cond(rows)) < 1e3


@named([p for p in ALL if p.has_source])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_two_fields_give_everything_without_the_source(process, t):
    truth = process.forward(_rand(2, 3), t, source=_rand(2, 3, seed=1), noise=_rand(2, 3, seed=2))
    tried = 0
    for kinds in itertools.combinations(KINDS, 2):
        if not _independent(process, truth.level, kinds):
            continue
        tried += 1
        said = Prediction(truth.x_t, truth.level, {k: truth.to(k) for k in kinds})
        for kind in KINDS:
            if kind == "score" and truth.level.noise == 0.0:
                continue
            torch.testing.assert_close(said.to(kind), truth.to(kind), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(said.linear(source=1.0), truth.source, rtol=1e-10, atol=1e-11)
    assert tried >= (0 if truth.level.source == 0.0 else 3)


NOISY = [p for p in ALL if p.has_source and getattr(p, "gamma", "") != "zero" and getattr(p, "path", "") != "encdec"]


@named(NOISY)
@pytest.mark.parametrize("t", [0.3, torch.tensor([0.2, 0.6, 0.8]), torch.tensor([[0.2, 0.7], [0.3, 0.6], [0.4, 0.8]])])
def test_one_field_and_the_source_are_inverse_conversions(process, t):
    truth = process.forward(_rand(3, 2, 4), t, source=_rand(3, 2, 4, seed=1), noise=_rand(3, 2, 4, seed=2))
    for known, wanted in itertools.product(KINDS, KINDS):
        said = Prediction(truth.x_t, truth.level, {known: truth.to(known)}, source=truth.source)
        torch.testing.assert_close(said.to(wanted), truth.to(wanted), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.2, 0.6, 0.8])])
@pytest.mark.parametrize("given", [False, True])
def test_without_noise_one_field_gives_x0_and_the_source(t, given):
    # A flow between two data sets: x_t and one of x0, y - x0, velocity are two equations for x0 and y.
    process = Interpolant("trig", "zero")
    truth = process.forward(_rand(3, 2), t, source=_rand(3, 2, seed=1), rng=0)
    for known, wanted in itertools.product(("x0", "velocity", "residual"), repeat=2):
        said = Prediction(truth.x_t, truth.level, {known: truth.to(known)}, truth.source if given else None)
        torch.testing.assert_close(said.to(wanted), truth.to(wanted), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(said.linear(source=1.0), truth.source, rtol=1e-12, atol=1e-12)
    with pytest.raises((Degenerate, Incompatible)):
        _ = Prediction(truth.x_t, truth.level, {"velocity": truth.velocity}).noise


@named([*BRIDGES, Interpolant("trig", "bsquared"), *RESIDUALS])
def test_times_per_row_and_frame_equal_one_time_row_by_row(process):
    times = torch.tensor([[0.1, 0.6], [0.35, 0.9]], dtype=F64)
    x0, y, z = (_rand(2, 2, 3, seed=i) for i in range(3))
    together = process.forward(x0, times, source=y, noise=z)
    for b, f in itertools.product(range(2), range(2)):
        alone = process.forward(x0[b : b + 1, f], float(times[b, f]), source=y[b : b + 1, f], noise=z[b : b + 1, f])
        for kind in KINDS:
            torch.testing.assert_close(together.to(kind)[b : b + 1, f], alone.to(kind), rtol=1e-13, atol=1e-13)


def test_rddms_two_heads():
    process, y = Residual(schedule=Ramps(variance=0.01)), _rand(2, 3, seed=1)
    truth = process.forward(_rand(2, 3), 0.4, source=y, noise=_rand(2, 3, seed=2))
    level, r, e = truth.level, _rand(2, 3, seed=3), _rand(2, 3, seed=4)  # heads that disagree with y
    both = Prediction(truth.x_t, level, {"residual": r, "noise": e}, source=y)
    torch.testing.assert_close(both.x0, truth.x_t - level.source * r - level.noise * e)
    alone = Prediction(truth.x_t, level, {"residual": r}, source=y)
    torch.testing.assert_close(alone.x0, y - r)
    torch.testing.assert_close(alone.noise, (truth.x_t - y - (level.source - 1) * r) / level.noise)
    clean = Prediction(truth.x_t, level, {"x0": r, "noise": e}, source=y)
    torch.testing.assert_close(clean.residual, y - r)
    # At the far end the two heads still give everything; noise alone doesn't.
    end = process.forward(truth.x0, 1.0, source=y, noise=truth.noise)
    heads = Prediction(end.x_t, end.level, {"residual": end.residual, "noise": end.noise})
    torch.testing.assert_close(heads.x0, end.x0)
    with pytest.raises(Degenerate):
        _ = Prediction(end.x_t, end.level, {"noise": end.noise}, source=y).x0


def test_a_missing_endpoint_is_named():
    truth = Bridge().forward(_rand(2, 3), 0.4, source=_rand(2, 3, seed=1), rng=0)
    with pytest.raises(Incompatible, match="endpoint"):
        _ = Prediction(truth.x_t, truth.level, {"x0": truth.x0}).noise
    with pytest.raises(BadValue, match="source="):
        Bridge().forward(_rand(2, 3), 0.4)
    with pytest.raises(BadValue, match="shape of x0"):
        Bridge().forward(_rand(2, 3), 0.4, source=_rand(2, 4))
    with pytest.raises(BadType, match="floating"):
        Bridge().forward(torch.zeros(2, 3, dtype=torch.int64), 0.4, source=_rand(2, 3))


@named(
    [*BRIDGES, Interpolant("linear", "bsquared"), Interpolant("trig", "brownian"), Interpolant("encdec", "brownian")]
)
def test_velocity_between_two_gaussians_is_the_closed_form(process):
    # x0 ~ N(m0, v0), y ~ N(m1, v1): x_t is normal with mean m and variance C, and b = m' + C' / (2 C) (x - m).
    (m0, v0), (m1, v1) = (1.0, 0.3), (-2.0, 1.7)
    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    for t in (0.2, 0.45, 0.8):
        lv = process.at(t)
        mean, var = lv.data * m0 + lv.source * m1, lv.data**2 * v0 + lv.source**2 * v1 + lv.noise**2
        d_mean = lv.d_data * m0 + lv.d_source * m1
        half = lv.data * lv.d_data * v0 + lv.source * lv.d_source * v1 + process.noise_d_noise(lv)
        velocity, noise = d_mean + half / var * (x - mean), lv.noise / var * (x - mean)
        if not _independent(process, lv, ("velocity", "noise")):
            continue  # encdec: y has left the state
        said = Prediction(x, lv, {"velocity": velocity, "noise": noise})
        torch.testing.assert_close(said.x0, m0 + lv.data * v0 / var * (x - mean), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            said.linear(source=1.0), m1 + lv.source * v1 / var * (x - mean), rtol=1e-11, atol=1e-11
        )
        torch.testing.assert_close(said.score, -(x - mean) / var, rtol=1e-11, atol=1e-11)
