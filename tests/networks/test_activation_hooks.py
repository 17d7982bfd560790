"""Activations are read and replaced by name, and everything is undone."""

import pytest
import torch
from nets import inputs, make

from condiff.errors import BadType, BadValue
from condiff.networks import features, read, replace, use_attention


@pytest.fixture
def net():
    return make("dit-image")


def test_reading_changes_nothing_and_gives_what_the_walk_gives(net):
    args = inputs(net)
    plain = net(*args)
    with read(net, "stack.0", "stack.1.attn") as store:
        assert torch.equal(net(*args), plain)
    first = next(hidden.x for name, hidden in net.blocks(*args))
    assert torch.equal(store["stack.0"], first)
    assert store["stack.1.attn"].shape == first.shape
    assert not any(m._forward_hooks for m in net.modules())


def test_every_call_can_be_kept(net):
    args = inputs(net)
    with read(net, "stack.0", every=True, detach=True) as store:
        net(*args)
        net(args[0] + 1.0, *args[1:])
    one, two = store["stack.0"]
    assert not torch.equal(one, two) and not one.requires_grad


def test_replacing_acts_and_is_undone_even_after_an_error(net):
    args = inputs(net)
    plain = net(*args)
    with replace(net, {"stack.1": lambda h: h}):
        assert torch.equal(net(*args), plain)
    with replace(net, {"stack.0": lambda h: 1.5 * h}):
        edited = net(*args)
    hidden = net.begin(*args)
    for i, (_, layer) in enumerate(net.layers()):
        net.step(layer, hidden)
        hidden.x = 1.5 * hidden.x if i == 0 else hidden.x
    torch.testing.assert_close(edited, net.head(hidden))
    with pytest.raises(RuntimeError, match="mine"), replace(net, {"stack.0": lambda h: 2.0 * h}):
        raise RuntimeError("mine")
    assert torch.equal(net(*args), plain)


def test_edits_nest_and_reach_gradients(net):
    x, t, cond = inputs(net)
    x.requires_grad_()
    with replace(net, {"stack.0": lambda h: h + 1.0}), replace(net, {"stack.0": lambda h: 2.0 * h}):
        twice = net(x, t, cond)
    with replace(net, {"stack.0": lambda h: 2.0 * (h + 1.0)}):
        torch.testing.assert_close(net(x, t, cond), twice)
    assert torch.autograd.grad(twice.sum(), x)[0].abs().sum() > 0


def test_attention_weights_are_activations_too(net):
    args = inputs(net)
    with use_attention(net, "plain"):
        with read(net, "stack.0.attn.weights") as store:
            net(*args)
        weights = store["stack.0.attn.weights"]
        assert weights.shape == (3, 2, 6, 6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6))
        own = torch.eye(6).expand(3, 2, 6, 6)
        with replace(net, {f"stack.{i}.attn.weights": lambda w: own for i in range(2)}):
            alone = net(*args)
    mask = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(alone, net(*args, mask=mask))


def test_features(net):
    args = inputs(net)
    out, found = features(net, ["stack.0", "stack.1"], *args)
    assert torch.equal(out, net(*args)) and set(found) == {"stack.0", "stack.1"}


def test_joint_layers_give_pairs():
    net = make("dit-joint")
    args = inputs(net)
    plain = net(*args)
    with replace(net, {"stack.0": lambda pair: (pair[0] + 1.0, pair[1])}):
        assert not torch.equal(net(*args), plain)
    with pytest.raises(BadType, match="gives 2 tensors"), replace(net, {"stack.0": lambda pair: pair[0]}):
        net(*args)


def test_refusals(net):
    args = inputs(net)
    with pytest.raises(BadValue, match="Did you mean 'stack\\.1\\.attn'"), read(net, "stack.1.atn"):
        pass
    with pytest.raises(BadValue, match="unknown module"), replace(net, {"blocks": lambda h: h}):
        pass
    with pytest.raises(BadType, match="function"), replace(net, {"stack.0": 2.0}):
        pass
    with pytest.raises(BadValue, match="its edit returned"), replace(net, {"stack.0": lambda h: h[:, :1]}):
        net(*args)
    with pytest.raises(BadType, match="must return a tensor"), replace(net, {"stack.0": lambda h: None}):
        net(*args)
    with read(net, "stack.0.attn.weights") as store:
        net(*args)
    with pytest.raises(BadValue, match="has given nothing"):
        store["stack.0.attn.weights"]
    assert not any(m._forward_hooks for m in net.modules())
