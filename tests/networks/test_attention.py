"""Attention, positions and layouts, against their definitions."""

import math

import pytest
import torch
from nets import inputs, make, stir
from torch.func import jvp, vmap

from condiff.conditions import Condition, Conditions, Tokens
from condiff.errors import BadValue
from condiff.networks import Attention, DiT, TimeEmbedding, layout_of, set_attention, use_attention
from condiff.networks.embedding import grid_positions, rotary, rotate, sincos
from condiff.networks.layout import patchify, unpatchify
from condiff.networks.unet_blocks import Downsample, Upsample

ATTENTIVE = ["dit-image", "dit-volume", "dit-video", "dit-cross", "dit-joint", "unet-image"]


def brute(attn, x, allowed):
    """One head, one query at a time."""
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    out = torch.zeros_like(x)
    d = x.shape[-1] // attn.heads
    for b in range(x.shape[0]):
        for h in range(attn.heads):
            part = slice(h * d, (h + 1) * d)
            for n in range(x.shape[1]):
                keys = [m for m in range(x.shape[1]) if allowed(b, n, m)]
                scores = torch.stack([q[b, n, part] @ k[b, m, part] / math.sqrt(d) for m in keys])
                weights = scores.softmax(0)
                out[b, n, part] = sum(w * v[b, m, part] for w, m in zip(weights, keys, strict=True))
    return attn.out(out)


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_attention_is_its_definition(backend):
    attn = stir(Attention(8, 2, backend=backend), 0.5).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    keys = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]).bool()
    torch.testing.assert_close(attn(x), brute(attn, x, lambda b, n, m: True))
    torch.testing.assert_close(attn(x, causal=True), brute(attn, x, lambda b, n, m: m <= n))
    torch.testing.assert_close(attn(x, mask=keys), brute(attn, x, lambda b, n, m: bool(keys[b, m])))
    both = attn(x, mask=keys, causal=True)
    torch.testing.assert_close(both, brute(attn, x, lambda b, n, m: m <= n and bool(keys[b, m])))


def test_a_query_that_sees_nothing_gets_nothing():
    x = torch.randn(1, 3, 8)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    for backend in ("sdpa", "plain"):
        attn = stir(Attention(8, 2, backend=backend))
        torch.testing.assert_close(attn(x, mask=nothing), attn.out.bias.expand(1, 3, 8))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_plain_equals_sdpa(name):
    net = make(name)
    args = inputs(net)
    fused = net(*args)
    with use_attention(net, "plain"):
        torch.testing.assert_close(net(*args), fused, rtol=1e-5, atol=1e-5)
    assert all(m.backend == "sdpa" for m in net.modules() if isinstance(m, Attention))


@pytest.mark.parametrize("name", ATTENTIVE)
def test_plain_has_every_derivative(name):
    net = make(name).double()
    set_attention(net, "plain")
    x, t, cond = inputs(net, dtype=torch.float64)
    v, eps = torch.randn_like(x), 1e-6

    def f(state):
        return net(state, t, cond)

    _, forward = jvp(f, (x,), (v,))
    torch.testing.assert_close(forward, (f(x + eps * v) - f(x - eps * v)) / (2 * eps), rtol=1e-5, atol=1e-6)

    x.requires_grad_()
    (grad,) = torch.autograd.grad((f(x) * v).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)

    def gradient(state):
        state = state.detach().requires_grad_()
        return torch.autograd.grad((f(state) * v).sum(), state)[0]

    step = eps * v
    slope = (gradient(x + step).square().sum() - gradient(x - step).square().sum()) / (2 * eps)
    torch.testing.assert_close((second * v).sum(), slope, rtol=1e-4, atol=1e-6)

    many = torch.randn(2, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(vmap(f)(many), torch.stack([f(m) for m in many]))


def test_derivative_in_time():
    net = make("dit-image", attention="plain")
    x, t, cond = inputs(net)
    net.double()
    x, t = x.double(), t.double()
    _, forward = jvp(lambda s: net(x, s, cond), (t,), (torch.ones_like(t),))
    # times are told in float32: a secant over a wide step of one cosine wave
    eps = 1e-3
    with torch.no_grad():
        embedded = net.time.freqs
        assert embedded.max() * eps < 1.001
    assert torch.isfinite(forward).all() and forward.abs().max() > 0


def test_without_positions_tokens_may_be_permuted():
    net = stir(DiT(shape=(8, 3), width=16, depth=2, heads=2, patch=1, positions="none")).double()
    x, t = torch.randn(2, 8, 3, dtype=torch.float64), torch.rand(2)
    order = torch.randperm(8)
    torch.testing.assert_close(net(x[:, order], t), net(x, t)[:, order], rtol=1e-10, atol=1e-10)
    with_positions = stir(DiT(shape=(8, 3), width=16, depth=2, heads=2, patch=1)).double()
    assert not torch.allclose(with_positions(x[:, order], t), with_positions(x, t)[:, order])


def test_rotary_scores_depend_on_differences_only():
    q, k = torch.randn(6, 2, 12).double(), torch.randn(6, 2, 12).double()
    at = grid_positions((2, 3)) * 1.5

    def scores(shift):
        factors = rotary(at + shift, 12).double()
        return torch.einsum("nhd,mhd->hnm", rotate(q, factors), rotate(k, factors))

    torch.testing.assert_close(scores(0.0), scores(torch.tensor([3.0, -1.25])), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores(0.0), torch.einsum("nhd,mhd->hnm", q, k))


def test_rotary_network_is_shift_invariant_in_its_coordinates():
    net = make("dit-volume").double()
    x, t, cond = inputs(net, dtype=torch.float64)
    at = grid_positions(net.grid_of((2, 4, 4)))
    base = net(x, t, cond)
    torch.testing.assert_close(net(x, t, cond, positions=at), base)
    torch.testing.assert_close(net(x, t, cond, positions=at + 2.5), base, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(net(x, t, cond, positions=at * 2.0), base, rtol=1e-4)


def test_sincos_is_the_formula():
    table = sincos(torch.tensor([[2.5]]), 4, period=100.0)
    wanted = [math.sin(2.5), math.sin(2.5 / 10), math.cos(2.5), math.cos(2.5 / 10)]
    torch.testing.assert_close(table[0], torch.tensor(wanted))
    assert sincos(grid_positions((2, 3, 4)), 96).unique(dim=0).shape == (24, 96)
    with pytest.raises(BadValue, match="3 axes"):
        sincos(grid_positions((2, 2, 2)), 4)


def test_time_embedding_takes_any_shape():
    emb = TimeEmbedding(8)
    t = torch.rand(3, 5)
    torch.testing.assert_close(emb(t)[1, 2], emb(t[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"), [("series", (8, 3)), ("signal", (3, 8)), ("image", (3, 4, 6)), ("video", (2, 3, 4, 6))]
)
def test_layouts_and_patches_round_trip(name, shape):
    layout = layout_of(shape, name)
    x = torch.randn(2, *shape)
    first = layout.channel_first(x)
    assert first.shape[1] == layout.channels == 3 and first.shape[2:] == layout.spatial
    assert torch.equal(layout.restore(first), x)
    patch = (1,) * (first.ndim - 3) + (2,)
    tokens = patchify(first, patch)
    grid = [n // p for n, p in zip(layout.spatial, patch, strict=True)]
    assert tokens.shape == (2, math.prod(grid), 3 * math.prod(patch))
    assert torch.equal(tokens[:, 1].unflatten(1, (3, -1))[..., 0], first.flatten(2)[:, :, 2])
    assert torch.equal(unpatchify(tokens, grid, patch), first)


def test_absent_tokens_are_not_attended_to():
    for tokens in ("cross", "joint"):
        net = stir(DiT(shape=(1, 4, 4), width=16, depth=2, heads=2, tokens=tokens, conditions={"text": Tokens(5)}))
        x, t = torch.randn(2, 1, 4, 4), torch.rand(2)
        mask = torch.tensor([[True, True, False], [True, False, False]])
        text = torch.randn(2, 3, 5)
        other = torch.where(mask[..., None], text, torch.randn(2, 3, 5))
        a = net(x, t, {"text": Condition(text, "tokens", mask=mask)})
        b = net(x, t, {"text": Condition(other, "tokens", mask=mask)})
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        short = net(x[1:], t[1:], {"text": text[1:, :1]})
        torch.testing.assert_close(a[1:], short, rtol=1e-4, atol=1e-5)


def test_joint_blocks_keep_a_given_mask():
    net = make("dit-joint").double()
    x, t, cond = inputs(net, dtype=torch.float64)
    own = torch.eye(4, dtype=torch.bool)
    base = net(x, t, cond, mask=own)
    changed = x.clone()
    changed[..., 2:, 2:] += 1.0
    cond_free = Conditions({"label": cond["label"]})
    base, moved = (net(state, t, cond_free, mask=own) for state in (x, changed))
    # condition tokens see every sample token, so only the first block keeps patches apart
    assert base.shape == moved.shape
    one = stir(DiT(shape=(1, 4, 4), width=16, depth=1, heads=2, tokens="joint", conditions={"text": Tokens(5)}))
    one.double()
    base, moved = (one(state, t, None, mask=own) for state in (x, changed))
    torch.testing.assert_close(base[..., :2, :2], moved[..., :2, :2])
    assert not torch.allclose(base[..., 2:, 2:], moved[..., 2:, 2:])


@pytest.mark.parametrize("stride", [(1,), (2,), (3,), (4,), (1, 2), (2, 1, 3)])
def test_upsampling_is_nearest_neighbours_and_a_convolution(stride):
    up = Upsample(2, stride).double()
    x = torch.randn(2, 2, *(3,) * len(stride), dtype=torch.float64)
    size = [3 * s for s in stride]
    wanted = up.conv(torch.nn.functional.interpolate(x, size=size, mode="nearest"))
    torch.testing.assert_close(up(x, size), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_down_and_up_come_back_to_any_size(stride):
    for n in range(1, 14):
        low = Downsample(2, (stride,), stores=True)(torch.randn(1, 2, n))
        assert low.shape[2] == -(-n // stride)
        assert Upsample(2, (stride,))(low, (n,)).shape[2] == n
