"""Paired rows in wrapped pipelines: joint attention in diffusers' own blocks."""

import copy

import pytest
import tiny
import tiny_video
import torch
from pairable import PIPELINES, read, stir, told_of

from condiff.conditions import cat
from condiff.errors import Incompatible
from condiff.interop import add_lora, wrap
from condiff.methods import unicon
from condiff.networks import LoRA, Pairing, add_pair, remove_pair
from condiff.networks.pairing import Pair, sites_of


@pytest.fixture(params=PIPELINES)
def wrapped(request):
    return read(request.param)


def stacked(model, told, seed=0):
    """A batch of 2 x 2 rows, its level and conditions."""
    x = torch.randn(4, *model.denoiser.shape, generator=torch.Generator().manual_seed(seed))
    level = model.denoiser.process.at(torch.tensor([0.2, 0.5, 0.8, 0.35], dtype=torch.float64))
    cond = told_of(model, told)
    return x, level, cat([cond, cond.rows([1, 0])])


def test_a_new_pair_changes_nothing_and_switched_off_it_is_the_base(wrapped):
    model, told = wrapped
    one, batch = model.denoiser, stacked(model, told)
    base = one(*batch).x0
    for name, own in (("pair", False), ("depth", True)):
        add_pair(one.network, name, rank=2, own=own)
        pairing = Pairing(2, [Pair(0, 1, adapter=name)], own={1: name} if own else {})
        assert (one(*batch, pairing=pairing).x0 - base).abs().max() == 0.0
    stir(one)
    assert torch.equal(one(*batch).x0, base)  # the plain pipeline stays what it was
    assert torch.equal(one(*batch, pairing=Pairing(2, [Pair(0, 1)], 0.0)).x0, base)
    assert (one(*batch, pairing=Pairing(2, [Pair(0, 1)])).x0 - base).abs().max() > 0.01
    own = one(*batch, pairing=Pairing(2, [], own={1: "depth"})).x0
    assert torch.equal(own[:2], base[:2]) and (own[2:] - base[2:]).abs().max() > 0.01
    remove_pair(one.network, "depth")


def test_pairs_are_independent_and_weights_add_up(wrapped):
    model, told = wrapped
    one, (x, level, cond) = model.denoiser, stacked(model, told)
    add_pair(one.network, "pair", rank=2)
    stir(one)
    pairing = Pairing(2, [Pair(0, 1)])
    said = one(x, level, cond, pairing=pairing).x0
    half = Pair(0, 1, (0.5, 0.5))
    assert torch.equal(one(x, level, cond, pairing=Pairing(2, [half, half])).x0, said)
    other = x.clone()
    other[3] += 1.0
    changed = one(other, level, cond, pairing=pairing).x0
    assert torch.equal(changed[[0, 2]], said[[0, 2]]) and (changed[1] - said[1]).abs().max() > 1e-3
    order = torch.tensor([1, 0, 3, 2])
    turned = one(x[order], level.rows(order), cond.rows(order), pairing=pairing).x0
    torch.testing.assert_close(turned, said[order], rtol=1e-4, atol=1e-4)
    for row in (0, 1):  # one pair at a time
        some = [row, row + 2]
        alone = one(x[some], level.rows(torch.tensor(some)), cond.rows(some), pairing=pairing).x0
        torch.testing.assert_close(alone, said[some], rtol=1e-4, atol=1e-4)


def test_roles_follow_the_numbers_of_a_pair(wrapped):
    """The companion's rows first: the same pairs, said the other way round."""
    model, told = wrapped
    one, (x, level, cond) = model.denoiser, stacked(model, told)
    add_pair(one.network, "pair", rank=2, own=True)
    stir(one)
    said = one(x, level, cond, pairing=Pairing(2, [Pair(0, 1, (0.5, 2.0))], own={1: "pair"})).x0
    order = torch.tensor([2, 3, 0, 1])
    turned = Pairing(2, [Pair(1, 0, (0.5, 2.0))], own={0: "pair"})
    there = one(x[order], level.rows(order), cond.rows(order), pairing=turned).x0
    torch.testing.assert_close(there[order], said, rtol=1e-4, atol=1e-4)
    same = one(x[order], level.rows(order), cond.rows(order), pairing=Pairing(2, [Pair(0, 1)])).x0
    assert (same[order] - said).abs().max() > 0.01  # each side has weights of its own


# Two variables through a frozen network


def states(model):
    x = torch.randn(4, *model.denoiser.shape, generator=torch.Generator().manual_seed(0))
    return {"image": x[:2], "depth": x[2:]}


def times(image=(0.2, 0.5), depth=(0.8, 0.35)):
    return {"image": torch.tensor(image, dtype=torch.float64), "depth": torch.tensor(depth, dtype=torch.float64)}


def both_told(model, told):
    """What the two variables are told, each its own prompts, and what each of them is told alone."""
    parts = {"image": told_of(model, told), "depth": told_of(model, told[::-1])}
    alike = {n: entry for n, entry in parts["image"].items() if entry.kind == "scalar"}
    apart = {f"{name}.{n}": part[n] for name, part in parts.items() for n in part if n not in alike}
    return {**alike, **apart}, {name: part.replace(**alike) for name, part in parts.items()}


def test_it_begins_as_two_calls_of_the_frozen_network(wrapped):
    model, told = wrapped
    cond, parts = both_told(model, told)
    x, t = states(model), times()
    apart = {name: model.denoiser(x[name], t[name], parts[name]).x0 for name in x}
    said = unicon.join(model.denoiser, ("image", "depth"), rank=2)(x, t, cond)
    for name in x:
        torch.testing.assert_close(said[name].x0, apart[name], rtol=1e-5, atol=1e-5)


def test_each_side_has_a_time_of_its_own(wrapped):
    """Untied, the other's time says nothing; tied, it is heard, and by the same pair alone."""
    model, told = wrapped
    cond, _ = both_told(model, told)
    one, x = unicon.join(model.denoiser, ("image", "depth"), rank=2), states(model)
    now, later = times(), times(depth=(0.8, 0.6))
    assert torch.equal(one(x, now, cond)["image"].x0, one(x, later, cond)["image"].x0)
    stir(one)
    said, changed = one(x, now, cond)["image"].x0, one(x, later, cond)["image"].x0
    assert torch.equal(said[0], changed[0]) and (said[1] - changed[1]).abs().max() > 1e-5


def test_new_weights_alone_are_trained(wrapped):
    model, told = wrapped
    cond, _ = both_told(model, told)
    frozen = {id(p) for p in model.denoiser.parameters()}
    one = unicon.join(model.denoiser, ("image", "depth"), rank=2)
    stir(one)
    said = one(states(model), times(), cond)
    (said["image"].x0.square().sum() + said["depth"].x0.square().sum()).backward()
    for p in one.parameters():
        assert (p.grad is None) if id(p) in frozen else p.grad.isfinite().all()
    assert all(p.grad.any() for p in one.parameters() if p.requires_grad)


# The joint attention in words


def heads(x, attention):
    return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def turned(x, rotary):
    """Pairs of features rotated by their place."""
    if rotary is None:
        return x
    cos, sin = rotary
    quarter = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + quarter * sin


def cross(site, part, mine, side, theirs, other, rotary=None):
    """What the tokens ``mine`` hear of ``theirs``, with the updates of each side's tokens."""
    (attention,) = site._attention

    def project(name, tokens, side):
        low = getattr(part, side)[name]
        return site.layers()[name](tokens) + tokens @ low.lora_A.weight.T @ low.lora_B.weight.T

    q = heads(project("to_q", mine, side), attention)
    k, v = (heads(project(name, theirs, other), attention) for name in ("to_k", "to_v"))
    q = q if getattr(attention, "norm_q", None) is None else attention.norm_q(q)
    k = k if getattr(attention, "norm_k", None) is None else attention.norm_k(k)
    q, k = turned(q, rotary), turned(k, rotary)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = project("to_out_0", mixed, side) if "to_out_0" in site.layers() else mixed
    return out @ part.post.linear.weight.T


def angles(tokens, width):
    turn = torch.rand(tokens, width // 2, generator=torch.Generator().manual_seed(3)).repeat_interleave(2, dim=1)
    return turn.cos(), turn.sin()


LAYOUTS = {
    "text apart": ("stable_diffusion", "attn1", False),
    "dit": ("dit", "attn1", False),
    "text beside": ("sd3", "attn", False),
    "text beside, normalised": ("sd35", "attn", False),
    "a second attention": ("sd35", "attn2", False),
    "text beside, with places": ("flux_dev", "transformer_blocks.0.attn", True),
    "one sequence": ("flux_dev", "single_transformer_blocks.0.attn", True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_joint_attention_is_the_equation(layout):
    """One block against its own words: updates follow the tokens that go in, text is nobody's companion."""
    name, path, places = LAYOUTS[layout]
    model, _ = read(name)
    add_pair(model.denoiser.network, "pair", rank=2, post="shared")
    stir(model.denoiser)
    site = next(s for p, s in sites_of(model.denoiser.network).items() if p.endswith(path) and not s.crosses)
    (attention,), part = site._attention, site.exchanges["pair"]
    one_sequence, beside = path.startswith("single"), "text beside" in layout
    text, tokens = (5 if places or beside else 0), 6
    h, words = torch.randn(4, tokens, site.width), torch.randn(4, text, site.width)
    rotary = angles(text + tokens, attention.head_dim) if places else None
    own = None if rotary is None else tuple(r[text:] for r in rotary)
    told = {"image_rotary_emb": rotary} if places else {}
    told |= {"encoder_hidden_states": words} if beside else {}
    given = torch.cat([words, h], dim=1) if one_sequence else h

    x, y = h[:2], h[2:]
    heard = [
        0.5 * cross(site, part, x, "first", y, "second", own),
        2.0 * cross(site, part, y, "second", x, "first", own),
    ]
    plain = attention(given, **told)
    said = attention(given, **told, pairing=Pairing(2, [Pair(0, 1, (0.5, 2.0))], before=text if one_sequence else 0))
    if beside:
        assert torch.equal(said[1], plain[1])
        plain, said = plain[0], said[0]
    if one_sequence:
        assert torch.equal(said[:, :text], plain[:, :text])
        plain, said = plain[:, text:], said[:, text:]
    torch.testing.assert_close(said, plain + torch.cat(heard), rtol=1e-4, atol=1e-5)


OWN = {
    "text apart": ("stable_diffusion", "attn1", 4),
    "text that is attended to": ("stable_diffusion", "attn2", 4),
    "text beside": ("sd3", "transformer_blocks.0.attn", 8),
    "text beside, in the last block": ("sd3", "transformer_blocks.1.attn", 6),
    "text beside, with places": ("flux_dev", "transformer_blocks.0.attn", 8),
    "one sequence": ("flux_dev", "single_transformer_blocks.0.attn", 3),
}


@pytest.mark.parametrize("layout", OWN)
def test_the_companions_own_adapter_is_added_to_its_weights(layout):
    """Of its picture and of its text, by rows: as if it went through a network of its own."""
    name, path, count = OWN[layout]
    model, _ = read(name)
    add_pair(model.denoiser.network, "depth", rank=2, own=True)
    stir(model.denoiser)
    site = next(s for p, s in sites_of(model.denoiser.network).items() if p.endswith(path))
    (attention,) = site._attention
    changed = copy.deepcopy(attention)
    assert len(site.own["depth"]) == count
    for layer, low in site.own["depth"].items():
        changed.get_submodule(site.layer_path(layer)).weight.data += low.lora_B.weight @ low.lora_A.weight
    h, told = torch.randn(4, 6, site.width), {}
    if "text" in layout and layout != "text apart":
        told["encoder_hidden_states"] = torch.randn(4, 5, 32 if name == "stable_diffusion" else site.width)
    said = attention(h, **told, pairing=Pairing(2, [], own={1: "depth"}))
    plain, own = attention(h, **told), changed(h, **told)
    outs = zip(*(out if isinstance(out, tuple) else (out,) for out in (said, plain, own)), strict=True)
    for ours, first, second in outs:
        torch.testing.assert_close(ours, torch.cat([first[:2], second[2:]]), rtol=1e-4, atol=1e-5)


# Beside other things


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3", "flux_dev"])
def test_it_goes_together_with_a_lora_of_the_whole_network(name):
    model, told = read(name)
    add_lora(model, LoRA(rank=2))
    add_pair(model.denoiser.network, "pair", rank=2)
    stir(model.denoiser)
    batch = stacked(model, told)
    off = model.denoiser(*batch).x0
    assert torch.equal(model.denoiser(*batch, pairing=Pairing(2, [Pair(0, 1)], 0.0)).x0, off)
    assert (model.denoiser(*batch, pairing=Pairing(2, [Pair(0, 1)])).x0 - off).abs().max() > 0.01


def test_networks_that_cant_be_paired_are_refused():
    for pipe in (tiny.ddpm(), tiny_video.stable_video_diffusion(), tiny_video.wan(), tiny_video.cogvideox()):
        with pytest.raises(Incompatible, match="can't be paired"):
            add_pair(wrap(pipe).denoiser.network, "pair")


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3", "flux_dev"])
def test_fused_projections_are_refused(name):
    """Their updates would be left out without a word."""
    model, _ = read(name)
    model.denoiser.network.net.fuse_qkv_projections()
    with pytest.raises(Incompatible, match="unfuse_qkv_projections"):
        add_pair(model.denoiser.network, "pair")


@pytest.mark.parametrize("name", ["stable_diffusion", "sd35", "flux_dev"])
def test_gradients_are_those_of_recomputed_blocks(name):
    """diffusers' gradient checkpointing hands the pairing on."""
    model, told = read(name)
    cond, _ = both_told(model, told)
    one = unicon.join(model.denoiser, ("image", "depth"), rank=2)
    stir(one)

    def gradients():
        one.zero_grad()
        one(states(model), times(), cond)["image"].x0.square().sum().backward()
        return {n: p.grad.clone() for n, p in one.named_parameters() if p.grad is not None}

    plain = gradients()
    net = model.denoiser.network.net.train()
    net.enable_gradient_checkpointing()
    recomputed = gradients()
    assert set(recomputed) == set(plain)
    for key, value in plain.items():
        torch.testing.assert_close(recomputed[key], value, rtol=1e-4, atol=1e-5, msg=key)
