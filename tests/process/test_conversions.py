"""Conversions between what may be predicted, on every schedule: inverses, definitions, times per row and frame."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import ALL, named

from condiff.errors import BadValue
from condiff.process import EDM, VE, Cosine, Discrete, Gaussian, Prediction, Rectified, Sigmoid, VPLinear
from condiff.process.prediction import row

KINDS = ("x0", "noise", "velocity", "v", "score")


def _rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _times(schedule, log_snr):
    return schedule.time(torch.as_tensor(log_snr, dtype=torch.float64))


@named(ALL)
def test_conversions_are_inverses(schedule):
    # Levels by their log-SNR. Close to an end a conversion is ill conditioned whatever the code does: x0 -> noise
    # divides by noise(t), and 1e-16 / noise(t) can't be 1e-12 for noise(t) = 1e-6. At |log-SNR| <= 6 the ratio of the
    # coefficients stays under 20.
    process = Gaussian(schedule)
    t = _times(schedule, [[6.0, 2.0], [0.0, -1.0], [-4.0, -6.0]])
    truth = process.forward(_rand(3, 2, 4), t, noise=_rand(3, 2, 4, seed=1))
    for known, wanted in itertools.product(KINDS, KINDS):
        said = Prediction(truth.x_t, truth.level, {known: truth.to(known)}).to(wanted)
        torch.testing.assert_close(said, truth.to(wanted), rtol=1e-12, atol=1e-12 * float(truth.to(wanted).abs().max()))
        back = truth.set(known, truth.to(known)).set(wanted, said).to(known)
        torch.testing.assert_close(back, truth.to(known), rtol=1e-12, atol=1e-12 * float(truth.to(known).abs().max()))


@named(ALL)
def test_the_definitions_of_the_kinds(schedule):
    process, x0, z = Gaussian(schedule), _rand(3, 4), _rand(3, 4, seed=1)
    t = float(_times(schedule, 1.0))
    truth, level = process.forward(x0, t, noise=z), process.at(t)
    torch.testing.assert_close(truth.x_t, level.data * x0 + level.noise * z)
    torch.testing.assert_close(truth.velocity, level.d_data * x0 + level.d_noise * z)
    torch.testing.assert_close(truth.v, level.data * z - level.noise * x0)
    torch.testing.assert_close(truth.score, -z / level.noise)
    assert level.log_snr == pytest.approx(float(schedule.log_snr(torch.tensor(t, dtype=torch.float64))), abs=1e-12)


@named(ALL)
def test_times_per_row_and_per_frame_equal_one_time_row_by_row(schedule):
    process = Gaussian(schedule)
    t = torch.tensor([[0.11, 0.43], [0.72, 0.9]], dtype=torch.float64)
    x0, z = _rand(2, 2, 3), _rand(2, 2, 3, seed=1)
    together, grid = process.forward(x0, t, noise=z), process.levels(t.flatten())
    for b, f in itertools.product(range(2), range(2)):
        alone = process.forward(x0[b : b + 1, f], float(t[b, f]), noise=z[b : b + 1, f])
        assert grid[2 * b + f] == alone.level
        for kind in ("x_t", *KINDS):
            left = together.x_t if kind == "x_t" else together.to(kind)
            right = alone.x_t if kind == "x_t" else alone.to(kind)
            torch.testing.assert_close(left[b : b + 1, f], right, rtol=1e-14, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(
    log_snr=st.floats(-20.0, 20.0),
    schedule=st.sampled_from([VPLinear(beta_max=60.0), Cosine(), Rectified(shift=2.0), Sigmoid(tau=0.3), VE(), EDM()]),
    known=st.sampled_from(KINDS),
    wanted=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_conversions_lose_no_more_than_their_condition_number(log_snr, schedule, known, wanted, seed):
    # A conversion solves two equations, x_t and the known quantity; round-off grows by their condition number.
    t = float(_times(schedule, log_snr))
    truth = Gaussian(schedule).forward(_rand(2, 3, seed=seed), t, noise=_rand(2, 3, seed=seed + 1))
    rows = torch.tensor([[row(k, truth.level)[i] for i in (0, 2)] for k in ("x_t", known)], dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    room = 1e-14 * float(torch.linalg.cond(rows)) * math.hypot(*(row(wanted, truth.level)[i] for i in (0, 2)))
    said = Prediction(truth.x_t, truth.level, {known: truth.to(known)}).to(wanted)
    assert float((said - truth.to(wanted)).abs().max()) <= room * float(
        1.0 + truth.x0.abs().max() + truth.noise.abs().max()
    )


@pytest.mark.parametrize(
    "schedule", [Rectified(), Cosine(), Discrete.stable_diffusion(zero_terminal_snr=True)], ids=str
)
def test_velocity_and_v_give_everything_at_pure_noise(schedule):
    truth = Gaussian(schedule).forward(_rand(2, 3), 1.0, noise=_rand(2, 3, seed=1))
    for known in ("velocity", "v"):
        said = Prediction(truth.x_t, truth.level, {known: truth.to(known)})
        for wanted in KINDS:
            torch.testing.assert_close(said.to(wanted), truth.to(wanted), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, torch.tensor([0.5, 1.5])])
def test_times_outside_are_refused(t):
    with pytest.raises(BadValue, match=r"\[0, 1\]"):
        Gaussian(Cosine()).at(t)
