"""Averages: closed forms, swapping, several at once."""

import pytest
import torch
from torch import nn

from condiff.errors import BadType, BadValue
from condiff.training import EMA, Exponential, PowerFunction


def walk(model, ema, steps):
    """Weights that are the step's number; returns nothing, the averages are in ``ema``."""
    for k in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(float(k))
        ema.update(k)


def layer(**kwargs):
    model = nn.Linear(2, 2, bias=False, **kwargs)
    nn.init.zeros_(model.weight)
    return model


def test_exponential_has_its_closed_form():
    """Starting at 0, with weights k at step k: sum_k (1 - d) d^(n - k) k = n - d (1 - d^n) / (1 - d)."""
    model, d, n = layer(), 0.9, 40
    ema = EMA(model, (Exponential(d, warm_up=False),))
    walk(model, ema, n)
    want = n - d * (1 - d**n) / (1 - d)
    torch.testing.assert_close(ema.tensors("0.9")["weight"], torch.full((2, 2), want), rtol=1e-6, atol=0.0)


def test_warm_up_forgets_the_start():
    average = Exponential(0.999)
    assert [average.keep(k) for k in (1, 2, 10)] == [2 / 11, 3 / 12, 11 / 20]
    assert average.keep(10**6) == 0.999


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2])
def test_power_function_has_its_width(width):
    """The profile over training time t is proportional to t^gamma, of relative standard deviation ``width``."""
    n, average = 4000, PowerFunction(width)
    weight = torch.zeros(n, dtype=torch.float64)
    for k in range(1, n + 1):
        weight[:k] *= average.keep(k)
        weight[k - 1] += 1.0 - average.keep(k)
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-12)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mean = (weight * t).sum()
    assert ((weight * (t - mean) ** 2).sum().sqrt()).item() == pytest.approx(width, rel=0.01)


def test_several_at_once_do_not_disturb_each_other():
    together, alone = layer(), layer()
    many, one = EMA(together, (0.9, 0.5, PowerFunction(0.1))), EMA(alone, (0.5,))
    walk(together, many, 9), walk(alone, one, 9)
    assert torch.equal(many.tensors("0.5")["weight"], one.tensors("0.5")["weight"])
    assert list(many.averages) == ["0.9", "0.5", "power-0.1"]


def test_half_precision_weights_have_float32_averages():
    model = layer(dtype=torch.bfloat16)
    ema = EMA(model, (Exponential(0.999, warm_up=False),))
    walk(model, ema, 3)
    got = ema.tensors("0.999")["weight"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full((2, 2), 0.001 * (0.999**2 + 2 * 0.999 + 3)), rtol=1e-5, atol=0.0)


def test_swap_gives_the_weights_back_bit_for_bit():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(model, (0.9,))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ema.update(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), ema.swap():
        assert torch.equal(model[0].weight, ema.tensors("0.9")["0.weight"])
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_buffers_are_copied_and_frozen_weights_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    ema = EMA(model, (0.9,))
    model(torch.randn(8, 3))
    assert torch.equal(ema.tensors("0.9")["1.running_mean"], model[1].running_mean)
    assert ema.tensors("0.9").keys() == model.state_dict().keys()


def test_states_round_trip():
    model = layer()
    ema, other = EMA(model, (0.9,)), EMA(layer(), (0.9,))
    walk(model, ema, 5)
    other.load("0.9", ema.tensors("0.9"))
    assert torch.equal(other.tensors("0.9")["weight"], ema.tensors("0.9")["weight"])


def test_bad_averages_are_refused():
    with pytest.raises(BadValue, match=r"\[0, 1\)"):
        Exponential(1.0)
    with pytest.raises(BadValue, match="width"):
        PowerFunction(0.3)
    with pytest.raises(BadValue, match="must differ"):
        EMA(layer(), (0.9, 0.9))
    with pytest.raises(BadType, match="an average is a decay"):
        EMA(layer(), ("0.9",))
    with pytest.raises(BadValue, match="unknown average"):
        EMA(layer(), (0.9,)).tensors("0.99")
