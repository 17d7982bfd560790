"""Classifier-free guidance of tokens and of joint states."""

import pytest
import torch

from condiff.errors import Incompatible
from condiff.guidance import Blend, Combine, Energy, Free, Switch, Term
from condiff.process import Absorbing, Cosine, Gaussian, Joint, Rectified
from condiff.process.oracles import mixture, tokens
from condiff.sampling import DDIM, Euler, sample

LABEL = {"label": torch.tensor([0, 1, 1])}


def token_oracle():
    probs = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return tokens(Absorbing(3), probs, classes=[0.4, 0.6])


X = torch.tensor([[0, 3, 3], [3, 3, 3], [2, 1, 3]])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_tokens_are_guided_in_log_space(scale):
    """p proportional to p(token)^(1 - s) p(token | y)^s; visible tokens stay."""
    model = token_oracle()
    said = Free(model, scale)(X, 0.5, LABEL)
    plain, free = model(X, 0.5, LABEL).log_probs, model(X, 0.5).log_probs
    wanted = (scale * plain + (1.0 - scale) * free).softmax(-1)[X == 3]
    torch.testing.assert_close(said.probs[X == 3], wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(said.tokens[X != 3], X[X != 3])


def test_token_scales_per_row_and_functions():
    model, scales = token_oracle(), torch.tensor([0.0, 1.0, 3.0])
    said = Free(model, scales)(X, 0.5, LABEL).probs
    for i in range(3):
        alone = Free(model, float(scales[i]))(X[i : i + 1], 0.5, {"label": LABEL["label"][i : i + 1]}).probs
        torch.testing.assert_close(said[i : i + 1], alone)
    ramp = Free(model, lambda level: 4.0 * level.t)(X, 0.5, LABEL).probs
    torch.testing.assert_close(ramp, Free(model, 2.0)(X, 0.5, LABEL).probs)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    each = Free(model, 2.0, interval=(0.3, 0.7))(X, t, LABEL).probs
    torch.testing.assert_close(each[1], Free(model, 2.0)(X, 0.5, LABEL).probs[1])
    torch.testing.assert_close(each[0], model(X, t, LABEL).probs[0])


def test_token_blends():
    a, b = token_oracle(), token_oracle()
    torch.testing.assert_close(Blend([a, b], [0.3, 0.7])(X, 0.5).probs, a(X, 0.5).probs)


class Pair:
    """Two mixtures under one label."""

    kinds, shape = {"label": "label"}, {"a": (2,), "b": (3,)}

    def __init__(self):
        processes = {"a": Gaussian(Cosine()), "b": Gaussian(Rectified())}
        self.process, self.calls = Joint(processes), 0
        g = torch.Generator().manual_seed(0)
        self.parts = {
            "a": mixture(processes["a"], torch.randn(2, 2, generator=g), stds=0.5, labels=[0, 1]),
            "b": mixture(processes["b"], torch.randn(2, 3, generator=g), stds=0.5, labels=[0, 1]),
        }

    def __call__(self, x, t, cond=None):
        self.calls += 1
        levels = self.process.at(t)
        return {name: part(x[name], levels[name], cond) for name, part in self.parts.items()}


def test_joint_states_are_guided_variable_by_variable():
    model = Pair()
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 3)}
    times = {"a": 0.3, "b": torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)}
    guided = Free(model, lambda level: 1.0 + 2.0 * level.t, interval=(0.0, 0.6))
    said = guided(x, times, LABEL)
    assert model.calls == 1
    scales = {"a": 1.6, "b": torch.tensor([1.4, 2.0, 1.0])}
    for name in x:
        alone = Free(model.parts[name], scales[name])(x[name], times[name], LABEL)
        torch.testing.assert_close(said[name].x0, alone.x0)
    both = Combine(model, [Term(weight=2.0), Term(weight=-1.0, drop=("label",))])(x, 0.4, LABEL)
    torch.testing.assert_close(both["b"].x0, Free(model.parts["b"], 2.0)(x["b"], 0.4, LABEL).x0)


def test_joint_sampling_costs_one_call_a_step():
    model = Pair()
    out = sample(Free(model, 2.0), solver=Euler(), steps=4, cond=LABEL, seed=0)
    assert model.calls == 4
    assert out["a"].shape == (3, 2) and out["b"].shape == (3, 3)


def test_what_needs_one_continuous_state_says_so():
    for model in (Pair(), token_oracle()):
        with pytest.raises(Incompatible, match="one continuous state"):
            Energy(model, lambda u, level, cond: u.sum(1))
    with pytest.raises(Incompatible, match="one time"):
        sample(Switch([Pair()], at=[]), solver=DDIM(), steps=1, num=1, seed=0)
    with pytest.raises(Incompatible, match="no standard deviation"):
        Free(token_oracle(), 2.0, rescale=0.5)(X, 0.5, LABEL)
