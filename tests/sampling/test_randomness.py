"""What is drawn: per-sample seeds, given noise, and gradients through the sampler."""

import pytest
import torch

from condiff.conditions import as_conditions
from condiff.errors import BadValue
from condiff.guidance import Free
from condiff.process import Cosine, Gaussian, Prediction, Rectified
from condiff.process.oracles import gaussian
from condiff.random import Tape, seeded_weights
from condiff.sampling import DDIM, Euler, Inpaint, PredictorCorrector, sample, trajectory

PROCESS = Gaussian(Cosine())


class Elementwise:
    """A cheap nonlinear model whose arithmetic doesn't depend on the batch."""

    shape, kinds = (2, 3), {"label": "label"}

    def __init__(self, process=PROCESS):
        self.process = process

    def __call__(self, x, t, cond=None):
        out = torch.tanh(x)
        label = as_conditions(cond, self.kinds).get("label")
        if label is not None:
            out = out + (label.value * label.kept())[:, None, None]
        return Prediction(x, self.process.at(t), {"v": out})


SOLVERS = [Euler(), DDIM(), DDIM(eta=0.7), PredictorCorrector(DDIM(eta=1.0))]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("guided", [False, True])
def test_a_sample_depends_on_its_own_seed_only(solver, guided):
    model = Free(Elementwise(), 2.0) if guided else Elementwise()

    def run(seeds):
        cond = {"label": torch.tensor(seeds) % 3}
        return sample(model, solver=solver, steps=4, seeds=seeds, cond=cond)

    eight = run([11, 5, 3, 2, 7, 8, 9, 10])
    three = run([2, 11, 8])
    for row, seed in ((3, 2), (0, 11), (5, 8)):
        assert torch.equal(eight[row], three[[2, 11, 8].index(seed)])
        assert torch.equal(eight[row], run([seed])[0])


def test_inpainting_noise_is_per_sample_too():
    hook = Inpaint(torch.zeros(2, 3), torch.tensor([True, False, False]))

    def run(seeds):
        return sample(Elementwise(), solver=DDIM(eta=1.0), steps=4, seeds=seeds, hooks=[hook])

    assert torch.equal(run([4, 5, 6])[2], run([6])[0])


def test_one_seed_is_reproducible_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    runs = [sample(Elementwise(), solver=DDIM(eta=1.0), steps=3, num=2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_draw_can_be_given():
    """With an affine denoiser the sampler is an affine map of (initial, noises): superposition holds exactly."""
    model = gaussian(PROCESS, torch.zeros(4), std=0.7)
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, 4, generator=g, dtype=torch.float64) for _ in range(4)]

    def run(*given):
        return sample(model, solver=DDIM(eta=1.0), steps=4, num=1, rng=Tape(given), dtype=torch.float64)

    zero = torch.zeros(1, 4, dtype=torch.float64)
    alone = [run(*(d if i == j else zero for j in range(4))) for i, d in enumerate(draws)]
    torch.testing.assert_close(run(*draws), sum(alone), rtol=1e-13, atol=1e-13)
    with pytest.raises(BadValue, match="run out"):
        run(*draws[:2])
    steps = list(trajectory(model, draws[0], solver=DDIM(eta=1.0), steps=4, rng=Tape(draws[1:])))
    for step, draw in zip(steps, draws[1:], strict=False):
        assert torch.equal(step.noise, draw)
    assert steps[-1].noise is None


@pytest.mark.parametrize("solver", [Euler(), DDIM(eta=1.0), PredictorCorrector(DDIM())], ids=str)
def test_gradients_flow_through_the_sampler_when_asked(solver):
    class Model:
        process, shape, kinds = Gaussian(Rectified()), (3,), None

        def __init__(self, weight):
            self.weight = weight

        def __call__(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {"velocity": torch.tanh(x @ self.weight)})

    def run(x, weight):
        return sample(Model(weight), solver=solver, grid=[0.9, 0.5, 0.2], initial=x, seed=3, grad=True)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, weight), eps=1e-6, atol=1e-6)
    assert not sample(Model(weight), solver=solver, grid=[0.9, 0.5], initial=x, seed=3).requires_grad


def test_weights_of_a_seed_leave_all_generators_alone(monkeypatch):
    """torch.manual_seed would seed those of GPUs too, for good."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    before, drawn = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        with seeded_weights(seed):
            drawn.append(torch.nn.Linear(4, 4).weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        with seeded_weights(None):
            assert torch.equal(torch.nn.Linear(4, 4).weight, drawn[0])
