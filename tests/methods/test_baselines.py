"""The baselines are what their papers say: losses, recipes, and the arithmetic of verdicts."""

import dataclasses
import importlib

import pytest
import torch

from condiff.conditions import Label
from condiff.config import from_config, to_config
from condiff.data import TensorData
from condiff.errors import BadValue
from condiff.methods import ENTRIES
from condiff.methods.experiment import Facts
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.networks import DiTConfig
from condiff.process import stack_levels
from condiff.training import ELBO

FACTS = Facts((1, 4, 4), {"label": Label(3)}, std=0.6, count=30)
NETWORK = DiTConfig(shape=(1, 4, 4), width=16, depth=1, heads=2, patch=2, conditions={"label": Label(3)})


def recipe_of(slug):
    return dataclasses.replace(ENTRIES[slug].recipe(FACTS), network=NETWORK)


@pytest.mark.parametrize("slug", sorted(s for s, e in ENTRIES.items() if e.family == "baseline"))
def test_a_recipe_survives_its_file_and_trains(slug):
    recipe = recipe_of(slug)
    again = from_config(to_config(recipe))
    assert to_config(again) == to_config(recipe)
    torch.manual_seed(0)
    denoiser = again.denoiser()
    batch = {"x": torch.randn(8, 1, 4, 4).clamp(-1, 1), "cond": {"label": torch.arange(8) % 3}}
    losses = again.objective(denoiser, batch, 0)
    losses.loss.backward()
    assert torch.isfinite(losses.loss) and losses.per_sample.shape == (8,)


@pytest.mark.parametrize(("slug", "kind"), [("ddpm", "noise"), ("flow-matching", "velocity"), ("cfg", "v")])
def test_the_simple_loss_is_the_mean_square_of_the_target(slug, kind):
    recipe = recipe_of(slug)
    denoiser = recipe.denoiser().double()
    x, noise = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9], dtype=torch.float64)
    cond = {"label": torch.arange(5) % 3}
    truth = recipe.process.forward(x, t, noise=noise)
    expected = (denoiser(truth.x_t, t, cond).to(kind) - truth.to(kind)).square().mean(dim=(1, 2, 3))
    got = recipe.objective.at(denoiser, x, t, noise, cond).per_sample
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    if kind == "velocity":
        torch.testing.assert_close(truth.velocity, noise - x)


def test_edm_loss_is_the_plain_mean_square_of_the_network_output():
    """With lambda(sigma) = 1 / c_out^2 the weight on F is 1 at every noise level (Karras 2022, appendix B.6)."""
    recipe = recipe_of("edm")
    levels = recipe.process.levels(torch.linspace(0.2, 1.0, 9, dtype=torch.float64))
    for level in levels:
        _, _, c_out = recipe.precondition.weights(level)
        assert recipe.objective.weighting.on("x0", level) * c_out**2 == pytest.approx(1.0, rel=1e-12)


def test_elbo_weight_is_half_the_slope_of_the_snr():
    process = recipe_of("cfg").process
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(process.schedule.log_snr(t).exp().sum(), t)
    weight = ELBO().on("x0", stack_levels(process.levels(t.detach())))
    torch.testing.assert_close(weight, -0.5 * slope, rtol=1e-10, atol=0)


def test_guidance_needs_a_condition():
    from condiff.methods import cfg

    with pytest.raises(BadValue, match="the data has none"):
        cfg.recipe(dataclasses.replace(FACTS, embeddings={}))


def test_every_entry_has_its_module_and_page_of_facts():
    for slug, entry in ENTRIES.items():
        module = importlib.import_module(entry.module)
        assert callable(module.reproduce) and entry.bibtex.startswith("@") and entry.arxiv in entry.bibtex, slug
        assert hasattr(module, "recipe") == entry.trains, slug


def test_a_method_that_trains_nothing_says_so():
    entry = dataclasses.replace(ENTRIES["cfg"], trains=False)
    with pytest.raises(BadValue, match="trains no model of its own"):
        entry.recipe(FACTS)


def test_facts_of_a_data_set():
    data = TensorData(torch.linspace(-1, 1, 32).reshape(8, 4), {"label": torch.arange(8) % 2})
    facts = Facts.of(data)
    assert facts.shape == (4,) and facts.embeddings == {"label": Label(2)} and facts.count == 8
    assert facts.std == pytest.approx(float(torch.linspace(-1, 1, 32).std()))


def comparison(**changes):
    base = {"name": "d", "baseline_name": "b", "baseline": (2.0, 2.0), "ours_name": "o", "ours": (1.0, 1.5)}
    return Comparison(**{**base, **changes})


def test_a_claim_holds_only_when_every_seed_agrees_and_the_margin_is_met():
    assert comparison().holds and comparison().gain == pytest.approx(0.375)
    assert not comparison(ours=(1.0, 2.1)).holds  # one seed disagrees
    assert not comparison(lower_is_better=False).holds
    assert not comparison(margin=0.5).holds
    with pytest.raises(BadValue, match="one figure a seed"):
        comparison(ours=(1.0,))


@pytest.mark.parametrize(
    ("held", "verdict"),
    [((True, True), "reproduced"), ((True, False), "partly reproduced"), ((False, False), "not reproduced")],
)
def test_verdicts(tmp_path, held, verdict):
    rows = tuple(comparison(lower_is_better=ok) for ok in held)
    outcome = Reproduction(
        slug="x", claim="c", budget="small", seeds=(0, 1), comparisons=rows, seconds=1.0, machine="here"
    )
    assert outcome.verdict == verdict and verdict in outcome.table()
    path = outcome.save(tmp_path)
    assert path.is_file() and path.with_suffix(".png").is_file()


def test_stored_verdicts_are_outcomes_of_the_code_here():
    for entry in ENTRIES.values():
        stored = entry.verdict()
        if stored is not None:
            assert stored["slug"] == entry.slug and len(stored["seeds"]) >= 3
            held = [row["holds"] for row in stored["comparisons"]]
            words = {True: "reproduced", False: "partly reproduced" if any(held) else "not reproduced"}
            assert stored["verdict"] == words[all(held)]
