"""Superpositions against closed forms, on exact denoisers of four blobs: model A has the upper two, B the lower two."""

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Blend, Energy, Free, Superpose
from condiff.process import EDM, Cosine, Gaussian, Prediction, Rectified, Retimed, StudentT, VPLinear
from condiff.process.oracles import empirical, gaussian, mixture
from condiff.random import Tape
from condiff.sampling import DDIM, DDPM, SDE, Consistency, DPMSolverPP, Euler, Heun, Uniform, sample, trajectory

VE = Gaussian(EDM(sigma_max=10.0, rho=1.0))  # sigma = 10 t
VP = Gaussian(VPLinear())
FLOW = Gaussian(Rectified())
DOUBLE = {"dtype": torch.float64}
BLOBS = [[-1.5, 1.5], [1.5, 1.5], [-1.5, -1.5], [1.5, -1.5]]


def labelled(process):
    return mixture(process, BLOBS, stds=0.4, labels=[0, 0, 1, 1])


def uneven(process):
    """Two classes without a symmetry between them: their scores differ in size and in divergence."""
    return mixture(
        process, [[-1.5, 1.5], [1.0, 1.2], [-0.5, -1.5], [1.5, -1.0]], stds=[0.4, 0.7, 0.5, 0.3], labels=[0, 0, 1, 1]
    )


def pair(process):
    return mixture(process, BLOBS[:2], stds=0.4), mixture(process, BLOBS[2:], stds=0.4)


def triple(process):
    return [
        gaussian(process, m, std=s)
        for m, s in (([0.0, 1.0, 0.0], 0.5), ([1.0, 0.0, 0.3], 0.7), ([-1.0, -1.0, 0.0], 0.6))
    ]


def paths(model, solver, grid=None, num=16, seed=0, steps=60, dims=2, **kwargs):
    """Every step of a trajectory of float64 states."""
    grid = Uniform(start=0.9, end=0.02) if grid is None else grid
    times = grid.times(model.process, steps)
    level = model.process.at(float(times[0]))
    x = level.noise * torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return trajectory(model, x, solver=solver, grid=times, rng=seed + 1, **kwargs)


# AND


@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("solver", [SDE(), DDPM(), DPMSolverPP(2, noise=1.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("process", [VE, VP, FLOW], ids=lambda p: type(p.schedule).__name__)
def test_and_keeps_the_densities_equal_at_every_step(process, solver, scale):
    both = Superpose(uneven(process), [{"label": [0]}, {"label": [1]}], mode="and", scale=scale)
    worst = 0.0
    for _ in paths(both, solver):
        worst = max(worst, float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max()))
    assert worst <= 1e-12 and float(both.log_prob.abs().max()) > 0.1


@pytest.mark.parametrize("spread", [None, 0.5])
def test_and_of_three_models_gains_alike(spread):
    both = Superpose(triple(VP), mode="and", spread=spread)
    before = torch.zeros(16, 3, dtype=torch.float64)
    for _ in paths(both, DDPM(), dims=3):
        gain = both.log_prob - before
        assert float((gain - gain[:, :1]).abs().max()) <= (1e-12 if spread is None else 1e-10)
        before = both.log_prob


def test_and_is_the_average_with_the_noise_projected_off_the_difference():
    a, b = pair(VP)
    both = Superpose([a, b], mode="and")
    for step in paths(both, SDE()):
        t, h = step.t, step.t.t - step.s.t
        f, g2 = VP.drift(t), VP.diffusion2(t)
        sa, sb = a(step.x_t, t).score, b(step.x_t, t).score
        drift = -f * step.x_t + 0.5 * g2 * (sa + sb)
        n = step.dx - h * drift
        delta = sa - sb
        assert float((n * delta).sum(1).abs().max()) < 1e-10  # what is left of the noise is orthogonal
        z = (step.noise * (g2 * h) ** 0.5 - n).abs().max()
        assert float(z) < 1e-10


def draws(count, num=16, dims=2):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(num, dims, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_weights_of_and_are_the_closed_form_of_two_models():
    a, b = pair(VP)
    both, noise = Superpose([a, b], mode="and"), draws(60)
    times = Uniform(start=0.9, end=0.02).times(VP, 60)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, z in zip(trajectory(both, x, solver=SDE(), grid=times, rng=Tape(noise)), noise, strict=True):
        h, g2, f = step.t.t - step.s.t, VP.diffusion2(step.t), VP.drift(step.t)
        delta = a(step.x_t, step.t).score - b(step.x_t, step.t).score
        n = (g2 * h) ** 0.5 * z
        kappa = 0.5 - (n * delta).sum(1) / (g2 * h * delta.square().sum(1))
        torch.testing.assert_close(both.weights[:, 0], kappa, rtol=1e-10, atol=1e-10)
        # The step is that of Euler-Maruyama with these weights
        score = both.weights[:, :1] * a(step.x_t, step.t).score + both.weights[:, 1:] * b(step.x_t, step.t).score
        torch.testing.assert_close(step.dx, h * (-f * step.x_t + g2 * score) + n, rtol=1e-10, atol=1e-10)


def test_the_algorithm_for_stable_diffusion_step_by_step():
    """S1-S4 of the paper's script in sigma, with guidance and a lift, by its own formulas."""
    model, w, steps, lift = uneven(VE), 7.5, 64, 2.0
    both = Superpose(model, [{"label": [0]}, {"label": [1]}], mode="and", scale=w, lift=(0.0, lift))
    noise = draws(steps)
    times = torch.linspace(1.0, 0.05, steps + 1, dtype=torch.float64)
    x = 10.0 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = [{"label": torch.full((16,), c)} for c in (0, 1)]
    y, log_q = x, torch.zeros(16, 2, dtype=torch.float64)
    for i, step in enumerate(trajectory(both, x, solver=SDE(), grid=times, rng=Tape(noise))):
        sigma, ds = 10.0 * float(times[i]), 10.0 * float(times[i + 1] - times[i])
        unc, va, vb = (model(y, float(times[i]), c).noise for c in (None, *labels))
        n = (2.0 * abs(ds) * sigma) ** 0.5 * noise[i]
        ind = 2.0 * ds * (unc + w * (vb - unc)) + n
        top = abs(ds) * ((vb - va) * (vb + va)).sum(1) - (ind * (va - vb)).sum(1) + sigma * lift / steps
        kappa = top / (2.0 * ds * w * (va - vb).square().sum(1))
        dx = 2.0 * ds * (unc + w * ((vb - unc) + kappa[:, None] * (va - vb))) + n
        log_q = log_q + torch.stack([(-abs(ds) / sigma * v.square() - dx * v / sigma).sum(1) for v in (va, vb)], 1)
        y = y + dx
        torch.testing.assert_close(step.x_s, y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(both.weights[:, 0], kappa, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(both.log_prob, log_q, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        log_q[:, 1] - log_q[:, 0], torch.full((16,), lift, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("mode", ["and", "or"])
def test_identical_models_share_evenly_and_leave_the_sampler_as_it_is(mode):
    a, _ = pair(VP)
    both = Superpose([a, a], mode=mode)
    *_, last = paths(both, SDE())
    *_, plain = paths(a, SDE())
    assert torch.equal(both.weights, torch.full((16, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(last.x_s, plain.x_s, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_twice_among_three_changes_nothing(dtype):
    a, b, _ = triple(VP)
    ends = []
    for models in ([a, b], [a, b, b], [a, a, b]):
        both = Superpose(models, mode="and")
        x = draws(1, dims=3)[0].to(dtype)
        grid = Uniform(start=0.9, end=0.02)
        *_, last = trajectory(both, x, solver=SDE(), grid=grid, steps=60, rng=Tape(draws(60, dims=3)))
        spread = both.log_prob.amax(1) - both.log_prob.amin(1)
        assert float(spread.max()) < (1e-11 if dtype == torch.float64 else 1e-3)
        ends.append(last.x_s)
    room = 1e-8 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=room)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=room)


def test_and_in_float32_keeps_the_densities_equal_to_rounding():
    both = Superpose(uneven(VP), [{"label": [0]}, {"label": [1]}], mode="and")
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    for _ in trajectory(both, x, solver=SDE(), grid=Uniform(start=0.9, end=0.02), steps=100, rng=0):
        assert both.log_prob.dtype == torch.float64
        assert float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max()) < 1e-3


def test_true_densities_of_and_meet():
    """The estimator's equality is the truth's up to the step: spec .08-.10 at 1000 steps, averaging 5."""
    a, b = pair(VE)
    found = {}
    for mode in ("and", "average"):
        *_, last = paths(Superpose([a, b], mode=mode), SDE(), num=64, steps=400, grid=Uniform(start=1.0, end=0.01))
        found[mode] = float((a.log_prob(last.x_s, last.s) - b.log_prob(last.x_s, last.s)).abs().median())
    assert found["and"] < 0.3 < 2.0 < found["average"]


# OR


def test_or_with_a_large_prior_is_one_model_bit_for_bit():
    a, b = pair(VP)
    *_, last = paths(Superpose([a, b], mode="or", log_weights=(1e8, 0.0)), SDE())
    *_, plain = paths(a, SDE())
    assert torch.equal(last.x_s, plain.x_s)


def test_or_at_a_high_temperature_is_the_likelier_model():
    either = Superpose(pair(VP), mode="or", temperature=1e6)
    before = None
    for step in paths(either, SDE()):
        if before is not None:
            assert torch.equal(step.prediction.aux["weights"].argmax(1), before.argmax(1))
            assert float(step.prediction.aux["weights"].amax(1).min()) == 1.0
        before = either.log_prob


def test_or_follows_the_mixture_as_steps_become_small():
    """With the same noise the path of OR comes to that of the exact mixture score, and kappa to the true posterior."""
    process = Gaussian(Cosine())  # pure noise at t = 1, where the models start alike
    models, whole = pair(process), labelled(process)
    gaps, errors = [], []
    for steps in (100, 400):
        fine, k = draws(400, num=64), 400 // steps
        coarse = [torch.stack(fine[i : i + k]).sum(0) / k**0.5 for i in range(0, 400, k)]
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        options = {"solver": SDE(), "grid": Uniform(end=0.05), "steps": steps}
        error = []
        for step in trajectory(Superpose(models, mode="or"), x, rng=Tape(coarse), **options):
            true = torch.stack([m.log_prob(step.x_t, step.t) for m in models], 1).softmax(1)
            error.append((step.prediction.aux["weights"] - true).abs().mean())
        *_, exact = trajectory(whole, x, rng=Tape(coarse), **options)
        gaps.append(float((step.x_s - exact.x_s).square().mean().sqrt()))
        errors.append(float(torch.stack(error).mean()))
    assert gaps[1] < 0.5 * gaps[0] and gaps[1] < 0.02
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.01


# On an ODE


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_and_along_an_ode_keeps_the_densities_equal(scale):
    both = Superpose(uneven(VP), [{"label": [0]}, {"label": [1]}], mode="and", scale=scale, divergence="exact")
    worst = 0.0
    for _ in paths(both, Euler()):
        worst = max(worst, float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max()))
    assert worst <= 1e-11 and float(both.log_prob.abs().max()) > 0.1


def test_kappa_along_an_ode_is_the_papers():
    model, w, lift, steps = uneven(VE), 7.5, 1.5, 60
    conds = [{"label": torch.full((16,), c)} for c in (0, 1)]
    both = Superpose(model, conds, mode="and", scale=w, divergence="exact", lift=(0.0, lift))
    for step in paths(both, Euler(), steps=steps):
        x, sigma, ds = step.x_t, step.t.noise, step.s.noise - step.t.noise
        unc, va, vb = (model(x, step.t, c).noise for c in (None, *conds))
        trace = [model.posterior_cov(x, step.t, c).diagonal(dim1=1, dim2=2).sum(1) for c in conds]
        div_a, div_b = (
            (2.0 - v / sigma**2) / sigma for v in trace
        )  # of eps = (x - x0) / sigma, d x0 / dx = cov / sigma^2
        top = -sigma * (div_a - div_b) + ((va - vb) * (va + vb)).sum(1) - ((va - vb) * (unc + w * (vb - unc))).sum(1)
        kappa = (top + sigma * lift / (ds * steps)) / (w * (va - vb).square().sum(1))
        torch.testing.assert_close(both.weights[:, 0], kappa, rtol=1e-8, atol=1e-8)
    assert float((both.log_prob[:, 1] - both.log_prob[:, 0] - lift).abs().max()) < 1e-10


def test_densities_along_an_ode_are_the_true_ones_and_hutchinsons_are_close():
    a, b = pair(VP)
    for kind, steps, room in (("exact", 400, 0.1), ("hutchinson", 400, 0.5)):
        either = Superpose([a, b], mode="or", divergence=kind, probes=8 if kind == "hutchinson" else 1)
        first = last = None
        for step in paths(either, Euler(), steps=steps):
            first, last = first or step, step
        gap = [m.log_prob(last.x_s, last.s) - m.log_prob(first.x_t, first.t) for m in (a, b)]
        assert float((either.log_prob - torch.stack(gap, 1)).abs().mean()) < room


# How it sits in the loop


class Counted:
    def __init__(self, inner):
        self.inner, self.process, self.shape, self.kinds, self.rows = inner, inner.process, inner.shape, inner.kinds, []

    def __call__(self, x, t, cond=None):
        self.rows.append(len(x))
        return self.inner(x, t, cond)


def test_one_model_with_several_conditions_is_one_call_a_step():
    model = Counted(labelled(VP))
    both = Superpose(model, [{"label": [0]}, {"label": [1]}], scale=2.0)
    *_, last = paths(both, SDE())
    assert model.rows == [48] * 60 and last.nfe == 60
    model.rows.clear()
    list(paths(Superpose(model, [{"label": [0]}, {"label": [1]}]), SDE()))
    assert model.rows == [32] * 60


def test_a_negative_condition_and_a_separate_reference():
    model = labelled(VP)
    x = torch.randn(5, 2, dtype=torch.float64)
    conds = [{"label": [0]}, {"label": [1]}]
    told = [{"label": torch.full((5,), c)} for c in (0, 1)]
    average = 0.5 * (model(x, 0.5, told[0]).score + model(x, 0.5, told[1]).score)
    for reference, wanted in (
        (None, model(x, 0.5).score),
        ({"label": [1]}, model(x, 0.5, told[1]).score),
        (pair(VP)[0], pair(VP)[0](x, 0.5).score),
    ):
        said = Superpose(model, conds, scale=3.0, reference=reference)(x, 0.5)
        torch.testing.assert_close(said.score, wanted + 3.0 * (average - wanted), rtol=1e-10, atol=1e-10)
    said = Superpose(pair(VP), mode="average", scale=torch.tensor([0.0, 1, 2, 3, 4]), reference=model)(x, 0.5)
    w = torch.arange(5.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(said.score, (1.0 - w) * model(x, 0.5).score + w * average, rtol=1e-10, atol=1e-10)


def test_the_callers_conditions_stay():
    model = labelled(VP)

    class Told:
        process, shape, kinds, seen = VP, (2,), {"label": "label", "age": "scalar"}, []

        def __call__(self, x, t, cond=None):
            self.seen.append(cond)
            return model(x, t, {"label": cond["label"]})

    told = Told()
    both = Superpose(told, [{"label": [0]}, {"label": [1]}], mode="average", scale=2.0)
    both(torch.zeros(3, 2), 0.5, Conditions({"age": Condition(torch.tensor([1.0, 2.0, 3.0]), "scalar")}))
    cond = told.seen[0]
    assert (
        cond["age"].value.tolist() == [1.0, 2.0, 3.0] * 3
        and cond["label"].value.tolist() == [0] * 3 + [1] * 3 + [0] * 3
    )
    assert cond["label"].kept().tolist() == [True] * 6 + [False] * 3


def test_what_each_model_predicts_does_not_matter():
    class Says:
        def __init__(self, inner, kind):
            self.inner, self.kind, self.process, self.shape = inner, kind, inner.process, inner.shape

        def __call__(self, x, t, cond=None):
            p = self.inner(x, t, cond)
            return Prediction(x, p.level, {self.kind: p.to(self.kind)})

    a, b = pair(FLOW)
    ends = []
    for kinds in (("velocity", "velocity"), ("noise", "x0")):
        both = Superpose([Says(a, kinds[0]), Says(b, kinds[1])], mode="and")
        *_, last = paths(both, DDPM())
        ends.append(last.x_s)
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def test_a_flow_starts_from_pure_noise():
    a, b = pair(FLOW)
    for solver in (SDE(), DDPM()):
        both = Superpose([a, b], mode="and")
        x = sample(both, solver=solver, steps=200, num=64, seed=0, **DOUBLE)
        assert torch.isfinite(x).all() and float(x[:, 1].abs().median()) < 0.2
        assert torch.isfinite(both.log_prob).all()


def test_rows_have_weights_of_their_own_and_do_not_see_each_other():
    both = Superpose(labelled(VP), [{"label": [0]}, {"label": [1]}], mode="and")
    options = {"solver": SDE(), "steps": 60, "grid": Uniform(start=0.95), **DOUBLE}
    x = sample(both, seeds=[3, 4, 5], **options)
    torch.testing.assert_close(sample(both, seeds=[4], **options), x[1:2], rtol=0, atol=1e-12)


def test_a_time_per_row_and_a_pause():
    """Rows on times of their own do what they do alone; in a pause nothing is gained."""
    both = Superpose(pair(VP), mode="and", scale=2.0, reference=labelled(VP))
    times = torch.stack([torch.linspace(0.9, 0.1, 61), torch.linspace(0.7, 0.1, 61)], 1).double()
    times[40, 0] = times[39, 0]
    x, noise = draws(1, 2)[0], draws(60, 2)
    *_, last = trajectory(both, x, solver=SDE(), grid=times, rng=Tape(noise))
    together = both.log_prob
    for row in (0, 1):
        mine = [z[row : row + 1] for z in noise]
        if row == 0:
            del mine[39]  # no draw in a step that goes nowhere
        *_, alone = trajectory(both, x[row : row + 1], solver=SDE(), grid=times[:, row], rng=Tape(mine))
        torch.testing.assert_close(last.x_s[row : row + 1], alone.x_s, rtol=0, atol=1e-10)
        torch.testing.assert_close(together[row : row + 1], both.log_prob, rtol=0, atol=1e-10)


def test_held_entries_stay_and_the_others_take_up_the_difference():
    both = Superpose(triple(VP)[:2], mode="and")
    held = torch.tensor([False, True, False])
    hit = torch.zeros(8, 2, dtype=torch.float64)
    for step in paths(both, SDE(), dims=3, num=8, held=held):
        assert torch.equal(step.x_s[:, 1], step.x_t[:, 1])
        hit = hit + step.dx.abs()[:, [0, 2]]
    assert float(hit.min()) > 0.1


def test_refusals():
    a, b = pair(VP)
    with pytest.raises(Incompatible, match="adds 0 times the noise of the reverse SDE"):
        sample(Superpose([a, b]), solver=Euler(), steps=60, num=1, grid=Uniform(start=0.9), seed=0)
    with pytest.raises(Incompatible, match="no fixed multiple"):
        sample(Superpose([a, b]), solver=Consistency(), steps=60, num=1, seed=0)
    with pytest.raises(Incompatible, match="no fixed multiple"):
        sample(Superpose([a, b]), solver=Heun(churn=5.0), steps=60, num=1, seed=0)
    with pytest.raises(Incompatible, match=r"0\.25 times"):
        sample(Superpose([a, b]), solver=DDIM(eta=0.5), steps=60, num=1, seed=0)
    with pytest.raises(Incompatible, match="hides it from the sampler"):
        sample(
            Retimed(Superpose([a, b]), Gaussian(Cosine())),
            solver=SDE(),
            steps=60,
            num=1,
            grid=Uniform(start=0.9),
            seed=0,
        )
    options = {"solver": SDE(), "steps": 60, "grid": Uniform(start=0.9)}
    for mode in ("or", "and"):
        inside = Superpose(labelled(VP), [{"label": [0]}, {"label": [1]}], mode=mode)
        with pytest.raises(Incompatible, match="wrap the models inside"):
            sample(Free(inside, 2.0), cond={"label": [0]}, **options)
    with pytest.raises(Incompatible, match="different processes"):
        Superpose([a, pair(VE)[1]])
    with pytest.raises(Incompatible, match="differ in shape"):
        Superpose([a, gaussian(VP, [0.0, 0.0, 0.0], std=1.0)])
    heavy = empirical(Gaussian(Rectified(), StudentT(4.0)), torch.zeros(1, 2))
    with pytest.raises(Incompatible, match="Gaussian noise"):
        Superpose([heavy, heavy])
    with pytest.raises(BadValue, match="two models or more"):
        Superpose(a)
    with pytest.raises(BadValue, match="as many conds"):
        Superpose([a, b], [{}, {}, {}])
    with pytest.raises(BadValue, match="needs reference="):
        Superpose([a, b], scale=2.0)
    with pytest.raises(BadValue, match="unknown mode 'nand'"):
        Superpose([a, b], mode="nand")
    for options, words in (
        ({"mode": "or", "temperature": float("inf")}, "finite"),
        ({"mode": "or", "temperature": 0.0}, "positive"),
        ({"temperature": 2.0}, "belongs to mode='or'"),
        ({"mode": "or", "log_weights": (1.0,)}, "2 finite numbers"),
        ({"mode": "or", "log_weights": (float("inf"), 0.0)}, "2 finite numbers"),
        ({"mode": "or", "lift": (0.0, 1.0)}, "belongs to mode='and'"),
        ({"scale": 0.0}, "leaves out"),
        ({"spread": -1.0}, "spread must be >= 0"),
        ({"divergence": "exactly"}, "unknown divergence"),
    ):
        with pytest.raises(BadValue, match=words):
            Superpose([a, b], **options)
    with pytest.raises(BadValue, match="keeps them while it is sampled"):
        Superpose([a, b]).log_prob  # noqa: B018
    with pytest.warns(UserWarning, match="noisy below 50"):
        sample(Superpose([a, b]), solver=SDE(), steps=10, num=1, grid=Uniform(start=0.9), seed=0)


def test_an_energy_on_top_keeps_the_hook():
    both = Superpose(pair(VP), mode="and")
    guided = Energy(both, lambda x0, level, cond: x0.square().sum(1), scale=0.1, through=False)
    with torch.no_grad():
        list(paths(guided, SDE()))
    assert float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max()) < 1e-12


def test_inside_a_blend_it_keeps_its_own_densities():
    both, model = Superpose(pair(VP), mode="and"), labelled(VP)
    for _ in paths(Blend([both, model], [0.7, 0.3]), SDE()):
        assert float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max()) < 1e-12
    assert float(both.log_prob.abs().max()) > 0.1


def test_ode_rules_that_evaluate_twice_count_the_step_once():
    both = Superpose(pair(VP), mode="or", divergence="exact")
    first = last = None
    for step in paths(both, Heun(), steps=200):
        first, last = first or step, step
    gap = [m.log_prob(last.x_s, last.s) - m.log_prob(first.x_t, first.t) for m in pair(VP)]
    assert float((both.log_prob - torch.stack(gap, 1)).abs().mean()) < 0.2
