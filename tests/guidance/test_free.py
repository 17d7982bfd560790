"""Classifier-free guidance against closed forms on the class-conditional mixture."""

from typing import ClassVar

import pytest
import torch

from condiff.conditions import Condition, as_conditions
from condiff.errors import BadType, BadValue
from condiff.guidance import Combine, Free, Term, nested
from condiff.process import Cosine, Gaussian, Prediction, Rectified, VPLinear
from condiff.process.oracles import mixture
from condiff.sampling import DDIM, sample

PROCESS = Gaussian(Cosine())
MEANS = [[-1.0, 0.3], [1.0, 0.0], [0.5, 2.0], [-2.0, -1.0]]


def oracle(process=PROCESS):
    return mixture(process, MEANS, stds=[0.3, 0.5, 0.4, 0.7], weights=[1, 2, 3, 4], labels=[0, 0, 1, 2])


class Counted:
    """Counts calls and rows."""

    def __init__(self, inner):
        self.inner, self.process, self.shape, self.kinds = inner, inner.process, inner.shape, inner.kinds
        self.calls, self.rows = 0, []

    def __call__(self, x, t, cond=None):
        self.calls += 1
        self.rows.append(len(x))
        return self.inner(x, t, cond)


class Says:
    """Predicts in the quantity of choice."""

    def __init__(self, inner, kind):
        self.inner, self.kind = inner, kind
        self.process, self.shape, self.kinds = inner.process, inner.shape, inner.kinds

    def __call__(self, x, t, cond=None):
        p = self.inner(x, t, cond)
        return Prediction(x, p.level, {self.kind: p.to(self.kind)})


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABEL = {"label": torch.tensor([0, 1, 2, 0, 1, 2])}


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), VPLinear()])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["x0", "noise", "velocity", "v", "score"])
def test_score_is_the_closed_form_in_every_quantity(x, schedule, scale, kind):
    model = oracle(Gaussian(schedule))
    said = Free(Says(model, kind), scale)(x, 0.4, LABEL)
    u = x.clone().requires_grad_()
    log_p = (1.0 - scale) * model.log_prob(u, 0.4) + scale * model.log_prob(u, 0.4, LABEL)
    (wanted,) = torch.autograd.grad(log_p.sum(), u)
    torch.testing.assert_close(said.score, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(said.score, model.guided_score(x, 0.4, LABEL, scale), rtol=1e-10, atol=1e-10)


def test_one_call_a_step_and_the_batched_call_equals_two(x):
    model = Counted(oracle())
    both = Free(model, 2.5)(x, 0.6, LABEL)
    assert model.rows == [12]
    plain, free = oracle()(x, 0.6, LABEL), oracle()(x, 0.6)
    torch.testing.assert_close(both.x0, 2.5 * plain.x0 - 1.5 * free.x0, rtol=1e-13, atol=1e-13)
    model = Counted(oracle())
    sample(Free(model, 2.5), cond=LABEL, solver=DDIM(), steps=7, seed=0)
    assert model.calls == 7


def test_the_interval_is_closed_and_costs_nothing_outside(x):
    model = Counted(oracle())
    guided = Free(model, 3.0, interval=(0.25, 0.5))
    for t in (0.25, 0.5, 0.2499, 0.5001):
        guided(x, t, LABEL)
    assert model.rows == [12, 12, 6, 6]
    torch.testing.assert_close(guided(x, 0.6, LABEL).x0, oracle()(x, 0.6, LABEL).x0, rtol=0, atol=0)
    t = torch.tensor([0.1, 0.25, 0.3, 0.5, 0.51, 0.9], dtype=torch.float64)
    inside = (t >= 0.25) & (t <= 0.5)
    said = guided(x, t, LABEL).x0
    torch.testing.assert_close(said[inside], Free(oracle(), 3.0)(x, t, LABEL).x0[inside], rtol=0, atol=0)
    torch.testing.assert_close(said[~inside], oracle()(x, t, LABEL).x0[~inside], rtol=0, atol=0)


def test_scales_one_and_zero_call_the_model_once(x):
    model = Counted(oracle())
    torch.testing.assert_close(Free(model, 1)(x, 0.3, LABEL).x0, oracle()(x, 0.3, LABEL).x0, rtol=0, atol=0)
    torch.testing.assert_close(Free(model, 0)(x, 0.3, LABEL).x0, oracle()(x, 0.3).x0, rtol=0, atol=1e-15)
    assert model.rows == [6, 6]


def test_scale_per_row_equals_separate_runs():
    scales = torch.tensor([0.0, 1.0, 2.0, 3.5])
    cond = {"label": torch.tensor([0, 1, 2, 0])}
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = sample(Free(oracle(), scales), cond=cond, solver=DDIM(), steps=9, initial=noise)
    for i in range(4):
        alone = Free(oracle(), float(scales[i]))
        one = sample(alone, cond={"label": cond["label"][i : i + 1]}, solver=DDIM(), steps=9, initial=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_scale_as_a_function_of_the_level(x):
    guided = Free(oracle(), lambda level: 1.0 + 2.0 * level.t)
    torch.testing.assert_close(guided(x, 0.5, LABEL).x0, Free(oracle(), 2.0)(x, 0.5, LABEL).x0)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    torch.testing.assert_close(guided(x, t, LABEL).x0, Free(oracle(), 1.0 + 2.0 * t)(x, t, LABEL).x0)


def test_scale_per_frame():
    model = mixture(PROCESS, torch.randn(3, 4, 2), stds=0.5, labels=[0, 1, 2])
    x, y = torch.randn(2, 4, 2, dtype=torch.float64), {"label": torch.tensor([1, 2])}
    frames = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    said = Free(model, frames)(x, 0.5, y).x0
    for f in range(4):
        torch.testing.assert_close(said[:, f], Free(model, 1.0 + f)(x, 0.5, y).x0[:, f])


def test_rows_do_not_see_each_other(x):
    guided = Free(oracle(), 2.0, rescale=0.7)
    whole = guided(x, 0.7, LABEL).x0
    for i in range(6):
        one = guided(x[i : i + 1], 0.7, {"label": LABEL["label"][i : i + 1]}).x0
        torch.testing.assert_close(whole[i : i + 1], one, rtol=1e-14, atol=1e-14)


def test_rescale_restores_the_standard_deviation_per_sample(x):
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    model = mixture(PROCESS, torch.randn(2, 3, 4), stds=0.5, labels=[0, 1])
    cond = {"label": torch.tensor([0, 1, 0, 1, 1])}

    def std(p):
        return p.x0.flatten(1).std(1)

    plain, free = model(x, 0.6, cond), Free(model, 4.0)(x, 0.6, cond)
    assert (std(free) - std(plain)).abs().max() > 0.1
    torch.testing.assert_close(std(Free(model, 4.0, rescale=1.0)(x, 0.6, cond)), std(plain))
    half = Free(model, 4.0, rescale=0.5)(x, 0.6, cond).x0
    torch.testing.assert_close(half, 0.5 * free.x0 + 0.5 * free.x0 * (std(plain) / std(free))[:, None, None])


def test_negative_condition(x):
    model = Counted(oracle())
    said = Free(model, 2.0, negative={"label": torch.tensor([1])})(x, 0.5, LABEL).x0
    other = {"label": torch.ones(6, dtype=torch.long)}
    torch.testing.assert_close(said, 2.0 * oracle()(x, 0.5, LABEL).x0 - oracle()(x, 0.5, other).x0)
    assert model.rows == [12]


class Named:
    """An affine model of several conditions, whose answer shows which it was told."""

    process, shape = PROCESS, (3,)
    kinds: ClassVar = {"image": "vector", "text": "vector"}

    def __call__(self, x, t, cond=None):
        out = x.clone()
        for name, entry in as_conditions(cond, self.kinds).items():
            out = out + entry.kept()[:, None] * entry.value * (10.0 if name == "text" else 1.0)
        if {"image", "text"} <= set(cond):  # an interaction
            out = out + (cond["image"].kept() & cond["text"].kept())[:, None] * 100.0
        return Prediction(x, self.process.at(t), {"x0": out})


def test_nested_scales_are_those_of_instruct_pix2pix():
    model, x = Counted(Named()), torch.randn(2, 3)
    cond = as_conditions({"image": torch.randn(2, 3), "text": torch.randn(2, 3)}, Named.kinds)
    free, image, both = (Named()(x, 0.5, c).x0 for c in (cond.drop(), cond.drop("text"), cond))
    said = nested(model, {"image": 1.5, "text": 7.5})(x, 0.5, cond).x0
    torch.testing.assert_close(said, free + 1.5 * (image - free) + 7.5 * (both - image))
    assert model.rows == [6]
    function = nested(Named(), {"image": lambda level: 3.0 * level.t, "text": 7.5})(x, 0.5, cond).x0
    torch.testing.assert_close(function, said)
    torch.testing.assert_close(nested(Named(), {"image": 1.0, "text": 1.0})(x, 0.5, cond).x0, both)
    assert nested(Named(), {"text": 2.0})(x, 0.5, cond).x0.allclose(image + 2.0 * (both - image), atol=1e-4)


def test_terms_that_are_not_needed_are_not_evaluated():
    model, x = Counted(Named()), torch.randn(2, 3)
    cond = as_conditions({"image": torch.randn(2, 3), "text": torch.randn(2, 3)}, Named.kinds)
    nested(model, {"image": 2.0, "text": 2.0})(x, 0.5, cond)  # the middle term's weight is 0
    assert model.rows == [4]
    terms = [Term(weight=2.0, keep=("text",)), Term(weight=-1.0, keep=())]
    said = Combine(model, terms)(x, 0.5, cond).x0
    torch.testing.assert_close(said, 2.0 * Named()(x, 0.5, cond.drop("image")).x0 - Named()(x, 0.5, cond.drop()).x0)


def test_weights_must_sum_to_one_or_name_a_quantity(x):
    terms = [Term(weight=1.0), Term(weight=1.0, drop=("label",))]
    with pytest.raises(BadValue, match="must sum to 1"):
        Combine(oracle(), terms)(x, 0.5, LABEL)
    said = Combine(oracle(), terms, kind="score")(x, 0.5, LABEL).score
    torch.testing.assert_close(said, oracle()(x, 0.5, LABEL).score + oracle()(x, 0.5).score)


def test_guidance_nests(x):
    inner = Free(oracle(), 2.0)
    outer = Combine(inner, [Term(weight=3.0), Term(weight=-2.0, replace={"label": torch.tensor([2])})])
    other = {"label": torch.full((6,), 2)}
    wanted = 3.0 * inner(x, 0.5, LABEL).x0 - 2.0 * inner(x, 0.5, other).x0
    torch.testing.assert_close(outer(x, 0.5, LABEL).x0, wanted)


def test_guided_is_a_denoiser_with_parameters_and_start():
    net = torch.nn.Linear(2, 2)

    class Model(torch.nn.Module):
        process, shape, kinds = PROCESS, (2,), {}
        started = 0

        def __init__(self):
            super().__init__()
            self.net = net

        def start(self):
            self.started += 1

        def forward(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {"v": self.net(x)})

    model = Model()
    guided = Free(Free(model, 1.0), 1.0)
    assert list(guided.parameters()) == list(net.parameters())
    sample(guided, num=2, solver=DDIM(), steps=1, seed=0)
    assert model.started == 1
    assert repr(guided).startswith("Free(Free(Model; scale=1.0")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scale": float("nan")}, BadValue, "scale must be finite"),
        ({"scale": torch.tensor([1.0, float("inf")])}, BadValue, "scale must be finite"),
        ({"scale": "3"}, BadType, "a number"),
        ({"scale": True}, BadType, "a number"),
        ({"scale": 2.0, "interval": (0.5, 0.2)}, BadValue, "interval"),
        ({"scale": 2.0, "interval": (-0.5, 0.2)}, BadValue, "interval"),
        ({"scale": 2.0, "rescale": 1.5}, BadValue, "rescale"),
        ({"scale": 2.0, "drop": "label"}, BadValue, "list of names"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        Free(oracle(), **options)


@pytest.mark.parametrize(
    ("options", "cond", "match"),
    [
        ({"drop": ("lable",)}, LABEL, "Did you mean 'label'"),
        ({"negative": {"text": torch.tensor([1])}}, LABEL, "unknown condition 'text'"),
        ({"negative": {"label": torch.tensor([1, 2])}}, LABEL, "2 rows where 1 or 6"),
        ({}, None, "needs conditions"),
        ({}, {"y": Condition(torch.zeros(6, 2), "endpoint")}, "belong to the process or the model"),
        ({"negative": {"text": torch.zeros(1, 3, 4)}}, {"text": torch.zeros(6, 2, 4)}, "pad tokens to one length"),
        ({"scale": torch.ones(4)}, LABEL, r"must match the leading dimensions of \(6, 2\)"),
    ],
)
def test_bad_calls_are_refused(x, options, cond, match):
    with pytest.raises(BadValue, match=match):
        Free(oracle(), **{"scale": 2.0, **options})(x, 0.5, cond)
