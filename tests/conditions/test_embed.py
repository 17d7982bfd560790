"""The bank: absent entries, rows, kinds, and what it refuses."""

import json

import pytest
import torch

from condiff.conditions import (
    Condition,
    ConditionBank,
    Conditions,
    Endpoint,
    Frames,
    Label,
    Map,
    Observation,
    Scalar,
    Tokens,
    Vector,
    as_conditions,
    cat,
)
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue

SPECS = {
    "label": Label(5),
    "age": Scalar(high=100.0),
    "pose": Vector(3),
    "text": Tokens(4, level=True),
    "ids": Tokens(vocab=7, length=2),
    "edges": Map(2),
    "seen": Observation(1),
    "past": Frames(3, 1),
    "blurred": Endpoint(1),
}
NAN = float("nan")


def values(b=4):
    return {
        "label": Condition(torch.arange(b) % 5, "label"),
        "age": Condition(torch.rand(b) * 100, "scalar"),
        "pose": Condition(torch.randn(b, 3), "vector"),
        "text": Condition(torch.randn(b, 3, 4), "tokens", level=torch.rand(b)),
        "ids": Condition(torch.randint(0, 7, (b, 2)), "tokens"),
        "edges": Condition(torch.randn(b, 2, 5, 5), "map"),
        "seen": Condition(torch.randn(b, 1, 5, 5), "observation", mask=torch.rand(b, 1, 5, 5) > 0.5),
        "past": Condition(torch.randn(b, 3, 1, 5, 5), "frames"),
        "blurred": Condition(torch.randn(b, 1, 5, 5), "endpoint"),
    }


def embed(bank, entries, b=4):
    return bank(Conditions(entries), torch.zeros(b, 1, 5, 5))


def flat(out):
    """Everything that a network would see, one row per sample; tokens that nobody sees are zeroed."""
    parts = [*([] if out.vector is None else [out.vector]), *(m.flatten(1) for m in out.maps)]
    if out.tokens is not None:
        tokens = out.tokens if out.mask is None else out.tokens * out.mask[..., None]
        parts.append(tokens.flatten(1))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_dropped_entry_is_null_whatever_it_holds(name):
    bank, entry = ConditionBank({name: SPECS[name]}, 8), values()[name]
    keep = torch.tensor([True, False, True, False])
    wild = entry.value.clone()
    wild[~keep] = -99 if not wild.is_floating_point() else NAN
    wild = Condition(wild, entry.kind, keep, entry.mask, entry.level)
    out = flat(embed(bank, {name: wild}))
    present = flat(embed(bank, {name: entry}))
    assert torch.equal(out[keep], present[keep]) and torch.isfinite(out).all()
    assert torch.equal(out[1], out[3]) and not torch.equal(out[1], present[1])
    if out.requires_grad:
        out.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in bank.parameters())


@pytest.mark.parametrize("name", list(SPECS))
def test_a_missing_entry_is_one_dropped_for_all(name):
    bank, entry = ConditionBank({name: SPECS[name]}, 8), values()[name]
    none = Condition(entry.value, entry.kind, torch.zeros(4, dtype=torch.bool), entry.mask, entry.level)
    dropped, missing = embed(bank, {name: none}), embed(bank, {})
    if SPECS[name].role == "tokens":  # one null token, the others unseen
        assert dropped.mask.sum(1).tolist() == [1, 1, 1, 1]
        assert torch.equal(dropped.tokens[:, 0], missing.tokens[:, 0]) and missing.mask is None
    elif SPECS[name].role == "map":
        assert torch.equal(torch.cat(dropped.maps, 1), torch.cat(missing.maps, 1))
    else:
        assert torch.equal(dropped.vector, missing.vector)


def test_absent_is_not_zeros():
    for name in ("edges", "seen", "past", "blurred", "pose", "text"):
        bank, entry = ConditionBank({name: SPECS[name]}, 8), values()[name]
        zeros = embed(bank, {name: Condition(torch.zeros_like(entry.value), entry.kind)})
        absent = embed(bank, {name: Condition(entry.value, entry.kind, torch.zeros(4, dtype=torch.bool))})
        assert not torch.equal(flat(zeros), flat(absent))


def test_rows_do_not_see_their_neighbours():
    bank = ConditionBank(SPECS, 8).double()
    keep = torch.tensor([True, False, True, True])
    entries = {
        n: Condition(c.value, c.kind, keep.roll(i), c.mask, c.level) for i, (n, c) in enumerate(values().items())
    }
    cond = Conditions(entries)
    whole = flat(embed(bank, cond))
    rows = torch.cat([flat(embed(bank, cond.rows(slice(i, i + 1)), 1)) for i in range(4)])
    torch.testing.assert_close(whole, rows)


def test_vectors_add_up_tokens_join_and_maps_stand_beside():
    bank = ConditionBank(SPECS, 8)
    out = embed(bank, values())
    parts = [bank.entries[n](values_[n], 4) for values_ in [CACHED] for n in ("label", "age", "pose")]
    level = bank.levels["text"](CACHED["text"], 4)
    torch.testing.assert_close(embed(bank, CACHED).vector, sum(parts) + level)
    assert out.tokens.shape == (4, 3 + 2, 8) and out.mask is None
    channels = sum(m.shape[1] for m in out.maps)
    assert channels == bank.extra_channels == (2 + 1) + 2 * 1 + 3 * 2 + (1 + 1)


torch.manual_seed(1)
CACHED = values()


def test_maps_carry_their_values_and_flags():
    entry = values()["edges"]
    keep = torch.tensor([True, False, True, True])
    value, flag = embed(ConditionBank({"edges": Map(2)}, 8), {"edges": Condition(entry.value, "map", keep)}).maps
    assert torch.equal(value[keep], entry.value[keep]) and value[1].abs().max() == 0
    assert torch.equal(flag, keep.float().view(4, 1, 1, 1).expand(4, 1, 5, 5))
    seen = values()["seen"]
    value, mask = embed(ConditionBank({"seen": Observation(1)}, 8), {"seen": seen}).maps
    assert torch.equal(mask.bool(), seen.mask) and torch.equal(value, seen.value * seen.mask)
    past = values()["past"]
    there = torch.tensor([[True, False, True]]).repeat(4, 1)
    bank = ConditionBank({"past": Frames(3, 1)}, 8)
    value, flags = embed(bank, {"past": Condition(past.value, "frames", mask=there)}).maps
    assert torch.equal(value[:, 0], past.value[:, 0, 0]) and value[:, 1].abs().max() == 0
    assert torch.equal(flags[:, :, 0, 0].bool(), there)


def test_levels_are_told_and_clean_is_level_zero():
    bank = ConditionBank({"text": Tokens(4, level=True)}, 8)
    value = torch.randn(4, 3, 4)
    told = lambda level: embed(bank, {"text": Condition(value, "tokens", level=level)}).vector
    torch.testing.assert_close(told(None), told(torch.zeros(4)))
    assert not torch.allclose(told(None), told(torch.ones(4)))
    dropped = Conditions({"text": Condition(value, "tokens", level=torch.rand(4))}).drop("text")
    for absent in (dropped, Conditions({})):  # dropped and not given are the same
        assert float(bank(absent, torch.zeros(4, 1, 5, 5)).vector.detach().abs().max()) == 0.0


def test_noise_is_added_to_the_embedding():
    bank = ConditionBank({"label": Label(5)}, 8)
    noise = torch.randn(4, 8)
    entry = CACHED["label"]
    plain = embed(bank, {"label": entry}).vector
    moved = embed(bank, {"label": Condition(entry.value, "label", noise=noise)}).vector
    torch.testing.assert_close(moved, plain + noise)
    with pytest.raises(BadValue, match="can't be added"):
        embed(bank, {"label": Condition(entry.value, "label", noise=noise[:, :3])})
    joined = cat([Conditions({"label": Condition(entry.value, "label", noise=noise)})] * 2)
    assert joined["label"].noise.shape == (8, 8) and joined.rows([1])["label"].noise.shape == (1, 8)


def test_scalars_are_smooth_and_told_apart():
    bank = ConditionBank({"age": Scalar(high=100.0)}, 16)
    ages = torch.tensor([0.0, 50.0, 50.01, 100.0])
    out = embed(bank, {"age": Condition(ages, "scalar")}).vector
    near, far = (out[1] - out[2]).norm(), (out[0] - out[3]).norm()
    assert 0 < near < 0.05 * far


def test_bare_tensors_take_the_declared_kinds():
    bank = ConditionBank({"edges": Map(2), "label": Label(5)}, 8)
    cond = as_conditions({"edges": torch.randn(4, 2, 5, 5), "label": [0, 1, 2, 3]}, bank.kinds)
    assert {n: c.kind for n, c in cond.items()} == bank.kinds == {"edges": "map", "label": "label"}


def test_processes_own_entries_pass_through():
    bank = ConditionBank({"label": Label(5)}, 8)
    extra = {"y": Condition(torch.randn(4, 1, 5, 5), "endpoint"), "seen": CACHED["seen"]}
    torch.testing.assert_close(
        embed(bank, {**extra, "label": CACHED["label"]}).vector, embed(bank, CACHED_LABEL).vector
    )
    silent = ConditionBank({"y": Endpoint(1, concat=False)}, 8)
    assert silent.extra_channels == 0 and embed(silent, {"y": extra["y"]}).maps == ()


CACHED_LABEL = {"label": CACHED["label"]}


def test_specs_round_trip():
    assert from_config(json.loads(json.dumps(to_config(SPECS)))) == SPECS


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"lable": CACHED["label"]}, "Did you mean 'label'"),
        ({"label": Condition(torch.tensor([0, 1, 5, 2]), "label")}, "labels lie in 0 ... 4, got 5"),
        ({"label": Condition(torch.tensor([0, -1, 3, 2]), "label")}, "labels lie in 0 ... 4, got -1"),
        ({"label": Condition(torch.rand(4), "scalar")}, "declared as 'label', got 'scalar'"),
        ({"label": Condition(torch.tensor([0]), "label")}, "has 1 rows, the state has 4"),
        ({"pose": Condition(torch.randn(4, 2), "vector")}, "vector of 3 numbers"),
        ({"text": Condition(torch.randn(4, 3, 5), "tokens")}, "tokens of shape"),
        ({"text": Condition(torch.zeros(4, 3, dtype=torch.long), "tokens")}, "tokens of shape"),
        ({"ids": Condition(torch.zeros(4, 3, dtype=torch.long), "tokens")}, "2 tokens were declared, got 3"),
        ({"ids": Condition(torch.full((4, 2), 7), "tokens")}, "token ids lie in 0 ... 6"),
        ({"edges": Condition(torch.randn(4, 1, 5, 5), "map")}, "the map beside"),
        ({"edges": Condition(torch.randn(4, 2, 5, 4), "map")}, "the map beside"),
        ({"past": Condition(torch.randn(4, 2, 1, 5, 5), "frames")}, "frames of .* were declared"),
        ({"seen": Condition(torch.randn(4, 2, 5, 5), "observation")}, "the observation beside"),
    ],
)
def test_bad_entries_are_refused(entry, said):
    bank = ConditionBank(SPECS, 8)
    with pytest.raises(BadValue, match=said):
        embed(bank, entry)


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: Label(0), BadValue, "positive integer"),
        (lambda: Scalar(low=1.0, high=1.0), BadValue, "low < high"),
        (lambda: Tokens(), BadValue, "either dim="),
        (lambda: Tokens(4, vocab=3), BadValue, "either dim="),
        (lambda: Map(-1), BadValue, "positive integer"),
        (lambda: ConditionBank({"label": 10}, 8), BadType, "spec such as Label"),
        (lambda: ConditionBank({"edges": Map(1)}, 8, maps=False), BadValue, "takes no map"),
    ],
)
def test_bad_specs_are_refused(build, error, said):
    with pytest.raises(error, match=said):
        build()


@pytest.mark.parametrize("value", ["3", ["3"], [[1, 2], [3]]])
def test_conditions_that_hold_no_numbers_are_refused(value):
    with pytest.raises(BadType, match="'label' must hold numbers"):
        as_conditions({"label": value})
