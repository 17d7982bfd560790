"""Module surgery: what is replaced, that it comes back, and what can't be replaced is told."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from condiff.errors import BadType, BadValue
from condiff.networks import Swap, operations, soften


class Block(nn.Module):
    """One ReLU used twice, as in a bottleneck."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.twin = self.relu  # registered under a second name

    def forward(self, x):
        return self.relu(self.b(self.relu(self.a(x))))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.out = Block(), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(functional.relu(self.block(x)))


@pytest.mark.parametrize("beta", [1.0, 3.0, 5.0, 100.0])
def test_softplus_is_within_log2_over_beta_of_the_relu(beta):
    net = nn.Sequential(nn.ReLU())
    z = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    exact = net(z)
    with soften(net, beta):
        gap = (net(z) - exact).abs()
    assert float(gap.max()) == pytest.approx(math.log(2.0) / beta, abs=1e-9)
    assert int(gap.argmax()) == 3000  # at z = 0


def test_every_use_is_replaced_and_comes_back_bit_for_bit():
    net, x = nn.Sequential(Block(), nn.ReLU(), Block()).eval(), torch.randn(3, 4)
    before, modules = net(x), list(net.modules())
    swap = soften(net, 3.0, x)
    assert set(swap.names) == {"0.relu", "0.twin", "1", "2.relu", "2.twin"}
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    assert net[0].relu is net[0].twin and operations(net, x)["softplus"] == 5
    assert not torch.equal(net(x), before) and not net[0].relu.training
    swap.undo()
    swap.undo()
    assert torch.equal(net(x), before) and all(a is b for a, b in zip(net.modules(), modules, strict=True))


def test_it_is_undone_after_an_error():
    net = Block()
    with pytest.raises(RuntimeError, match="stop"), Swap(net, nn.ReLU, lambda old: nn.GELU()):
        assert isinstance(net.relu, nn.GELU)
        raise RuntimeError("stop")
    assert isinstance(net.relu, nn.ReLU)


def test_a_relu_that_is_called_as_a_function_is_told():
    with pytest.warns(UserWarning, match="as a function 1 times"):
        soften(Functional(), 3.0, torch.randn(2, 4))


def test_refusals():
    for beta in (0.0, -1.0, math.nan, True):
        with pytest.raises(BadValue, match="beta > 0"):
            soften(Block(), beta)
    with pytest.raises(BadValue, match="no ReLU"):
        soften(nn.Sequential(nn.Linear(2, 2)), 3.0)
    with pytest.raises(BadType, match="must be a module"):
        Swap(Block(), nn.ReLU, lambda old: "gelu")
    net = Block()
    assert soften(net, math.inf) is None and isinstance(net.relu, nn.ReLU)
