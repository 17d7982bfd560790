"""Re-timing: one exact denoiser on many paths says the same of the same sample."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from condiff.denoiser import Denoiser, Plain
from condiff.errors import BadValue, Incompatible
from condiff.process import (
    EDM,
    VE,
    Bridge,
    Cosine,
    Discrete,
    Gaussian,
    Prediction,
    Rectified,
    Retimed,
    StudentT,
    SubVP,
    VPLinear,
    oracles,
)
from condiff.sampling import DDIM, Euler, sample, trajectory

F64 = torch.float64
POINTS = torch.tensor([[1.0, -0.5], [-1.0, 0.3], [0.2, 1.2]], dtype=F64)
PATHS = [Rectified(), Rectified(shift=3.0), Cosine(), VPLinear(), SubVP(), EDM(), VE(), Discrete.stable_diffusion()]
PATHS = [Gaussian(schedule) for schedule in PATHS]


def named(name, paths):
    return pytest.mark.parametrize(name, paths, ids=lambda p: repr(p.schedule)[:40])


def _exact(process):
    return oracles.empirical(process, POINTS)


def _state(process, t, seed=0):
    x0 = POINTS[[0, 1, 2, 0]]
    return process.forward(x0, t, rng=seed).x_t


@named("inner", PATHS)
@named("outer", PATHS)
@pytest.mark.parametrize("t", [0.35, 0.6, torch.tensor([0.3, 0.4, 0.5, 0.65], dtype=F64)], ids=["0.35", "0.6", "rows"])
def test_the_exact_denoiser_of_one_path_is_that_of_another(inner, outer, t):
    x = _state(outer, t)
    ours, truth = Retimed(_exact(inner), outer, outside="refuse")(x, t), _exact(outer)(x, t)
    for kind in ("x0", "noise", "velocity", "v", "score"):
        torch.testing.assert_close(ours.to(kind), truth.to(kind), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("target", ["x0", "noise", "velocity", "v", "score"])
def test_whatever_the_inner_model_predicts(target):
    inner, outer = Gaussian(VPLinear()), Gaussian(Rectified())
    exact = _exact(inner)

    class Says:
        process, shape, kinds = inner, (2,), {}

        def __call__(self, x, t, cond=None):
            p = exact(x, t)
            return Prediction(x, p.level, {target: p.to(target)}, aux={"exit": 3})

    x = _state(outer, 0.4)
    ours = Retimed(Says(), outer)(x, 0.4)
    torch.testing.assert_close(ours.velocity, _exact(outer)(x, 0.4).velocity, rtol=1e-9, atol=1e-9)
    assert ours.aux == {"exit": 3}
    assert ours.x_t is x


def test_a_trajectory_on_the_straight_path_sees_the_same_x0():
    # A VP-trained exact model on the rectified path, and the rectified path's own exact model.
    outer = Gaussian(Rectified())
    model = Retimed(_exact(Gaussian(VPLinear())), outer)
    grid = torch.linspace(0.99, 0.01, 25, dtype=F64)
    x = _state(outer, 0.99)
    steps = zip(
        trajectory(model, x, solver=Euler(), grid=grid),
        trajectory(_exact(outer), x, solver=Euler(), grid=grid),
        strict=True,
    )
    for ours, truth in steps:
        torch.testing.assert_close(ours.prediction.x0, truth.prediction.x0, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(ours.x_s, truth.x_s, rtol=1e-7, atol=1e-7)


def test_ddim_does_not_see_the_path():
    # DDIM with eta = 0 depends on the log-SNRs of its levels only: the same levels on either path, the same sample.
    vp, straight = Gaussian(VPLinear()), Gaussian(Rectified())
    model = Retimed(_exact(vp), straight)
    grid = torch.linspace(0.98, 0.02, 12, dtype=F64)
    matched = vp.time(torch.tensor([level.log_snr for level in straight.levels(grid)], dtype=F64))
    x = _state(straight, 0.98)
    _, k, _ = model.match(0.98)
    ours = sample(model, solver=DDIM(), initial=x, grid=grid)
    theirs = sample(_exact(vp), solver=DDIM(), initial=k * x, grid=matched)
    _, k_end, _ = model.match(0.02)
    torch.testing.assert_close(k_end * ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_clean_end_is_reached():
    model = Retimed(_exact(Gaussian(VPLinear())), Gaussian(Rectified()))
    inner, k, exact = model.match(0.0)
    assert (inner.t, k, exact) == (0.0, 1.0, True)
    x = sample(model, solver=DDIM(), grid=torch.linspace(model.start_time, 0.0, 30), num=5, seed=0, dtype=F64)
    assert float(torch.cdist(x, POINTS).min(1).values.max()) < 1e-6


def test_beyond_the_inner_path():
    straight, vp = Gaussian(Rectified()), Gaussian(VPLinear())
    model = Retimed(_exact(vp), straight)
    with pytest.raises(BadValue, match=rf"start the grid at t = {model.start_time:.6f}"):
        model(torch.zeros(1, 2), 1.0)
    with pytest.raises(BadValue, match="inner path covers"):
        model(torch.zeros(2, 2), torch.tensor([0.5, 1.0]))
    level = straight.at(model.start_time)
    assert level.log_snr == pytest.approx(vp.at(1.0).log_snr)
    model(torch.zeros(1, 2), model.start_time)
    # The nearest level: what the model says of the same noise at its own end, also if it predicts noise only.
    exact = _exact(vp)

    class Noise:
        process, shape, kinds = vp, (2,), {}

        def __call__(self, x, t, cond=None):
            return Prediction(x, vp.at(t), {"noise": exact(x, t).noise})

    z = _state(straight, 1.0)
    torch.testing.assert_close(Retimed(Noise(), straight, outside="nearest")(z, 1.0).x0, exact(z, 1.0).x0)
    x = sample(Retimed(Noise(), straight, outside="nearest"), solver=Euler(), steps=50, num=5, seed=0, dtype=F64)
    assert float(torch.cdist(x, POINTS).min(1).values.max()) < 1e-6
    # Whole ranges that both cover need nothing of the kind.
    assert Retimed(_exact(Gaussian(Cosine())), straight).start_time == 1.0


def test_one_inner_level_per_time():
    model = Retimed(_exact(Gaussian(Cosine())), Gaussian(Rectified()))
    assert model.match(0.3) is model.match(0.3)


def test_a_table_is_asked_at_fractional_indices():
    schedule = Discrete.stable_diffusion()
    model = Retimed(_exact(Gaussian(schedule)), Gaussian(Rectified()))
    index = torch.tensor(499.0, dtype=F64)
    log_snr = schedule.log_snr(schedule.at_index(index))
    inner, _, _ = model.match(float(Rectified().time(log_snr)))
    assert inner.model_time == pytest.approx(499.0, abs=1e-9)


def test_student_t_paths_are_retimed_among_themselves():
    inner, outer = Gaussian(EDM(), StudentT(4.0)), Gaussian(Rectified(), StudentT(4.0))
    x = _state(outer, 0.5)
    torch.testing.assert_close(Retimed(_exact(inner), outer)(x, 0.5).x0, _exact(outer)(x, 0.5).x0, rtol=1e-9, atol=1e-9)
    with pytest.raises(Incompatible, match="laws of noise"):
        Retimed(_exact(inner), Gaussian(Rectified()))
    Retimed(_exact(Gaussian(EDM(), StudentT(math.inf))), Gaussian(Rectified()))


def test_refusals():
    exact = _exact(Gaussian(Cosine()))
    pairs = oracles.paired(Bridge(), torch.zeros(2, 2), torch.eye(4))
    with pytest.raises(Incompatible, match="from data to noise"):
        Retimed(pairs, Gaussian(Cosine()))
    with pytest.raises(BadValue, match="nearest"):
        Retimed(exact, Gaussian(Rectified()), outside="clip")


def test_it_passes_on_the_inner_denoisers_interface():
    class Net(nn.Module):
        condition_kinds = {"label": "label"}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 2)

        def forward(self, x, time, cond):
            return self.line(x) * time[:, None] + cond["label"].value[:, None]

    class Stateful(Denoiser):
        resets = 0

        def start(self):
            self.resets += 1

    inner = Stateful(Net(), Gaussian(VPLinear()), target="noise", shape=(2,))
    model = Retimed(inner, Gaussian(Rectified()))
    assert (model.shape, model.kinds) == ((2,), {"label": "label"})
    assert sum(p.numel() for p in model.parameters()) == 6
    x = sample(model, solver=Euler(), grid=[0.9, 0.5, 0.0], cond={"label": [1, 0]}, seed=0, grad=True)
    assert inner.resets == 1
    x.sum().backward()
    assert inner.network.line.weight.grad.abs().sum() > 0.0


# The time of the state and the time that a network is told are two things


@dataclass(frozen=True)
class FirstFramesTime(Plain):
    """One network time per row: that of frame 0, whatever the levels of the others."""

    def time(self, level):
        return level.model_time[:, 0]


def test_levels_per_frame_with_one_network_time():
    told = []

    class Net(nn.Module):
        def forward(self, x, time, cond):
            told.append(time)
            return torch.zeros_like(x)

    process = Gaussian(Rectified())
    model = Denoiser(Net(), process, target="velocity", precondition=FirstFramesTime(), shape=(3, 4))
    t = torch.tensor([[0.9, 0.5, 0.0], [0.3, 0.3, 1.0]], dtype=F64)
    prediction = model(torch.randn(2, 3, 4), t)
    torch.testing.assert_close(told[0], torch.tensor([0.9, 0.3]))
    torch.testing.assert_close(prediction.level.t, t)
    # And re-timed: the inner levels are per frame, the network is still told one time per row.
    Retimed(model, Gaussian(Cosine()))(torch.randn(2, 3, 4), t)
    assert told[1].shape == (2,)
    expected = Rectified().time(Cosine().log_snr(t[:, 0]))
    torch.testing.assert_close(told[1].double(), expected, rtol=1e-6, atol=1e-6)
