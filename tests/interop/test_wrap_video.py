"""Video pipelines: the latents are those of the pipeline's own call, and so are the pixels."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny import CLOSE, PROMPTS
from tiny_video import cogvideox, stable_video_diffusion, wan

from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free
from condiff.interop import wrap
from condiff.interop.backbones import dynamic_scale
from condiff.sampling import DDIM, DPMSolverPP, Euler, Record, UniPC, sample


def start(*shape, seed=3):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def counted(net):
    """The batch of every call of a network from now on."""
    seen = []
    net.register_forward_hook(
        lambda module, args, told, out: seen.append(len(args[0] if args else told["hidden_states"])), with_kwargs=True
    )
    return seen


def assert_pixels(codec, latents, theirs):
    """``theirs`` in [0, 1]."""
    with torch.no_grad():
        clip = codec.decode(latents)
    torch.testing.assert_close((clip / 2 + 0.5).clamp(0, 1), theirs, **CLOSE)


# Stable Video Diffusion


def photographs(width=24, height=16):
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def svd_call(pipe, output="latent", **options):
    told = {"fps": 9, "motion_bucket_id": 100, "noise_aug_strength": 0.3, "num_inference_steps": 5, **options}
    generator = torch.Generator().manual_seed(1)
    return pipe(
        photographs(), height=16, width=24, latents=start(3, 4, 8, 12), output_type=output, generator=generator, **told
    ).frames


def test_stable_video_diffusion_equals_its_pipeline():
    pipe = stable_video_diffusion()
    theirs = svd_call(pipe)
    wrapped = wrap(pipe, size=(16, 24))
    assert wrapped.denoiser.shape == (3, 4, 8, 12)
    cond = wrapped.encode(photographs(), fps=9, motion=100, noise=0.3, rng=torch.Generator().manual_seed(1))
    seen = counted(pipe.unet)
    initial = start(3, 4, 8, 12) * pipe.scheduler.init_noise_sigma
    ours = sample(wrapped.guided(), cond=cond, solver=DDIM(), grid=wrapped.grid(5), initial=initial)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert seen == [4] * 5
    ramp = Free(wrapped.denoiser, scale=torch.linspace(1.0, 3.0, 3)[None], drop=("image", "seen"))
    torch.testing.assert_close(
        ours, sample(ramp, cond=cond, solver=DDIM(), grid=wrapped.grid(5), initial=initial), rtol=0, atol=0
    )


def test_stable_video_diffusion_at_other_scales_and_its_grid():
    pipe = stable_video_diffusion()
    theirs = svd_call(pipe, min_guidance_scale=2.0, max_guidance_scale=2.0)
    wrapped = wrap(pipe, size=(16, 24))
    cond = wrapped.encode(photographs(), fps=9, motion=100, noise=0.3, rng=torch.Generator().manual_seed(1))
    initial = start(3, 4, 8, 12) * pipe.scheduler.init_noise_sigma
    ours = sample(wrapped.guided(2.0), cond=cond, solver=DDIM(), grid=wrapped.grid(5), initial=initial)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    levels = wrapped.denoiser.process.levels(wrapped.grid(5))
    sigmas = torch.tensor([level.noise for level in levels])
    pipe.scheduler.set_timesteps(5)
    torch.testing.assert_close(sigmas, pipe.scheduler.sigmas, rtol=1e-6, atol=0)
    assert sigmas[0] == pytest.approx(700.0, rel=1e-6) and sigmas[-1] == 0.0
    began = Record(lambda step: float(step.x_t.std()))
    sample(wrapped.guided(2.0), cond=cond, solver=DDIM(), grid=wrapped.grid(2), seed=0, hooks=[began])
    assert began.values[0] == pytest.approx(700.0, rel=0.1)  # noise of that level, without being told


def test_pixels_of_stable_video_diffusion():
    pipe = stable_video_diffusion()
    theirs, latents = torch.from_numpy(svd_call(pipe, "np")).permute(0, 1, 4, 2, 3), svd_call(pipe)
    codec = wrap(pipe, size=(16, 24)).codec
    assert_pixels(codec, latents, theirs)
    assert codec.encode(theirs * 2 - 1).shape == latents.shape
    assert codec.latent_shape((3, 3, 16, 24)) == (3, 4, 8, 12)
    with pytest.raises(BadValue, match=r"clips of shape \(F, C, H, W\)"):
        codec.encode(theirs[:, 0])
    two = type(codec)(pipe.vae, at_once=2)
    chunked = torch.from_numpy(svd_call(pipe, "np", decode_chunk_size=2, num_videos_per_prompt=1))[:1]
    with torch.no_grad():
        first = two.decode(latents[:1])
    torch.testing.assert_close((first / 2 + 0.5).clamp(0, 1)[:, :2], chunked.permute(0, 1, 4, 2, 3)[:, :2], **CLOSE)


def test_pictures_of_the_wrong_sort_are_refused():
    wrapped = wrap(stable_video_diffusion(), size=(16, 24), frames=2)
    assert wrapped.denoiser.shape == (2, 4, 8, 12)
    with pytest.raises(BadValue, match=r"pictures of shape \(3, 16, 24\) are wanted, got \(3, 16, 32\)"):
        wrapped.encode(photographs(32))
    with pytest.raises(BadValue, match=r"lie in \[-1, 1\], got .* 255"):
        wrapped.encode(torch.full((2, 3, 16, 24), 255.0))
    with pytest.raises(BadValue, match="is told a picture"):
        wrapped.denoiser(start(2, 4, 8, 12), 0.5)
    with pytest.raises(Incompatible, match="no prompt"):
        wrapped.guided(2.0, negative=["dull"])


# CogVideoX


def cog_call(pipe, frames=9, output="latent", shape=(3, 4, 4, 2), steps=5, **options):
    return pipe(
        PROMPTS, height=32, width=16, num_frames=frames, latents=start(*shape), output_type=output,
        num_inference_steps=steps, max_sequence_length=12, **{"guidance_scale": 4.0, **options},
    ).frames  # fmt: skip


@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "sines"])
def test_cogvideox_equals_its_pipeline(rotary):
    pipe = cogvideox(rotary=rotary)
    theirs = cog_call(pipe)
    wrapped = wrap(pipe, size=(32, 16), frames=9, length=12)
    assert wrapped.denoiser.shape == (3, 4, 4, 2) and wrapped.denoiser.targets == ("v",)
    seen = counted(pipe.transformer)
    ours = sample(
        wrapped.guided(4.0), cond=wrapped.encode(PROMPTS), solver=DDIM(), grid=wrapped.grid(5),
        initial=start(3, 4, 4, 2),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert seen == [4] * 5


def test_cogvideox_with_its_dynamic_guidance_and_negative_prompts():
    pipe = cogvideox()
    theirs = cog_call(pipe, use_dynamic_cfg=True, negative_prompt=["dull"] * 2)
    wrapped = wrap(pipe, size=(32, 16), length=12)
    guided = wrapped.guided(dynamic_scale(4.0, 5), negative=["dull"])
    ours = sample(guided, cond=wrapped.encode(PROMPTS), solver=DDIM(), grid=wrapped.grid(5), initial=start(3, 4, 4, 2))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_cogvideox_in_pairs_of_frames():
    pipe = cogvideox(pairs=True)
    theirs = cog_call(pipe, frames=9, shape=(4, 4, 4, 2))
    wrapped = wrap(pipe, size=(32, 16), length=12)
    assert wrapped.denoiser.shape == (4, 4, 4, 2) and wrapped.family.frames == 13
    ours = sample(
        wrapped.guided(4.0), cond=wrapped.encode(PROMPTS), solver=DDIM(), grid=wrapped.grid(5),
        initial=start(4, 4, 4, 2),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, **CLOSE)
    with pytest.raises(BadValue, match=r"5 \+ a multiple of 8"):
        wrap(pipe, frames=9)


def test_pixels_of_cogvideox():
    pipe = cogvideox()
    codec = wrap(pipe, size=(32, 16), length=12).codec
    theirs = cog_call(pipe, output="pt")
    assert_pixels(codec, cog_call(pipe), theirs)
    with torch.no_grad():
        z = codec.encode(theirs * 2 - 1)
        mean = pipe.vae.encode((theirs * 2 - 1).transpose(1, 2)).latent_dist.mean
    torch.testing.assert_close(z, mean.transpose(1, 2) * pipe.vae.config.scaling_factor)
    with pytest.raises(BadValue, match=r"1 \+ a multiple of 4 frames"):
        codec.encode(torch.zeros(1, 8, 3, 32, 16))
    with pytest.raises(BadValue, match="sides that are multiples of 8"):
        codec.encode(torch.zeros(1, 9, 3, 32, 20))


# Wan


def wan_call(pipe, output="latent", steps=5, **options):
    return pipe(
        PROMPTS, height=32, width=16, num_frames=9, latents=start(3, 16, 4, 2).transpose(1, 2), output_type=output,
        num_inference_steps=steps, max_sequence_length=12, **{"guidance_scale": 4.0, **options},
    ).frames  # fmt: skip


def wan_wrapped(pipe):
    return wrap(pipe, size=(32, 16), frames=9, length=12)


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [
        (None, UniPC(2)),
        (FlowMatchEulerDiscreteScheduler(shift=5.0), Euler()),
        (
            DPMSolverMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, algorithm_type="dpmsolver++"
            ),
            DPMSolverPP(2),
        ),
    ],
    ids=["unipc", "euler", "dpm++"],
)
def test_wan_equals_its_pipeline(scheduler, solver):
    pipe = wan(scheduler=scheduler)
    theirs = wan_call(pipe)
    wrapped = wan_wrapped(pipe)
    assert wrapped.denoiser.shape == (3, 16, 4, 2)
    seen = counted(pipe.transformer)
    ours = sample(
        wrapped.guided(4.0), cond=wrapped.encode(PROMPTS), solver=solver, grid=wrapped.grid(5),
        initial=start(3, 16, 4, 2),
    )  # fmt: skip
    torch.testing.assert_close(ours.transpose(1, 2), theirs, **CLOSE)
    assert seen == [4] * 5  # the pipeline itself calls twice


def test_wan_in_two_stages_with_a_scale_each():
    pipe = wan(stages=2)
    theirs = wan_call(pipe, guidance_scale=4.0, guidance_scale_2=2.0, steps=6)
    wrapped = wan_wrapped(pipe)
    high, low = counted(pipe.transformer), counted(pipe.transformer_2)
    guided = wrapped.guided(lambda level: 4.0 if level.t >= 0.875 else 2.0)
    cond, x = wrapped.encode(PROMPTS), start(3, 16, 4, 2)
    ours = sample(guided, cond=cond, solver=UniPC(2), grid=wrapped.grid(6), initial=x)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, **CLOSE)
    assert len(high) > 0 and len(low) > 0 and len(high) + len(low) == 6
    mixed = wrapped.denoiser(x, torch.tensor([0.95, 0.3]), cond).velocity
    for i, t in enumerate((0.95, 0.3)):
        torch.testing.assert_close(mixed[i : i + 1], wrapped.denoiser(x[i : i + 1], t, cond.rows([i])).velocity)
    pipe.register_modules(transformer_2=None)
    with pytest.raises(Incompatible, match="without the second"):
        wan_wrapped(pipe)


def test_wan_told_a_time_per_token():
    pipe = wan(per_token=True)
    theirs = wan_call(pipe)
    wrapped = wan_wrapped(pipe)
    cond, x = wrapped.encode(PROMPTS), start(3, 16, 4, 2)
    ours = sample(wrapped.guided(4.0), cond=cond, solver=UniPC(2), grid=wrapped.grid(5), initial=x)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, **CLOSE)
    same = wrapped.denoiser(x, torch.full((2, 3), 0.4), cond).velocity
    torch.testing.assert_close(same, wrapped.denoiser(x, 0.4, cond).velocity, **CLOSE)
    with pytest.raises(Incompatible, match="one time per sample"):
        wan_wrapped(wan()).denoiser(x, torch.full((2, 3), 0.4), cond)


def test_pixels_of_wan():
    pipe = wan()
    codec = wan_wrapped(pipe).codec
    theirs, latents = wan_call(pipe, "pt"), wan_call(pipe).transpose(1, 2)
    assert_pixels(codec, latents, theirs)
    x = theirs * 2 - 1
    with torch.no_grad():
        raw = pipe.vae.encode(x.transpose(1, 2)).latent_dist.mean
    mean, std = (
        torch.tensor(v)[:, None, None, None] for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(x).transpose(1, 2), (raw - mean) / std)
    codec.standardise([x])
    with torch.no_grad():
        assert float(codec.encode(x).mean((0, 1, 3, 4)).abs().max()) < 1e-4


def test_sizes_of_videos():
    assert wrap(wan(), length=4).denoiser.shape == (21, 16, 60, 104)
    with pytest.raises(BadValue, match="multiples of 16 pixels"):
        wrap(wan(), size=(40, 16))
    with pytest.raises(BadValue, match=r"1 \+ a multiple of 4 for WanPipeline, got 10"):
        wrap(wan(), size=(32, 16), frames=10)
