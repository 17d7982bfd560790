"""Stochastic interpolants between Gaussians and mixtures: fields, samplers in both directions, likelihoods, recipes."""

import dataclasses
import itertools
import math

import pytest
import torch

from condiff.conditions import Condition, Endpoint, Label, Map
from condiff.data import TensorData, Unpaired
from condiff.errors import BadValue, Degenerate, Incompatible
from condiff.methods import stochastic_interpolants as method
from condiff.methods.experiment import Facts
from condiff.metrics import mmd2
from condiff.metrics.discrepancy import RBF
from condiff.process import (
    Cosine,
    EndpointLaw,
    Gaussian,
    Interpolant,
    Prediction,
    Rectified,
    VPLinear,
)
from condiff.process.oracles import gaussian, mixture, paired
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    SDE,
    Adaptive,
    Euler,
    RungeKutta,
    Uniform,
    log_likelihood,
    sample,
    sde_log_likelihood,
    trajectory,
)
from condiff.training import Denoising

F64 = torch.float64
GAMMAS = ("brownian", "bsquared", "sinesquared", "sigmoid")
PATHS = [Interpolant(path, gamma, 0.9) for path in ("linear", "trig", "encdec") for gamma in GAMMAS]
BROWNIAN = Interpolant("linear", "brownian")

MX, MY = torch.tensor([[-1.0, 0.0], [1.2, 0.8]], dtype=F64), torch.tensor([[0.0, -1.5], [0.5, 2.0]], dtype=F64)
CX = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0.0], [0.0, 0.25]]], dtype=F64)
CY = torch.tensor([[[0.2, -0.05], [-0.05, 0.3]], [[0.1, 0.0], [0.0, 0.1]]], dtype=F64)
TARGET, BASE = mixture(Gaussian(Rectified()), MX, CX), mixture(Gaussian(Rectified()), MY, CY)


def between(process):
    """The exact fields of the independent coupling of two mixtures."""
    pairs = list(itertools.product(range(2), range(2)))
    means = torch.stack([torch.stack([MX[i], MY[j]]) for i, j in pairs])
    covs = torch.stack([torch.block_diag(CX[i], CY[j]) for i, j in pairs])
    return paired(process, means, covs, blind=True)


def each(processes):
    return pytest.mark.parametrize("process", processes, ids=lambda p: f"{p.path}-{p.gamma}")


def points(n=5, seed=0):
    return 2.0 * torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


# 1. Schedules


@each([*PATHS, *(Interpolant("mirror", gamma) for gamma in GAMMAS), Interpolant("linear", "zero")])
def test_derivatives_equal_central_differences(process):
    t, h = torch.linspace(0.05, 0.95, 38, dtype=F64), 3e-6
    up, down, here = (process.curves(t + d) for d in (h, -h, 0.0))
    for i in range(3):
        torch.testing.assert_close((up[i] - down[i]) / (2 * h), here[3 + i], rtol=0, atol=1e-8)
    level = process.at(t)
    torch.testing.assert_close(process.noise_d_noise(level), level.noise * level.d_noise, rtol=1e-12, atol=1e-14)


def test_the_sigmoid_gamma_is_the_papers():
    t, f = torch.linspace(0.0, 1.0, 21, dtype=F64), 10.0
    s = torch.sigmoid
    expected = s(f * (t - 0.5) + 1) - s(f * (t - 0.5) - 1) - s(torch.tensor(-f / 2 + 1)) + s(torch.tensor(-f / 2 - 1))
    torch.testing.assert_close(Interpolant("linear", "sigmoid").at(t).noise, expected, rtol=0, atol=1e-7)


# 2. Closed form


@each(PATHS)
@pytest.mark.parametrize("t", [0.2, 0.45, 0.8])
def test_fields_between_mixtures_are_the_closed_form(process, t):
    """Per pair of components N(m, C): ``b = m' + C' C^{-1} (x - m) / 2`` and ``s = -C^{-1} (x - m)``, weighted."""
    x, level, eye = points(), process.at(t), torch.eye(2, dtype=F64)
    log_w, bs, ss = [], [], []
    for i, j in itertools.product(range(2), range(2)):
        cov = level.data**2 * CX[i] + level.source**2 * CY[j] + level.noise**2 * eye
        slope = 2 * (level.data * level.d_data * CX[i] + level.source * level.d_source * CY[j])
        slope = slope + 2 * process.noise_d_noise(level) * eye
        away = x - level.data * MX[i] - level.source * MY[j]
        solved = torch.linalg.solve(cov, away.T).T
        log_w.append(-0.5 * ((away * solved).sum(1) + torch.logdet(cov)))
        bs.append(level.d_data * MX[i] + level.d_source * MY[j] + 0.5 * solved @ slope.T)
        ss.append(-solved)
    r = torch.stack(log_w, 1).softmax(1)[..., None]
    velocity, score = (r * torch.stack(bs, 1)).sum(1), (r * torch.stack(ss, 1)).sum(1)
    said = between(process)(x, t)
    torch.testing.assert_close(said.velocity, velocity, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(said.score, score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(said.noise, -level.noise * score, rtol=1e-12, atol=1e-12)  # eta = E[z], s = -eta / gamma
    rate = process.noise_d_noise(level)
    gap = said.velocity - said.mean_velocity + rate * said.score
    torch.testing.assert_close(gap, torch.zeros_like(x), atol=1e-12, rtol=0)


@each([p for p in PATHS if p.path != "encdec"])
@pytest.mark.parametrize("fields", [("velocity", "noise"), ("mean_velocity", "noise"), ("velocity", "score")])
def test_two_fields_give_all_others_without_the_source(process, fields):
    x, t = points(), 0.35
    exact = between(process)(x, t)
    said = Prediction(x, exact.level, {k: exact.to(k) for k in fields})
    for kind in ("x0", "noise", "velocity", "mean_velocity", "score"):
        torch.testing.assert_close(said.to(kind), exact.to(kind), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(said.linear(source=1.0), exact.source, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.499, 0.5, 0.501, 0.9, 1.0])
@pytest.mark.parametrize("fields", [("velocity", "noise"), ("mean_velocity", "noise")])
def test_the_encoding_path_forgets_one_end_at_a_time(t, fields):
    """Where neither x0 nor y is in the state, what is left still gives the velocity; what is gone is refused."""
    process, x = Interpolant("encdec", "bsquared"), points()
    exact = between(process)(x, t)
    said = Prediction(x, exact.level, {k: exact.to(k) for k in fields})
    torch.testing.assert_close(said.velocity, exact.velocity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(said.noise, exact.noise, rtol=1e-10, atol=1e-10)
    if t > 0.5:
        with pytest.raises(Degenerate):
            _ = said.x0


# 3. Transport


def law_of(process, solver, grid, m, v, initial=None):
    """Mean and variance of the last state from Gaussian ends: an affine map, worked out with unit draws."""
    model = paired(
        process, torch.tensor([[m[0]], [m[1]]], dtype=F64), torch.diag(torch.tensor(v, dtype=F64)), blind=True
    )
    steps = len(grid) - 1
    eye = torch.eye(steps + 2, dtype=F64)[:, :, None]  # row 0 the constant, row 1 the start, row 2 + i the i-th draw
    mean, std = initial
    x = mean + std * eye[:, 1]
    draws = [eye[:, 2 + i] for i in range(steps)]
    *_, last = trajectory(model, x, solver=solver, grid=grid, rng=Tape(draws), up="integrate")
    offsets = last.x_s[1:] - last.x_s[0]
    return float(last.x_s[0]), float(offsets.square().sum())


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 2.0, lambda level: 4.0 * level.t * (1.0 - level.t)])
@pytest.mark.parametrize("down", [True, False], ids=["to data", "to source"])
def test_every_noise_level_has_the_right_law_in_both_directions(noise, down):
    """First order: twice the steps, half the error, and within 0.05 at 400 steps."""
    m, v = (1.0, -2.0), (0.3, 1.5)
    start, end = ((m[1], v[1]), (m[0], v[0])) if down else ((m[0], v[0]), (m[1], v[1]))
    errors = []
    for steps in (100, 200, 400):
        grid = (
            torch.linspace(1.0, 0.0, steps + 1, dtype=F64) if down else torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
        )
        mean, var = law_of(BROWNIAN, SDE(noise, "constant"), grid, m, v, (start[0], start[1] ** 0.5))
        errors.append(abs(mean - end[0]) + abs(var - end[1]))
    assert errors[2] < 0.05 and errors[0] > 1.7 * errors[1] > 2.9 * errors[2]


def test_going_back_and_forth_by_an_sde_of_a_gaussian_path_is_its_forward_process():
    """With eps = g^2 / 2 the way up is ``dx = f x dt + g dW``: no score is left."""
    process = Gaussian(VPLinear())
    t, s = process.at(0.4), process.at(0.401)
    weights = SDE(1.0, "process").weights(t, s)
    model = mixture(process, MX, CX)
    x = points()
    drift = model(x, t).linear(weights.x0, weights.noise)
    torch.testing.assert_close(drift, x + (s.t - t.t) * process.drift(t) * x, rtol=1e-12, atol=1e-12)
    assert weights.std == pytest.approx(math.sqrt(process.diffusion2(t) * (s.t - t.t)), rel=1e-12)


@pytest.mark.parametrize("down", [True, False], ids=["to data", "to source"])
@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_transport_between_mixtures(noise, down):
    """Exact fields in 200 steps, 3000 samples: no further from new samples of the end than two such sets are."""
    start, end = (BASE, TARGET) if down else (TARGET, BASE)
    grid = torch.linspace(1.0, 0.0, 201, dtype=F64)
    x, true = start.sample(3000, rng=0, dtype=F64), end.sample(3000, rng=2, dtype=F64)
    options = {"grid": grid if down else grid.flip(0), "rng": 1, "up": "integrate", "cond": {"endpoint": x}}
    made = sample(between(BROWNIAN), solver=SDE(noise, "constant"), initial=x, **options)
    assert mmd2(made, true, RBF(bandwidth=1.0), unbiased=False) < 1e-3
    assert mmd2(x[:500], true[:500], RBF(bandwidth=1.0), unbiased=False) > 0.3  # without transport


@pytest.mark.parametrize("model", [between(BROWNIAN), TARGET], ids=["two-sided", "one-sided"])
def test_the_last_step_of_an_sde_returns_the_posterior_mean(model):
    x = points()
    (step,) = trajectory(model, x, solver=SDE(0.5, "constant"), grid=[0.01, 0.0], rng=0)
    torch.testing.assert_close(step.x_s, model(x, 0.01).x0, rtol=1e-12, atol=1e-12)


def test_the_reverse_ode_undoes_the_forward_one():
    model, x = between(Interpolant("trig", "bsquared")), TARGET.sample(8, rng=0, dtype=F64)
    solver = Adaptive(rtol=1e-8, atol=1e-8)
    there = sample(model, solver=solver, initial=x, grid=[0.0, 1.0])
    back = sample(model, solver=solver, initial=there, grid=[1.0, 0.0])
    assert float((there - x).abs().max()) > 0.3
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


# 4. Likelihoods


@each([BROWNIAN, Interpolant("trig", "sigmoid"), Interpolant("encdec", "brownian")])
def test_likelihood_along_the_ode_is_that_of_the_target(process):
    x = TARGET.sample(6, rng=1, dtype=F64)
    found = log_likelihood(between(process), x, prior=EndpointLaw(BASE), steps=40)
    torch.testing.assert_close(found.log_prob, TARGET.log_prob(x, 0.0), rtol=0, atol=2e-3)


@each([BROWNIAN, Interpolant("trig", "bsquared")])
def test_likelihood_along_the_sde_is_unbiased(process):
    """Of 200 samples: the spread of their mean is 0.01 nats."""
    x = TARGET.sample(200, rng=1, dtype=F64)
    found = sde_log_likelihood(
        between(process), x, prior=EndpointLaw(BASE), solver=SDE(0.5, "constant"), steps=200, paths=4, rng=0
    )
    errors = found.log_prob - TARGET.log_prob(x, 0.0)
    assert abs(float(errors.mean())) < 0.02 and float(errors.abs().mean()) < 0.18
    assert found.kind == "lower bound" and found.std_error.shape == (200,) and found.nfe == 200


# 5. One-sided


def test_one_sided_interpolants_are_gaussian_paths():
    x0, z = points(seed=1), points(seed=2)
    line = Gaussian(Rectified()).forward(x0, 0.3, noise=z)
    torch.testing.assert_close(line.velocity, z - x0, rtol=1e-14, atol=1e-14)  # the paper's x1 - x0, in reversed time
    round_ = Gaussian(Cosine()).forward(x0, 0.3, noise=z).level
    assert (round_.data, round_.noise) == pytest.approx((math.cos(0.15 * math.pi), math.sin(0.15 * math.pi)), rel=1e-14)
    for process in (Gaussian(Cosine()), Gaussian(Rectified())):
        level, model, x = process.at(0.3), mixture(process, MX, CX), points()
        said = model(x, level)
        flow = process.drift(level) * x - 0.5 * process.diffusion2(level) * model.score(x, level)
        torch.testing.assert_close(said.velocity, flow, rtol=1e-12, atol=1e-13)
        eta = -level.noise * said.score
        mean = level.d_noise * eta + level.d_data / level.data * (x - level.noise * eta)
        torch.testing.assert_close(said.velocity, mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(said.mean_velocity, level.d_data * said.x0, rtol=1e-12, atol=1e-13)


def test_a_velocity_model_gives_its_noise_also_where_the_state_is_noise():
    """``eta = (b u - b' x) / (b a' - a b')``, regular at the noisy end: sampling a flow model with noise, for free."""
    process, x = Gaussian(Rectified()), points()
    model = mixture(process, MX, CX)
    for t in (1.0, 0.6, 0.1):
        exact = model(x, t)
        said = Prediction(x, exact.level, {"velocity": exact.velocity})
        torch.testing.assert_close(said.noise, x + (1.0 - t) * said.velocity, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(said.noise, exact.noise, rtol=1e-9, atol=1e-9)


# 6. Mirror


def test_the_mirror_ode_adds_the_noise_of_its_path():
    """N(0, v) becomes N(0, v + t (1 - t)): variance 3/4 at t = 1/2 from 1/2, and the other sign would not."""
    v, t0 = 0.5, 1e-6
    process = Interpolant("mirror", "brownian")
    model = gaussian(process, torch.zeros(1), std=v**0.5)
    x = torch.tensor([[(v + t0 * (1 - t0)) ** 0.5]], dtype=F64)
    grid = torch.linspace(t0, 0.5, 101, dtype=F64)
    found = sample(model, solver=RungeKutta("rk4"), initial=x, grid=grid)
    assert float(found**2) == pytest.approx(0.75, abs=1e-5)
    level = process.at(0.3)
    said = model(points()[:, :1], level)
    torch.testing.assert_close(said.velocity, -process.noise_d_noise(level) * said.score, rtol=1e-12, atol=1e-13)


# Training


@pytest.mark.parametrize("kind", ["velocity", "score"])
def test_antithetic_pairs_keep_the_variance_finite_near_the_ends(kind):
    """Spread of the gradient of a linear field's weight: without the pairs it grows as t^(-1/2) towards t = 0."""
    n = 4000

    class Linear(torch.nn.Module):
        process, shape, targets, kinds = BROWNIAN, (2,), (kind,), {"y": "endpoint"}

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(n, 2, dtype=F64))  # one a sample, so that it has its gradient

        def forward(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {kind: self.weight.repeat(len(x) // n, 1) * x})

    model, x, y = Linear(), TARGET.sample(n, rng=0, dtype=F64), BASE.sample(n, rng=1, dtype=F64)
    noise = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    spread = {}
    for antithetic, t in itertools.product((False, True), (1e-2, 1e-6)):
        objective, level = Denoising(antithetic=antithetic, loss="inner"), torch.full((n,), t, dtype=F64)
        losses = objective.at(model, x, level, noise, {"y": y})
        (grad,) = torch.autograd.grad(losses.per_sample.sum(), model.weight)
        spread[antithetic, t] = float(grad.std())
    assert spread[False, 1e-6] > 50.0 * spread[False, 1e-2]
    assert spread[True, 1e-6] == pytest.approx(spread[True, 1e-2], rel=0.2)


def test_the_inner_product_loss_is_half_the_square_up_to_what_is_true():
    x, y, z = (points(seed=i) for i in range(3))
    t = torch.full((5,), 0.4, dtype=F64)
    model = between(BROWNIAN)
    truth = BROWNIAN.forward(x, 0.4, source=y, noise=z)
    cond = {"endpoint": Condition(y, "endpoint")}
    inner = Denoising(target=("velocity", "noise"), loss="inner").at(model, x, t, z, cond).per_sample
    square = Denoising(target=("velocity", "noise")).at(model, x, t, z, cond).per_sample
    rest = 0.5 * (truth.velocity.square() + truth.noise.square()).mean(1)
    torch.testing.assert_close(inner, 0.5 * square - rest, rtol=1e-12, atol=1e-12)


# Recipes


def test_recipes_follow_the_data():
    facts = Facts(shape=(2,), embeddings={"source": Endpoint(2), "label": Label(3)}, count=100)
    made = method.recipe(facts)
    assert made.process == BROWNIAN and made.target == ("mean_velocity", "noise")
    assert made.network.conditions["source"] == Endpoint(2, concat=False) and made.network.outputs == 2
    pairs = method.recipe(Facts(shape=(1, 8, 8), embeddings={"degraded": Map(1)}, count=100))
    assert pairs.network.conditions["degraded"] == Endpoint(1) and pairs.process.has_source
    assert pairs.target == "mean_velocity" and pairs.network.outputs == 1  # y is seen, and v = y - x0
    free = method.recipe(Facts(shape=(1, 8, 8), embeddings={"label": Label(10)}, count=100))
    assert free.process == Gaussian(Rectified()) and free.target == "velocity" and free.network.outputs == 1
    for one in (made, pairs, free):
        one.denoiser(0)


def test_the_network_of_unpaired_data_does_not_see_where_a_sample_started():
    made = method.recipe(Facts(shape=(2,), embeddings={"source": Endpoint(2)}, count=100))
    model, x = made.denoiser(0), points().float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
        a, b = (model(x, 0.5, {"source": points(seed=s).float()}).velocity for s in (1, 2))
    assert torch.equal(a, b)


def test_a_run_between_two_data_sets():
    from condiff.training import TrainConfig, Trainer

    data = Unpaired(TensorData(torch.rand(40, 2) - 0.5), TensorData(torch.rand(30, 2)))
    made = method.recipe(Facts.of(data))
    network = dataclasses.replace(made.network, width=16, depth=1)
    made = dataclasses.replace(made, network=network)
    trainer = Trainer(made.denoiser(0), data, made.objective, TrainConfig(steps=3, batch=8), quiet=True)
    trainer.fit()
    model, start = trainer.averaged(), data.batch(range(10))["cond"]
    for solver, grid in ((made.sampler.solver, made.sampler.grid), (DDIM(), made.sampler.grid)):
        x = sample(model, solver=solver, grid=grid, steps=4, cond=start, seed=0)
        assert x.shape == (10, 2) and bool(torch.isfinite(x).all())
    base = mixture(Gaussian(Rectified()), MY, CY)
    x = sample(
        model, solver=SDE(0.5, "constant"), prior=EndpointLaw(base), grid=made.sampler.grid, steps=4, num=6, seed=0
    )
    assert x.shape == (6, 2)


# Refusals


def test_bad_inputs_are_refused():
    x = points()
    flow = between(Interpolant("linear", "zero"))
    with pytest.raises(Incompatible, match="no noise to have one"):
        sample(flow, solver=SDE(0.5, "constant"), initial=x, steps=4, cond={"endpoint": x})
    sample(flow, solver=SDE(0.0), initial=x, steps=4, cond={"endpoint": x})
    with pytest.raises(BadValue, match="noise must be finite and >= 0"):
        SDE(-0.5)
    with pytest.raises(BadValue, match="noise must be >= 0 at every level"):
        sample(between(BROWNIAN), solver=SDE(lambda level: level.t - 0.5, "constant"), initial=x, steps=4)
    with pytest.raises(BadValue, match="gamma"):
        Interpolant("linear", "constant")  # one that doesn't vanish at the ends isn't there to choose
    with pytest.raises(BadValue, match="samples of one shape"):
        Unpaired(TensorData(torch.zeros(3, 2)), TensorData(torch.zeros(3, 3)))
    with pytest.raises(Incompatible, match="no log_prob"):
        log_likelihood(between(BROWNIAN), x, prior=EndpointLaw(object()), steps=2)
    with pytest.raises(BadValue, match="EndpointLaw"):
        log_likelihood(between(BROWNIAN), x, steps=2)
    made = method.recipe(Facts(shape=(2,), embeddings={"source": Endpoint(2)}), process=Gaussian(Rectified()))
    with pytest.raises(Incompatible, match="starts from noise, and the data's endpoint 'source' would be ignored"):
        made.denoiser(0)


def test_a_score_at_an_end_is_refused_and_a_grid_beside_it_is_not():
    """The network's two fields don't say the score at t = 1, where the noise is zero."""

    class Two:
        process, shape, kinds = BROWNIAN, (2,), {"endpoint": "endpoint"}

        def __call__(self, x, t, cond=None):
            exact = between(BROWNIAN)(x, t)
            return Prediction(x, exact.level, {k: exact.to(k) for k in ("velocity", "noise")}, cond.source)

    y = BASE.sample(5, rng=0, dtype=F64)
    with pytest.raises(Degenerate, match="stop before this end"):
        sample(Two(), solver=SDE(0.5, "constant"), steps=4, num=5, cond={"endpoint": y}, dtype=F64)
    beside = {"grid": Uniform(start=0.999), "steps": 4, "num": 5, "cond": {"endpoint": y}}
    x = sample(Two(), solver=SDE(0.5, "constant"), dtype=F64, **beside)
    assert bool(torch.isfinite(x).all())
    assert bool(torch.isfinite(sample(Two(), solver=Euler(), steps=4, initial=y)).all())


def test_sde_likelihoods_refuse_what_is_not_one():
    model, x = between(BROWNIAN), points()
    prior = EndpointLaw(BASE)
    with pytest.raises(BadValue, match="use log_likelihood"):
        sde_log_likelihood(model, x, solver=SDE(0.0, "constant"), prior=prior)
    with pytest.raises(BadValue, match="paths must be at least 1"):
        sde_log_likelihood(model, x, solver=SDE(0.5, "constant"), prior=prior, paths=0)
    with pytest.raises(Incompatible, match="not its endpoint alone"):
        sde_log_likelihood(model, x, solver=SDE(0.5, "constant"), prior=prior, grid=[0.9, 0.5, 0.0], paths=1)
    with pytest.raises(Incompatible, match="no noise to have one"):
        sde_log_likelihood(between(Interpolant("linear", "zero")), x, solver=SDE(0.5, "constant"), prior=prior)
