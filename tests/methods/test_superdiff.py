"""SuperDiff's claims on exact models: the published figures of its toy, at the sizes of the paper's notebook."""

import math

import pytest
import torch

from condiff.guidance import Blend, Superpose
from condiff.methods import ENTRIES, superdiff
from condiff.sampling import DDPM, ItoDensity, Uniform, sample

IDEAL = -(math.log(4.0) + math.log(2.0 * math.pi * math.e * 0.16))  # mean log-density of the four blobs: -2.39
GRID = Uniform(start=0.99, end=0.01)
HALVES = [superdiff.truth((0, 1)), superdiff.truth((2, 3))]


def drawn(mode):
    return superdiff.draw(HALVES, mode, seed=0, num=1500, steps=200, grid=GRID)


def mixture_log_prob(x):
    return torch.stack([m.log_prob(x, 0.0) for m in HALVES], 1).logsumexp(1) - math.log(2.0)


def gap(x):
    return float((HALVES[0].log_prob(x, 0.0) - HALVES[1].log_prob(x, 0.0)).abs().median())


@pytest.fixture(scope="module")
def average():
    return drawn("average")


def test_or_draws_from_the_union(average):
    x = drawn("or")
    assert float(mixture_log_prob(x).mean()) == pytest.approx(IDEAL, abs=0.15)  # published -2.43 / -2.40
    share = torch.stack([(x[:, 0] > 0) & (x[:, 1] > 0), (x[:, 0] > 0) & (x[:, 1] < 0)]).double().mean(1)
    assert float((share - 0.25).abs().max()) < 0.06
    assert float((x[:, 1] > 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(mixture_log_prob(average).mean()) < -5.5  # published -6.4


def test_and_draws_what_both_find_equally_likely(average):
    x = drawn("and")
    assert gap(x) < 0.1 and float(x[:, 1].abs().median()) < 0.01  # published .08-.10 and .005
    assert gap(average) > 4.0 and float(average[:, 1].abs().median()) > 0.2  # 5.2 and .28


def test_the_sign_of_the_released_or_branch_would_show():
    """Its update adds |score|^2 for each model where the formula subtracts it: the likelier model loses."""

    class Flipped(ItoDensity):
        def after(self, step, run):
            x = super().after(step, run)
            g2h = run.denoiser.process.diffusion2(step.t) * (step.t.t - step.s.t)
            squares = torch.stack([p.score.double().square().sum(1) for p in step.prediction.aux["parts"]], 1)
            self.values[-1] = self.values[-1] + g2h * squares
            return x

    found = {}
    for kind in (ItoDensity, Flipped):
        density = kind(parts=True, prior=0.0)

        def weight(level, i, density=density):
            now = density.values[-1] if density.values else torch.zeros(400, 2, dtype=torch.float64)
            return now.softmax(1)[:, i]

        either = Blend(HALVES, [lambda level: weight(level, 0), lambda level: weight(level, 1)])
        x = sample(either, solver=DDPM(), grid=GRID, steps=200, num=400, seed=0, hooks=[density])
        found[kind.__name__] = float(mixture_log_prob(x).mean())
    assert found["ItoDensity"] > -2.7 > -3.0 > found["Flipped"]  # published -2.43 and -4.31


def test_a_superposition_written_out_with_the_hook_is_superpose():
    """OR is a blend whose weights read the hook."""
    density = ItoDensity(parts=True, prior=0.0)

    def weight(i):
        def value(level):
            now = density.values[-1] if density.values else torch.zeros(50, 2, dtype=torch.float64)
            return now.softmax(1)[:, i]

        return value

    options = {"solver": DDPM(), "grid": GRID, "steps": 60, "num": 50, "seed": 0}
    by_hand = sample(Blend(HALVES, [weight(0), weight(1)]), hooks=[density], **options)
    torch.testing.assert_close(sample(Superpose(HALVES, mode="or"), **options), by_hand, rtol=0, atol=1e-6)


def test_it_is_no_training_method():
    assert not ENTRIES["superdiff"].trains and not hasattr(superdiff, "recipe")
