"""Late starts from the data's moments, noise on conditions by time, and the curve that tells whether a model leaks."""

import math

import pytest
import torch

from condiff.conditions import Condition, Conditions, Corrupt, Label, Map, TimeNoise
from condiff.config import from_config, to_config
from condiff.data import DataMoments
from condiff.denoiser import EDMPrecondition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.methods import conditional_image_leakage as cil
from condiff.methods.experiment import Facts
from condiff.metrics import leakage, motion
from condiff.process import EDM, Discrete, Gaussian, Moments, Prediction, Rectified, oracles
from condiff.random import as_source
from condiff.sampling import DDIM, BetaSigmas, Grid, Heun, Karras, Power, Shifted, Spaced, Uniform, sample

F64 = torch.float64
SD = Gaussian(Discrete.stable_diffusion())
MEANS = torch.tensor([[4.0, 2.0, 0.0, -2.0, 6.0, 1.0], [-2.0, 4.0, 2.0, 0.0, 2.0, 5.0]], dtype=F64)
WEIGHTS, STD = torch.tensor([0.7, 0.3], dtype=F64), 0.4


def moments_of_mixture(means, weights, std):
    """E[x0] and tr Cov[x0] / d in closed form."""
    mean = weights @ means
    return DataMoments(mean=mean, var=float((weights @ (means - mean).square()).mean()) + std**2)


# A1. Optimality


def test_the_moments_are_the_best_isotropic_normal():
    """Cross-entropy of q_M to N(mu, s^2 I) is exact from two moments: least at (mu*, s*^2)."""
    stats = moments_of_mixture(MEANS, WEIGHTS, STD)
    level = SD.at(0.94)
    total = level.data**2 * stats.var + level.noise**2  # tr Cov[x_M] / d

    def cross_entropy(mean, var):
        gap = float((level.data * stats.mean - mean).square().mean())
        return 3.0 * (math.log(2.0 * math.pi * var) + (total + gap) / var)

    mean, var = level.data * stats.mean, total
    best = cross_entropy(mean, var)
    assert all(cross_entropy(*other) > best for other in ((mean + 0.05, var), (mean, 1.05 * var), (mean, 0.95 * var)))
    assert cross_entropy(torch.zeros(6, dtype=F64), 1.0) > best
    prior = stats.prior()
    x = SD.forward(MEANS[[0]], level, rng=0).x_t
    want = -0.5 * ((x - mean).square().sum() / var + 6.0 * math.log(2.0 * math.pi * var))
    assert float(prior.log_prob(x, level)) == pytest.approx(float(want), rel=1e-12)
    drawn = prior.sample(level, (20_000, 6), as_source(1), dtype=F64)
    measured = -float(
        prior.log_prob(
            SD.forward(
                MEANS[(as_source(2).uniform((20_000,)) > 0.7).long()] + STD * as_source(3).normal((20_000, 6), F64),
                level,
                rng=4,
            ).x_t,
            level,
        ).mean()
    )
    assert measured == pytest.approx(best, rel=0.01)
    assert float((drawn.mean(0) - mean).abs().max()) < 5.0 * math.sqrt(var / 20_000)
    assert float((drawn - mean).square().mean()) == pytest.approx(var, rel=0.02)


# A3, A5. What the start does to samples


def errors_of_the_start(m):
    """Error of the sampled mean in d = 6, exact score, DDIM, from pure noise and from Analytic-Init."""
    oracle = oracles.mixture(SD, MEANS, stds=STD, weights=WEIGHTS)
    out = {}
    for name, prior in (("noise", Moments()), ("init", moments_of_mixture(MEANS, WEIGHTS, STD).prior())):
        grid = Spaced("trailing", start=m)
        x = sample(oracle, solver=DDIM(), grid=grid, steps=100, prior=prior, num=20_000, seed=0, dtype=F64)
        out[name] = float((x.mean(0) - WEIGHTS @ MEANS).norm())
        out[name + " modes"] = float(((x - MEANS[0]).norm(dim=1) < (x - MEANS[1]).norm(dim=1)).double().mean())
    return out


@pytest.mark.parametrize("m", [1.0, 0.94, 0.8])
def test_analytic_init_takes_the_error_of_the_mean_away(m):
    """At least five times, from any start; the shares of the modes follow."""
    errors = errors_of_the_start(m)
    assert errors["noise"] > 0.3
    assert errors["init"] < errors["noise"] / 5.0
    assert abs(errors["init modes"] - 0.7) < abs(errors["noise modes"] - 0.7) / 4.0


def test_without_sampling_noise_in_one_dimension():
    """Starts on 500 quantiles: the mean's error is the start's alone."""
    means = torch.tensor([[-0.5], [1.0], [3.0]], dtype=F64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    oracle = oracles.mixture(SD, means, stds=0.4, weights=weights)
    stats, true = moments_of_mixture(means, weights, 0.4), float(weights @ means)
    z = torch.special.ndtri((torch.arange(500, dtype=F64) + 0.5) / 500)[:, None]
    for m in (1.0, 0.94):
        level, error = SD.at(m), {}
        starts = {
            "noise": level.noise * z,
            "init": level.data * stats.mean + math.sqrt(level.data**2 * stats.var + level.noise**2) * z,
        }
        for name, start in starts.items():
            x = sample(oracle, solver=DDIM(), grid=Spaced("trailing", start=m), steps=100, initial=start)
            error[name] = abs(float(x.mean()) - true)
        assert error["init"] < error["noise"] / 5.0


@pytest.mark.parametrize("m", [1.0, 0.9, 0.7])
def test_for_normal_data_the_start_is_exact_at_any_level(m):
    """N(1.3, 0.6^2), 200 DDIM steps of which the last returns x0: the mean is exact, the deviation nearly."""
    oracle = oracles.gaussian(SD, torch.tensor([1.3], dtype=F64), std=0.6)
    stats, level = DataMoments(mean=torch.tensor([1.3], dtype=F64), var=0.36), SD.at(m)
    mean, std = level.data * 1.3, math.sqrt(level.data**2 * 0.36 + level.noise**2)
    assert float(stats.prior().mean) * level.data == pytest.approx(mean)
    grid = Spaced("trailing", start=m)
    ends = sample(oracle, solver=DDIM(), grid=grid, steps=200, initial=torch.tensor([[mean], [mean + std]], dtype=F64))
    assert float(ends[0]) == pytest.approx(1.3, abs=1e-12)
    assert float(ends[1] - ends[0]) == pytest.approx({1.0: 0.5912, 0.9: 0.5921, 0.7: 0.5934}[m], abs=1e-4)
    pure = sample(oracle, solver=DDIM(), grid=grid, steps=200, initial=torch.zeros(1, 1, dtype=F64))
    assert float(pure) == pytest.approx({1.0: 1.2475, 0.9: 1.2075, 0.7: 1.0714}[m], abs=1e-4)


# A4. Reductions


def test_without_data_at_the_start_it_is_pure_noise_bit_for_bit():
    zero = Gaussian(Discrete.stable_diffusion(zero_terminal_snr=True))
    stats, level = moments_of_mixture(MEANS, WEIGHTS, STD), zero.at(1.0)
    assert level.data == 0.0
    for dtype in (torch.float32, F64):
        made = stats.prior().sample(level, (5, 6), as_source(0), dtype=dtype)
        assert torch.equal(made, Moments().sample(level, (5, 6), as_source(0), dtype=dtype))


def test_disabled_it_is_the_baseline_bit_for_bit():
    oracle = oracles.mixture(SD, MEANS, stds=STD, weights=WEIGHTS)
    options = {"solver": DDIM(eta=1.0), "steps": 10, "num": 3, "seed": 4}
    want = sample(oracle, grid=Spaced("trailing"), **options)
    assert torch.equal(want, sample(oracle, grid=Spaced("trailing", start=1.0), prior=Moments(), **options))
    assert torch.equal(want, sample(oracle, grid=Spaced("trailing").starting(1.0, SD), **options))


# A6. Grids that start late


def test_trailing_steps_over_the_first_levels():
    grid = Spaced("trailing", start=0.94)
    index = grid.indices(SD, 50).tolist()
    assert len(index) == 50 and (index[0], index[-1]) == (939, 18)
    assert index == [round(940 - k * 940 / 50) - 1 for k in range(50)]
    times = grid.times(SD, 50)
    assert float(times[0]) == 0.94 and float(times[-1]) == 0.0
    assert float(Spaced("trailing", start=0.94, last="first").times(SD, 50)[-1]) == 1e-3
    assert torch.equal(Spaced("linspace", start=0.5).indices(SD, 2), torch.tensor([499, 0]))
    assert torch.equal(Spaced("leading", start=0.5).indices(SD, 2), torch.tensor([250, 0]))


def test_exploding_grids_start_at_a_noise_level():
    process = Gaussian(EDM(sigma_max=700.0))
    start = float(process.time(torch.tensor(-2.0 * math.log(100.0), dtype=F64)))
    late = Karras(sigma_min=0.002).starting(start, process)
    want = Karras(sigma_min=0.002, sigma_max=100.0).sigmas(process, 25)
    torch.testing.assert_close(late.sigmas(process, 25), want, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "grid", [Uniform(), Power(2.0), Shifted(3.0), Shifted(3.0, Power()), Karras(sigma_min=0.01), BetaSigmas()], ids=str
)
def test_every_grid_can_start_late(grid):
    process = Gaussian(Rectified()) if not isinstance(grid, Karras | BetaSigmas) else Gaussian(EDM())
    times = grid.starting(0.8, process).times(process, 7)
    assert float(times[0]) == pytest.approx(0.8, rel=1e-12) and float(times[-1]) == 0.0
    assert len(times) == 8 and bool((times.diff() < 0.0).all())
    again = grid.starting(1.0, process).times(process, 7)
    torch.testing.assert_close(again, grid.times(process, 7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [0.0, -0.1, 1.01, math.nan, True, "0.9"])
def test_starts_outside_the_path_are_refused(start):
    for grid in (Uniform(), Power(), Spaced("trailing"), Karras(), Shifted()):
        process = Gaussian(EDM()) if isinstance(grid, Karras) else SD
        with pytest.raises((BadValue, BadType), match="starts at a time"):
            grid.starting(start, process)


def test_starts_between_two_levels_and_grids_without_one_are_refused():
    with pytest.raises(BadValue, match=r"between the levels of a table of 1000: use one of \[0\.939, 0\.94, 0\.941\]"):
        Spaced("trailing", start=0.9404).times(SD, 10)
    with pytest.raises(BadValue, match="60 steps on a table of 50"):
        Spaced("trailing", start=0.05).times(SD, 60)

    class Own(Grid):
        def times(self, process, steps):
            return torch.linspace(1, 0, steps + 1)

    with pytest.raises(Incompatible, match="no start to choose"):
        Own().starting(0.5, SD)


# B. TimeNoise


@pytest.mark.parametrize(("t", "median"), [(0.0, 0.2689), (0.5, 0.2814), (1.0, 0.7311)])
def test_the_median_of_the_noise(t, median):
    law = TimeNoise(maximum=100.0, power=5.0)
    level = law.level(torch.full((40_001,), t), as_source(0))
    assert float(level.median()) / 100.0 == pytest.approx(median, abs=0.005)
    assert float(level.min()) > 0.0 and float(level.max()) < 100.0
    exact = 100.0 * torch.sigmoid(torch.tensor(2.0 * t**5 - 1.0))
    assert float(exact) / 100.0 == pytest.approx(median, abs=5e-5)


def test_a_large_power_keeps_the_condition_clean_until_the_end():
    z = as_source(0).normal((1000,), F64)
    flat = torch.sigmoid(-1.0 + z)
    for t in (0.0, 0.5, 0.99):
        level = TimeNoise(maximum=1.0, power=1e6).level(torch.full((1000,), t), as_source(0))
        torch.testing.assert_close(level, flat)


def test_the_released_clock_has_no_time_dependence():
    """mu at sigma / 700 for log sigma ~ N(-1.2, 1.2): the median stays at 0.2689 of the maximum."""
    process = Gaussian(EDM(sigma_max=700.0))
    law = TimeNoise(maximum=15.0, clock=process)
    for sigma in (0.05, 0.3, 30.0):
        t = process.time(torch.full((20_001,), -2.0 * math.log(sigma), dtype=F64))
        assert float(law.level(t, as_source(0)).median()) / 15.0 == pytest.approx(0.2689, abs=0.005)
    at_end = law.level(torch.ones(20_001, dtype=F64), as_source(0)).median()
    assert float(at_end) / 15.0 == pytest.approx(0.7311, abs=0.005)
    assert from_config(to_config(law)) == law
    with pytest.raises(BadType, match="clock"):
        TimeNoise(clock="sigma")


def frames(value):
    return Conditions({"image": Condition(value, "frames")})


def test_noise_is_white_or_shared_as_said():
    value = torch.zeros(3, 5, 2, 4, 4, dtype=F64)
    t = torch.rand(3)
    white = Corrupt(name="image")(frames(value), t, 0)["image"]
    assert len(torch.unique(white.value)) == value.numel()
    torch.testing.assert_close(white.value.flatten(1).std(1), white.level.double(), rtol=0.2, atol=0)
    over_frames = Corrupt(name="image", shared=(1,))(frames(value), t, 0)["image"].value
    assert torch.equal(over_frames, over_frames[:, :1].expand_as(over_frames))
    assert len(torch.unique(over_frames)) == 3 * 2 * 4 * 4
    shift = Corrupt(name="image", shared=(1, 2, 3, 4))(frames(value), t, 0)["image"].value
    assert len(torch.unique(shift)) == 3
    for shared, message in (((0,), "behind the batch"), ((5,), "no axes")):
        with pytest.raises(BadValue, match=message):
            Corrupt(name="image", shared=shared)(frames(value), t, 0)


def test_nothing_is_changed_in_place_and_sampling_is_clean():
    value = torch.randn(3, 5, 2, 4, 4)
    before, told = value.clone(), frames(value)
    once, twice = (Corrupt(name="image")(told, torch.rand(3), seed) for seed in (0, 1))
    assert torch.equal(value, before) and not torch.equal(once["image"].value, twice["image"].value)
    assert Corrupt(name="image")(told, None, 0, training=False)["image"].value is value
    slight = Corrupt(name="image", sampling=0.002)(told, None, 0, training=False)["image"]
    assert float((slight.value - value).std()) == pytest.approx(0.002, rel=0.1)


@pytest.mark.parametrize("bad", [{"maximum": 0.0}, {"maximum": -1.0}, {"power": 0.0}, {"power": -2.0}])
def test_bad_noise(bad):
    with pytest.raises(BadValue, match="must be positive"):
        TimeNoise(**bad)


# The diagnosis


class Copies:
    """A model that leaks: it says the first frame, at rest, with the weight ``share`` beside the truth's law."""

    kinds, shape = {"frame": "map"}, (3, 4)

    def __init__(self, oracle, share):
        self.oracle, self.share, self.process = oracle, share, oracle.process

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        still = cond["frame"].value[:, None].expand_as(x).to(x.dtype)
        share = self.share(level.t)
        return Prediction(x, level, {"x0": (1.0 - share) * self.oracle(x, t).x0 + share * still})


def test_motion_is_the_mean_change():
    x = torch.arange(4.0).reshape(1, 4, 1).expand(2, 4, 3) * torch.tensor([1.0, -2.0]).reshape(2, 1, 1)
    assert motion(x).tolist() == [1.0, 2.0]
    assert motion(torch.ones(2, 5, 3)).tolist() == [0.0, 0.0]
    with pytest.raises(BadValue, match="at least two frames"):
        motion(torch.zeros(3, 1, 4))


def test_the_curve_shows_where_a_model_copies():
    x = torch.randn(40, 3, 4, dtype=F64)
    cond = {"frame": x[:, 0]}
    oracle = oracles.empirical(Gaussian(Rectified()), x)
    times = (0.1, 0.5, 0.9)
    honest = leakage(Copies(oracle, lambda t: 0.0), x, times, cond)
    torch.testing.assert_close(honest.ratio[0], torch.ones((), dtype=F64), rtol=1e-6, atol=0)
    leaks = leakage(Copies(oracle, lambda t: t), x, times, cond)
    torch.testing.assert_close(leaks.ratio, (1.0 - torch.tensor(times, dtype=F64)) * honest.ratio)
    assert leaks.each.shape == (3, 40) and leaks.times.tolist() == list(times)
    same = leakage(Copies(oracle, lambda t: t), x, times, cond, measure=lambda v: 3.0 * motion(v))
    torch.testing.assert_close(same.ratio, leaks.ratio)


def test_the_curve_of_a_corrupted_condition():
    x = torch.randn(40, 3, 4)
    told = []

    class Spy(Copies):
        def __call__(self, x, t, cond=None):
            told.append(cond["frame"].level)
            return super().__call__(x, t, cond)

    oracle = oracles.empirical(Gaussian(Rectified()), x)
    noisy = Corrupt(name="frame", law=TimeNoise(maximum=2.0))
    curve = leakage(Spy(oracle, lambda t: 0.5), x, (0.2, 0.9), {"frame": x[:, 0]}, transform=noisy)
    assert torch.isfinite(curve.ratio).all() and float(told[1].median()) > float(told[0].median()) > 0.0
    with pytest.raises(BadValue, match="don't move"):
        leakage(Spy(oracle, lambda t: 0.5), torch.ones(2, 3, 4), (0.5,), {"frame": torch.ones(2, 4)})
    with pytest.raises(BadValue, match="at least one time"):
        leakage(Spy(oracle, lambda t: 0.5), x, (), {"frame": x[:, 0]})


# The recipe and the experiment


def test_the_recipe_tells_the_network_how_noisy_its_picture_is():
    chosen = cil.recipe(Facts((1, 8, 8), {"degraded": Map(1), "label": Label(3)}, std=0.5, count=100))
    assert to_config(from_config(to_config(chosen))) == to_config(chosen)
    assert chosen.network.conditions["degraded"].level and not chosen.network.conditions["label"].level
    model = chosen.denoiser(0)
    batch = {"x": torch.randn(8, 1, 8, 8), "cond": {"degraded": torch.randn(8, 1, 8, 8), "label": torch.arange(8) % 3}}
    losses = chosen.objective(model, batch, 0)
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    with pytest.raises(BadValue, match="corrupts a picture"):
        cil.recipe(Facts((1, 8, 8), {"label": Label(3)}))


def test_bumps_move_as_they_say():
    data = cil.bumps(200, 0)
    rows = data.batch(range(200))
    moved = cil.displacement(rows["x"])
    assert float((moved - moved[:, :1]).abs().max()) < 1e-3  # each at its own speed
    assert float(moved.abs().min()) >= 1.0 and float(moved.abs().max()) <= 2.0
    assert torch.equal(rows["cond"]["frame"], rows["x"][:, 0])
    assert 0.3 < float((moved[:, 0] > 0).double().mean()) < 0.7
    told = cil.figures(rows["x"], rows["x"])
    assert told["brightness error"] == 0.0 and told["near still"] == 0.0 and told["first-frame error"] == 0.0
    assert cil.figures(rows["x"][:, :1].expand(-1, 6, -1), rows["x"])["near still"] == 1.0


# Real use: the latents of diffusers' Stable Video Diffusion


def test_edm_scalings_are_those_of_stable_video_diffusion():
    """x0 = x / (s^2 + 1) + s / sqrt(s^2 + 1) F with sigma_data = 1; diffusers' network has the other sign."""
    level = Gaussian(EDM(sigma_max=700.0)).at(0.6)
    c_in, c_skip, c_out = EDMPrecondition(sigma_data=1.0).weights(level)
    s2 = level.noise**2 + 1.0
    assert (c_in, c_skip, c_out) == pytest.approx((s2**-0.5, 1.0 / s2, level.noise * s2**-0.5), rel=1e-12)


def test_heun_with_a_late_start_on_the_exploding_path_keeps_the_mean():
    process = Gaussian(EDM(sigma_max=700.0))
    oracle = oracles.gaussian(process, torch.tensor([20.0], dtype=F64), std=1.0)
    stats = DataMoments(mean=torch.tensor([20.0], dtype=F64), var=1.0)
    grid = Karras(sigma_min=0.002, sigma_max=100.0)
    means = {}
    for name, prior in (("noise", Moments()), ("init", stats.prior())):
        x = sample(oracle, solver=Heun(), grid=grid, steps=25, prior=prior, num=4000, seed=0, dtype=F64)
        means[name] = float(x.mean())
    assert means["init"] == pytest.approx(20.0, abs=0.08)
    assert means["noise"] == pytest.approx(20.0 - 20.0 / math.sqrt(100.0**2 + 1.0), abs=0.08)


def tiny_svd():
    """The classes of stabilityai/stable-video-diffusion-img2vid, small and with random weights."""
    import diffusers
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=2,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    sizes = {"hidden_size": 32, "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPVisionConfig(**sizes, image_size=224, intermediate_size=32, patch_size=56)
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(clip).eval(),
        unet=unet.eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessorPil(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_stable_video_diffusion_starts_from_the_statistics():
    """With ``latents = start / scheduler.init_noise_sigma`` the network's first input is the start, as it scales it."""
    from PIL import Image

    pipe = tiny_svd()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, sigma_max=100.0)
    pipe.scheduler.set_timesteps(3)
    assert float(pipe.scheduler.init_noise_sigma) == pytest.approx(math.sqrt(100.0**2 + 1.0), rel=1e-6)  # counts v = 1
    stats = DataMoments(mean=5.0 * torch.randn(3, 4, 8, 8, dtype=F64), var=0.8)
    start = stats.start(1, 100.0, rng=0)
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:1, :, :4].clone()))
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    options = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 3, "output_type": "latent"}
    made = pipe(image, **options, latents=start / pipe.scheduler.init_noise_sigma, decode_chunk_size=3).frames
    torch.testing.assert_close(seen[0], start / math.sqrt(100.0**2 + 1.0), rtol=1e-4, atol=1e-5)
    assert len(seen) == 3 and made.shape == (1, 3, 4, 8, 8) and bool(torch.isfinite(made).all())
    process = Gaussian(EDM(sigma_max=100.0))
    assert torch.equal(start, stats.prior().sample(process.at(1.0), (1, 3, 4, 8, 8), as_source(0)))
    grid = Karras(sigma_min=0.002, sigma_max=100.0).sigmas(process, 3)
    torch.testing.assert_close(pipe.scheduler.sigmas.double(), grid, rtol=1e-5, atol=0)
