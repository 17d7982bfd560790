"""Several denoisers as one."""

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.guidance import Blend, Given, Switch, auto, product
from condiff.process import Cosine, Gaussian, Rectified
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import DDIM, sample

PROCESS = Gaussian(Cosine())


@pytest.fixture
def x():
    return torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pair():
    return gaussian(PROCESS, [0.0, 1.0], std=0.5), gaussian(PROCESS, [2.0, -1.0], std=0.8)


def test_product_of_gaussians_is_their_gaussian_product(x):
    t = 0.4
    a, b = pair()
    level = PROCESS.at(t)
    precision, shift = 0.0, 0.0
    for model, std, power in ((a, 0.5, 1.5), (b, 0.8, 0.5)):
        var = (level.data * std) ** 2 + level.noise**2
        precision, shift = precision + power / var, shift + power * model.moments(t)[0] / var
    wanted = -precision * (x - shift / precision)
    torch.testing.assert_close(product([a, b], [1.5, 0.5])(x, t).score, wanted, rtol=1e-12, atol=1e-12)


def test_blend_weights_per_row_and_skipping(x):
    a, b = pair()
    w = torch.tensor([0.0, 1.0, 0.3, 2.0], dtype=torch.float64)
    said = Blend([a, b], [w, 1.0 - w])(x, 0.5).x0
    torch.testing.assert_close(said, w[:, None] * a(x, 0.5).x0 + (1.0 - w[:, None]) * b(x, 0.5).x0)

    def never(*_):
        raise AssertionError("called although its weight is 0")

    never.process, never.shape = PROCESS, (2,)
    torch.testing.assert_close(Blend([a, never], [1.0, 0.0])(x, 0.5).x0, a(x, 0.5).x0)


def test_weights_that_do_not_sum_to_one_need_a_quantity(x):
    with pytest.raises(BadValue, match="must sum to 1"):
        Blend(pair(), [1.0, 1.0])(x, 0.5)
    a, b = pair()
    torch.testing.assert_close(Blend([a, b], [1.0, 1.0], kind="x0")(x, 0.5).x0, a(x, 0.5).x0 + b(x, 0.5).x0)


def test_autoguidance_moves_away_from_the_weaker_model(x):
    a, b = pair()
    wanted = b(x, 0.5).score + 3.0 * (a(x, 0.5).score - b(x, 0.5).score)
    torch.testing.assert_close(auto(a, b, 3.0)(x, 0.5).score, wanted)
    torch.testing.assert_close(auto(a, b, lambda level: 6.0 * level.t)(x, 0.5).score, wanted)


def test_switch_boundaries_belong_to_the_noisier_expert(x):
    a, b = pair()
    expert = Switch([a, b], at=[0.5])
    for t, model in ((0.0, a), (0.499, a), (0.5, b), (1.0, b)):
        torch.testing.assert_close(expert(x, t).x0, model(x, t).x0, rtol=0, atol=0)
    t = torch.tensor([0.2, 0.5, 0.7, 0.49], dtype=torch.float64)
    said = expert(x, t).x0
    torch.testing.assert_close(said[[1, 2]], b(x, t).x0[[1, 2]], rtol=0, atol=0)
    torch.testing.assert_close(said[[0, 3]], a(x, t).x0[[0, 3]], rtol=0, atol=0)


def test_given_binds_and_hides_conditions(x):
    model = mixture(PROCESS, [[-1.0, 0.0], [1.0, 0.0]], stds=0.3, labels=[0, 1])
    ones = {"label": torch.ones(4, dtype=torch.long)}
    bound = Given(model, {"label": torch.tensor([1])})
    torch.testing.assert_close(bound(x, 0.5).x0, model(x, 0.5, ones).x0)
    torch.testing.assert_close(bound(x, 0.5, {"label": torch.zeros(4, dtype=torch.long)}).x0, model(x, 0.5, ones).x0)
    torch.testing.assert_close(Given(model, only=())(x, 0.5, ones).x0, model(x, 0.5).x0)
    both = Blend([bound, Given(model, {"label": torch.tensor([0])})], [0.5, 0.5])
    assert sample(both, solver=DDIM(), steps=3, num=2, seed=0).shape == (2, 2)


def test_bad_inputs():
    a, b = pair()
    with pytest.raises(Incompatible, match="different processes"):
        Blend([a, gaussian(Gaussian(Rectified()), [0.0, 0.0], std=1.0)], [0.5, 0.5])
    with pytest.raises(BadValue, match="as many weights"):
        Blend([a, b], [1.0])
    with pytest.raises(BadValue, match="finite"):
        Blend([a, b], [float("nan"), 1.0])
    for at in ([], [0.5, 0.6], [1.0], [0.0]):
        with pytest.raises(BadValue, match="increasing times"):
            Switch([a, b], at=at)
    with pytest.raises(BadValue, match="list of names"):
        Given(a, only="label")
    with pytest.raises(BadValue, match="unknown prediction 'scores'"):
        Blend([a, b], [1.0, 1.0], kind="scores")
