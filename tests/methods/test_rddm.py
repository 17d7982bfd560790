"""RDDM: the paper's tables, posterior, sampler and conversions, exactly; what its recipe makes of data."""

import importlib
import itertools
import math

import pytest
import torch

from condiff.conditions import Condition, Conditions, Endpoint, Label, Map
from condiff.denoiser import Plain
from condiff.errors import BadValue, Degenerate
from condiff.methods.catalogue import ENTRIES
from condiff.methods.experiment import Facts
from condiff.process import Prediction, Ramps, Residual, oracles
from condiff.random import Tape
from condiff.sampling import DDIM, ClipResidual, Uniform, sample

F64, T = torch.float64, 1000


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def told(y):
    return Conditions({"degraded": Condition(y, "endpoint")})


def tables(variance, steps=T):
    """A_i and B_i of the default schedules, i = 1 ... T, as cumulative sums."""
    i = torch.arange(1, steps + 1, dtype=F64)
    a, b2 = 2 * (steps - i + 1) / (steps * (steps + 1)), variance * 2 * i / (steps * (steps + 1))
    return a, b2, a.cumsum(0), b2.cumsum(0)


# 1. Schedules


@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_tables_have_the_closed_form(variance):
    process, i = Residual(schedule=Ramps(variance=variance, steps=T)), torch.arange(1, T + 1, dtype=F64)
    level = process.at(i / T)
    torch.testing.assert_close(level.source, i * (2 * T - i + 1) / (T * (T + 1)), rtol=0, atol=1e-13)
    torch.testing.assert_close(level.noise**2, variance * i * (i + 1) / (T * (T + 1)), rtol=0, atol=1e-13)
    end = process.at(1.0)
    assert end.source == 1.0 and end.noise**2 == pytest.approx(variance, rel=1e-14)
    _, _, big_a, big_b2 = tables(variance)
    torch.testing.assert_close(level.source, big_a, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(level.noise**2, big_b2, rtol=1e-6, atol=1e-6)


# 2. The ancestral step


@pytest.mark.parametrize(("variance", "i"), itertools.product((1.0, 0.01), (2, 10, 500, 1000)))
def test_posterior_is_bayes_rule(variance, i):
    """q(x_{i-1} | x_i, x0, y): the product of two Gaussians, the paper's three coefficients, and its short form."""
    a, b2, big_a, big_b2 = tables(variance)
    a, b2, b_t2, a_s, b_s2 = a[i - 1], b2[i - 1], big_b2[i - 1], big_a[i - 2], big_b2[i - 2]
    process, x0, y, z = Residual(schedule=Ramps(variance=variance, steps=T)), *(rand(5, 3, seed=k) for k in range(3))
    truth = process.forward(x0, i / T, source=y, noise=z)
    r, x_t = y - x0, truth.x_t
    mean, std = process.posterior(truth, process.at((i - 1) / T))
    # prior N(x0 + A_s r, B_s^2), likelihood of x_t: N(x_s + a r, b^2)
    precision = 1 / b_s2 + 1 / b2
    bayes = ((x0 + a_s * r) / b_s2 + (x_t - a * r) / b2) / precision
    three = b_s2 / b_t2 * x_t + (b2 * a_s - b_s2 * a) / b_t2 * r + b2 / b_t2 * x0
    short = x_t - a * r - b2 / b_t2.sqrt() * z
    for other in (bayes, three, short):
        torch.testing.assert_close(mean, other, rtol=0, atol=4e-10)
    assert float(std) ** 2 == pytest.approx(float(1 / precision), rel=1e-9)
    assert float(std) ** 2 == pytest.approx(float(b2 * b_s2 / b_t2), rel=1e-9)


# 6. Gaussian data: exact means and variances of the sampler


def law(eta, steps):
    """Mean and variance of the samples: with an affine denoiser the sampler is an affine map of its draws."""
    process = Residual(schedule=Ramps(variance=1.0, steps=T))
    model = oracles.gaussian(process, torch.tensor([0.7], dtype=F64), std=0.2)
    rows, y = steps + 2, torch.full((steps + 2, 1), -0.3, dtype=F64)
    unit = torch.eye(rows, dtype=F64)[:, :, None]  # row 0: no noise; row 1: the start's; row 2 ...: a step's each
    solver = DDIM(eta=eta**0.5)  # the paper's eta multiplies the variance
    tape = Tape([unit[2 + k] for k in range(steps)])
    x = sample(model, solver=solver, initial=y + unit[1], cond=told(y), steps=steps, grid=Uniform(), rng=tape)
    return float(x[0]), float((x[1:] - x[0]).square().sum())


@pytest.mark.parametrize(
    ("eta", "steps", "variance"),
    [
        (0.0, 5, 0.009742),
        (0.0, 20, 0.029463),
        (0.0, 200, 0.038804),
        (1.0, 5, 0.009129),
        (1.0, 20, 0.024554),
        (1.0, 200, 0.037449),
    ],
)
def test_gaussian_data_come_out_with_their_mean_and_less_variance(eta, steps, variance):
    mean, var = law(eta, steps)
    assert mean == pytest.approx(0.7, abs=1e-12)
    assert var == pytest.approx(variance, abs=6e-7)


def test_the_variance_converges_at_first_order():
    errors = [0.04 - law(0.0, steps)[1] for steps in (100, 200, 500)]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05) and errors[1] / errors[2] == pytest.approx(
        2.5, rel=0.05
    )


# 7. Two forms of the step


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_both_forms_of_the_step(eta):
    process = Residual(schedule=Ramps(steps=T))
    x, y, r, e, z = (rand(4, 3, seed=k) for k in range(5))

    class Heads:
        kinds, shape = {}, (3,)

        def __init__(self):
            self.process = process

        def __call__(self, x, t, cond=None):
            return Prediction(x, process.at(t), {"residual": r, "noise": e}, source=cond.source)

    a, b = (tuple(getattr(process.at(t), name) for t in (0.9, 0.4)) for name in ("source", "noise"))
    var = eta * (b[0] ** 2 - b[1] ** 2) * b[1] ** 2 / b[0] ** 2
    left = math.sqrt(b[1] ** 2 - var)
    moves = x - (a[0] - a[1]) * r - (b[0] - left) * e + math.sqrt(var) * z
    k, clean = left / b[0], x - a[0] * r - b[0] * e
    mixed = k * x + (1 - k) * clean + (a[1] - k * a[0]) * r + math.sqrt(var) * z
    torch.testing.assert_close(moves, mixed, rtol=0, atol=1e-12)
    rng = Tape([z]) if eta else None
    ours = sample(Heads(), solver=DDIM(eta=eta**0.5), initial=x, cond=told(y), grid=[0.9, 0.4], rng=rng)
    torch.testing.assert_close(ours, moves, rtol=0, atol=1e-12)


def test_the_papers_grid_is_ours():
    for steps in (2, 5, 10, 50, 200):
        theirs = [int(t) for t in torch.linspace(-1, T - 1, steps + 1, dtype=F64).tolist()][::-1]
        ours = Uniform().times(Residual(), steps) * T - 1
        assert ours.round().long().tolist() == theirs


# Clipping, as the released code has it


def released(kind, heads, x, y, a, b, final):
    """One step in the code's order of clamps: a, b at t and u; ``heads`` are the network's outputs."""
    clip = lambda v: v.clamp(-1, 1)
    if kind == ("residual", "noise"):
        r, e = clip(heads[0]), heads[1]
        clean = clip(x - a[0] * r - b[0] * e)
    elif kind == ("residual",):
        r = clip(heads[0])
        e, clean = (x - y - (a[0] - 1) * r) / b[0], clip(y - r)
    elif kind == ("noise",):
        e = heads[0]
        clean = clip((x - a[0] * y - b[0] * e) / (1 - a[0]))
        r = y - clean
    else:
        r, clean, e = clip(y - heads[0]), clip(heads[0]), heads[1]
    return clean if final else x - (a[0] - a[1]) * r - (b[0] - b[1]) * e


@pytest.mark.parametrize("kind", [("residual", "noise"), ("residual",), ("noise",), ("x0", "noise")], ids="-".join)
@pytest.mark.parametrize("end", [0.4, 0.0])
def test_the_reference_clip(kind, end):
    process, x, y, *heads = Residual(), 2 * rand(8, 3), rand(8, 3, seed=1), *(2 * rand(8, 3, seed=k) for k in (2, 3))

    class Network:
        kinds, shape = {}, (3,)

        def __init__(self):
            self.process = process

        def __call__(self, x, t, cond=None):
            return Prediction(x, process.at(t), dict(zip(kind, heads, strict=False)), source=cond.source)

    a, b = (tuple(getattr(process.at(t), name) for t in (0.9, end)) for name in ("source", "noise"))
    out = sample(Network(), solver=DDIM(), initial=x, cond=told(y), grid=[0.9, end], hooks=[ClipResidual(1.0, x0=1.0)])
    torch.testing.assert_close(out, released(kind, heads, x, y, a, b, end == 0.0), rtol=1e-12, atol=1e-12)


def test_residuals_may_reach_two():
    """A dark picture of a bright one: the code's bound of 1 cuts its residual in half, the default doesn't touch it."""
    x0, y = torch.ones(2, 3, dtype=F64), -torch.ones(2, 3, dtype=F64)
    process = Residual(schedule=Ramps(variance=0.01))
    start = process.forward(x0, 1.0, source=y, noise=rand(2, 3))

    class Network:
        kinds, shape = {}, (3,)

        def __init__(self):
            self.process = process

        def __call__(self, x, t, cond=None):
            return Prediction(x, process.at(t), {"residual": y - x0, "noise": start.noise}, source=cond.source)

    ends = {}
    for bound in (2.0, 1.0):
        hooks = [ClipResidual(bound)]
        ends[bound] = sample(Network(), solver=DDIM(), initial=start.x_t, cond=told(y), steps=4, hooks=hooks)
    torch.testing.assert_close(ends[2.0], x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[1.0], 0 * x0, rtol=0, atol=1e-12)
    with pytest.raises(BadValue, match="bounds > 0"):
        ClipResidual(0.0)


# The recipe


FACTS = Facts(shape=(3, 8, 8), embeddings={"degraded": Map(3)}, std=0.5, count=100)


def rddm():
    return importlib.import_module(ENTRIES["rddm"].module)


@pytest.mark.parametrize("target", ["residual", ("residual", "noise"), ("x0", "noise")])
def test_recipe(target):
    recipe = rddm().recipe(FACTS, target=target)
    denoiser = recipe.denoiser(0).double()
    assert denoiser.kinds == {"degraded": "endpoint"} and isinstance(denoiser.precondition, Plain)
    x0, y, z = (rand(4, 3, 8, 8, seed=k) for k in range(3))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64)
    truth = recipe.process.forward(x0, t, source=y, noise=z)
    said = denoiser(truth.x_t, t, {"degraded": y})
    names = (target,) if isinstance(target, str) else target
    expected = sum((said.to(k) - truth.to(k)).abs().mean(dim=(1, 2, 3)) for k in names)
    got = recipe.objective.at(denoiser, x0, t, z, {"degraded": Condition(y, "endpoint")}).per_sample
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(BadValue, match="endpoint"):
        sample(denoiser, num=2, solver=DDIM(), steps=2, seed=0)


def test_recipe_keeps_other_conditions():
    facts = Facts(shape=(1, 8, 8), embeddings={"degraded": Map(1), "label": Label(3)})
    network = rddm().recipe(facts).network
    assert network.conditions == {"degraded": Endpoint(1), "label": Label(3)} and network.outputs == 2


@pytest.mark.parametrize(
    "embeddings", [{}, {"label": Label(10)}, {"degraded": Map(1)}, {"a": Map(3), "b": Map(3)}], ids=str
)
def test_data_without_one_picture_like_the_sample_is_refused(embeddings):
    with pytest.raises(BadValue, match="of the same shape"):
        rddm().recipe(Facts(shape=(3, 8, 8), embeddings=embeddings))


def test_noise_alone_says_nothing_at_the_start():
    """Where A = 1 the state holds no x0: predicting the noise is refused there, unless the grid starts below."""
    denoiser = rddm().recipe(FACTS, target="noise").denoiser(0)
    y = rand(2, 3, 8, 8).float()
    with pytest.raises(Degenerate, match="start the grid below it"):
        sample(denoiser, cond={"degraded": y}, solver=DDIM(), steps=2, seed=0)
    x = sample(denoiser, cond={"degraded": y}, solver=DDIM(), grid=Uniform(start=0.999), steps=2, seed=0)
    assert torch.isfinite(x).all()


def test_the_degraded_digits_are_degraded_as_measured():
    from condiff.metrics import psnr

    data = rddm().degraded_digits("test")
    rows = data.batch(range(len(data)))
    assert float(psnr(rows["cond"]["degraded"], rows["x"]).mean()) == pytest.approx(9.8, abs=0.1)
    assert len(rddm().degraded_digits("train")) + len(data) == 1797
