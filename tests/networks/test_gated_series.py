"""State spaces by FFT against their recurrence; the network of series that stands on them."""

import pytest
import torch

from condiff.conditions import Condition, Conditions, Map
from condiff.errors import BadValue
from condiff.networks import GatedSeries, StateSpace


def recurrence(layer, u):
    """``h_k = a h_(k-1) + b u_k, y_k = 2 Re(c h_k)`` step by step, forwards and from the end, and the direct path."""
    log_a, cb = layer.discrete()
    out = layer.d * u
    for direction, weights in enumerate(cb):
        v = u.flip(1) if direction else u
        state = torch.zeros(len(u), *log_a.shape, dtype=log_a.dtype)
        said = []
        for k in range(v.shape[1]):
            state = log_a.exp() * state + v[:, k, :, None]
            said.append(2.0 * (weights * state).sum(-1).real)
        y = torch.stack(said, 1)
        out = out + (y.flip(1) if direction else y)
    return out


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_the_convolution_is_the_recurrence(length, bidirectional):
    torch.manual_seed(0)
    layer = StateSpace(6, states=8, bidirectional=bidirectional)
    u = torch.randn(3, length, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(u), recurrence(layer, u), rtol=1e-4, atol=1e-4)


def test_the_input_is_held_over_a_step():
    """One state against the solution of ``h' = A h + u`` with u constant: ``h(t) = (exp(A t) - 1) / A``."""
    torch.manual_seed(0)
    layer = StateSpace(1, states=2, bidirectional=False)
    with torch.no_grad():
        layer.d.zero_()
        y = layer(torch.ones(1, 40, 1))[0, :, 0]
        A = torch.complex(-layer.log_decay.exp(), layer.frequency)[0, 0]
        t = layer.log_dt.exp() * torch.arange(1, 41)
        want = 2.0 * (torch.view_as_complex(layer.c)[0, 0, 0] * (torch.exp(A * t) - 1.0) / A).real
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


def test_one_direction_is_causal_and_two_see_all():
    torch.manual_seed(0)
    u = torch.randn(1, 30, 4)
    changed = u.clone()
    changed[:, 20] += 1.0
    with torch.no_grad():
        one, two = StateSpace(4, 8, bidirectional=False), StateSpace(4, 8)
        moved = (one(changed) - one(u)).abs().amax(-1)[0]
        assert moved[:20].max() < 1e-5 and (moved[20:] > 1e-4).all()
        assert ((two(changed) - two(u)).abs().amax(-1)[0] > 1e-4).all()


def test_other_lengths_and_conditions_along_the_series():
    net = GatedSeries(shape=(12, 2), width=16, depth=2, states=8, conditions={"features": Map(3)})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    t = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        for length in (5, 12, 20):
            x, features = torch.randn(2, length, 2), torch.randn(2, length, 3)
            out = net(x, t, {"features": features})
            assert out.shape == x.shape
            assert (net(x, t) - out).abs().max() > 1e-3
            dropped = Conditions({"features": Condition(features, "map", keep=torch.tensor([False, True]))})
            mixed = net(x, t, dropped)
            torch.testing.assert_close(mixed[0], net(x, t)[0])
            torch.testing.assert_close(mixed[1], out[1])


def test_the_network_is_its_equation():
    torch.manual_seed(0)
    net = GatedSeries(shape=(7, 2), width=8, depth=2, states=4, conditions={"features": Map(3)}, residual=True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, t, features = torch.randn(3, 7, 2), torch.rand(3), torch.randn(3, 7, 3)
    with torch.no_grad():
        told = torch.nn.functional.silu(net.time(t))[:, None]
        maps = torch.cat(
            net.bank(Conditions({"features": Condition(features, "map")}), x.mT, lambda v: v.mT).maps, 1
        ).mT
        h, skips = torch.relu(net.input(x)), 0.0
        for block in net.stack:
            u = h + block.told(told)
            u = u + block.mix(torch.nn.functional.gelu(block.mixer(block.norm(u)))) + block.maps(maps)
            gate = torch.tanh(u) * torch.sigmoid(u)
            skips = skips + block.skip(gate)
            h = h if block.on is None else h + block.on(gate)
        want = net.output(torch.relu(net.last(skips))) + x
        torch.testing.assert_close(net(x, t, {"features": features}), want)
    assert [block.on is None for block in net.stack] == [False, True]


def test_the_input_joins_the_output_when_asked():
    torch.manual_seed(0)
    x, t = torch.randn(2, 6, 3), torch.rand(2)
    plain = GatedSeries(shape=(6, 3), width=8, depth=1, states=4, outputs=2)
    with torch.no_grad():
        assert plain(x, t).abs().max() == 0.0  # nothing is said before training
        added = GatedSeries(shape=(6, 3), width=8, depth=1, states=4, outputs=2, residual=True)(x, t)
    assert torch.equal(added, torch.cat([x, x], dim=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StateSpace(4, states=3), "conjugate pairs"),
        (lambda: StateSpace(4, steps=(0.1, 0.01)), "smallest, largest"),
        (lambda: GatedSeries(shape=(6, 3), depth=0), "at least 1"),
        (lambda: GatedSeries(shape=(3, 6, 6)), "axes"),
        (lambda: GatedSeries(shape=(6, 3))(torch.zeros(2, 6, 3), torch.zeros(2, 4)), "times of series"),
        (lambda: GatedSeries(shape=(6, 3))(torch.zeros(2, 6, 4), torch.zeros(2)), "series samples"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(BadValue, match=message):
        make()
