"""Pipelines as users have them: compiled, with adapters, other precisions, encoded negatives, other noise levels."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from tiny import CLOSE, PROMPTS, ddpm, latents, sd3, stable_diffusion, stable_diffusion_xl

import condiff as cd
from condiff.errors import BadType, BadValue
from condiff.interop import WholeIndex, as_scheduler, grid_of, process_of, wrap
from condiff.interop.schedulers import hooks_of, last_time, precondition_of
from condiff.random import Tape
from condiff.sampling import DDIM, DDPM, ClipX0, DPMSolver, DPMSolverPP, DynamicThreshold, Euler, Heun, UniPC, sample


def both(pipe, solver, steps=6, scale=4.0, start=1.0, size=None, **options):
    """The pipeline's latents and ours; ``start`` is what ours begin with, as a part of theirs."""
    wrapped = wrap(pipe, size=size)
    x = latents((2, *wrapped.denoiser.shape))
    if size is not None:
        options |= {"height": size[0], "width": size[1]}
    theirs = pipe(
        PROMPTS, num_inference_steps=steps, guidance_scale=scale, latents=x, output_type="latent", **options
    ).images
    told = {"cond": wrapped.encode(PROMPTS), "solver": solver, "grid": wrapped.grid(steps), "initial": start * x}
    return sample(wrapped.guided(scale, options.get("negative_prompt")), **told), theirs


# Noise levels between those of the table, and where they end

SPACED = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
MULTISTEP = [
    (DPMSolverMultistepScheduler, DPMSolverPP(2)),
    (UniPCMultistepScheduler, UniPC(2)),
    (DEISMultistepScheduler, DPMSolver(2, rule="adams")),
]


@pytest.mark.parametrize("rule", SPACED)
@pytest.mark.parametrize(("kind", "solver"), MULTISTEP, ids=["dpm++", "unipc", "deis"])
def test_multistep_schedulers_tell_whole_indices(kind, solver, rule):
    """DPM++ 2M Karras and its kin: the network is told the index nearest to the noise level, or the one below."""
    pipe = stable_diffusion()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **{rule: True})
    wrapped = wrap(pipe)
    pipe.scheduler.set_timesteps(12)
    levels = wrapped.denoiser.process.levels(wrapped.grid(12))[:-1]
    told = [float(wrapped.denoiser.precondition.time(level)) for level in levels]
    assert told == pipe.scheduler.timesteps.tolist()
    torch.testing.assert_close(*both(pipe, solver, steps=12), **CLOSE)


def test_lu_spacing():
    pipe = stable_diffusion_xl()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_lu_lambdas=True)
    torch.testing.assert_close(*both(pipe, DPMSolverPP(2), steps=9), **CLOSE)


@pytest.mark.parametrize("rule", [*SPACED, "none"])
@pytest.mark.parametrize(("kind", "solver"), [(EulerDiscreteScheduler, DDIM()), (HeunDiscreteScheduler, Heun())])
def test_schedulers_that_begin_at_their_largest_noise(kind, solver, rule):
    """They multiply the given latents with it, which leaves ``noise(t)`` of them in a state of unit variance."""
    pipe = stable_diffusion()
    options = {} if rule == "none" else {rule: True}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="linspace", **options)
    wrapped = wrap(pipe)
    first = wrapped.denoiser.process.at(float(wrapped.grid(6)[0])).noise
    torch.testing.assert_close(*both(pipe, solver, start=first), **CLOSE)


def test_options_that_another_scheduler_left_behind_are_not_read():
    """``from_config`` carries them along."""
    table = stable_diffusion().scheduler.config  # set_alpha_to_one=False
    karras = DPMSolverMultistepScheduler.from_config(table, use_karras_sigmas=True)
    again = DDIMScheduler.from_config(karras.config)
    assert again.config.use_karras_sigmas and torch.equal(grid_of(again, 5), grid_of(DDIMScheduler(**table), 5))
    assert not isinstance(precondition_of(again), WholeIndex)
    assert float(last_time(DDIMScheduler(**table))) > 0.0
    assert float(last_time(HeunDiscreteScheduler.from_config(table))) == 0.0
    assert float(last_time(DDPMScheduler.from_config(table))) == 0.0
    flow = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert process_of(DDIMScheduler.from_config(flow.config, prediction_type="epsilon"))[1] == "noise"


# Clipping


@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_ddpm_pipelines_clip(bound):
    pipe = ddpm()
    pipe.scheduler = DDPMScheduler(clip_sample=True, clip_sample_range=bound)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipe(2, num_inference_steps=5, generator=generator, output_type="np").images
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(6)]
    model = wrap(pipe)
    assert model.hooks == [ClipX0(-bound, bound)]
    ours = sample(
        model.denoiser, solver=DDPM(), grid=model.grid(5), initial=draws[0], rng=Tape(draws[1:]), hooks=model.hooks
    )
    shown = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(shown, torch.from_numpy(theirs), **CLOSE)


def test_ddim_pipelines_clip_and_keep_the_noise():
    parts = ddpm()
    pipe = DDIMPipeline(parts.unet, DDIMScheduler(clip_sample=True))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(2, num_inference_steps=5, generator=torch.Generator().manual_seed(1), output_type="np").images
    model, start = wrap(pipe), latents((2, 3, 8, 8), seed=1)
    assert model.hooks == [ClipX0(keep_noise=True)]
    ours = sample(model.denoiser, solver=DDIM(), grid=model.grid(5), initial=start, hooks=model.hooks)
    shown = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(shown, torch.from_numpy(theirs), **CLOSE)


@pytest.mark.parametrize("most", [1.0, 3.0])
def test_thresholds(most):
    pipe = stable_diffusion()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=most
    )
    theirs = pipe(PROMPTS, num_inference_steps=6, guidance_scale=4.0, latents=latents(), output_type="latent").images
    sd = wrap(pipe)
    assert sd.hooks == [DynamicThreshold(0.9, most=most)]
    told = {"cond": sd.encode(PROMPTS), "grid": sd.grid(6), "initial": latents()}
    ours = sample(sd.guided(4.0), solver=DPMSolverPP(2), hooks=sd.hooks, **told)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_most_pipelines_of_latents_need_no_hooks():
    for pipe in (stable_diffusion(), sd3()):
        assert wrap(pipe).hooks == []
    assert hooks_of(DPMSolverMultistepScheduler.from_config(DDIMScheduler(clip_sample=True).config)) == []


# Networks


@pytest.mark.parametrize("make", [stable_diffusion, sd3])
def test_compiled_networks(make):
    pipe = make()
    name = "unet" if make is stable_diffusion else "transformer"
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    torch.testing.assert_close(*both(pipe, DDIM() if make is stable_diffusion else Euler()), **CLOSE)


def test_weights_stored_in_eight_bits():
    pipe = stable_diffusion()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    torch.testing.assert_close(*both(pipe, DDIM()), **CLOSE)


def test_slices_tiles_and_other_sizes():
    pipe = stable_diffusion()
    pipe.enable_attention_slicing()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16
    pipe.vae.enable_tiling()
    ours, theirs = both(pipe, DDIM(), size=(40, 24))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    with torch.no_grad():
        pixels = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample
        torch.testing.assert_close(wrap(pipe).codec.decode(ours), pixels, **CLOSE)


def adapter(folder, name, seed):
    """A file of an adapter that says something."""
    pipe = stable_diffusion()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets), adapter_name=name)
    torch.manual_seed(seed)
    for key, weight in pipe.unet.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(std=0.3)
    model = wrap(pipe)
    cd.interop.save_lora(model, folder / name, name=name)
    return folder / name


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # diffusers' own, of a second adapter
@pytest.mark.parametrize("fused", [False, True])
def test_adapters_that_a_pipeline_has_loaded(tmp_path, fused):
    pipe = stable_diffusion()
    for seed, name in enumerate("ab"):
        pipe.load_lora_weights(adapter(tmp_path, name, seed), adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, 0.3])
    if fused:
        pipe.fuse_lora()
    ours, theirs = both(pipe, DDIM())
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - both(stable_diffusion(), DDIM())[0]).abs().max() > 0.1


def test_training_on_top_of_an_adapter(tmp_path):
    """It goes on acting, frozen, beside the one that is trained."""
    pipe = stable_diffusion()
    pipe.load_lora_weights(adapter(tmp_path, "a", 0), adapter_name="a")
    model = wrap(pipe)
    cond, x = model.encode(PROMPTS), latents()
    before = model.denoiser(x, 0.5, cond).noise
    layers = cd.interop.add_lora(model, cd.networks.LoRA(rank=2), name="mine")
    assert layers and not any("base_layer" in name for name in layers)
    torch.testing.assert_close(model.denoiser(x, 0.5, cond).noise, before)
    trained = {name for name, p in pipe.unet.named_parameters() if p.requires_grad}
    assert trained and all(".mine." in name for name in trained)
    cd.interop.save_lora(model, tmp_path / "mine", name="mine")
    plain = stable_diffusion()
    plain.load_lora_weights(tmp_path / "mine")


# What is told


def test_encoded_negative_prompts():
    pipe, start = stable_diffusion(), latents()
    tokens, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["dull"] * 2)
    theirs = pipe(
        prompt_embeds=tokens, negative_prompt_embeds=negative, num_inference_steps=4, guidance_scale=4.0,
        latents=start, output_type="latent",
    ).images  # fmt: skip
    sd = wrap(pipe)
    for refused in ({"prompt": negative}, sd.encode(["dull"]), ["dull"]):
        guided = sd.guided(4.0, negative=refused)
        ours = sample(guided, cond={"prompt": tokens}, solver=DDIM(), grid=sd.grid(4), initial=start)
        torch.testing.assert_close(ours, theirs, **CLOSE)
    with pytest.raises(BadType, match="a list of prompts"):
        sd.guided(4.0, negative="dull")


def test_a_pipeline_that_has_a_solver_already():
    """Its solver stands in for a scheduler, which still says what the network is."""
    pipe = stable_diffusion()
    pipe.scheduler = as_scheduler(UniPC(2), pipe)
    torch.testing.assert_close(*both(pipe, UniPC(2)), **CLOSE)
    pipe.scheduler = as_scheduler(UniPC(2), pipe, grid=cd.sampling.Karras(0.03, 14.6))
    torch.testing.assert_close(*both(pipe, UniPC(2)), **CLOSE)
    flow = sd3()
    flow.scheduler = as_scheduler(Euler(), flow)
    torch.testing.assert_close(*both(flow, Euler()), **CLOSE)


def test_sizes_that_stable_diffusion_xl_is_told():
    pipe, start = stable_diffusion_xl(), latents()
    theirs = pipe(
        PROMPTS, original_size=(40, 30), crops_coords_top_left=(2, 3), target_size=(20, 18), num_inference_steps=4,
        guidance_scale=4.0, latents=start, output_type="latent",
    ).images  # fmt: skip
    xl = wrap(pipe)
    cond = xl.encode(PROMPTS, original_size=(40, 30), crop=(2, 3), target_size=(20, 18))
    ours = sample(xl.guided(4.0), cond=cond, solver=DDIM(), grid=xl.grid(4), initial=start)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    with pytest.raises(BadValue, match="a crop is"):
        xl.encode(PROMPTS, crop=(1, 2, 3))


def test_what_is_no_size_and_no_prompt():
    for size in (8, (16.0, 16.0), (16,), "16"):
        with pytest.raises(BadType, match=r"size is .height, width. in pixels"):
            wrap(stable_diffusion(), size=size)
    sd = wrap(stable_diffusion())
    for entries in ([1], [torch.zeros(16, 32)], ["a fox", None]):
        with pytest.raises(BadType, match="prompts are text"):
            sd.encode(entries)
    with pytest.raises(BadType, match="prompts are text, got int"):
        sd.guided(3.0, negative=[1])
    with pytest.raises(BadType, match="a list of prompts"):
        sd.guided(3.0, negative=[])
