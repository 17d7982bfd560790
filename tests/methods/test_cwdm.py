"""cWDM: diffusion in wavelet bands against diffusion of voxels, exact oracles, and the assembly."""

import math

import pytest
import torch

from condiff import oracles
from condiff.codecs import Haar, HaarConfig
from condiff.config import from_config, to_config
from condiff.data import Encoded, TensorData, phantoms
from condiff.errors import BadType, BadValue, Incompatible
from condiff.methods import cwdm
from condiff.methods.catalogue import find
from condiff.methods.drawing import draw_samples
from condiff.methods.experiment import Facts
from condiff.process import Discrete, Gaussian, Prediction
from condiff.random import Tape, as_source
from condiff.sampling import DDIM, DDPM, ClipDecoded, ClipX0, Record, Spaced, sample, trajectory

TABLE = Gaussian(Discrete.ddpm())
SHAPE = (1, 4, 6, 8)


class InBands:
    """A denoiser of samples, seen in the bands of a codec."""

    kinds = None

    def __init__(self, denoiser, codec):
        self.inner, self.codec, self.process = denoiser, codec, denoiser.process
        self.shape = codec.latent_shape(denoiser.shape)

    def __call__(self, z, t, cond=None):
        x0 = self.inner(self.codec.decode(z), t, cond).x0
        return Prediction(z, self.process.at(t), {"x0": self.codec.encode(x0)})


def mixture():
    centers = as_source(3).normal((3, *SHAPE), dtype=torch.float64)
    return oracles.mixture(TABLE, centers, stds=0.3)


@pytest.mark.parametrize("solver", [DDPM("beta"), DDPM(), DDIM()], ids=["beta", "posterior", "ddim"])
def test_bands_and_voxels_are_the_same_process(solver):
    """Without the factor and without clipping: the same path from the same noise, to 1e-5."""
    plain, steps = Haar(axes=3, low=1.0), 30
    denoiser = mixture()
    noise = [as_source(i).normal((2, *SHAPE), dtype=torch.float64) for i in range(steps + 1)]
    paths = {}
    for name, model, coded in (("voxels", denoiser, lambda x: x), ("bands", InBands(denoiser, plain), plain.encode)):
        record = Record(lambda step: step.x_s)
        run = {"solver": solver, "grid": Spaced("trailing"), "steps": steps, "hooks": [record]}
        draws = Tape([coded(n) for n in noise[1:]]) if solver.stochastic else None
        sample(model, initial=coded(noise[0]), rng=draws, **run)
        paths[name] = torch.stack(record.values)
    back = torch.stack([plain.decode(z) for z in paths["bands"]])
    assert float((back - paths["voxels"]).abs().max()) < 1e-5
    assert float(paths["voxels"][-1].std()) > 0.3


def test_the_factor_makes_another_process():
    """With the low band over 3 the bands get the same noise and the voxels don't: this is what the test above sees."""
    third = Haar(axes=3)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 8, 2, 2, 2)
    covariance = third.double().decode(basis).reshape(64, 64)
    assert float((covariance.T @ covariance - torch.eye(64)).abs().max()) > 1.0


@pytest.mark.parametrize(("variance", "expected"), [("beta", 0.04037), ("posterior", 0.03853)])
def test_moments_of_the_chain(variance, expected):
    """Data N(0.5, 0.04), its exact denoiser, from N(0, 1): the chain is affine, so its moments follow exactly."""
    denoiser = oracles.gaussian(TABLE, torch.full((1,), 0.5, dtype=torch.float64), std=0.2)
    solver, mean, var = DDPM(variance), 0.0, 1.0
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    times = Spaced("trailing").times(TABLE, 1000)
    levels = TABLE.levels(times)
    for t, c in zip(levels, solver.plan(levels), strict=False):
        moved, std = solver.advance(ends, denoiser(ends, t), c, solver.start())
        a, b = float(moved[0]), float(moved[1] - moved[0])
        mean, var = a + b * mean, b * b * var + float(std) ** 2 * (t is not levels[-2])
    assert mean == pytest.approx(0.5, abs=5e-4)
    assert var == pytest.approx(expected, abs=1e-5)
    assert abs(var / 0.04 - 1) < 0.05


def test_conditional_gaussian_in_bands():
    """(target, condition) jointly normal per voxel: W is orthonormal, so each band has the same conditional law.

    The chain on the bands with the factor 3 is affine band by band: its exact moments are those of the conditional law.
    """
    rho, std, haar = 0.8, 0.5, Haar(axes=3).double()
    c = as_source(0).normal((1, *SHAPE), dtype=torch.float64)
    mean, var = rho * c, std**2 * (1 - rho**2)
    seen = haar.encode(mean)[0]
    scale = haar.scale.reshape(-1, 1, 1, 1).expand_as(seen)
    solver, levels = DDPM("beta"), TABLE.levels(Spaced("trailing").times(TABLE, 1000))
    m, v = torch.zeros_like(seen), torch.ones_like(seen)
    band = var / scale**2
    for t, weights in zip(levels, solver.plan(levels), strict=False):
        gain = t.data * band / (t.data**2 * band + t.noise**2)  # of the exact conditional mean

        def x0(z, t=t, gain=gain):
            return seen + gain * (z - t.data * seen)

        values = []
        for z in (torch.zeros_like(seen), torch.ones_like(seen)):
            said = Prediction(z[None], t, {"x0": x0(z)[None]})
            moved, step = solver.advance(z[None], said, weights, solver.start())
            values.append(moved[0])
        slope = values[1] - values[0]
        m, v = values[0] + slope * m, slope**2 * v + float(step) ** 2 * (t is not levels[-2])
    voxel_mean = haar.decode(m[None])
    assert float((voxel_mean - mean).abs().max()) < 2e-2
    assert float((v * scale**2 / var - 1).abs().max()) < 0.05


# The clip in the decoded space


def clipped(hook, x0, x_t=None):
    x_t = torch.zeros_like(x0) if x_t is None else x_t
    return hook.prediction(Prediction(x_t, TABLE.at(0.5), {"x0": x0}), None)


def test_clips_where_it_is_decoded():
    config = HaarConfig(axes=3)
    hook, haar = ClipDecoded(config, -0.5, 1.0), config.build()
    z = 2 * as_source(0).normal((2, 8, 2, 3, 4))
    once = clipped(hook, z).x0
    assert float((haar.decode(once) - haar.decode(z).clamp(-0.5, 1.0)).abs().max()) < 1e-6
    assert float((clipped(hook, once).x0 - once).abs().max()) < 1e-6
    assert float((once - z).abs().max()) > 0.5
    assert float((once - z.clamp(-0.5, 1.0)).abs().max()) > 0.1  # not the coefficients
    inside = haar.encode(0.4 * haar.decode(once))
    assert float((clipped(hook, inside).x0 - inside).abs().max()) < 1e-6


def test_noise_follows_the_clipped_sample():
    x_t = as_source(1).normal((1, 8, 2, 2, 2))
    said = clipped(ClipDecoded(HaarConfig()), 3 * as_source(2).normal((1, 8, 2, 2, 2)), x_t)
    level = TABLE.at(0.5)
    assert torch.allclose(level.data * said.x0 + level.noise * said.noise, x_t, atol=1e-6)


def test_clip_configuration_and_refusals():
    hook = ClipDecoded(HaarConfig(axes=2), 0.0, 1.0)
    assert from_config(to_config(hook)) == hook
    assert clipped(ClipDecoded(Haar(axes=2)), torch.ones(1, 4, 2, 2)).x0.shape == (1, 4, 2, 2)
    with pytest.raises(BadValue, match="low < high"):
        ClipDecoded(HaarConfig(), 1.0, 1.0)
    with pytest.raises(BadType, match="codec"):
        ClipDecoded("haar")


def test_samples_lie_in_the_range():
    """At the end of a run with the hook, every voxel is within [-1, 1] up to rounding; without it some aren't."""
    codec = HaarConfig(axes=3)
    wide = InBands(oracles.gaussian(TABLE, torch.zeros(SHAPE), std=1.5), codec.build())
    for hooks, inside in (([ClipDecoded(codec)], True), ([], False)):
        z = sample(wide, num=3, solver=DDPM("beta"), grid=Spaced("trailing"), steps=20, hooks=hooks, seed=0)
        assert (float(codec.build().decode(z).abs().max()) < 1 + 1e-5) == inside


# The assembly


def small(side=16):
    return Facts.of(phantoms(3, side=side))


def test_recipe_is_the_papers():
    recipe = cwdm.recipe(small())
    assert recipe.network.shape == (8, 8, 8, 8)
    assert {n: s.channels for n, s in recipe.network.conditions.items()} == {"t1": 8, "t2": 8, "pd": 8}
    assert recipe.target == "x0" and recipe.objective.loss == "l2" and recipe.objective.target is None
    assert recipe.sampler.solver == DDPM("beta") and recipe.sampler.steps == 1000
    assert recipe.process == TABLE and recipe.codec == HaarConfig(axes=3, low=3.0)
    assert from_config(to_config(recipe)) == recipe
    network = cwdm.network(Facts((8, 112, 112, 80)))
    assert network.width == 64 and network.multipliers == (1, 2, 2, 4, 4) and network.layers == 2
    assert not network.middle_attention and not network.attention_levels and network.skip == "concat"
    assert cwdm.training(Facts((1, 224, 224, 160))).lr == 1e-5
    assert find("cwdm").trains


def test_loss_is_the_mean_over_bands():
    recipe = cwdm.recipe(small())
    data = recipe.encoded(phantoms(2, side=16))
    denoiser, batch = recipe.denoiser(0), data.batch([0, 1])
    loss = recipe.objective(denoiser, batch, rng=0)
    t = loss.t
    noise_rng = as_source(0)
    recipe.objective.times.sample(TABLE, batch["x"].shape, noise_rng, "cpu")
    noise = noise_rng.normal(batch["x"].shape)
    x_t = TABLE.forward(batch["x"], t, noise=noise).x_t
    said = denoiser(x_t, t, batch["cond"]).x0
    bands = (said - batch["x"]).square().movedim(1, 0).flatten(1).mean(1)
    assert len(bands) == 8
    assert loss.loss.item() == pytest.approx(bands.mean().item(), rel=1e-5)


def test_network_input_is_state_and_bands_of_the_conditions():
    """What each given scan puts beside the state is its transform with the same factor, and never noised."""
    recipe = cwdm.recipe(small())
    raw = phantoms(1, side=16)
    seen = recipe.encoded(raw).batch([0])
    denoiser = recipe.denoiser(0)
    assert denoiser.network.input.in_channels == 8 + 3 * (8 + 1)
    for name in ("t1", "t2", "pd"):
        assert torch.equal(seen["cond"][name], Haar(axes=3).encode(raw.batch([0])["cond"][name]))


def test_pictures_too():
    recipe = cwdm.recipe(Facts((3, 16, 16)))
    assert recipe.network.shape == (12, 8, 8) and recipe.codec.axes == 2


def test_refuses():
    with pytest.raises(BadValue, match="volumes"):
        cwdm.recipe(Facts((16, 2)))
    with pytest.raises(BadValue, match="multiples of 2"):
        cwdm.recipe(Facts((1, 16, 15, 16)))
    other = cwdm.recipe(small()).denoiser(0)
    with pytest.raises((BadValue, Incompatible)):
        other(torch.zeros(1, 8, 8, 8, 8), 0.5, {"t3": torch.zeros(1, 8, 8, 8, 8)})


def test_drawing_is_in_the_datas_space_and_does_not_depend_on_the_batch():
    data = phantoms(3, side=16)
    recipe = cwdm.recipe(Facts.of(data))
    model = recipe.denoiser(0).eval()
    torch.nn.init.normal_(model.network.output.weight, std=0.02)
    sampler = type(recipe.sampler)(solver=DDIM(), grid=Spaced("trailing"), steps=2, hooks=recipe.sampler.hooks)
    whole = draw_samples(model, recipe, data, num=3, sampler=sampler, batch=3)
    each = draw_samples(model, recipe, data, num=3, sampler=sampler, batch=1)
    assert whole.x.shape == (3, 1, 16, 16, 16) and float(whole.x.abs().max()) < 1 + 1e-5
    assert float(whole.x.std()) > 0.01
    assert torch.allclose(whole.x, each.x, atol=1e-4)
    assert torch.equal(whole.truth, data.batch(range(3))["x"])
    by_hand = cwdm.made(cwdm.Trained(recipe, model), data, [0], steps=2)  # the same way in and out, another seed
    assert by_hand.shape == (1, 1, 16, 16, 16)


def test_facts_in_bands():
    data = TensorData(
        as_source(0).normal((4, 2, 8, 8)).clamp(-1, 1),
        {"map": torch.zeros(4, 3, 8, 8), "age": torch.rand(4), "label": torch.tensor([0, 1, 0, 1])},
    )
    facts, haar = Facts.of(data), Haar(axes=2)
    seen, again = facts.encoded(haar), Facts.of(Encoded(data, haar))
    assert seen.shape == again.shape == (8, 4, 4)
    assert seen.embeddings == again.embeddings and seen.embeddings["map"].channels == 12
    assert seen.std == pytest.approx(again.std) and torch.equal(seen.examples, again.examples)


def test_voxel_baseline_is_the_same_network():
    own, there = (chosen.network for chosen in (cwdm.recipe(small()), cwdm.voxels(small())))
    assert there.shape == (1, 16, 16, 16) and own.multipliers == there.multipliers and own.width == there.width
    assert cwdm.voxels(small()).sampler.hooks == (ClipX0(),)


def test_regression_is_exact_on_linear_data():
    cond = {n: as_source(i).uniform((4, 1, 8, 8, 8)) - 0.5 for i, n in enumerate("ab")}
    x = 0.5 * cond["a"] - 0.25 * cond["b"] + 0.1
    data = TensorData(x, cond, kinds={"a": "map", "b": "map"}, range="keep")
    assert float((cwdm.regression(data, data) - x).abs().max()) < 1e-6
    assert math.isfinite(float(cwdm.regression(data, data, mean_only=True).std()))


def test_trajectory_starts_from_white_noise_in_bands():
    recipe = cwdm.recipe(small())
    model = recipe.denoiser(0)
    first = next(
        trajectory(
            model, as_source(0).normal((1, 8, 8, 8, 8)), solver=DDPM("beta"), grid=Spaced("trailing"), steps=4, rng=1
        )
    )
    assert first.t.noise == pytest.approx(1.0, abs=1e-4)
