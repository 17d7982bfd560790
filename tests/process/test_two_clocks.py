"""Ramps of any power, two clocks that run apart, a model without an endpoint on a path that has one."""

import json
import math

import pytest
import torch
from torch import nn

from condiff.conditions import Condition, Conditions, Map
from condiff.config import from_config, to_config
from condiff.denoiser import Denoiser
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks import MLP, DiT
from condiff.process import (
    Bridge,
    Clocks,
    Cosine,
    Discrete,
    Gaussian,
    Prediction,
    Ramps,
    Residual,
    Retimed,
    oracles,
)
from condiff.sampling import DDIM, sample

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def told(y):
    return Conditions({"degraded": Condition(y, "endpoint")})


# Ramps


def sizes(kind, power, steps):
    """The step sizes of the released code."""
    x = torch.linspace(0, 1, steps, dtype=F64)
    if kind == "normal":
        w = torch.exp(-0.5 * (6 * x - 3) ** 2)
    else:
        w = (x if kind == "increased" else 1 - x) ** power
    return w / w.sum()


CASES = [("increased", 2.0), ("decreased", 0.5), ("decreased", 1.0), ("normal", None)]


@pytest.mark.parametrize(("kind", "power"), CASES)
def test_powers_and_the_normal_density_are_sums_of_sizes(kind, power):
    steps = 50
    expected = sizes(kind, power, steps).cumsum(0)
    schedule = Ramps(residual=kind, noise=kind, residual_power=power, noise_power=power, variance=0.3, steps=steps)
    levels = Residual(schedule=schedule).at(torch.arange(1, steps + 1, dtype=F64) / steps)
    torch.testing.assert_close(levels.source, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(levels.noise**2, 0.3 * expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "power"), CASES)
def test_without_steps_they_are_the_limit_of_many(kind, power):
    def at(steps):
        options = {"residual_power": power, "noise_power": power, "steps": steps}
        return Residual(schedule=Ramps(residual=kind, noise=kind, **options)).at(torch.linspace(0.1, 1, 10, dtype=F64))

    limit = at(None)
    errors = [float((at(n).source - limit.source).abs().max()) for n in (100, 200, 400)]
    assert errors[0] < 0.03 and errors[1] < 0.55 * errors[0] and errors[2] < 0.55 * errors[1]
    torch.testing.assert_close(limit.noise**2, limit.source, rtol=1e-12, atol=1e-14)


def test_a_power_of_one_is_not_the_linear_default_but_has_its_limit():
    t = torch.linspace(0, 1, 11, dtype=F64)
    powers = {"residual_power": 1.0, "noise_power": 1.0}
    torch.testing.assert_close(Ramps(**powers).alpha(t), Ramps().alpha(t), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(Ramps(**powers).sigma(t), Ramps().sigma(t), rtol=1e-12, atol=1e-15)
    assert Residual(schedule=Ramps(steps=10)).at(0.1).noise > 0.0
    assert Residual(schedule=Ramps(steps=10, noise_power=1.0)).at(0.1).noise == 0.0  # the first size is 0


@pytest.mark.parametrize(
    "schedule",
    [
        Ramps(residual_power=2.0, noise_power=0.5),
        Ramps(residual="increased", residual_power=1.5, noise="decreased", noise_power=3.0, steps=20),
        Ramps(residual="normal", noise="normal", variance=0.01),
        Ramps(residual="normal", noise="normal", steps=30),
        Clocks.residual_first(Ramps(variance=0.01)),
        Clocks.noise_first(Cosine()),
        Clocks(base=Discrete.ddpm(), residual=(0.0, 0.2, 0.2, 1.0), noise=(0.0, 0.0, 0.7, 1.0)),
    ],
    ids=lambda s: repr(s)[:60],
)
def test_derivatives_ends_and_configuration(schedule):
    t = torch.linspace(0.0123, 0.9877, 44, dtype=F64).requires_grad_()
    for curve, slope in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        (automatic,) = torch.autograd.grad(curve(t).sum() + 0.0 * t.sum(), t)
        automatic = torch.where(slope(t) == 0.0, 0.0, automatic)  # sqrt at 0, which autograd can't
        torch.testing.assert_close(slope(t), automatic, rtol=1e-8, atol=1e-10)
    half = schedule.sigma(t) * schedule.d_sigma(t)
    torch.testing.assert_close(schedule.sigma_d_sigma(t), half, rtol=1e-10, atol=1e-14)
    start, end = (Residual(schedule=schedule).at(x) for x in (0.0, 1.0))
    assert (start.data, start.source, start.noise) == (1.0, 0.0, 0.0) and end.noise > 0.0
    assert from_config(json.loads(json.dumps(to_config(schedule)))) == schedule


# Clocks


def test_clocks_visit_the_listed_pairs():
    base, a, b = Ramps(variance=0.5), (0.0, 0.3, 0.3, 0.9, 1.0), (0.0, 0.0, 0.6, 0.8, 1.0)
    levels = Residual(schedule=Clocks(base=base, residual=a, noise=b)).levels(torch.linspace(0, 1, 5, dtype=F64))
    straight = Residual(schedule=base)
    for level, first, second in zip(levels, a, b, strict=True):
        assert level.source == pytest.approx(straight.at(first).source, rel=1e-14)
        assert level.noise == pytest.approx(straight.at(second).noise, rel=1e-14)


def test_one_thing_first():
    process = Residual(schedule=Clocks.residual_first(Ramps(variance=0.25)))
    middle, late = process.at(0.5), process.at(0.75)
    assert (middle.data, middle.source, middle.noise) == (1.0, 0.0, 0.5)
    assert late.noise == 0.5 and late.source == Residual().at(0.5).source
    middle = Residual(schedule=Clocks.noise_first(Ramps())).at(0.5)
    assert (middle.data, middle.source, middle.noise) == (0.0, 1.0, 0.0)


class Truth:
    """Heads that know the pair: the residual and the noise that were drawn."""

    kinds, shape = {}, (3,)

    def __init__(self, process, residual, noise):
        self.process, self.residual, self.noise = process, residual, noise

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"residual": self.residual, "noise": self.noise}, source=cond.source)


ORDERS = {
    "together": Ramps(variance=0.01),
    "residual first": Clocks.residual_first(Ramps(variance=0.01)),
    "noise first": Clocks.noise_first(Ramps(variance=0.01)),
    "by turns": Clocks(base=Ramps(variance=0.01), residual=(0.0, 0.5, 0.5, 1.0), noise=(0.0, 0.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_true_heads_recover_the_sample_in_any_order(order, steps):
    process, x0, y, z = Residual(schedule=ORDERS[order]), *(rand(4, 3, seed=i) for i in range(3))
    start = process.forward(x0, 1.0, source=y, noise=z).x_t
    out = sample(Truth(process, y - x0, z), solver=DDIM(), initial=start, cond=told(y), steps=steps)
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-12)


def test_a_step_moves_each_clock_by_its_own_amount():
    """x <- x - (A_t - A_s) r - (B_t - B_s) eps, for heads that agree with nothing."""
    process, x, y, r, e = Residual(schedule=ORDERS["by turns"]), *(rand(2, 3, seed=i) for i in range(4))
    t, s = process.at(0.9), process.at(0.55)
    out = sample(Truth(process, r, e), solver=DDIM(), initial=x, cond=told(y), grid=[0.9, 0.55])
    expected = x - (t.source - s.source) * r - (t.noise - s.noise) * e
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Clocks(residual=(0.0, 0.5), noise=(0.0, 1.0)), "from 0 to 1"),
        (lambda: Clocks(residual=(0.0, 0.6, 0.5, 1.0), noise=(0.0, 0.1, 0.2, 1.0)), "never fall"),
        (lambda: Clocks(residual=(0.0, 0.5, 1.0), noise=(0.0, 1.0)), "make pairs"),
        (lambda: Clocks().time(torch.zeros(1)), "no inverse"),
        (lambda: Ramps(residual="average", residual_power=2.0), "belongs to"),
        (lambda: Ramps(noise_power=-1.0), "power > 0"),
        (lambda: Ramps(noise="normal", steps=1), "2 for powers"),
        (lambda: Residual.from_ddim("ddim"), "alphas_cumprod"),
        (
            lambda: Retimed(oracles.paired(Residual(), torch.zeros(2, 1), torch.eye(2)), Residual()),
            "from data to noise",
        ),
    ],
)
def test_refusals(make, match):
    with pytest.raises((BadValue, BadType, Incompatible), match=match):
        make()


# A model without an endpoint on a path with one


@pytest.mark.parametrize("outer", [Residual(), Residual(schedule=Cosine()), Bridge(variance=0.7)], ids=repr)
def test_an_exact_denoiser_serves_a_path_to_an_endpoint(outer):
    """x0 independent of y: the oracle of pairs is that of the data, at the state less the endpoint's share."""
    mean, var = torch.tensor([0.4, -0.2], dtype=F64), 0.3
    inner = oracles.gaussian(Gaussian(Cosine()), mean, std=math.sqrt(var))
    both = torch.block_diag(var * torch.eye(2, dtype=F64), torch.eye(2, dtype=F64))
    truth = oracles.paired(outer, torch.stack([mean, torch.zeros(2, dtype=F64)]), both)
    y = rand(5, 2, seed=3)
    x_t = outer.forward(rand(5, 2), 0.6, source=y, rng=0).x_t
    for t in (0.6, torch.tensor([0.2, 0.4, 0.6, 0.7, 0.9], dtype=F64)):
        said, true = Retimed(inner, outer)(x_t, t, told(y)), truth(x_t, t, told(y))
        for kind in ("x0", "noise", "residual", "velocity"):
            torch.testing.assert_close(said.to(kind), true.to(kind), rtol=1e-8, atol=1e-8)
    with pytest.raises(BadValue, match="endpoint"):
        Retimed(inner, outer)(x_t, 0.6)


def test_the_inner_network_sees_the_endpoint_where_it_was_built_for_it():
    shape, y = (1, 4, 4), rand(2, 1, 4, 4, seed=1).float()
    net = DiT(shape=shape, width=32, depth=1, heads=2, conditions={"degraded": Map(1)})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    inner, outer = Denoiser(net, Gaussian(Cosine()), "noise", shape=shape), Residual(schedule=Cosine())
    x = rand(2, 1, 4, 4).float()
    said = Retimed(inner, outer)(x, 0.5, told(y))
    level = outer.at(0.5)
    alone = inner(x - level.source * y, 0.5, {"degraded": y})
    torch.testing.assert_close(said.noise, alone.noise, rtol=1e-4, atol=1e-5)
    blind = Denoiser(MLP(shape=(3,), width=32), Gaussian(Cosine()), "noise")
    assert Retimed(blind, outer)(rand(2, 3).float(), 0.5, told(rand(2, 3).float())).x0.shape == (2, 3)
