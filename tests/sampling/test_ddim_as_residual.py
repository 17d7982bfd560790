"""A trained DDIM read as residual and noise (RDDM, Liu 2023): the same samples, another ancestral variance."""

import itertools

import pytest
import torch
from double_diffusers import double

from condiff.conditions import Condition, Conditions
from condiff.process import Discrete, Gaussian, Prediction, Residual, Retimed
from condiff.sampling import DDIM, sample

F64, T = torch.float64, 1000


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def told(y):
    return Conditions({"degraded": Condition(y, "endpoint")})


class Says:
    """A noise network: any function of the state and the index."""

    kinds, shape = {}, (3,)

    def __init__(self, process, kind="noise"):
        self.process, self.kind = process, kind

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        noise = torch.tanh(x * 1.3 + 0.1) + 0.01 * float(level.model_time) * torch.cos(x)
        return Prediction(x, level, {"noise": noise}, source=None if cond is None else cond.source)


def trailing(scheduler):
    """Our times of the scheduler's steps."""
    return [*((int(i) + 1) / T for i in scheduler.timesteps), 0.0]


def by_hand(x, abar, indices):
    """Step 4 of the paper's sampler in its own words: A = 1 - sqrt(abar), B = sqrt(1 - abar), r = -x0."""
    a, b = 1 - abar.sqrt(), (1 - abar).sqrt()
    for t, u in itertools.pairwise([*indices, -1]):
        noise = torch.tanh(x * 1.3 + 0.1) + 0.01 * t * torch.cos(x)
        r = -(x - b[t] * noise) / (1 - a[t])
        a_u, b_u = (a[u], b[u]) if u >= 0 else (0.0, 0.0)
        x = x - (a[t] - a_u) * r - (b[t] - b_u) * noise
    return x


def test_ten_steps_are_ddims():
    """Ours on the residual process, ours on DDPM's own, the paper's formula, and diffusers' scheduler."""
    indices, x, y = list(range(999, 0, -100)), rand(4, 3), torch.zeros(4, 3, dtype=F64)
    times = [*((i + 1) / T for i in indices), 0.0]
    with double("ddim") as module:
        scheduler = module.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
        scheduler.set_timesteps(10)
        assert scheduler.timesteps.tolist() == indices
        state = x
        for t in scheduler.timesteps:
            noise = torch.tanh(state * 1.3 + 0.1) + 0.01 * float(t) * torch.cos(state)
            state = scheduler.step(noise, t, state).prev_sample
    process = Residual.from_ddim(scheduler)
    ours = sample(Says(process), solver=DDIM(), initial=x, cond=told(y), grid=times)
    torch.testing.assert_close(ours, state, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_hand(x, scheduler.alphas_cumprod, indices), state, rtol=1e-10, atol=1e-10)
    ddpm = Gaussian(Discrete.ddpm())
    torch.testing.assert_close(sample(Says(ddpm), solver=DDIM(), initial=x, grid=times), state, rtol=1e-10, atol=1e-10)
    retimed = Retimed(Says(ddpm), Residual.from_ddim(ddpm.schedule))
    again = sample(retimed, solver=DDIM(), initial=x, cond=told(y), grid=times)
    torch.testing.assert_close(again, state, rtol=1e-10, atol=1e-10)


def test_ten_steps_are_diffusers_own_in_single_precision():
    import diffusers

    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    state = x = rand(4, 3).float()
    for t in scheduler.timesteps:
        state = scheduler.step(torch.tanh(state * 1.3 + 0.1) + 0.01 * float(t) * torch.cos(state), t, state).prev_sample
    times = trailing(scheduler)
    process = Residual.from_ddim(scheduler)
    ours = sample(Says(process), solver=DDIM(), initial=x, cond=told(torch.zeros(4, 3)), grid=times)
    torch.testing.assert_close(ours, state, rtol=2e-5, atol=2e-5)


def test_its_ancestral_variance_is_not_ddpms():
    """sigma^2(eta = 1) = abar_{t-1} sigma^2_DDPM: the residual process has other kernels on the same marginals."""
    schedule = Discrete.ddpm()
    ours, theirs = Residual.from_ddim(schedule), Gaussian(schedule)
    for i in (1, 10, 500, 999):
        t, s = (i + 1) / T, i / T
        ratio = (ours.posterior_std(ours.at(t), ours.at(s)) / theirs.posterior_std(theirs.at(t), theirs.at(s))) ** 2
        assert ratio == pytest.approx(float(schedule.table[i - 1]), rel=1e-6)


def test_a_table_or_the_schedule_serve_as_well():
    schedule = Discrete.stable_diffusion()
    assert Residual.from_ddim(schedule) == Residual(schedule=schedule)
    level = Residual.from_ddim(schedule.table).at(0.5)
    abar = float(schedule.table[499])
    assert (level.source, level.noise) == pytest.approx((1 - abar**0.5, (1 - abar) ** 0.5), rel=1e-12)


@pytest.mark.parametrize("steps", [5, 20])
def test_a_trained_model_on_rddms_own_schedule(steps):
    """With y = 0 the residual process is a path to noise: a model of DDPM's table serves it, and so does its oracle."""
    from condiff.process import Ramps, oracles

    mean, ddpm = torch.tensor([0.7, -0.2, 0.1], dtype=F64), Gaussian(Discrete.ddpm())
    outer = Residual(schedule=Ramps(residual="increased", noise="increased"))
    model = Retimed(oracles.gaussian(ddpm, mean, std=0.3), outer)
    truth = oracles.gaussian(outer, mean, std=0.3)
    y, x = torch.zeros(4, 3, dtype=F64), rand(4, 3)
    grid = torch.linspace(model.start_time, 0.0, steps + 1, dtype=F64)
    ours, exact = (sample(m, solver=DDIM(), initial=x, cond=told(y), grid=grid) for m in (model, truth))
    torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-7)
