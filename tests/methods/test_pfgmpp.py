"""PFGM++: the law, the denoiser, the field and the sampler of Student-t noise, and EDM as its limit."""

import copy
import math

import pytest
import torch
from scipy import stats

from condiff.conditions import Label
from condiff.config import from_config, to_config
from condiff.denoiser import Denoiser, EDMPrecondition, Plain
from condiff.errors import BadType, BadValue, Incompatible
from condiff.methods import pfgmpp, settings
from condiff.methods.experiment import Facts
from condiff.model_files import load_weights, save_model
from condiff.networks import DiTConfig, MLPConfig
from condiff.process import EDM, Cosine, Gaussian, Given, Moments, Normal, Retimed, StudentT, VPLinear, oracles
from condiff.random import as_source
from condiff.sampling import (
    DDIM,
    SDE,
    DPMSolverPP,
    Heun,
    Karras,
    PredictorCorrector,
    log_likelihood,
    sample,
    trajectory,
)
from condiff.training import Denoising, StableTarget, UniformTimes

F64 = torch.float64
GRID = Karras(sigma_min=0.002, sigma_max=80.0)
POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]], dtype=F64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)


def law(df, sigma_max=80.0):
    return Gaussian(EDM(sigma_max=sigma_max), StudentT(df))


def time_of(process, sigma):
    return float(process.time(torch.tensor(-2.0 * math.log(sigma), dtype=F64)))


# 1. The law


@pytest.mark.parametrize("df", [2.5, 16.0, 2048.0])
def test_a_coordinate_is_students_t_of_scale_sigma(df):
    process = law(df)
    x = process.forward(torch.full((20000, 3), 1.5, dtype=F64), time_of(process, 0.7), rng=1).x_t
    assert stats.kstest(x[:, 1].numpy(), stats.t(df, loc=1.5, scale=0.7).cdf).pvalue > 0.01


@pytest.mark.parametrize(("df", "dims"), [(16.0, 2), (128.0, 64)])
def test_norms_are_those_of_the_beta_form(df, dims):
    """R = r sqrt(B / (1 - B)) with B ~ Beta(N / 2, D / 2) and r = sigma sqrt(D), unclipped."""
    sigma, rng = 3.0, as_source(0)
    z = StudentT(df).sample(rng, (20000, dims), F64)
    a, b = rng.gamma(dims / 2, (20000,)), rng.gamma(df / 2, (20000,))
    beta = a / (a + b)
    radius = sigma * math.sqrt(df) * torch.sqrt(beta / (1.0 - beta))
    assert stats.ks_2samp((sigma * z).norm(dim=1).numpy(), radius.numpy()).pvalue > 0.01


@pytest.mark.parametrize("df", [1.0, 4.0, 300.0])
def test_the_density_is_the_multivariate_one(df):
    z = 2.0 * torch.randn(50, 3, dtype=F64)
    want = torch.from_numpy(stats.multivariate_t(loc=[0, 0, 0], df=df).logpdf(z.numpy()))
    torch.testing.assert_close(StudentT(df).log_prob(z), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(StudentT().log_prob(z), Normal().log_prob(z), rtol=0, atol=0)


# 2, 3. The denoiser


def official(x, points, sigma, df):
    """The field of the released code, written out: weights ``(|x - y|^2 + r^2)^(-(N + D) / 2)``."""
    r2 = sigma**2 * df
    gap = (x[:, None] - points).square().sum(-1) + r2
    logits = -0.5 * (x.shape[1] + df) * torch.log(gap)
    return torch.softmax(logits + torch.log(WEIGHTS), 1) @ points


@pytest.mark.parametrize("df", [16.0, 128.0, 2048.0])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 40.0])
def test_the_denoiser_is_the_posterior_mean_of_the_papers_kernel(df, sigma):
    process = law(df)
    x = POINTS[torch.arange(30) % 3] + sigma * torch.randn(30, 2, dtype=F64)
    said = oracles.empirical(process, POINTS, weights=WEIGHTS)(x, time_of(process, sigma)).x0
    assert float((said - official(x, POINTS, sigma, df)).abs().max()) < 1e-11


def test_infinite_df_is_the_gaussian_posterior():
    x = torch.randn(40, 2, dtype=F64)
    t = time_of(law(math.inf), 0.8)
    gap = (x[:, None] - POINTS).square().sum(-1)
    want = torch.softmax(torch.log(WEIGHTS) - 0.5 * gap / 0.8**2, 1) @ POINTS
    assert float((oracles.empirical(law(math.inf), POINTS, weights=WEIGHTS)(x, t).x0 - want).abs().max()) < 1e-14


def test_the_denoiser_converges_to_edms_at_first_order_in_one_over_df():
    x = 1.5 * torch.randn(200, 2, dtype=F64)
    t = time_of(law(math.inf), 0.8)
    limit = oracles.empirical(law(math.inf), POINTS, weights=WEIGHTS)(x, t).x0
    df = [2.0**k for k in range(9, 15)]
    gaps = [float((oracles.empirical(law(d), POINTS, weights=WEIGHTS)(x, t).x0 - limit).abs().max()) for d in df]
    slope = stats.linregress([math.log(d) for d in df], [math.log(g) for g in gaps]).slope
    assert abs(slope + 1.0) < 0.02
    assert gaps[-1] * df[-1] == pytest.approx(gaps[0] * df[0], rel=0.05)


@pytest.mark.parametrize("df", [1.0, 4.0, 50.0])
def test_the_velocity_carries_the_marginal(df):
    """``d log p / d sigma + div u + u . grad log p = 0``, u = (x - E[x0 | x]) / sigma; the score is not -noise / s."""
    process = law(df)
    oracle = oracles.empirical(process, POINTS, weights=WEIGHTS)
    x = (0.6 * torch.randn(20, 2, dtype=F64)).requires_grad_()
    sigma = torch.tensor(0.9, dtype=F64, requires_grad=True)

    def log_p(x, sigma):
        gap = (x[:, None] - POINTS).square().sum(-1) / (sigma**2 * df)
        return torch.logsumexp(torch.log(WEIGHTS) - 0.5 * (2 + df) * torch.log1p(gap), 1) - 2 * torch.log(sigma)

    density = log_p(x, sigma)
    (score,) = torch.autograd.grad(density.sum(), x, create_graph=True)
    in_sigma = torch.autograd.functional.jvp(lambda s: log_p(x, s), sigma, torch.ones_like(sigma))[1]
    t = time_of(process, 0.9)
    u = (x - oracle(x, t).x0) / sigma
    torch.testing.assert_close(u.detach(), oracle(x, t).noise.detach(), rtol=1e-9, atol=1e-9)  # velocity in sigma
    div = sum(torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    total = in_sigma + div + (u * score).sum(1)
    assert float(total.detach().abs().max()) < 1e-9
    torch.testing.assert_close(oracle.score(x.detach(), t), score.detach(), rtol=1e-9, atol=1e-9)
    assert float((score + u / sigma).detach().abs().max()) > 1e-3


# 4. D = inf is EDM, bit for bit


def test_infinite_df_has_edms_loss_and_samples_bit_for_bit():
    network = MLPConfig(shape=(3,), width=16, depth=1)
    torch.manual_seed(0)
    net = network.build()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    scalings = EDMPrecondition(sigma_data=0.5)
    plain = Denoiser(net, Gaussian(EDM()), "x0", scalings, shape=(3,))
    heavy = Denoiser(net, law(math.inf), "x0", scalings, shape=(3,))
    objective = pfgmpp.recipe(Facts((3,)), math.inf).objective
    batch = {"x": torch.randn(32, 3)}
    assert torch.equal(objective(plain, batch, 5).loss, objective(heavy, batch, 5).loss)
    for solver in (Heun(), Heun(churn=10.0), DDIM(eta=1.0), SDE()):
        a, b = (sample(m, solver=solver, grid=GRID, steps=5, seeds=[1, 2]) for m in (plain, heavy))
        assert torch.equal(a, b)
    other = Denoiser(net, law(64.0), "x0", scalings, shape=(3,))
    assert not torch.equal(objective(plain, batch, 5).loss, objective(other, batch, 5).loss)


# 5, 6, 7. The sampler


def modes(x):
    gap = (x[:, None] - POINTS).norm(dim=-1)
    return torch.bincount(gap.argmin(1), minlength=3).double() / len(x), gap.amin(1)


@pytest.mark.parametrize("df", [4.0, 64.0, 2048.0])
def test_heun_reaches_the_points_with_their_weights(df):
    oracle = oracles.empirical(law(df), POINTS, weights=WEIGHTS)
    x = sample(oracle, solver=Heun(), grid=GRID, steps=40, num=4000, seed=0, dtype=F64)
    share, gap = modes(x)
    assert float((share - WEIGHTS).abs().max()) < 0.02
    assert float(gap.max()) < 1e-6


def test_a_normal_start_is_wrong_for_small_df():
    """Normal in place of Student-t noise at sigma_max: the weights move, by what the quantiles of the two laws say."""
    points, weights = torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.1, 0.9], dtype=F64)
    process, n = law(4.0, sigma_max=3.0), 20_000
    oracle = oracles.empirical(process, points, weights=weights)
    grid, shares = Karras(sigma_min=0.002, sigma_max=3.0), {}
    for name, noise in (("own", StudentT(4.0)), ("normal", Normal())):
        rng = as_source(0)
        data = points[(rng.uniform((n,)) < 0.9).long()]
        x = sample(oracle, solver=Heun(), grid=grid, steps=18, initial=data + 3.0 * noise.sample(rng, (n, 1), F64))
        shares[name] = float((x < 0.0).double().mean())
    assert abs(shares["own"] - 0.1) < 4.0 * (0.09 / n) ** 0.5
    assert abs(shares["normal"] - 0.1) > 10.0 * (0.09 / n) ** 0.5


@pytest.mark.parametrize("df", [1.0, 4.0, 128.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_one_point_is_reached_along_a_straight_line(df, steps):
    process, y = law(df), torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    oracle = oracles.empirical(process, y)
    start = process.prior().sample(process.at(1.0), (5, 3), as_source(0), dtype=F64)
    for step in trajectory(oracle, start, solver=Heun(), grid=GRID, steps=steps):
        want = y + (start - y) * step.s.noise / 80.0
        assert float((step.x_s - want).abs().max()) <= 1e-13 * float(start.abs().max())


def test_the_ode_carries_one_exact_marginal_to_another():
    """From sigma = 3 to 0.5 for two weighted points at D = 4; the Gaussian denoiser from the same start does not."""
    points, weights = torch.tensor([[-1.0], [1.0]], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    process, n = law(4.0), 6000
    ends = [time_of(process, s) for s in (3.0, 0.5)]
    grid = torch.linspace(*ends, 41, dtype=F64)
    rng = as_source(3)
    first, last = (process.forward(points[(rng.uniform((n,)) < 0.7).long()], t, rng=rng).x_t for t in ends)
    p = {}
    for name, df in (("own", 4.0), ("gaussian", math.inf)):
        oracle = oracles.empirical(law(df), points, weights=weights)
        moved = sample(oracle, solver=Heun(), grid=grid, initial=first)
        p[name] = stats.ks_2samp(moved[:, 0].numpy(), last[:, 0].numpy()).pvalue
    assert p["own"] > 0.01
    assert p["gaussian"] < 0.01


# Transfer: any path, by sigma / alpha


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine()])
def test_hyper_parameters_transfer_through_sigma_over_alpha(schedule):
    """One trajectory on two paths: grid, start and steps of the variance-exploding one, x scaled by alpha."""
    ve, vp = law(16.0), Gaussian(schedule, StudentT(16.0))
    sigmas = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.05], dtype=F64)
    z = StudentT(16.0).sample(as_source(0), (6, 2), F64)
    ends = []
    for process in (ve, vp):
        grid = process.time(-2.0 * torch.log(sigmas))
        start = process.levels(grid[:1])[0].noise * z
        oracle = oracles.empirical(process, POINTS, weights=WEIGHTS)
        x = sample(oracle, solver=Heun(), grid=grid, initial=start)
        ends.append(x / process.levels(grid[-1:])[0].data)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    moved = Retimed(oracles.empirical(ve, POINTS, weights=WEIGHTS), vp)
    x, t = torch.randn(4, 2, dtype=F64), 0.4
    torch.testing.assert_close(moved(x, t).x0, oracles.empirical(vp, POINTS, weights=WEIGHTS)(x, t).x0)


def test_the_likelihood_along_the_ode_is_exact_with_the_laws_own_prior():
    """One point: the state at sigma = 1 has the law itself as its density."""
    process = law(6.0, sigma_max=4.0)
    oracle = oracles.empirical(process, torch.zeros(1, 2, dtype=F64))
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-3.0, 2.0]], dtype=F64)
    grid = torch.linspace(1.0, time_of(process, 1.0), 40, dtype=F64)
    found = log_likelihood(oracle, x, grid=grid, prior=Moments())
    torch.testing.assert_close(found.log_prob, StudentT(6.0).log_prob(x), rtol=1e-6, atol=1e-6)
    assert float((found.log_prob - Normal().log_prob(x)).abs().max()) > 0.1
    with pytest.raises(Incompatible, match="no density that is known"):
        Moments(var=1.0).log_prob(x, process.at(1.0))


# 8. What is refused


def test_normal_churn_is_not_closed():
    """t_4 + N(0, 1) against t_4 of the same scale sqrt(2): small, but systematic."""
    rng = as_source(0)
    both = StudentT(4.0).sample(rng, (200_000, 1), F64) + rng.normal((200_000, 1), F64)
    gap = stats.kstest(both[:, 0].numpy(), stats.t(4.0, scale=math.sqrt(2.0)).cdf)
    assert gap.statistic > 0.01 and gap.pvalue < 1e-6


class Silent:
    """A denoiser that must not be called."""

    shape, kinds = (2,), {}

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t, cond=None):
        raise AssertionError("called")


@pytest.mark.parametrize(
    "solver",
    [Heun(churn=5.0), SDE(), DDIM(eta=1.0), DPMSolverPP(noise=1.0), PredictorCorrector(Heun())],
    ids=["churn", "sde", "ancestral", "dpm-sde", "langevin"],
)
def test_samplers_that_need_gaussian_noise_are_refused_first(solver):
    with pytest.raises(Incompatible, match="StudentT"):
        sample(Silent(law(64.0)), solver=solver, grid=GRID, steps=4, num=2, seed=0)


def test_scores_and_likelihoods_by_score_are_refused():
    oracle = oracles.empirical(law(64.0), POINTS)
    with pytest.raises(Incompatible, match="not Gaussian"):
        _ = oracle(torch.zeros(2, 2), 0.5).score
    with pytest.raises(Incompatible, match="isn't Gaussian"):
        log_likelihood(oracle, torch.zeros(2, 2, dtype=F64), steps=4)


def test_scalings_by_variance_need_one():
    net = MLPConfig(shape=(2,), width=8, depth=1).build()
    for df in (1.0, 2.0):
        with pytest.raises(Incompatible, match="any_variance=True"):
            Denoiser(net, law(df), "x0", EDMPrecondition())
        Denoiser(net, law(df), "x0", EDMPrecondition(any_variance=True))
        Denoiser(net, law(df), "x0", Plain())
    Denoiser(net, law(2.01), "x0", EDMPrecondition())
    assert StudentT(2.0).variance == math.inf and StudentT(4.0).variance == 2.0 and StudentT().variance == 1.0


def test_df_is_stored_and_another_is_refused(tmp_path):
    def model(df):
        net = MLPConfig(shape=(2,), width=8, depth=1)
        return Denoiser(net.build(), law(df), "x0", EDMPrecondition(), shape=(2,))

    save_model(tmp_path, model(16.0))
    load_weights(model(16.0), tmp_path / "model.safetensors")
    for df in (64.0, math.inf):
        with pytest.raises(Incompatible, match=r"process\.noise_law\.df"):
            load_weights(model(df), tmp_path / "model.safetensors")


@pytest.mark.parametrize(("sigma", "error"), [(0.0, BadValue), (math.inf, BadValue), (-1.0, BadValue)])
def test_sigmas_are_positive_and_finite(sigma, error):
    with pytest.raises(error):
        EDM(sigma_max=sigma)
    with pytest.raises(error):
        Karras(sigma_min=0.002, sigma_max=sigma)


def test_integers_are_refused():
    with pytest.raises(BadType, match="floating"):
        law(4.0).forward(torch.zeros(2, 3, dtype=torch.long), 0.5, rng=0)


@pytest.mark.parametrize("df", [0.0, -3.0, math.nan, -math.inf])
def test_degrees_of_freedom_are_positive(df):
    with pytest.raises(BadValue, match=r"df > 0|finite"):
        StudentT(df)


# Stable targets


def test_a_stable_target_is_the_reference_batchs_posterior_mean():
    x, rows = torch.randn(24, 2, dtype=F64), 5
    net = MLPConfig(shape=(2,), width=8, depth=1).build().double()
    torch.nn.init.normal_(net.output.weight)
    model = Denoiser(net, law(16.0), "x0", EDMPrecondition(), shape=(2,))
    stable = StableTarget(rows=rows)
    got = stable(model, {"x": x}, 3)
    rng = as_source(3)
    t = UniformTimes().sample(model.process, (rows, 2), rng)
    truth = model.process.forward(x[:rows], t, rng=rng)
    sigma = truth.level.noise[:, None]
    logits = -0.5 * (2 + 16) * torch.log((truth.x_t[:, None] - x).square().sum(-1) + 16 * sigma**2)
    want = torch.softmax(logits, 1) @ x
    error = (model(truth.x_t, t).x0 - want).square().mean(1)
    torch.testing.assert_close(got.per_sample, error, rtol=1e-9, atol=1e-9)
    assert len(got.per_sample) == rows


def test_a_reference_of_the_row_itself_is_the_plain_loss():
    x = torch.randn(6, 2, dtype=F64)
    net = MLPConfig(shape=(2,), width=8, depth=1).build().double()
    model = Denoiser(net, Gaussian(Cosine()), "velocity", shape=(2,))
    same = x[:1].expand(6, -1)
    got, want = (o(model, {"x": same}, 3).per_sample for o in (StableTarget(rows=6), Denoising()))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_rows_of_other_classes_do_not_count():
    x = torch.tensor([[0.0], [10.0], [0.5], [10.5]], dtype=torch.float32)
    label = torch.tensor([0, 1, 0, 1])
    net = MLPConfig(shape=(1,), width=8, depth=1, conditions={"label": Label(2)}).build()
    model = Denoiser(net, law(4.0), "x0", Plain(), shape=(1,))
    seen = {}

    class Spy(StableTarget):
        def at(self, denoiser, x, t, noise, cond=None, **options):
            seen["x0"], seen["noise"], seen["t"] = x, noise, t
            return super().at(denoiser, x, t, noise, cond, **options)

    Spy(rows=2)(model, {"x": x, "cond": {"label": label}}, 0)
    assert 0.0 <= float(seen["x0"][0]) <= 0.5 and 10.0 <= float(seen["x0"][1]) <= 10.5


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"rows": 0}, {}, "at least 1"),
        ({"rows": 2, "antithetic": True}, {}, "antithetic"),
        ({"rows": 9}, {}, "9 rows to train on"),
        ({"rows": 2}, {"mask": torch.ones(4, 2)}, "without a mask"),
        ({"rows": 2}, {"cond": {"pose": torch.zeros(4, 3)}}, "one label only"),
    ],
)
def test_stable_targets_refuse(options, batch, message):
    class Zero(Silent):
        kinds = {"pose": "vector"}  # noqa: RUF012

    with pytest.raises((BadValue, Incompatible), match=message):
        StableTarget(**options)(Zero(law(4.0)), {"x": torch.zeros(4, 2), **batch}, 0)


# The recipe and the experiment


def test_the_recipe_is_edms_but_for_the_noise():
    facts = Facts((1, 4, 4), {"label": Label(3)}, std=0.6, count=30)
    chosen = pfgmpp.recipe(facts)
    assert chosen.process.noise_law == StudentT(128.0)
    assert from_config(to_config(chosen)) == chosen
    small = DiTConfig(shape=(1, 4, 4), width=16, depth=1, heads=2, patch=2, conditions={"label": Label(3)})
    model = Denoiser(small.build(), chosen.process, "x0", chosen.precondition, shape=(1, 4, 4))
    batch = {"x": torch.randn(8, 1, 4, 4), "cond": {"label": torch.arange(8) % 3}}
    losses = chosen.objective(model, batch, 0)
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    x = sample(model, solver=chosen.sampler.solver, grid=chosen.sampler.grid, steps=3, cond={"label": [0, 1]}, seed=0)
    assert x.shape == (2, 1, 4, 4) and bool(torch.isfinite(x).all())


def test_injected_noise_is_alpha_sigma_per_step():
    process, y = law(math.inf), torch.zeros(1, 2, dtype=F64)
    start = torch.zeros(4000, 2, dtype=F64)
    hook = pfgmpp.injected(0.3)
    (step,) = trajectory(oracles.empirical(process, y), start, solver=Heun(), grid=[0.5, 0.4], hooks=[hook], rng=0)
    assert float(step.x_t.std()) == pytest.approx(0.3 * process.at(0.5).noise, rel=0.03)


def test_rounded_weights_lie_on_few_levels():
    net = torch.nn.Linear(40, 30)
    before = copy.deepcopy(net.state_dict())
    coarse = pfgmpp.rounded(net, 4)
    step = before["weight"].abs().max() / 7
    assert len(torch.unique(torch.round(coarse.weight / step))) <= 15
    assert float((coarse.weight.detach() - before["weight"]).abs().max()) <= 0.5001 * float(step)
    assert torch.equal(net.weight, before["weight"]) and torch.equal(coarse.bias, before["bias"])


def test_a_given_start_is_used_as_it_is():
    process, y = law(4.0), torch.zeros(1, 2, dtype=F64)
    x = torch.randn(3, 2, dtype=F64)
    (first, *_) = trajectory(oracles.empirical(process, y), Given(x).value, solver=Heun(), grid=GRID, steps=2)
    assert torch.equal(first.x_t, x)


@pytest.mark.parametrize(("setting", "df"), [("64", 64.0), ("Infinity", math.inf)])
def test_df_is_a_setting_of_the_command_line(setting, df):
    chosen = settings.apply(pfgmpp.recipe(Facts((3,))), settings.parse([f"process.noise_law.df={setting}"]))
    assert chosen.process.noise_law == StudentT(df)
    with pytest.raises(BadValue, match="df > 0"):
        settings.apply(chosen, settings.parse(["process.noise_law.df=-1"]))


# Real use: the sigmas of diffusers' EDM scheduler with an initial state of one's own


@pytest.mark.parametrize("df", [4.0, 128.0])
def test_diffusers_edm_scheduler_steps_a_students_t_start(df):
    """Its Euler steps from our prior are DDIM's on the same grid: the sigmas, not its init_noise_sigma, are reused."""
    import diffusers

    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(12)
    process = law(df)
    grid = Karras(sigma_min=0.002, sigma_max=80.0)
    torch.testing.assert_close(scheduler.sigmas.double(), grid.sigmas(process, 12), rtol=1e-5, atol=0)
    oracle = oracles.empirical(process, POINTS, weights=WEIGHTS)
    start = process.prior().sample(process.at(1.0), (6, 2), as_source(0))
    x = start
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x0 = oracle(x, time_of(process, min(float(sigma), 80.0))).x0
        skip = 0.25 / (sigma**2 + 0.25)  # the scheduler undoes the network's scalings
        out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        x = scheduler.step((x0 - skip * x) / out, t, x).prev_sample
    want = sample(oracle, solver=DDIM(), grid=grid, steps=12, initial=start)
    torch.testing.assert_close(x, want, rtol=1e-3, atol=1e-3)
