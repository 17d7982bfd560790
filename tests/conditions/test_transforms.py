"""Dropout, perturbation and corruption: their laws, their seeds, what they leave alone."""

import json
import math

import pytest
import torch

from condiff.conditions import (
    Chain,
    Condition,
    ConditionBank,
    Conditions,
    Corrupt,
    Dropout,
    FixedNoise,
    Label,
    Perturb,
    TimeNoise,
)
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.random import as_source

N = 20000


def conditions(n=N):
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(n, *shape, generator=generator)
    mask = torch.tensor([[True, True, False]]).repeat(n, 1)
    return Conditions(
        {
            "label": Condition(torch.arange(n) % 7, "label"),
            "pose": Condition(draw(6), "vector"),
            "text": Condition(draw(3, 8), "tokens", mask=mask),
            "y": Condition(draw(1, 2, 2), "endpoint"),
        }
    )


def share(cond, name):
    return 1.0 - cond[name].kept().double().mean().item()


def close(p, q, n=N):
    return abs(p - q) < 4.0 * math.sqrt(max(q * (1 - q), 1e-9) / n)


EVERY = [
    Dropout(0.3),
    Perturb(gamma=2.0, widths={"label": 4}),
    Corrupt(name="pose"),
    Chain(transforms=(Dropout({"label": 0.5}), Corrupt(name="pose", law=FixedNoise(high=1.0)))),
]


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
def test_seeded_silent_outside_training_and_without_side_effects(transform):
    cond, t = conditions(8), torch.rand(8)
    before = [e.value.clone() for e in cond.values()]
    one, two, other = (transform(cond, t, seed, True) for seed in (1, 1, 2))
    assert same(one, two) and not same(one, other)
    assert all(torch.equal(a, e.value) for a, e in zip(before, cond.values(), strict=True))
    assert all(e.keep is None and e.noise is None and e.level is None for e in cond.values())
    assert transform(cond, t, 1, False) is cond
    assert from_config(json.loads(json.dumps(to_config(transform)))) == transform


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
def test_a_row_depends_on_its_own_seed(transform):
    cond, t = conditions(6), torch.rand(6)
    whole = transform(cond, t, [10, 11, 12, 13, 14, 15], True)
    part = transform(cond.rows(slice(2, 4)), t[2:4], [12, 13], True)
    assert same(whole.rows(slice(2, 4)), part)


def same(a, b):
    fields = ("value", "keep", "mask", "level", "noise")
    pairs = [(getattr(a[n], f), getattr(b[n], f)) for n in a for f in fields]
    return all((x is None and y is None) or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def test_dropout_probabilities():
    cond = Dropout(0.2)(conditions(), None, 0, True)
    assert close(share(cond, "label"), 0.2) and close(share(cond, "pose"), 0.2)
    assert cond["y"].keep is None  # the process needs its endpoint
    both = (~cond["label"].keep & ~cond["pose"].keep).double().mean().item()
    assert close(both, 0.04)


def test_dropout_by_name_and_together():
    cond = Dropout({"label": 0.5}, joint=0.1)(conditions(), None, 0, True)
    assert close(share(cond, "label"), 0.55) and close(share(cond, "pose"), 0.1)
    everything = (~cond["label"].keep & ~cond["pose"].keep & ~cond["text"].keep).double().mean().item()
    assert close(everything, 0.1)
    assert Dropout({"y": 1.0})(conditions(4), None, 0, True)["y"].keep.tolist() == [False] * 4


def test_dropout_keeps_what_was_absent_absent():
    keep = torch.arange(N) % 2 == 0
    cond = Dropout(0.5)(conditions().keeping("label", keep), None, 0, True)
    assert not cond["label"].keep[~keep].any()


@pytest.mark.parametrize(("law", "share_of"), [("gaussian", 1.0), ("uniform", 1.0 / 3.0)])
def test_perturbation_has_the_stated_energy(law, share_of):
    cond = conditions()
    out = Perturb(gamma=1.5, law=law, widths={"label": 10})(cond, None, 0, True)
    for delta in (out["pose"].value - cond["pose"].value, out["label"].noise):
        energy = delta.square().sum(-1).mean().item()
        assert abs(energy / (1.5**2 * share_of) - 1.0) < 0.01
        if law == "uniform":
            assert delta.abs().max() <= 1.5 / math.sqrt(delta.shape[-1]) * (1 + 1e-6)
    moved = (out["text"].value - cond["text"].value).abs().amax(-1)
    assert (moved[:, :2] > 0).all() and (moved[:, 2] == 0).all()
    assert torch.equal(out["label"].value, cond["label"].value) and out["text"].mask is cond["text"].mask


def test_no_strength_is_no_change():
    cond = conditions(4)
    assert Perturb(gamma=0.0)(cond, None, 0, True) is cond


def test_null_rows_are_perturbed_or_left():
    keep = torch.tensor([True, False, True, False])
    cond = conditions(4).keeping("label", keep)
    bank = ConditionBank({"label": Label(7)}, 8)
    told = lambda c: bank(Conditions({"label": c["label"]}), torch.zeros(4, 1))
    left = told(Perturb(names=("label",), widths={"label": 8}, null=False)(cond, None, 0, True)).vector
    moved = told(Perturb(names=("label",), widths={"label": 8})(cond, None, 0, True)).vector
    plain = told(cond).vector
    assert torch.equal(left[~keep], plain[~keep]) and not torch.equal(left[keep], plain[keep])
    assert not torch.equal(moved[~keep], plain[~keep])


def test_ridge_identity():
    """E |W (c + delta) - m|^2 = |W c - m|^2 + sigma^2 |W|_F^2, so perturbed least squares is ridge regression."""
    d, k, n = 16, 4, 100_000
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(k, d, generator=generator, dtype=torch.float64)
    m = torch.randn(k, 3, generator=generator, dtype=torch.float64)
    index = torch.arange(n) % k
    cond = Conditions({"c": Condition(c[index], "vector")})
    x = Perturb(gamma=1.0)(cond, None, 0, True)["c"].value
    fitted = torch.linalg.lstsq(x, m[index]).solution
    closed = torch.linalg.solve(c.T @ c / k + torch.eye(d, dtype=torch.float64) / d, c.T @ m / k)
    assert (fitted - closed).abs().max() < 1e-2


def test_time_noise_is_logit_normal_about_its_median():
    law = TimeNoise(maximum=10.0, power=5.0, center=1.0)
    for t in (0.0, 0.7, 1.0):
        levels = law.level(torch.full((N,), t), as_source(0))
        mu = 2.0 * t**5 - 1.0
        logits = torch.logit(levels / 10.0)
        assert abs(logits.mean() - mu) < 4 / math.sqrt(N) and abs(logits.std() - 1.0) < 0.03
        assert abs(levels.median() - 10.0 / (1.0 + math.exp(-mu))) < 0.1
        assert levels.min() > 0.0 and levels.max() < 10.0


@pytest.mark.parametrize("preserve", [False, True])
def test_corruption_adds_noise_of_its_level_and_tells_it(preserve):
    cond = conditions()
    out = Corrupt(name="pose", law=FixedNoise(low=0.6, high=0.6), preserve=preserve)(cond, torch.rand(N), 0, True)[
        "pose"
    ]
    torch.testing.assert_close(out.level, torch.full((N,), 0.6))
    clean = cond["pose"].value * (0.8 if preserve else 1.0)
    noise = (out.value - clean) / 0.6
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1.0) < 0.02
    assert abs((noise * clean).mean()) < 0.02


def test_corruption_by_a_function_and_at_sampling():
    def corrupt(entry, t, rng):
        level = t.float()
        return Condition(entry.value * 0.0, entry.kind), level

    cond, t = conditions(4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    out = Corrupt(name="pose", law=corrupt)(cond, t, 0, True)["pose"]
    torch.testing.assert_close(out.level, t)
    assert out.value.abs().max() == 0
    kept = Corrupt(name="pose", sampling=0.02)(cond, None, 0, False)["pose"]
    torch.testing.assert_close(kept.level, torch.full((4,), 0.02))
    per_frame = Corrupt(name="pose", law=corrupt)(cond, torch.stack([t, t + 0.2], 1), 0, True)["pose"]
    torch.testing.assert_close(per_frame.level, t + 0.1)


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda c: Dropout(1.5), BadValue, "probability"),
        (lambda c: Dropout({"label": -0.1}), BadValue, "dropout of 'label'"),
        (lambda c: Dropout({"lable": 0.1})(c), BadValue, "Did you mean 'label'"),
        (lambda c: Perturb(gamma=-1.0), BadValue, "gamma"),
        (lambda c: Perturb(law="normal"), BadValue, "unknown law"),
        (lambda c: Perturb(names=("label",))(c), Incompatible, "is no embedding"),
        (lambda c: Perturb(names=("y",))(c), Incompatible, "is no embedding"),
        (lambda c: TimeNoise(maximum=0.0), BadValue, "must be positive"),
        (lambda c: TimeNoise(power=0.0), BadValue, "must be positive"),
        (lambda c: FixedNoise(low=0.5, high=0.1), BadValue, "low <= high"),
        (lambda c: Corrupt(name="pose", law=3.0), BadValue, "needs a law"),
        (lambda c: Corrupt(name="pos")(c, torch.rand(4)), BadValue, "Did you mean 'pose'"),
        (lambda c: Corrupt(name="pose")(c), BadValue, "needs the times"),
        (lambda c: Corrupt(name="pose")(c, torch.rand(3)), BadValue, "3 times came with 4 rows"),
        (lambda c: Corrupt(name="label")(c, torch.rand(4)), Incompatible, "can't be added to 'label'"),
        (
            lambda c: Corrupt(name="pose", law=FixedNoise(low=2.0, high=2.0), preserve=True)(c, torch.rand(4)),
            BadValue,
            "levels in",
        ),
    ],
)
def test_refusals(act, error, said):
    with pytest.raises(error, match=said):
        act(conditions(4))


def test_an_entry_that_is_no_condition_is_named():
    with pytest.raises(BadType, match=r"'size' is a Tensor: wrap it, Condition\(value, kind\)"):
        Conditions().replace(size=torch.zeros(2, 6))
