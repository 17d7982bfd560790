"""StreamDiffusion on Stable Diffusion's classes, against diffusers' own scheduler of latent consistency models."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, LCMScheduler
from PIL import Image
from tiny import STABLE, stable_diffusion

import condiff as cd
from condiff.errors import BadType, BadValue
from condiff.guidance import Anchored, Free
from condiff.methods import streamdiffusion
from condiff.process import Discrete, Gaussian
from condiff.sampling import Boundary, Consistency

LCM = {**STABLE, "original_inference_steps": 50}


def lcm(seed=0, tiny_vae=False):
    pipe = stable_diffusion(seed)
    pipe.scheduler = LCMScheduler(**LCM)
    if tiny_vae:
        pipe.vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).eval()  # fmt: skip
    return pipe


def pictures(count=4, side=16, seed=0):
    return [*(torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0)]


def test_the_times_are_those_of_latent_consistency_models():
    scheduler, process = LCMScheduler(**LCM), Gaussian(Discrete.stable_diffusion())
    scheduler.set_timesteps(50)
    times = streamdiffusion.times_of(process, (0, 16, 32, 45))
    wanted = scheduler.timesteps[[0, 16, 32, 45]].tolist()
    assert wanted == [999, 679, 359, 99]
    assert process.schedule.model_time(times[:-1]).tolist() == wanted and float(times[-1]) == 0.0


def test_the_boundary_scalings_are_those_of_lcm():
    scheduler, process = LCMScheduler(**LCM), Gaussian(Discrete.stable_diffusion())
    for index in (0, 19, 99, 999):
        level = process.at(float(process.schedule.at_index(index)))
        wanted = [float(v) for v in scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(index))]
        assert [float(w) for w in Boundary().weights(level)] == pytest.approx(wanted, rel=1e-6)
    level, x = process.at(float(process.schedule.at_index(0))), torch.randn(2, 4, 8, 8)
    said = cd.process.Prediction(x, level, {"noise": torch.ones_like(x)})
    assert torch.equal(Boundary().prediction(said, None).x0, x)  # what the network says of index 0 isn't read
    with pytest.raises(BadValue, match="scaling > 0"):
        Boundary(scaling=0.0)


@pytest.mark.parametrize("guidance", ["none", "self"])
def test_a_pipeline_frame_by_frame_is_lcms_own_scheduler(guidance):
    """The pipeline's network and diffusers' scheduler, with the same noises, one frame after the other."""
    pipe = lcm()
    translator = streamdiffusion.of_pipeline(pipe, guidance=guidance, scale=1.4).start("a fox", seed=3)
    made = torch.stack(list(translator.clip(pictures())))
    wrapped, noise = cd.interop.wrap(pipe), translator.stream.noise
    prompt = wrapped.encode(["a fox"])["prompt"].value
    scheduler = LCMScheduler(**LCM)
    scheduler.set_timesteps(50)
    table, chosen, out = scheduler.alphas_cumprod.double(), [359, 99], []
    for picture in pictures():
        with torch.no_grad():
            z = pipe.vae.encode(picture[None]).latent_dist.mean * pipe.vae.config.scaling_factor
            a, b = table.sqrt().tolist(), (1.0 - table).sqrt().tolist()
            x = a[359] * z + b[359] * noise[:1]
            for i, t in enumerate(chosen):
                e = pipe.unet(x, t, encoder_hidden_states=prompt).sample
                r = (x - a[t] * z) / b[t]
                e = r + 1.4 * (e - r) if guidance == "self" else e
                c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
                x0 = c_out * (x - b[t] * e) / a[t] + c_skip * x
                x = a[99] * x0 + b[99] * noise[1:] if i == 0 else x0
            out.append(pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample[0].clamp(-1.0, 1.0))
    torch.testing.assert_close(made, torch.stack(out), rtol=0.0, atol=2e-5)


@pytest.mark.parametrize(("guidance", "negative"), [("self", None), ("initialize", "blurry"), ("full", "blurry")])
def test_guidance_of_every_type_and_a_new_prompt(guidance, negative):
    translator = streamdiffusion.of_pipeline(lcm(), (10, 30, 45), guidance=guidance, negative=negative, scale=2.0)
    translator.start("a fox", seed=0)
    frames = pictures(6)
    out = [translator(frame) for frame in frames[:3]]
    assert [x is None for x in out] == [True, True, False]
    translator.tell("a hen")
    again = [translator(frame) for frame in frames[3:]]
    assert all(x.shape == (3, 16, 16) and torch.isfinite(x).all() for x in again)
    kind = {"full": Free}.get(guidance, Anchored)
    assert isinstance(translator.stream.denoiser, kind)


def test_a_tiny_autoencoder_and_one_step():
    translator = streamdiffusion.of_pipeline(lcm(tiny_vae=True), steps=(0,), guidance="none").start("a fox")
    assert translator.delay == 0 and translator.stream.hooks == (Boundary(),)
    still = streamdiffusion.of_pipeline(lcm(), guidance="none", renoise=False)
    assert (translator.stream.solver, still.stream.solver) == (Consistency(), Consistency(renoise=False))
    assert translator(pictures(1)[0]).shape == (3, 16, 16)


def test_a_pipeline_in_bfloat16_keeps_anchors_in_float32():
    translator = streamdiffusion.of_pipeline(lcm().to(torch.bfloat16), guidance="self").start("a fox", seed=0)
    assert translator.stream.latents.dtype == torch.bfloat16 and translator.stream.anchors.dtype == torch.float32
    out = list(translator.clip(pictures()))
    assert len(out) == 4 and all(torch.isfinite(x).all() and x.dtype == torch.float32 for x in out)


def test_frames_of_any_kind_and_size():
    translator = streamdiffusion.of_pipeline(lcm(), guidance="none").start("a fox")
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image, grey = Image.fromarray(array), Image.fromarray(array[..., 0])
    assert torch.equal(translator.read(array), translator.read(image))
    assert translator.read(grey).shape == translator.read(image).shape == (3, 16, 16)
    with pytest.raises(BadValue, match="tensors of frames are"):
        translator.read(torch.zeros(3, 8, 8))
    with pytest.raises(BadType, match="hold bytes"):
        translator.read(array.astype(np.float32))
    with pytest.raises(BadType, match="Pillow images"):
        translator.read("frame.png")
