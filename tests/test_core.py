"""The core's identities: one rule for all conversions, levels, and the loop."""

import itertools

import pytest
import torch

from condiff.denoiser import Denoiser, Plain
from condiff.errors import BadValue, Degenerate
from condiff.process import Cosine, Discrete, Gaussian, Prediction, Rectified, VPLinear
from condiff.sampling import DDIM, Euler, sample

KINDS = ("x0", "noise", "velocity", "v", "score")


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), Cosine(shift=0.5), Rectified(), Rectified(shift=3.0)])
@pytest.mark.parametrize("t", [0.3, torch.tensor([0.1, 0.5, 0.9])])
def test_conversions_are_inverses(schedule, t):
    truth = Gaussian(schedule).forward(torch.randn(3, 2, 4, dtype=torch.float64), t, rng=0)
    for known, wanted in itertools.product(KINDS, KINDS):
        said = Prediction(truth.x_t, truth.level, {known: truth.to(known)}).to(wanted)
        torch.testing.assert_close(said, truth.to(wanted), rtol=1e-12, atol=1e-12)


def test_degenerate_ends_raise_and_regular_ones_do_not():
    truth = Gaussian(Rectified()).forward(torch.randn(2, 3, dtype=torch.float64), 1.0, rng=0)
    from_noise = Prediction(truth.x_t, truth.level, {"noise": truth.noise})
    torch.testing.assert_close(from_noise.score, -truth.noise)
    with pytest.raises(Degenerate, match="x0 does not follow from noise"):
        _ = from_noise.x0
    from_velocity = Prediction(truth.x_t, truth.level, {"velocity": truth.velocity})
    torch.testing.assert_close(from_velocity.x0, truth.x0)


class Point:
    """All data at one point: every first-order solver is exact."""

    shape, kinds = (3,), {}

    def __init__(self, process):
        self.process, self.point = process, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"x0": self.point.expand_as(x)})


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_lands_on_a_point(eta):
    x = sample(Point(Gaussian(Cosine())), solver=DDIM(eta=eta), steps=5, num=4, seed=0, dtype=torch.float64)
    torch.testing.assert_close(x, Point(Gaussian(Cosine())).point.expand(4, 3))


def test_steps_below_one_are_refused():
    with pytest.raises(BadValue, match="steps must be at least 1"):
        sample(Point(Gaussian(Rectified())), solver=Euler(), steps=0, num=1)


class Told(torch.nn.Module):
    """A network that remembers the time it was told."""

    def forward(self, x, time, cond):
        self.time = time
        return torch.zeros_like(x)


@pytest.mark.parametrize(("index", "expected"), [(False, 0.25), (True, 249.0)])
def test_a_network_on_a_table_is_told_a_time_in_its_range_unless_it_wants_the_index(index, expected):
    """Embeddings here are scaled for [0, 1]: an index of 249 would alias their sines, and nothing would be learned."""
    network = Told()
    Denoiser(network, Gaussian(Discrete.ddpm()), "noise", Plain(index=index))(torch.zeros(2, 3), 0.25)
    torch.testing.assert_close(network.time, torch.full((2,), expected))
