"""The oracle of jointly normal variables, at times of their own."""

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.process import Cosine, Gaussian, Joint, Rectified, Residual, StudentT, oracles

F64 = torch.float64
PAIR = Joint({"a": Gaussian(Cosine()), "b": Gaussian(Rectified())})
MEANS = {"a": torch.tensor([0.3, -0.2], dtype=F64), "b": torch.tensor([[1.0]], dtype=F64)}
COV = torch.tensor([[1.0, 0.2, 0.5], [0.2, 0.6, -0.1], [0.5, -0.1, 0.8]], dtype=F64)


def model():
    return oracles.joint_normal(PAIR, MEANS, COV)


def test_the_score_is_that_of_the_density():
    """grad log p(x_t) of the joint normal law of the noised variables, by autograd."""
    x = {"a": torch.randn(4, 2, dtype=F64), "b": torch.randn(4, 1, 1, dtype=F64)}
    t = {"a": torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64), "b": 0.3}
    levels = PAIR.at(t)
    flat = torch.cat([x["a"], x["b"].flatten(1)], 1).requires_grad_()
    total = 0.0
    for i in range(4):
        data = torch.tensor([levels["a"].data[i], levels["a"].data[i], levels["b"].data], dtype=F64)
        noise = torch.tensor([levels["a"].noise[i], levels["a"].noise[i], levels["b"].noise], dtype=F64)
        mean = data * torch.cat([MEANS["a"], MEANS["b"].flatten()])
        law = torch.distributions.MultivariateNormal(mean, data[:, None] * COV * data + torch.diag(noise**2))
        total = total + law.log_prob(flat[i])
    (score,) = torch.autograd.grad(total, flat)
    said = model()(x, t)
    torch.testing.assert_close(said["a"].score, score[:, :2])
    torch.testing.assert_close(said["b"].score.flatten(1), score[:, 2:])


def test_a_clean_variable_conditions_the_other():
    """At t = 1 of a, its mean given b alone; b itself comes back."""
    x = {"a": torch.randn(3, 2, dtype=F64), "b": torch.randn(3, 1, 1, dtype=F64)}
    said = model()(x, {"a": 1.0, "b": 0.0})
    wanted = MEANS["a"] + (x["b"][:, 0] - 1.0) * COV[:2, 2] / COV[2, 2]
    torch.testing.assert_close(said["a"].x0, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(said["b"].x0, x["b"])
    assert said["b"].x_t.shape == (3, 1, 1)


def test_independent_variables_dont_hear_each_other():
    law = oracles.joint_normal(PAIR, MEANS, torch.diag(COV.diagonal()))
    x = {"a": torch.randn(3, 2, dtype=F64), "b": torch.randn(3, 1, 1, dtype=F64)}
    other = {**x, "b": x["b"] + 5.0}
    assert torch.equal(law(x, 0.5)["a"].x0, law(other, 0.5)["a"].x0)
    one = oracles.gaussian(PAIR["b"], MEANS["b"], std=0.8**0.5)
    torch.testing.assert_close(law(x, 0.5)["b"].x0, one(x["b"], 0.5).x0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: oracles.joint_normal(PAIR, {"a": MEANS["a"]}, COV), BadValue, "must have the names"),
        (lambda: oracles.joint_normal(PAIR, MEANS, COV[:2, :2]), BadValue, "covariance of shape"),
        (lambda: oracles.joint_normal(PAIR, MEANS, -COV), BadValue, "positive definite"),
        (
            lambda: oracles.joint_normal(Joint({"a": Gaussian(Cosine(), StudentT(df=5))}), {"a": MEANS["a"]}, COV),
            Incompatible,
            "Gaussian processes",
        ),
        (lambda: oracles.joint_normal(Joint({"a": Residual()}), {"a": MEANS["a"]}, COV), Incompatible, "Gaussian"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
