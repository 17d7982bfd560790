"""The Itô density estimator against true log-densities."""

import math
from types import SimpleNamespace

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Blend, Free
from condiff.process import EDM, Cosine, Gaussian, Interpolant, Joint, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    DPMSolverPP,
    Euler,
    Heun,
    ItoDensity,
    Karras,
    Uniform,
    ito_likelihood,
    sample,
    trajectory,
)

VP = Gaussian(VPLinear())
EDM20 = Gaussian(EDM(sigma_max=20.0))
BLOBS = [[-1.5, 1.5], [1.5, 1.5], [-1.5, -1.5], [1.5, -1.5]]


def pair(process):
    return mixture(process, BLOBS[:2], stds=0.4), mixture(process, BLOBS[2:], stds=0.4)


def start(model, time, num):
    """States of the model at a time."""
    return model.process.forward(model.sample(num, 0, dtype=torch.float64), time, rng=1).x_t


def draw(num):
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def errors(process, times, solver=None, spread=None, num=150, **options):
    """Estimate minus truth, (B, 2), of the model that is sampled and of another one; and the other's true spread."""
    a, b = pair(process)
    x, level = start(a, float(times[0]), num), process.at(float(times[0]))
    first = torch.stack([m.log_prob(x, level) for m in (a, b)], 1)
    density = ItoDensity([a, b], spread=spread, prior=first, **options)
    *_, last = trajectory(a, x, solver=solver or SDE(), grid=times, rng=2, hooks=[density])
    true = torch.stack([m.log_prob(last.x_s, density.level) for m in (a, b)], 1)
    assert density.level.t == last.s.t
    return density.log_prob - true, true


def rmse(error):
    return error.square().mean(0).sqrt()


def test_the_error_is_small_and_falls_like_the_root_of_the_step():
    grid = Karras(sigma_min=0.01, sigma_max=20.0)
    coarse, fine = (errors(EDM20, grid.times(EDM20, n)[:-1])[0] for n in (100, 1600))
    assert float(rmse(fine).max()) <= 0.25  # nats
    slope = torch.log2(rmse(coarse) / rmse(fine)) / 4.0
    assert float(slope.min()) > 0.4 and float(slope.max()) < 0.7
    _, true = errors(EDM20, grid.times(EDM20, 100)[:-1])
    assert float(true[:, 1].std()) > 5.0  # what the other model's density varies by


@pytest.mark.parametrize("spread", [None, 0.5])
@pytest.mark.parametrize(
    "solver", [SDE(), DDPM(), DDIM(eta=1.0), DPMSolverPP(2, noise=1.0)], ids=lambda s: repr(s)[:10]
)
@pytest.mark.parametrize("process", [VP, Gaussian(Rectified())], ids=["vp", "flow"])
def test_every_sde_solver_serves(process, solver, spread):
    found, _ = errors(process, torch.linspace(0.9, 0.05, 401, dtype=torch.float64), solver, spread)
    assert float(rmse(found)[0]) < 0.65
    assert abs(float(found[:, 0].mean())) < 0.25


@pytest.mark.parametrize("solver", [SDE(), DDPM()], ids=["sde", "ddpm"])
def test_kernels_of_a_spread_are_sharper_for_absolute_densities(solver):
    times = torch.linspace(0.9, 0.05, 201, dtype=torch.float64)
    ito, kernels = (rmse(errors(VP, times, solver, spread)[0])[0] for spread in (None, 0.5))
    assert float(kernels) < 0.35 * float(ito)


@pytest.mark.parametrize("std", [0.0, 0.7, 2.0])
def test_kernels_are_exact_for_gaussian_data_at_any_step(std):
    process = Gaussian(Cosine())
    model = gaussian(process, [0.3, -0.7], std=std)
    density = ItoDensity(spread=std, prior=0.0)
    with pytest.warns(UserWarning, match="4 steps"):
        steps = list(trajectory(model, draw(8), solver=SDE(), grid=[0.95, 0.8, 0.4, 0.3, 0.1], rng=0, hooks=[density]))
    for step, gained in zip(steps, density.values, strict=True):
        truth = model.log_prob(step.x_s, step.s) - model.log_prob(steps[0].x_t, steps[0].t)
        torch.testing.assert_close(gained[:, 0], truth, rtol=1e-9, atol=1e-9)


def test_one_step_by_the_formula():
    """<dx, s> + h [div f + <f, s> - g^2 |s|^2 / 2] with the increment, noise included, of the step itself."""
    a, b = pair(VP)
    x, z = torch.randn(2, 5, 2, dtype=torch.float64)
    with pytest.warns(UserWarning, match="1 steps"):
        density = ItoDensity([b], prior=0.0)
        (step,) = trajectory(a, x, solver=SDE(), grid=[0.8, 0.7], rng=Tape([z]), hooks=[density])
    f, g2, h, score = VP.drift(step.t), VP.diffusion2(step.t), 0.8 - 0.7, b(x, 0.8).score
    wanted = (step.dx * score).sum(1) + h * (2.0 * f + (f * x * score).sum(1) - 0.5 * g2 * score.square().sum(1))
    torch.testing.assert_close(density.log_prob[:, 0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [None, 0.5])
def test_times_per_row_and_per_frame_add_up(spread):
    """Rows on times of their own, one with a pause, gain what they gain alone; frames what the whole does."""
    a, _ = pair(VP)
    times = torch.stack([torch.linspace(0.9, 0.1, 61), torch.linspace(0.7, 0.2, 61)], 1).double()
    times[20:, 0] = times[19:-1, 0].clone()
    x, noise = draw(2), [draw(2) + i for i in range(60)]
    together = ItoDensity(spread=spread, prior=0.0)
    list(trajectory(a, x, solver=SDE(), grid=times, rng=Tape(noise), hooks=[together]))
    for row in (0, 1):
        alone, tape = ItoDensity(spread=spread, prior=0.0), [z[row : row + 1] for z in noise]
        if row == 0:
            del tape[19]
        list(trajectory(a, x[row : row + 1], solver=SDE(), grid=times[:, row], rng=Tape(tape), hooks=[alone]))
        torch.testing.assert_close(alone.log_prob, together.log_prob[row : row + 1], rtol=1e-10, atol=1e-10)
    frames = gaussian(VP, torch.zeros(3, 2), std=0.5)
    x, noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    found = []
    for grid in (torch.tensor([0.8, 0.75]).double(), torch.tensor([0.8, 0.75]).double()[:, None, None].expand(2, 4, 3)):
        with pytest.warns(UserWarning, match="1 steps"):
            density = ItoDensity(spread=spread, prior=0.0)
            list(trajectory(frames, x, solver=SDE(), grid=grid, rng=Tape([noise]), hooks=[density]))
        found.append(density.log_prob)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_guided_paths_are_followed_by_the_models_that_are_named():
    """Another drift, the same estimator: classifier-free guidance of scale 3, densities of the conditional model."""
    model = mixture(VP, BLOBS, stds=0.4, labels=[0, 0, 1, 1])
    told = {"label": torch.zeros(100, dtype=torch.long)}
    x = start(pair(VP)[0], 0.9, 100)
    named = ItoDensity([model], prior=model.log_prob(x, 0.9, told))
    parts = ItoDensity(parts=True, prior=model.log_prob(x, 0.9, told))
    *_, last = trajectory(
        Free(model, 3.0),
        x,
        solver=SDE(),
        cond=told,
        grid=Uniform(start=0.9, end=0.05),
        steps=800,
        rng=0,
        hooks=[named, parts],
    )
    error = named.log_prob[:, 0] - model.log_prob(last.x_s, last.s, told)
    assert float(error.square().mean().sqrt()) < 0.5
    torch.testing.assert_close(parts.log_prob[:, :1], named.log_prob, rtol=1e-9, atol=1e-9)
    assert last.nfe == 1600 and parts.log_prob.shape == (100, 2)  # a call of the named model each step


def test_the_prior_is_the_default_and_the_last_noise_free_step_is_not_counted():
    model = gaussian(EDM20, [0.2, -0.1], std=0.3)
    density = ItoDensity()
    x = sample(
        model,
        solver=SDE(),
        grid=Karras(sigma_min=0.05, sigma_max=20.0),
        steps=800,
        num=200,
        seed=0,
        hooks=[density],
        dtype=torch.float64,
    )
    assert density.level.noise == pytest.approx(0.05) and len(density.values) == 800
    assert torch.equal(density.values[-1], density.values[-2]) and x.shape == (200, 2)
    level = density.level
    var = 0.3**2 + level.noise**2
    entropy = 1.0 + math.log(2.0 * math.pi * var)
    assert float(density.log_prob.mean()) == pytest.approx(-entropy, abs=0.15)


@pytest.mark.parametrize("kind", ["exact", "hutchinson"])
def test_with_divergences_an_ode_serves_too(kind):
    a, _ = pair(VP)
    x = start(a, 0.9, 40)
    gaps = []
    for steps in (100, 400):
        density = ItoDensity(divergence=kind, prior=a.log_prob(x, 0.9), probes=1 if kind == "exact" else 16)
        *_, last = trajectory(
            a, x, solver=Euler(), grid=Uniform(start=0.9, end=0.1), steps=steps, rng=0, hooks=[density]
        )
        gaps.append(float((density.log_prob[:, 0] - a.log_prob(last.x_s, last.s)).abs().mean()))
    assert gaps[1] < (0.4 * gaps[0] if kind == "exact" else 0.2)
    if kind == "exact":
        assert gaps[1] < 0.05


def test_half_the_noise_with_divergences():
    a, _ = pair(VP)
    x = start(a, 0.9, 100)
    density = ItoDensity(divergence="exact", prior=a.log_prob(x, 0.9))
    *_, last = trajectory(
        a, x, solver=SDE(noise=0.5), grid=Uniform(start=0.9, end=0.1), steps=400, rng=0, hooks=[density]
    )
    assert float((density.log_prob[:, 0] - a.log_prob(last.x_s, last.s)).square().mean().sqrt()) < 0.4


def test_an_endpoint_counts():
    """A path to an endpoint: densities given the endpoint."""
    process = Interpolant()
    model = gaussian(process, [0.5, -0.5], std=0.6)
    source = torch.randn(150, 2)
    cond = Conditions({"y": Condition(source.double(), "endpoint")})
    x0 = model.sample(150, 0, dtype=torch.float64)
    x = process.forward(x0, 0.7, source=source.double(), rng=1).x_t
    density = ItoDensity(prior=model.log_prob(x, 0.7, cond))
    *_, last = trajectory(
        model, x, solver=SDE(), cond=cond, grid=Uniform(start=0.7, end=0.3), steps=800, rng=0, hooks=[density]
    )
    error = density.log_prob[:, 0] - model.log_prob(last.x_s, last.s, cond)
    assert float(error.square().mean().sqrt()) < 0.15


@pytest.mark.parametrize("spread", [0.5, 0.3])
def test_likelihood_along_noising_paths(spread):
    """The estimate of log p(x) comes to the truth, from one evaluation a step."""
    process = Gaussian(Rectified())
    model = mixture(process, BLOBS, stds=0.4)
    x = model.sample(60, 0, dtype=torch.float64)
    found = {
        n: ito_likelihood(model, x, grid=Uniform(start=0.999), steps=n, paths=4, rng=0, spread=spread)
        for n in (100, 800)
    }
    gaps = {n: float((f.log_prob - model.log_prob(x, 0.0)).square().mean().sqrt()) for n, f in found.items()}
    assert gaps[800] < 0.25 and gaps[800] < 0.6 * gaps[100]
    assert found[800].nfe == 3200 and found[800].kind == "estimate" and found[800].latent.shape == (60, 2)
    ratio = (found[800].log_prob - model.log_prob(x, 0.0)).abs() / found[800].std_error
    assert 0.2 < float(ratio.median()) < 3.0


def test_likelihood_of_a_guided_or_conditional_model_and_of_pure_noise_from_t_1():
    model = mixture(Gaussian(Cosine()), BLOBS, stds=0.4, labels=[0, 0, 1, 1])
    told = {"label": torch.ones(40, dtype=torch.long)}
    x = model.sample(40, 0, told, dtype=torch.float64)
    found = ito_likelihood(model, x, told, steps=400, paths=8, rng=0)
    assert float((found.log_prob - model.log_prob(x, 0.0, told)).square().mean().sqrt()) < 0.3
    with pytest.raises(BadValue, match="paths must be at least 1"):
        ito_likelihood(model, x, told, steps=400, paths=0)
    with pytest.raises(BadValue, match="must decrease"):
        ito_likelihood(model, x, told, grid=[0.1, 0.5])
    with pytest.raises(BadValue, match="still holds the data"):
        ito_likelihood(model, x, told, grid=[0.5, 0.0])


def test_float32_states_are_summed_in_float64():
    a, _ = pair(VP)
    density = ItoDensity()
    sample(a, solver=DDPM(), steps=60, num=4, seed=0, hooks=[density])
    assert density.log_prob.dtype == torch.float64 and density.log_prob.shape == (4, 1)


def test_refusals():
    a, b = pair(VP)
    go = {"num": 2, "seed": 0, "steps": 60}
    for solver, words in (
        (Euler(), "adds 0 times"),
        (DDIM(), "adds 0 times"),
        (DDIM(eta=0.5), r"adds 0\.25 times"),
        (SDE(noise=2.0), "adds 2 times"),
        (SDE(scale="sigma"), "no fixed multiple"),
        (Heun(churn=5.0), "no fixed multiple"),
    ):
        with pytest.raises(Incompatible, match=words):
            sample(a, solver=solver, hooks=[ItoDensity()], **go)
    with pytest.raises(BadValue, match="must not increase"):
        list(trajectory(a, torch.zeros(1, 2), solver=Euler(), grid=[0.1, 0.5], hooks=[ItoDensity(divergence="exact")]))
    with pytest.raises(BadValue, match="must not increase"):
        list(trajectory(a, torch.zeros(1, 2), solver=SDE(), grid=[0.5, 0.1, 0.5], hooks=[ItoDensity()]))
    with pytest.raises(BadValue, match="still holds the data"):
        sample(a, solver=SDE(), hooks=[ItoDensity()], grid=Uniform(start=0.5), **go)
    with pytest.raises(Incompatible, match="one process"):
        sample(a, solver=SDE(), hooks=[ItoDensity([pair(EDM20)[0]])], **go)
    with pytest.raises(Incompatible, match="no parts"):
        sample(a, solver=SDE(), hooks=[ItoDensity(parts=True)], **go)
    with pytest.raises(Incompatible, match="name them"):
        blend = Blend([a, b], [0.5, 0.5])
        sample(blend, solver=SDE(), hooks=[ItoDensity(parts=True, divergence="exact")], **go)
    with pytest.raises(Incompatible, match="continuous state"):
        joint = Joint({"a": VP})
        ItoDensity().start(SimpleNamespace(denoiser=SimpleNamespace(process=joint), solver=SDE()))
    with pytest.raises(Incompatible, match="goes with It"):
        ItoDensity(spread=0.5, divergence="exact")
    with pytest.raises(BadValue, match="spread must be >= 0"):
        ItoDensity(spread=-1.0)
    with pytest.raises(BadType, match="a list of them"):
        ItoDensity(a)
    with pytest.raises(BadValue, match="either"):
        ItoDensity([a], parts=True)
    with pytest.raises(BadValue, match="probes"):
        ItoDensity(divergence="hutchinson", probes=0)
    with pytest.raises(BadValue, match="no trajectory"):
        ItoDensity().log_prob  # noqa: B018
    with pytest.warns(UserWarning, match="noisy below 50"):
        sample(a, solver=SDE(), hooks=[ItoDensity()], num=1, seed=0, steps=20)
