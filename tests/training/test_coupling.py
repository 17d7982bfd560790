"""Couplings: permutations, the best of all of them by brute force, and what an objective does with them."""

import itertools

import pytest
import torch

from condiff.conditions import Condition
from condiff.config import from_config, to_config
from condiff.errors import BadValue
from condiff.process import Gaussian, Interpolant, Prediction, Rectified
from condiff.random import as_source
from condiff.training import Denoising, Independent, OptimalTransport


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cost(x, y, order):
    return float((x - y[torch.as_tensor(order)]).square().sum())


def test_optimal_transport_is_the_best_of_all_permutations():
    for seed in range(5):
        x, y = rand(6, 2, 3, seed=seed), 2.0 * rand(6, 2, 3, seed=seed + 50)
        best = min(cost(x, y, order) for order in itertools.permutations(range(6)))
        assert cost(x, y, OptimalTransport()(x, y, as_source(0))) == pytest.approx(best, rel=1e-6)


def test_in_one_dimension_it_sorts():
    x, y = rand(50, 1), rand(50, 1, seed=1)
    order = OptimalTransport()(x, y, as_source(0))
    assert torch.equal(y[order][x[:, 0].argsort()], y.sort(0).values)


def test_independent_is_a_random_permutation_of_its_seed():
    x = rand(100, 2)
    one, same, other = (Independent()(x, x, as_source(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(one.sort().values, torch.arange(100)) and int((one == torch.arange(100)).sum()) < 10


class Spy:
    shape, kinds = (2,), {"y": "endpoint"}

    def __init__(self, process):
        self.process, self.calls = process, []

    def __call__(self, x, t, cond=None):
        self.calls.append((x, None if cond is None else cond.source))
        return Prediction(
            x, self.process.at(t), {"velocity": torch.zeros_like(x)}, None if cond is None else cond.source
        )


@pytest.mark.parametrize("coupling", [OptimalTransport(), Independent()])
def test_an_objective_moves_the_endpoints_and_nothing_else(coupling):
    x, y, label = rand(8, 2), rand(8, 2, seed=1), torch.arange(8)
    spy, batch = Spy(Interpolant("linear", "zero")), {"x": x, "cond": {"y": Condition(y, "endpoint"), "label": label}}
    Denoising(coupling=coupling)(spy, batch, rng=3)
    ((_, source),) = spy.calls
    assert not torch.equal(source, y) and {tuple(r) for r in source.tolist()} == {tuple(r) for r in y.tolist()}
    if isinstance(coupling, OptimalTransport):
        assert torch.equal(source, y[coupling(x, y, as_source(0))])


def test_without_an_endpoint_the_noise_is_coupled():
    """Times are drawn before and noise as ever: x_t holds the noise in the order of the transport."""
    process, x = Gaussian(Rectified()), rand(8, 2)
    spy = Spy(process)
    Denoising(coupling=OptimalTransport())(spy, {"x": x}, rng=3)
    rng = as_source(3)
    t = rng.uniform((8,))
    noise = rng.normal((8, 2))
    moved = noise[OptimalTransport()(x, noise, rng)]
    torch.testing.assert_close(spy.calls[0][0], process.forward(x, t, noise=moved).x_t)
    assert cost(x, moved, range(8)) < cost(x, noise, range(8))


def test_a_batch_without_endpoints_is_refused():
    with pytest.raises(BadValue, match="a coupling needs an endpoint of shape"):
        Denoising(coupling=OptimalTransport())(Spy(Interpolant("linear", "zero")), {"x": rand(8, 2)}, rng=3)


def test_couplings_are_configurations():
    objective = Denoising(coupling=OptimalTransport(), loss="inner")
    assert from_config(to_config(objective)) == objective
