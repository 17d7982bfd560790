"""Consecutive Brownian bridge: the exact checks of the bridge, by propagating means and variances."""

import itertools
import math

import pytest
import torch

import condiff as cd
from condiff.conditions import Condition
from condiff.denoiser import Correction, Denoiser
from condiff.errors import BadValue, Incompatible
from condiff.methods import Facts, consecutive_brownian_bridge
from condiff.process import Bridge, Discrete, Gaussian
from condiff.sampling import DDIM, DDPM, Strided

BRIDGE = Bridge.bbdm()
ETAS = (0.0, 0.5, 1.0)


def table(process=BRIDGE):
    return process.levels(process.at_index(torch.arange(process.steps)))


def grid(steps=50):
    return BRIDGE.levels(Strided().times(BRIDGE, steps))


class Knows:
    """A perfect predictor: it says the same x whatever it sees."""

    def __init__(self, x, process=BRIDGE):
        self.x, self.process, self.shape = x, process, tuple(x.shape[1:])

    def __call__(self, x_t, t, cond=None):
        level = self.process.at(t)
        source = None if cond is None else cd.conditions.as_conditions(cond).source
        return cd.process.Prediction(x_t, level, {"x0": self.x.expand_as(x_t)}, source=source)


def step(solver, denoiser, x, t, s, cond):
    """One step's mean and standard deviation."""
    (c,) = solver.plan([t, s])
    return solver.advance(x, denoiser(x, t, cond), c, solver.start())


def propagate(solver, levels, denoiser, end, mean, var):
    """Mean and variance of a scalar state along a grid, exactly: every step is affine in the state."""
    laws = [(mean, var)]
    for t, s in itertools.pairwise(levels):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        cond = {"end": Condition(torch.full_like(x, end), "endpoint")}
        out, std = step(solver, denoiser, x, t, s, cond)
        offset, slope = float(out[0, 0]), float(out[1, 0] - out[0, 0])
        mean, var = offset + slope * mean, slope**2 * var + float(std) ** 2
        laws.append((mean, var))
    return laws


# (1) The forward law


def test_the_table_is_that_of_bbdm():
    m = torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)
    torch.testing.assert_close(BRIDGE.at_index(torch.arange(1000)), m, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(BRIDGE.model_time(m), torch.arange(1000).double(), rtol=1e-12, atol=1e-9)
    delta = 2.0 * (m - m * m)
    got = torch.tensor([level.noise for level in table()], dtype=torch.float64) ** 2
    torch.testing.assert_close(got, delta, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("index", [0, 348, 999])
def test_forward_moments(index):
    x, e, n = (torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    m = 0.001 + 0.998 * index / 999
    said = BRIDGE.forward(x, BRIDGE.at_index(index).item(), source=e, noise=n).x_t
    torch.testing.assert_close(said, (1 - m) * x + m * e + math.sqrt(2 * (m - m * m)) * n, rtol=1e-12, atol=1e-12)


def test_the_largest_variance_is_a_half_of_the_scale_in_the_middle():
    assert BRIDGE.at(0.5).noise ** 2 == pytest.approx(0.5, abs=1e-15)
    assert Bridge.bbdm(max_variance=4.0).at(0.5).noise ** 2 == pytest.approx(2.0, abs=1e-15)


# (2), (4) The chain with a perfect predictor


@pytest.mark.parametrize("eta", ETAS)
def test_every_level_has_the_law_of_the_bridge_and_the_end_is_x(eta):
    x, e, levels = 0.7, -0.4, grid()
    first = levels[0]
    start = first.data * x + first.source * e, first.noise**2
    laws = propagate(DDIM(eta), levels, Knows(torch.full((2, 1), x, dtype=torch.float64)), e, *start)
    for level, (mean, var) in zip(levels, laws, strict=True):
        assert mean == pytest.approx(level.data * x + level.source * e, abs=1e-12)
        assert var == pytest.approx(level.noise**2, abs=1e-12)
    assert laws[-1] == (pytest.approx(x, abs=1e-12), pytest.approx(0.0, abs=1e-24))


def test_a_start_at_the_endpoint_itself_is_soon_forgotten():
    x, e, levels = 0.7, -0.4, grid()
    laws = propagate(DDIM(1.0), levels, Knows(torch.full((2, 1), x, dtype=torch.float64)), e, e, 0.0)
    for level, (mean, var) in zip(levels, laws, strict=True):
        assert abs(mean - level.data * x - level.source * e) <= 0.001 * abs(e - x) + 1e-12
        assert -1e-12 <= level.noise**2 - var <= 0.002
    assert laws[1][1] == pytest.approx(0.0411, abs=5e-5)
    assert levels[1].noise ** 2 == pytest.approx(0.0430, abs=5e-5)
    assert laws[-1][0] == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("eta", ETAS)
def test_one_long_step_keeps_the_variance_for_every_eta(eta):
    """800 -> 349: the released formula gives .160 and .061 for eta = .5 and 0, where .454 is right."""
    t, s = BRIDGE.at(float(BRIDGE.at_index(800))), BRIDGE.at(float(BRIDGE.at_index(349)))
    laws = propagate(DDIM(eta), [t, s], Knows(torch.zeros(2, 1).double()), 1.0, t.source, t.noise**2)
    assert laws[1][1] == pytest.approx(s.noise**2, abs=1e-12)
    assert s.noise**2 == pytest.approx(0.455, abs=5e-4)


@pytest.mark.parametrize("eta", ETAS)
def test_the_loss_of_variance_does_not_accumulate(eta):
    """On the grid of 50 steps at index 645: .1151 and .0008 in the released formula, .4577 here."""
    levels = grid()
    place = Strided().indices(BRIDGE, 50).tolist().index(645)
    start = levels[0].source, levels[0].noise ** 2
    laws = propagate(DDIM(eta), levels, Knows(torch.zeros(2, 1).double()), 1.0, *start)
    assert laws[place][1] == pytest.approx(0.4577, abs=5e-5)


# (3) Posterior variances, (5) the sampler that needs no endpoint, (7) their sums


def test_posterior_variances_are_those_of_the_released_table():
    levels = table()
    for s, t in itertools.pairwise(levels):
        ds, dt = s.noise**2, t.noise**2
        kernel = dt - ds * ((1 - t.t) / (1 - s.t)) ** 2
        assert BRIDGE.posterior_std(t, s) ** 2 == pytest.approx(kernel * ds / dt, abs=1e-12)


@pytest.mark.parametrize("variance", [1.0, 2.0])
def test_the_step_without_the_endpoint_is_gaussian_conditioning(variance):
    """x_v given x_u and x0: of the joint Gaussian of (x_u, x_v), and the same in the paper's words."""
    bridge, u, v = Bridge(variance=variance), 0.8, 0.35
    x_u, x0, e = (torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mean, std = step(DDPM(), Knows(x0, bridge), x_u, bridge.at(u), bridge.at(v), None)
    # Brownian motion from x0 to e: Cov(x_u, x_v) = variance v (1 - u) for v < u
    cov, var_u, var_v = variance * v * (1 - u), variance * u * (1 - u), variance * v * (1 - v)
    away = x_u - (1 - u) * x0 - u * e
    torch.testing.assert_close(mean, (1 - v) * x0 + v * e + cov / var_u * away, rtol=1e-12, atol=1e-12)
    assert std**2 == pytest.approx(var_v - cov**2 / var_u, abs=1e-12)
    torch.testing.assert_close(mean, x_u - (u - v) / u * (x_u - x0), rtol=1e-12, atol=1e-12)
    assert std**2 == pytest.approx(variance * v * (u - v) / u, abs=1e-12)


def test_both_samplers_are_one_bridge():
    """With eta = 1 the step that reads the endpoint is the one that doesn't."""
    x_t, x0, e = (torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    cond = {"end": Condition(e, "endpoint")}
    levels = grid(20)
    for t, s in itertools.pairwise(levels):
        with_end, without = (step(solver, Knows(x0), x_t, t, s, c) for solver, c in ((DDIM(1.0), cond), (DDPM(), None)))
        torch.testing.assert_close(with_end[0], without[0], rtol=1e-10, atol=1e-12)
        assert with_end[1] == pytest.approx(without[1], abs=1e-12)


def test_the_endpoint_is_still_asked_for_where_it_matters():
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(Incompatible, match="needs the endpoint"):
        step(DDIM(0.5), Knows(x), x, BRIDGE.at(0.5), BRIDGE.at(0.3), None)


def test_sums_of_posterior_variances():
    def total(process, levels):
        return sum(process.posterior_std(t, s) ** 2 for s, t in itertools.pairwise(levels))

    ddpm = Gaussian(Discrete.ddpm())
    nodes = ddpm.levels(ddpm.schedule.at_index(torch.arange(-1, 1000)))
    assert 1.0 + total(ddpm, nodes) == pytest.approx(11.036, abs=5e-4)
    assert total(BRIDGE, table()) == pytest.approx(1.983, abs=5e-4)
    assert total(BRIDGE, grid()[-2::-1]) == pytest.approx(1.817, abs=5e-4)
    unit = Bridge()
    assert total(unit, unit.levels(torch.arange(1001) / 1000)) == pytest.approx(0.993, abs=5e-4)


# (6) Targets


class Says(torch.nn.Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, time, cond):
        return self.out


@pytest.mark.parametrize("t", [0.001, 0.3, 0.9, 0.95])
def test_targets_give_the_same_x0_from_consistent_outputs(t):
    x, e, n = (torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    truth = BRIDGE.forward(x, t, source=e, noise=n)
    outputs = {"grad": truth.x_t - x, "noise": n, "residual": e - x}
    cond = {"end": Condition(e, "endpoint")}
    for name, out in outputs.items():
        scalings = Correction() if name == "grad" else None
        target = "x0" if name == "grad" else name
        said = Denoiser(Says(out), BRIDGE, target, scalings)(truth.x_t, t, cond)
        torch.testing.assert_close(said.x0, x, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_one_of_the_paper():
    """mean min(delta^(-1/2), 5) |x_t - x - out|."""
    x, e, n = (torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    t, out = torch.linspace(0.001, 0.999, 6).double(), torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    objective = cd.Denoising(weighting=cd.training.InverseNoise(cap=5.0), loss="l1")
    denoiser = Denoiser(Says(out), BRIDGE, "x0", Correction())
    got = objective.at(denoiser, x, t, n, {"end": Condition(e, "endpoint")}).per_sample
    delta = 2 * (t - t * t)
    target = (t[:, None] * (e - x) + delta.sqrt()[:, None] * n).float()
    weight = delta.rsqrt().clamp(max=5.0).float()
    torch.testing.assert_close(got, weight * (target - out).abs().mean(1), rtol=1e-5, atol=1e-6)


# (8) Jointly Gaussian frames


def conditional(eta, from_end):
    """Mean and variance of samples of x given its neighbours: x ~ N(.3, .25), the bridge leads to e = 1.1."""
    mu, var, e = 0.3, 0.25, 1.1
    # Joint of (x, e) with these conditional moments: covariance 0.6, Var(e) = 1.
    oracle = cd.oracles.paired(BRIDGE, [[mu - 0.6 * (e - 0.5)], [0.5]], [[var + 0.36, 0.6], [0.6, 1.0]])
    levels = grid()
    first = levels[0]
    start = (e, 0.0) if from_end else (first.data * mu + first.source * e, first.data**2 * var + first.noise**2)
    mean, variance = propagate(DDIM(eta), levels, oracle, e, *start)[-1]
    return (mean - mu) / (e - mu), variance


@pytest.mark.parametrize(("eta", "variance"), [(1.0, 0.19005), (0.0, 0.21748)])
def test_gaussian_frames_have_their_exact_mean_and_no_more_than_their_variance(eta, variance):
    bias, got = conditional(eta, from_end=False)
    assert bias == pytest.approx(0.0, abs=1e-10)
    assert got == pytest.approx(variance, abs=5e-6)
    assert got <= 0.25


@pytest.mark.parametrize(("eta", "bias", "digits"), [(1.0, 1.3e-4, 5e-6), (0.0, 1.04e-2, 5e-5)])
def test_a_start_at_the_endpoint_costs_a_small_bias(eta, bias, digits):
    got, variance = conditional(eta, from_end=True)
    assert got == pytest.approx(bias, abs=digits)
    assert (variance == pytest.approx(0.0, abs=1e-20)) == (eta == 0.0)


# (9) Nothing moves


@pytest.mark.parametrize("side", ["prev", "next", "mean"])
def test_frames_that_are_all_the_same_stay(side):
    x = torch.rand(3, 6, 6, dtype=torch.float64) * 2 - 1
    made = cd.video.Interpolator(Knows(x[None]))(x, x, n=3, side=side, seed=1)
    torch.testing.assert_close(made, x.expand(3, 3, 6, 6), rtol=0, atol=1e-12)


# The grid


def test_the_grid_of_fifty_steps():
    got = Strided().indices(BRIDGE, 50).tolist()
    assert got[:3] == [999, 978, 957]
    assert got[-4:] == [41, 20, 1, 0]
    assert len(got) == 50


@pytest.mark.parametrize("steps", [3, 4, 7, 53, 333, 500, 501, 502, 999, 1000])
def test_the_grid_in_whole_numbers(steps):
    indices = Strided().indices(BRIDGE, steps).tolist()
    exact = [999 * (steps - 2 - k) // (steps - 2) for k in range(steps - 2)] + [1, 0]
    assert indices == sorted(set(exact), reverse=True)
    times = Strided().times(BRIDGE, steps)
    assert float(times[-1]) == 0.0 and bool((times.diff() < 0).all())
    torch.testing.assert_close(times[:-1], 0.001 + 0.998 * torch.tensor(indices).double() / 999, rtol=0, atol=1e-12)


def test_the_grid_also_serves_tables_of_noise_levels():
    ddpm = Gaussian(Discrete.ddpm())
    assert Strided().times(ddpm, 50)[:-1].tolist() == [(i + 1) / 1000 for i in Strided().indices(ddpm, 50).tolist()]


def test_bad_grids_and_tables_are_refused():
    for steps in (1, 2, 1001):
        with pytest.raises(BadValue, match="needs 3 to 1000 steps"):
            Strided().times(BRIDGE, steps)
    with pytest.raises(Incompatible, match="no numbered levels"):
        Strided().times(Bridge(), 50)
    with pytest.raises(Incompatible, match="no table"):
        Bridge().at_index(3)
    with pytest.raises(BadValue, match=r"lie in \[0, 999\]"):
        BRIDGE.at_index(1000)
    with pytest.raises(BadValue, match="steps >= 2"):
        Bridge(steps=1)
    with pytest.raises(BadValue, match="margin"):
        Bridge(margin=0.5)
    with pytest.raises(BadValue, match="cap > 0"):
        cd.training.InverseNoise(cap=0.0)


# The recipe


def test_the_recipe_is_for_triplets_and_survives_being_stored():
    data = consecutive_brownian_bridge.bumps(64, seed=0)
    chosen = consecutive_brownian_bridge.recipe(Facts.of(data))
    assert cd.config.from_config(cd.config.to_config(chosen)) == chosen
    facts = Facts((3, 16, 16), {"frames": cd.conditions.Frames(2, 3)})
    assert consecutive_brownian_bridge.recipe(facts).network.network.shape == (3, 16, 16)
    for embeddings in ({}, {"frames": cd.conditions.Map(2)}, {"frames": cd.conditions.Frames(3, 1)}):
        with pytest.raises(BadValue, match="train on triplets"):
            consecutive_brownian_bridge.recipe(Facts((1, 8, 8), embeddings))


def test_the_bumps_move_evenly():
    """The middle of each is half-way, and the mean of the neighbours isn't it."""
    rows = consecutive_brownian_bridge.bumps(200, seed=3).batch(range(200))
    place = torch.arange(32.0)
    centre = lambda x: ((x + 1) * place).sum(-1) / (x + 1).sum(-1)
    before, after = rows["cond"]["frames"].unbind(1)
    inside = (centre(before) > 6) & (centre(before) < 25) & (centre(after) > 6) & (centre(after) < 25)
    away = (centre(rows["x"]) - 0.5 * (centre(before) + centre(after)))[inside]
    assert int(inside.sum()) > 100 and float(away.abs().max()) < 0.2
    assert float(cd.metrics.psnr(0.5 * (before + after), rows["x"]).mean()) < 25.0


def test_a_trained_recipe_samples_from_either_side():
    data = consecutive_brownian_bridge.bumps(64, seed=0)
    chosen = consecutive_brownian_bridge.recipe(Facts.of(data))
    denoiser = chosen.denoiser(0)
    cd.Trainer(denoiser, data, chosen.objective, cd.TrainConfig(steps=2, batch=16), quiet=True).fit()
    before, after = data.batch(range(4))["cond"]["frames"].unbind(1)
    maker = cd.video.Interpolator(denoiser)
    made = {side: maker.middle(before, after, side=side, steps=4, seeds=range(4)) for side in ("prev", "next", "mean")}
    assert all(x.shape == (4, 32) and bool(torch.isfinite(x).all()) for x in made.values())
    assert not torch.allclose(made["prev"], made["next"], atol=1e-3)
