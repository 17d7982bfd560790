"""What samplers refuse, before the first network call."""

import pytest
import torch
from solver_cases import ALL, FLOW, VE, VP, each, oracle_on, state

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoiser
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.guidance import Free
from condiff.process import Absorbing, Bridge, Gaussian, Joint, Prediction, Rectified, StudentT
from condiff.process.oracles import gaussian
from condiff.sampling import (
    DDIM,
    ClipX0,
    Euler,
    Hook,
    PredictorCorrector,
    Uniform,
    invert,
    log_likelihood,
    sample,
    trajectory,
)
from condiff.token_denoiser import TokenDenoiser


class Net(torch.nn.Module):
    """Counts its calls."""

    calls = 0

    def forward(self, x, time, cond=None):
        self.calls += 1
        return 0.1 * x


def rows(*times):
    return torch.tensor(times, dtype=torch.float64)


@pytest.mark.parametrize("grid", [rows(1.0, 0.5, 0.0), rows([1.0, 0.7], [0.9, 0.4], [0.5, 0.0])])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("target", ["noise", "score"])
@each("solver", ALL)
def test_a_predicted_noise_says_nothing_at_pure_noise(solver, target, wrapped, grid):
    net = Net()
    model = Denoiser(net, FLOW, target, shape=(3,))
    model = Free(model, scale=2.0) if wrapped else model
    cond = {"known": Condition(torch.zeros(2, 3, dtype=torch.bool), "known")} if wrapped else None
    with pytest.raises(Degenerate, match="start the grid below it"):
        sample(model, solver=solver, grid=grid, cond=cond, num=2, seed=0)
    assert net.calls == 0


@each("solver", ALL)
@pytest.mark.parametrize("target", ["x0", "velocity", "v", "noise", "score"])
@pytest.mark.parametrize("process", [FLOW, VP, VE], ids=["flow", "vp", "ve"])
def test_all_other_ends_are_finite(solver, target, process):
    start = 0.999 if process is FLOW and target in ("noise", "score") else 1.0
    for grid in (torch.linspace(start, 0.0, 4), rows([start, 0.7], [0.9, 0.7], [0.5, 0.6], [0.0, 0.0])):
        x = sample(Denoiser(Net(), process, target, shape=(3,)), solver=solver, grid=grid, num=2, seed=0)
        assert x.isfinite().all() and x.dtype == torch.float32


def test_rows_may_wait_at_pure_noise_and_a_hook_may_know_x0():
    model = Denoiser(Net(), FLOW, "noise", shape=(3,))
    x = sample(model, solver=DDIM(), grid=rows([1.0, 0.5], [1.0, 0.2]), initial=state(2).float())
    assert torch.equal(x[0], state(2).float()[0])

    class Knows(Hook):
        def prediction(self, prediction, run):
            return prediction.set("x0", torch.full_like(prediction.x_t, 0.25))

    x = sample(model, solver=DDIM(), steps=2, num=2, seed=0, hooks=[Knows()])
    assert torch.equal(x, torch.full((2, 3), 0.25))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"solver": DDIM}, BadType, r"an instance: DDIM\(\)"),
        ({"solver": "ddim"}, BadType, "takes a solver"),
        ({"steps": None, "grid": "uniform"}, BadType, "takes a Grid"),
        ({"hooks": ClipX0()}, BadType, r"list: \[ClipX0"),
        ({"num": 5}, BadValue, "'num': 5, 'initial': 2"),
        ({"seeds": [1, 2, 3]}, BadValue, "'seeds': 3, 'initial': 2"),
        ({"cond": {"label": [1, 2, 3]}}, BadValue, "'cond': 3, 'initial': 2"),
        ({"initial": None, "num": 0}, BadValue, "at least 1, got 0"),
        ({"initial": None, "num": 2.0}, BadType, "integer, got 2.0"),
        ({"initial": None, "num": True}, BadType, "integer, got True"),
        ({"initial": torch.zeros(2, 3, dtype=torch.long)}, BadType, "floating point"),
        ({"initial": None, "seeds": []}, BadValue, "nothing to sample"),
        ({"initial": None, "seeds": [1.5, 2]}, BadType, "a seed is an integer, got 1.5"),
        ({"seeds": 5}, BadType, "seed="),
        ({"seed": [1, 2]}, BadType, "seeds="),
        ({"seed": True}, BadType, "one integer"),
        ({"initial": None, "num": 2, "prior": 3}, BadType, "takes a Prior"),
        ({"shape": (3,)}, BadValue, "or prior= and shape="),
        ({"held": torch.ones(3)}, BadType, "booleans"),
        ({"held": torch.ones(5, 3, dtype=torch.bool)}, BadValue, r"held of shape \(5, 3\)"),
        ({"steps": None, "grid": rows([1.0] * 3, [0.0] * 3)}, BadValue, r"times of shape \(3,\)"),
        ({"steps": None, "grid": torch.ones(2, 2, 4).double()}, BadValue, r"times of shape \(2, 4\)"),
    ],
)
def test_what_does_not_fit_together(options, error, match):
    options = {"solver": DDIM(), "steps": 3, "initial": state(2), **options}
    with pytest.raises(error, match=match):
        sample(oracle_on(VP), **options)


def test_times_of_a_video():
    """(N + 1, B, F) on (B, F, C, H, W): one time per frame; other numbers of frames are refused."""
    model, x = gaussian(FLOW, torch.zeros(4, 2, 3, 3), std=0.5), state(2, shape=(4, 2, 3, 3))
    grid = torch.linspace(1.0, 0.0, 5).double()[:, None, None] * torch.tensor([1.0, 0.9, 0.8, 0.0]).expand(1, 2, 4)
    out = sample(model, solver=Euler(), grid=grid, initial=x)
    assert torch.equal(out[:, 3], x[:, 3])
    for frame in range(3):
        alone = sample(gaussian(FLOW, torch.zeros(2, 3, 3), std=0.5), solver=Euler(), grid=grid[:, 0, frame],
                       initial=x[:, frame])  # fmt: skip
        torch.testing.assert_close(out[:, frame], alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(BadValue, match=r"times of shape \(2, 3\)"):
        sample(model, solver=Euler(), grid=grid[:, :, :3], initial=x)


def test_an_endpoint_has_the_states_shape_and_takes_its_dtype():
    class Ends:
        process, shape = Bridge(), (3,)

        def __call__(self, x, t, cond=None):
            assert cond.source.dtype == x.dtype
            return Prediction(x, self.process.at(t), {"x0": 0.5 * x}, cond.source)

    y = Conditions({"y": Condition(state(2), "endpoint")})
    x = sample(Ends(), solver=DDIM(eta=1.0), steps=3, cond=y, seed=0)
    assert x.dtype == torch.float32
    wide = sample(Ends(), solver=DDIM(eta=1.0), steps=3, cond=y, seed=0, dtype=torch.float64)
    assert wide.dtype == torch.float64
    for other in (state(2)[:, :1], state(2)[:, None]):
        bad = Conditions({"y": Condition(other, "endpoint")})
        with pytest.raises(BadValue, match="endpoint of shape"):
            next(trajectory(Ends(), state(2), solver=DDIM(eta=1.0), steps=3, cond=bad))


def test_langevin_steps_and_inversion_say_what_they_need():
    heavy = Gaussian(Rectified(), StudentT(5.0))
    net = Net()
    with pytest.raises(Incompatible, match="Langevin"):
        sample(Denoiser(net, heavy, "x0", shape=(3,)), solver=PredictorCorrector(DDIM()), steps=3, num=2, seed=0)
    assert net.calls == 0

    class Two:
        process, shape = Joint({"a": FLOW, "b": FLOW}), None

    with pytest.raises(Incompatible, match="one variable"):
        invert(Two(), {"a": state(), "b": state()}, solver=DDIM(), grid=Uniform(), steps=3)
    with pytest.raises(Incompatible, match="one continuous state"):
        log_likelihood(Two(), state())
    with pytest.raises(Incompatible, match="give prior="):
        log_likelihood(Denoiser(net, heavy, "x0", shape=(3,)), state())
    tokens = TokenDenoiser(net, Absorbing(vocab=4), shape=(3,))
    for solver in ALL:
        with pytest.raises(Incompatible, match="TokenAncestral"):
            sample(tokens, solver=solver, steps=3, num=2, seed=0)
    assert net.calls == 0
