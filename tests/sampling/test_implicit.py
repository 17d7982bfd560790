"""The implicit inverse of DDIM: closed forms, orders of the round trip, exactness, every rule."""

import itertools
import math

import pytest
import torch

from condiff.errors import BadValue, Incompatible, NonFinite
from condiff.process import Cosine, Discrete, Gaussian, Prediction, Rectified
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import DDIM, Hook, ImplicitDDIM, Uniform, invert, sample
from condiff.sampling.loop import trajectory

GRID = Uniform(start=0.98, end=0.01)


def hills(dims=8):
    means = torch.randn(3, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture(Gaussian(Cosine()), means.tolist(), stds=0.5)


def round_trip(model, x, solver, steps, hooks=()):
    found = invert(model, x, solver=solver, steps=steps, grid=GRID, hooks=hooks)
    again = sample(model, initial=found.latent, grid=found.times.flip(0), solver=DDIM(), hooks=hooks)
    return float((again - x).square().mean().sqrt()), found


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_k_iterations_make_the_round_trip_one_of_order_k_plus_one(iterations):
    """On the schedule of Stable Diffusion, whose steps are even in the noise: 25, 50, 100 and 200 of them."""
    means = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = mixture(Gaussian(Discrete.stable_diffusion()), means.tolist(), stds=0.5)
    x, errors = model.sample(16, rng=0, dtype=torch.float64), []
    for n in (25, 50, 100, 200):
        grid = model.process.schedule.at_index(torch.arange(0, 1000, 1000 // n).flip(0))
        found = invert(model, x, solver=ImplicitDDIM(iterations), grid=grid)
        again = sample(model, initial=found.latent, grid=grid, solver=DDIM())
        errors.append(float((again - x).square().mean().sqrt()))
    for coarse, fine in itertools.pairwise(errors):
        assert 0.8 * 2 ** (iterations + 1) < coarse / fine < 1.3 * 2 ** (iterations + 1), errors


@pytest.mark.parametrize("rule", ["picard", "anderson"])
def test_a_converged_fixed_point_leads_back_exactly(rule):
    model = hills()
    x = model.process.at(0.01).data * model.sample(16, rng=0, dtype=torch.float64)
    assert round_trip(model, x, ImplicitDDIM(40, rule=rule), 50)[0] < 1e-12


def test_the_fixed_point_of_a_linear_model_in_closed_form():
    """Data N(0, v): noise = kappa x, so that x_t = A x_s / (1 - B kappa_t)."""
    process, v = Gaussian(Cosine()), 0.3
    model = gaussian(process, torch.zeros(2, dtype=torch.float64), std=math.sqrt(v))
    x = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    s, t = process.at(0.4), process.at(0.5)
    found = invert(model, x, solver=ImplicitDDIM(60), grid=[0.5, 0.4])
    kappa = t.noise / (t.data**2 * v + t.noise**2)
    a = t.data / s.data
    b = t.noise - a * s.noise
    torch.testing.assert_close(found.latent, a * x / (1.0 - b * kappa), rtol=1e-12, atol=1e-12)


def residuals(model, x, solver, grid):
    step = next(trajectory(model, x, solver=solver, grid=grid, up="integrate"))
    return torch.stack(step.state.extra["residuals"][0])


def test_residuals_contract_by_the_slope_of_the_noise():
    process, v = Gaussian(Cosine()), 0.3
    model = gaussian(process, torch.zeros(2, dtype=torch.float64), std=math.sqrt(v))
    s, t = process.at(0.4), process.at(0.5)
    kappa, a = t.noise / (t.data**2 * v + t.noise**2), t.data / s.data
    found = residuals(model, torch.ones(1, 2, dtype=torch.float64), ImplicitDDIM(5), [0.4, 0.5])[:, 0]
    torch.testing.assert_close(found[1:] / found[:-1], torch.full((4,), abs((t.noise - a * s.noise) * kappa)).double())


def test_residuals_fall_on_a_mixture_and_faster_with_mixing():
    model = hills()
    x = model.sample(16, rng=0, dtype=torch.float64)
    picard = residuals(model, x, ImplicitDDIM(8), [0.1, 0.25])
    mixed = residuals(model, x, ImplicitDDIM(8, rule="anderson"), [0.1, 0.25])
    assert (picard[1:] < picard[:-1]).all()
    assert (mixed[-1] < 0.1 * picard[-1]).all()


def test_adamw_goes_where_picard_goes():
    model = hills()
    x = model.sample(4, rng=0, dtype=torch.float64)
    grid = [0.3, 0.2]
    exact = invert(model, x, solver=ImplicitDDIM(40), grid=grid).latent
    near = invert(model, x, solver=ImplicitDDIM(150, rule="adamw", lr=1e-2), grid=grid).latent
    start = invert(model, x, solver=ImplicitDDIM(0), grid=grid).latent
    assert (near - exact).abs().max() < 0.01 * (start - exact).abs().max()
    assert not near.requires_grad


def test_weight_decay_moves_the_latent_by_itself():
    """One iteration of AdamW: the decay is beside the step, ``x <- x - lr decay x - lr step``."""
    model = hills()
    x = model.sample(2, rng=0, dtype=torch.float64)
    first, plain, decayed = (
        invert(model, x, solver=ImplicitDDIM(k, rule="adamw", lr=0.01, weight_decay=decay), grid=[0.3, 0.2]).latent
        for k, decay in ((0, 0.0), (1, 0.0), (1, 0.5))
    )
    torch.testing.assert_close(decayed, plain - 0.01 * 0.5 * first, rtol=1e-12, atol=1e-12)
    assert float((plain - first).abs().max()) == pytest.approx(0.01, rel=1e-3)  # Adam's first step


def test_adamw_as_released_stops_half_way():
    """At a mean square of 5e-6, however many iterations are allowed: half of DDIM inversion's error is left."""
    means = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = mixture(Gaussian(Discrete.stable_diffusion()), means.tolist(), stds=0.5)
    x, grid = model.sample(8, rng=0, dtype=torch.float64), model.process.schedule.at_index(torch.arange(0, 1000, 20))
    released = {"rule": "adamw", "weight_decay": 0.01, "tolerance": 5e-6**0.5}
    rules = {"ddim": ImplicitDDIM(0), 10: ImplicitDDIM(10, **released), 25: ImplicitDDIM(25, **released)}
    errors = {}
    for name, solver in rules.items():
        found = invert(model, x, solver=solver, grid=grid.flip(0))
        again = sample(model, initial=found.latent, grid=grid.flip(0), solver=DDIM())
        errors[name] = float((again - x).square().mean().sqrt())
    assert errors[10] == errors[25] and 0.4 < errors[10] / errors["ddim"] < 0.6
    assert 0.02 < errors["ddim"] < 0.045


def test_it_stops_at_the_tolerance_and_counts_its_calls():
    model = hills()
    x = model.sample(4, rng=0, dtype=torch.float64)
    few = invert(model, x, solver=ImplicitDDIM(50, tolerance=1e-3), steps=20, grid=GRID)
    many = invert(model, x, solver=ImplicitDDIM(50), steps=20, grid=GRID)
    assert few.nfe < many.nfe <= 20 * 51
    assert invert(model, x, solver=ImplicitDDIM(0), steps=20, grid=GRID).nfe == 20


def test_a_row_is_what_it_is_alone():
    model = hills()
    x = model.sample(5, rng=0, dtype=torch.float64)
    together = invert(model, x, solver=ImplicitDDIM(6, rule="anderson"), steps=10, grid=GRID).latent
    alone = invert(model, x[2:3], solver=ImplicitDDIM(6, rule="anderson"), steps=10, grid=GRID).latent
    torch.testing.assert_close(together[2:3], alone, rtol=1e-9, atol=1e-9)


def test_hooks_are_part_of_the_equation():
    """With the same change of the noise on both ways the round trip is exact, whatever it is."""

    class Bent(Hook):
        def prediction(self, prediction, run):
            return prediction.set("noise", 0.9 * prediction.noise + 0.05)

    model = hills()
    x = model.process.at(0.01).data * model.sample(4, rng=0, dtype=torch.float64)
    assert round_trip(model, x, ImplicitDDIM(60), 50, hooks=[Bent()])[0] < 1e-12


def test_straight_paths_serve_too():
    model = mixture(Gaussian(Rectified()), [[-1.0, 0.3], [1.2, 0.0]], stds=[0.4, 0.6])
    x = model.process.at(0.01).data * model.sample(8, rng=0, dtype=torch.float64)
    assert round_trip(model, x, ImplicitDDIM(30, rule="anderson"), 40)[0] < 1e-10


class Steep:
    """noise = 9 x: not a model of anything, but Picard's rule grows on it, and mixing does not."""

    process, shape = Gaussian(Cosine()), None

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"noise": 9.0 * x})


def test_what_diverges_is_said_with_its_step():
    x = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(NonFinite, match=r"fixed point of the step to t = 0\.6"):
        invert(Steep(), x, solver=ImplicitDDIM(50), grid=[0.6, 0.2])
    found = invert(Steep(), x, solver=ImplicitDDIM(8, rule="anderson"), grid=[0.6, 0.2])
    again = sample(Steep(), initial=found.latent, grid=[0.6, 0.2], solver=DDIM())
    torch.testing.assert_close(again, x)


class HalfFlat:
    """The noise of the first row doesn't depend on the state: its fixed point is the first guess."""

    process, shape = Gaussian(Discrete.stable_diffusion()), None

    def __call__(self, x, t, cond=None):
        slope = torch.tensor([[0.0], [1.0]], dtype=x.dtype)
        return Prediction(x, self.process.at(t), {"noise": 0.3 + slope * torch.sin(3.0 * x)})


@pytest.mark.parametrize("rule", ["picard", "anderson"])
def test_rounding_of_a_row_that_is_done_is_no_divergence(rule):
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = HalfFlat.process.schedule.at_index(torch.arange(0, 1000, 20).flip(0))
    found = invert(HalfFlat(), x, solver=ImplicitDDIM(20, rule=rule), grid=grid)
    again = sample(HalfFlat(), initial=found.latent, grid=grid, solver=DDIM())
    torch.testing.assert_close(again, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": -1}, "iterations"),
        ({"rule": "newton"}, "unknown rule"),
        ({"history": 0}, "history"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_bad_settings(options, said):
    with pytest.raises(BadValue, match=said):
        ImplicitDDIM(**options)


def test_a_grid_from_pure_noise_is_refused_where_it_would_not_lead_back():
    """noise(x, t) = x where nothing of the data is left: each state is its own fixed point, the old one too."""
    model = hills()
    x = model.sample(2, rng=0, dtype=torch.float64)
    with pytest.raises(Incompatible, match=r"start=0\.99"):
        invert(model, x, solver=ImplicitDDIM(), steps=20)
    assert invert(model, x, solver=ImplicitDDIM(0), steps=20).times[-1] == 1.0  # DDIM inversion
    found = invert(model, x, solver=ImplicitDDIM(40, rule="anderson"), grid=Uniform(start=0.99), steps=20)
    again = sample(model, initial=found.latent, grid=found.times.flip(0), solver=DDIM())
    assert (again - x).abs().max() < 1e-9


def test_sampling_with_it_is_refused():
    with pytest.raises(Incompatible, match=r"sample with DDIM\(\)"):
        sample(hills(), solver=ImplicitDDIM(), steps=5, num=1)
