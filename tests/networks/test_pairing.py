"""Paired rows: joint attention that changes nothing at first or switched off, ties the rows it should, and adds up."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import condiff as cd
from condiff.errors import BadType, BadValue, Incompatible
from condiff.files import read_tensors
from condiff.networks import Pairing, Tie, add_pair, load_pair, remove_pair, save_pair
from condiff.networks.paired_attention import PairedAttention
from condiff.networks.pairing import Pair, sites_of

SHAPE = (1, 8, 8)
KINDS = {
    "plain": {},
    "label": {"conditions": {"label": cd.conditions.Label(10)}},
    "tokens": {"conditions": {"text": cd.conditions.Tokens(6)}},
    "rotary": {"positions": "rotary", "qk_norm": True},
    "recomputed": {"checkpoint": True},
}


def network(width=16, **fields):
    torch.manual_seed(0)
    net = cd.networks.DiT(shape=SHAPE, width=width, depth=2, heads=2, **fields)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def stir(net, seed=1):
    """Values for all weights of pairs that start at 0."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        if "lora_B" in name or "post" in name:
            torch.nn.init.normal_(p, std=0.3, generator=rng)
    return net


def inputs(rows, net=None, seed=0):
    rng = torch.Generator().manual_seed(seed)
    cond = {}
    for name, kind in ({} if net is None else net.condition_kinds).items():
        values = (
            torch.randint(10, (rows,), generator=rng) if kind == "label" else torch.randn(rows, 3, 6, generator=rng)
        )
        cond[name] = cd.Condition(values, kind)
    return torch.randn(rows, *SHAPE, generator=rng), torch.rand(rows, generator=rng), cd.Conditions(cond)


PAIRED = Pairing(2, [Pair(0, 1)])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_pair_changes_nothing(kind, own):
    net = network(**KINDS[kind])
    x = inputs(6, net)
    base = net(*x)
    add_pair(net, "pair", rank=2, own=own)
    assert torch.equal(net(*x), base)
    pairing = Pairing(2, [Pair(0, 1)], own={1: "pair"} if own else {})
    assert (net(*x, pairing=pairing) - base).abs().max() == 0.0
    stir(net)
    assert torch.equal(net(*x), base)
    assert (net(*x, pairing=pairing) - base).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base(kind):
    net = network(**KINDS[kind])
    x = inputs(6, net)
    base = net(*x)
    add_pair(net, "pair", rank=2)
    stir(net)
    assert torch.equal(net(*x, pairing=Pairing(2, [Pair(0, 1)], 0.0)), base)
    assert torch.equal(net(*x, pairing=Pairing(2, [])), base)
    on = net(*x, pairing=PAIRED)
    some = net(*x, pairing=Pairing(2, [Pair(0, 1)], torch.tensor([1.0, 0.0, 1.0])))
    assert torch.equal(some[[1, 4]], base[[1, 4]]) and torch.equal(some[[0, 2, 3, 5]], on[[0, 2, 3, 5]])


@pytest.mark.parametrize("post", ["fuse", "shared"])
def test_the_joint_attention_is_the_equation(post):
    """Against its own words: every projection's update is that of the variable whose tokens go in."""
    net = network()
    add_pair(net, "pair", rank=2, post=post)
    site: PairedAttention = stir(net).stack[0].attn
    part, attention, n, heads = site.exchanges["pair"], site.attention, 5, 2
    h = torch.randn(4, n, 16)

    def project(name, tokens, side):
        low = getattr(part, side)[name]
        return getattr(attention, name)(tokens) + tokens @ low.lora_A.weight.T @ low.lora_B.weight.T

    def cross(mine, side, theirs, other):
        q = project("qkv", mine, side)[..., :16]
        k, v = project("qkv", theirs, other)[..., 16:].chunk(2, dim=-1)
        q, k, v = (a.unflatten(-1, (heads, 8)).transpose(1, 2) for a in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        return project("out", mixed.transpose(1, 2).flatten(2), side)

    x, y = h[:2], h[2:]
    heard = [cross(x, "first", y, "second"), cross(y, "second", x, "first")]
    w = part.post.linear.weight
    if post == "fuse":
        heard = (torch.cat(heard, dim=-1) @ w.T).chunk(2, dim=-1)
    else:
        heard = [a @ w.T for a in heard]
    wanted = attention(h) + torch.cat([0.6 * 0.5 * heard[0], 0.6 * 2.0 * heard[1]])
    said = site(h, pairing=Pairing(2, [Pair(0, 1, (0.5, 2.0))], 0.6))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_pairs_are_independent_and_their_order_doesnt_matter(own):
    net = network()
    add_pair(net, "pair", rank=2, own=own)
    stir(net)
    pairing = Pairing(2, [Pair(0, 1)], own={1: "pair"} if own else {})
    x, t, _ = inputs(6)
    said = net(x, t, pairing=pairing)
    order = torch.tensor([2, 0, 1])
    both = torch.cat([order, order + 3])
    torch.testing.assert_close(net(x[both], t[both], pairing=pairing), said[both], rtol=1e-5, atol=1e-6)
    other = x.clone()
    other[[1, 4]] += 1.0
    changed = net(other, t, pairing=pairing)
    assert torch.equal(changed[[0, 2, 3, 5]], said[[0, 2, 3, 5]])
    assert not torch.equal(changed[[1, 4]], said[[1, 4]])
    other = x.clone()
    other[4] += 1.0  # the companion alone: its picture hears it
    assert (net(other, t, pairing=pairing)[1] - said[1]).abs().max() > 1e-3


def test_the_variables_own_adapter_acts_on_its_rows_only():
    net = network(**KINDS["tokens"])
    x = inputs(6, net)
    add_pair(net, "pair", rank=2, own=True)
    stir(net)
    base, said = net(*x), net(*x, pairing=Pairing(2, [], own={1: "pair"}))
    assert torch.equal(said[:3], base[:3]) and (said[3:] - base[3:]).abs().max() > 0.05
    assert "own.pair.kv.lora_A.weight" in dict(net.stack[0].cross.named_parameters())  # of the text too


def test_two_identical_pairs_of_half_weight_are_one():
    net = network()
    add_pair(net, "pair", rank=2)
    stir(net)
    x, t, _ = inputs(6)
    half = Pair(0, 1, (0.5, 0.5))
    twice = net(x, t, pairing=Pairing(2, [half, half]))
    assert torch.equal(twice, net(x, t, pairing=PAIRED))


def test_several_pairs_are_summed_with_their_own_weights():
    net = network()
    for seed, name in enumerate(("depth", "edge")):
        add_pair(net, name, rank=2, seed=seed)
    stir(net)
    site, h = net.stack[0].attn, torch.randn(6, 4, 16)
    depth, edge = Pair(0, 1, (0.7, 0.2), "depth"), Pair(0, 2, (0.3, 1.0), "edge")
    base = site.attention(h)
    together = site(h, pairing=Pairing(3, [depth, edge])) - base
    alone = [site(h, pairing=Pairing(3, [pair])) - base for pair in (depth, edge)]
    torch.testing.assert_close(together, alone[0] + alone[1], rtol=1e-5, atol=1e-6)
    assert (alone[0][4:] == 0).all() and (alone[1][2:4] == 0).all()


def test_gradients_reach_the_new_weights_alone():
    net = network().requires_grad_(False)
    add_pair(net, "pair", rank=2, own=True)
    stir(net)
    x, t, _ = inputs(4)
    net(x, t, pairing=Pairing(2, [Pair(0, 1)], own={1: "pair"})).square().mean().backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    new = {name for name, _ in net.named_parameters() if "exchanges" in name or ".own." in name}
    assert trained == new


def test_recomputed_activations_have_the_same_gradients():
    """The pairing goes through the call, so that the second forward of a checkpointed block has it too."""
    grads = []
    for recompute in (False, True):
        net = network(checkpoint=recompute).train()
        add_pair(net, "pair", rank=2)
        stir(net)
        x, t, _ = inputs(4)
        net(x, t, pairing=PAIRED).square().mean().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_calls_with_different_pairings_dont_disturb_each_other():
    net = network()
    add_pair(net, "pair", rank=2)
    stir(net)
    x, t, _ = inputs(6)
    pairings = [PAIRED, None, Pairing(2, [Pair(0, 1)], 0.3), Pairing(3, [Pair(0, 2)])]
    alone = [net(x, t, pairing=pairing) for pairing in pairings]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda pairing: net(x, t, pairing=pairing), pairings * 4))
    assert all(torch.equal(again[i], alone[i % 4]) for i in range(16))


def test_files(tmp_path):
    net, x = network(), inputs(6)
    add_pair(net, "pair", rank=2, own=True, post="shared")
    stir(net)
    pairing = Pairing(2, [Pair(0, 1)], own={1: "pair"})
    said = net(*x, pairing=pairing)
    save_pair(net, tmp_path / "pair")
    stored, _ = read_tensors(tmp_path / "pair" / "first" / "adapter_model.safetensors")
    assert "base_model.model.stack.0.attn.qkv.lora_A.weight" in stored  # as peft writes them
    again = network()
    about = load_pair(again, tmp_path / "pair", "mine")
    assert about["own"] and about["post"] == "shared"
    named = Pairing(2, [Pair(0, 1, adapter="mine")], own={1: "mine"})
    assert torch.equal(again(*x, pairing=named), said)
    remove_pair(again, "mine")
    load_pair(again, tmp_path / "pair", "mine")  # the name is free again
    with pytest.raises(Incompatible, match="width 16, and here it is 32"):
        load_pair(network(width=32), tmp_path / "pair")


def test_half_precision_weights_have_adapters_in_single():
    net = network().half()
    add_pair(net, "pair", rank=2)
    assert {p.dtype for n, p in net.named_parameters() if "exchanges" in n} == {torch.float32}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: add_pair(network(), "pair", post="conv"), BadValue, "unknown post projection"),
        (lambda: add_pair(network(), "pair", rank=0), BadValue, "rank"),
        (lambda: add_pair(network(), "a.b"), BadValue, "without dots"),
        (lambda: [add_pair(net, "pair") for net in [network()] * 2], BadValue, "name of its own"),
        (lambda: remove_pair(network(), "pair"), BadValue, "unknown adapter"),
        (lambda: Pairing(2, [Pair(0, 2)]), BadValue, "names variable 2"),
        (lambda: Pairing(2, [Pair(1, 1)]), BadValue, "two different"),
        (lambda: Tie("a", "b", (1.0,)), BadValue, "two weights"),
        (lambda: PAIRED.blocks(torch.zeros(3, 2, 2)), BadValue, "3 rows"),
        (lambda: add_pair(cd.networks.MLP(shape=(4,), width=8), "pair"), Incompatible, "no joint attention"),
        (
            lambda: add_pair(network(tokens="joint", conditions={"text": cd.conditions.Tokens(6)}), "pair"),
            Incompatible,
            "tokens='cross'",
        ),
        (lambda: add_pair(network(), "pair", rank="2"), BadType, "whole number"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_sites_are_made_once():
    net = network()
    assert sites_of(net) == sites_of(net)
    assert list(sites_of(net)) == ["stack.0.attn", "stack.1.attn"]
