"""A wrapped pipeline samples what the pipeline itself samples, with our solvers, steps and guidance."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler, UniPCMultistepScheduler
from tiny import CLOSE, PROMPTS, ddpm, dit, latents, sd3, stable_diffusion, stable_diffusion_xl, text_unet

from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Free
from condiff.interop import grid_of, process_of, wrap
from condiff.process import Discrete
from condiff.sampling import DDIM, DPMSolverPP, Euler, UniPC, sample
from condiff.sampling.solvers.ddpm import DDPM


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
    ids=["epsilon", "v", "v-zero-snr"],
)
def test_stable_diffusion_with_guidance_equals_its_pipeline(options):
    # 8 steps divide the table: elsewhere DDIMScheduler steps by a rounded stride, off its own "trailing" grid
    pipe, start = stable_diffusion(**options), latents()
    theirs = pipe(PROMPTS, num_inference_steps=8, guidance_scale=5.0, latents=start, output_type="latent").images
    sd = wrap(pipe)
    guided = Free(sd.denoiser, scale=5.0)
    ours = sample(guided, cond=sd.encode(PROMPTS), solver=DDIM(), grid=sd.grid(8), initial=start)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_negative_prompt_is_the_reference():
    pipe, start = stable_diffusion(), latents()
    theirs = pipe(
        PROMPTS, negative_prompt=["dull"] * 2, num_inference_steps=5, guidance_scale=4.0, latents=start,
        output_type="latent",
    ).images  # fmt: skip
    sd = wrap(pipe)
    guided = Free(sd.denoiser, scale=4.0, negative=sd.encode(["dull"]))
    ours = sample(guided, cond=sd.encode(PROMPTS), solver=DDIM(), grid=sd.grid(5), initial=start)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [(DPMSolverMultistepScheduler, DPMSolverPP(2)), (UniPCMultistepScheduler, UniPC(2))],
    ids=["dpm++", "unipc"],
)
def test_multistep_solvers_equal_their_schedulers(scheduler, solver):
    pipe, start = stable_diffusion(), latents()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    theirs = pipe(PROMPTS, num_inference_steps=7, guidance_scale=5.0, latents=start, output_type="latent").images
    sd = wrap(pipe)
    ours = sample(Free(sd.denoiser, scale=5.0), cond=sd.encode(PROMPTS), solver=solver, grid=sd.grid(7), initial=start)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_dit_equals_its_pipeline():
    """The pipeline's classifier-free guidance with the null class 1000 of ImageNet, which is this network's last."""
    pipe = dit(classes=1000)
    theirs = []
    pipe.vae.decode = lambda z: theirs.append(z) or type("Out", (), {"sample": torch.zeros(2, 3, 16, 16)})
    pipe([3, 5], guidance_scale=4.0, num_inference_steps=6, generator=torch.Generator().manual_seed(3))
    wrapped = wrap(pipe)
    ours = sample(
        Free(wrapped.denoiser, scale=4.0), cond=wrapped.encode([3, 5]), solver=DDIM(), grid=wrapped.grid(6),
        initial=latents(),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs[0] * pipe.vae.config.scaling_factor, **CLOSE)


def test_dit_has_a_variance_head_and_names():
    wrapped = wrap(dit())
    cond = wrapped.encode(["class 2", "class 6"])
    assert cond["label"].value.tolist() == [2, 6]
    said = wrapped.denoiser(latents(), 0.5, cond)
    assert said.aux["variance"].shape == (2, 4, 8, 8)
    x = sample(wrapped.denoiser, cond=cond, solver=DDPM("learned_range"), steps=3, seed=0)
    assert x.shape == (2, 4, 8, 8) and torch.isfinite(x).all()


def test_sd3_equals_its_pipeline():
    pipe, start = sd3(), latents()
    theirs = pipe(PROMPTS, num_inference_steps=6, guidance_scale=3.0, latents=start, output_type="latent").images
    wrapped = wrap(pipe)
    ours = sample(
        Free(wrapped.denoiser, scale=3.0), cond=wrapped.encode(PROMPTS), solver=Euler(), grid=wrapped.grid(6),
        initial=start,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "empty prompt"])
def test_stable_diffusion_xl_equals_its_pipeline(zeros):
    pipe, start = stable_diffusion_xl(zeros=zeros), latents()
    theirs = pipe(PROMPTS, num_inference_steps=5, guidance_scale=5.0, latents=start, output_type="latent").images
    wrapped = wrap(pipe)
    guided, cond = Free(wrapped.denoiser, scale=5.0), wrapped.encode(PROMPTS)
    assert cond["size"].value.tolist() == [[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2
    ours = sample(guided, cond=cond, solver=DDIM(), grid=wrapped.grid(5), initial=start)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    with pytest.raises(BadValue, match="told the size of the picture"):
        wrapped.denoiser(start, 0.5, {name: cond[name] for name in ("prompt", "pooled")})


def test_both_branches_of_guidance_are_one_call():
    pipe = stable_diffusion()
    seen, call = [], pipe.unet.forward
    pipe.unet.forward = lambda x, **told: seen.append(len(x)) or call(x, **told)
    sd = wrap(pipe)
    Free(sd.denoiser, scale=5.0)(latents(), 0.5, sd.encode(PROMPTS))
    assert seen == [4]


@pytest.mark.parametrize("make", [stable_diffusion, dit], ids=["prompts", "classes"])
def test_offloaded_weights_stay_where_they_are(make):
    told = PROMPTS if make is stable_diffusion else [3, 5]
    plain, pipe = wrap(make()), make()
    net = pipe.unet if make is stable_diffusion else pipe.transformer
    cpu_offload(net, torch.device("cpu"))
    cpu_offload(pipe.vae, torch.device("cpu"))
    assert next(net.parameters()).device.type == "meta"
    wrapped = wrap(pipe)
    options = {"solver": DDIM(), "grid": plain.grid(3), "seed": 0}
    ours, theirs = (sample(Free(w.denoiser, scale=3.0), cond=w.encode(told), **options) for w in (wrapped, plain))
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(wrapped.codec.decode(ours), plain.codec.decode(theirs))
    assert next(net.parameters()).device.type == "meta"


def test_unconditional_pixels():
    wrapped = wrap(ddpm())
    assert wrapped.codec is None and wrapped.denoiser.shape == (3, 8, 8)
    assert wrapped.denoiser.process.schedule == Discrete.ddpm()
    x, t = latents((2, 3, 8, 8)), 0.4
    said = wrapped.denoiser(x, t).noise
    with torch.no_grad():
        torch.testing.assert_close(said, wrapped.pipeline.unet(x, 399.0).sample)
    with pytest.raises(Incompatible, match="unconditional"):
        wrapped.encode([1])


def test_pixels_with_a_variance_head_or_classes():
    pipe = ddpm(out_channels=6)
    said = wrap(pipe).denoiser(latents((2, 3, 8, 8)), 0.4)
    with torch.no_grad():
        mean, head = pipe.unet(latents((2, 3, 8, 8)), 399.0).sample.chunk(2, dim=1)
    torch.testing.assert_close(said.noise, mean)
    torch.testing.assert_close(said.aux["variance"], head)
    classes = wrap(ddpm(num_class_embeds=5))
    assert classes.denoiser(latents((2, 3, 8, 8)), 0.4, classes.encode([0, 4])).noise.shape == (2, 3, 8, 8)
    with pytest.raises(BadValue, match=r"labels lie in \[0, 4\], got 2 .. 5"):
        classes.denoiser(latents((2, 3, 8, 8)), 0.4, {"label": [2, 5]})
    with pytest.raises(Incompatible, match="absent in some rows"):
        Free(classes.denoiser, scale=2.0)(latents((2, 3, 8, 8)), 0.4, classes.encode([0, 4]))


def test_images_to_latents_and_back():
    pipe = sd3()
    codec, x = wrap(pipe).codec, latents((2, 3, 16, 16)).clamp(-1, 1)
    with torch.no_grad():
        z = codec.encode(x)
        mean = pipe.vae.encode(x).latent_dist.mean
        torch.testing.assert_close(z, (mean - 0.06) * pipe.vae.config.scaling_factor)
        torch.testing.assert_close(codec.decode(z), pipe.vae.decode(mean).sample, rtol=1e-4, atol=1e-5)
        drawn = torch.stack([codec.draw(x, seed) for seed in range(200)])
        std = pipe.vae.encode(x).latent_dist.std * pipe.vae.config.scaling_factor
        torch.testing.assert_close(drawn.std(0).mean(), std.mean(), rtol=0.02, atol=0)
        torch.testing.assert_close(drawn.mean(0), z, rtol=0, atol=float(5 * std.max() / 200**0.5))
    with pytest.raises(BadValue, match="multiples of 2"):
        codec.encode(x[..., :15])


def test_half_precision_networks_answer_in_the_dtype_of_the_state():
    pipe = stable_diffusion()
    pipe.unet.to(torch.bfloat16)
    wrapped = wrap(pipe)
    assert wrapped.denoiser(latents(), 0.5, wrapped.encode(PROMPTS)).noise.dtype == torch.float32


def test_a_size_in_pixels():
    assert wrap(stable_diffusion(), size=(32, 24)).denoiser.shape == (4, 16, 12)
    with pytest.raises(BadValue, match="multiples of 2"):
        wrap(stable_diffusion(), size=(33, 24))


def test_a_network_of_one_size_and_patches():
    assert wrap(dit(), size=(16, 16)).denoiser.shape == (4, 8, 8)
    with pytest.raises(BadValue, match="multiples of 4"):
        wrap(dit(), size=(18, 16))
    with pytest.raises(BadValue, match=r"one size, \(16, 16\) pixels"):
        wrap(dit(), size=(20, 16))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: stable_diffusion(unet=text_unet(in_channels=8)), "takes 8 channels and gives 4"),
        (lambda: stable_diffusion(unet=text_unet(num_class_embeds=7)), "more than a prompt .num_class_embeds = 7"),
        (lambda: stable_diffusion(unet=stable_diffusion_xl().unet), "more than a prompt .addition_embed_type"),
        (lambda: ddpm(class_embed_type="timestep"), "told 'timestep' embeddings"),
    ],
    ids=["editing", "noise levels", "half an XL", "embeddings"],
)
def test_networks_that_are_told_more_are_refused(make, match):
    with pytest.raises(Incompatible, match=match):
        wrap(make())


def test_what_is_no_known_pipeline_is_refused():
    with pytest.raises(BadType, match="a loaded diffusers pipeline"):
        wrap(torch.nn.Linear(1, 1))
    with pytest.raises(BadType, match="a diffusers scheduler"):
        process_of(3)
    with pytest.raises(Incompatible, match="EDMEulerScheduler"):
        process_of(EDMEulerScheduler())
    with pytest.raises(BadValue, match="at least 1"):
        grid_of(ddpm().scheduler, 0)


def test_conditions_of_the_wrong_sort_are_refused():
    sd, classes = wrap(stable_diffusion()), wrap(dit())
    with pytest.raises(BadValue, match="takes a list"):
        sd.encode("a fox")
    with pytest.raises(BadValue, match="unknown classes"):
        classes.encode(["class 9"])
    with pytest.raises(BadValue, match="whole numbers"):
        classes.encode([7])
    with pytest.raises(BadValue, match="is told a prompt"):
        sd.denoiser(latents(), 0.5)


def test_without_a_text_encoder_conditions_are_given_encoded():
    pipe = stable_diffusion()
    cond = wrap(pipe).encode(PROMPTS)
    pipe.text_encoder = None
    sd = wrap(pipe)
    assert sd.denoiser(latents(), 0.5, cond).noise.shape == (2, 4, 8, 8)
    with pytest.raises(Incompatible, match="without its text encoder"):
        sd.encode(PROMPTS)
    with pytest.raises(Incompatible, match="absent in some rows"):
        Free(sd.denoiser, scale=2.0)(latents(), 0.5, cond)


def test_latents_that_are_scaled_channel_by_channel():
    pipe = stable_diffusion_xl()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])
    options = {"num_inference_steps": 3, "latents": latents()}
    z, theirs = (pipe(PROMPTS, output_type=kind, **options).images for kind in ("latent", "pt"))
    codec = wrap(pipe).codec
    with torch.no_grad():
        torch.testing.assert_close((codec.decode(z) / 2 + 0.5).clamp(0, 1), theirs, **CLOSE)
        x = theirs * 2 - 1
        again = codec.decode(codec.encode(x))
        torch.testing.assert_close(again, pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample, **CLOSE)
    assert "shifted by 0.1, -0.2" in codec.space


def test_an_autoencoder_that_overflows_in_half_precision_computes_in_full():
    pipe = stable_diffusion_xl()
    z, whole = latents(), wrap(stable_diffusion_xl()).codec
    pipe.vae.half()
    codec = wrap(pipe).codec
    whole.vae.half().float()  # the same rounded weights
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(z), whole.decode(z))
        torch.testing.assert_close(codec.encode(whole.decode(z)), whole.encode(whole.decode(z)))
        assert pipe.vae.dtype == torch.float16
        pipe.vae.register_to_config(force_upcast=False)
        assert not torch.equal(codec.decode(z), whole.decode(z))
