"""ControlNets beside a pipeline's network, and inpainting: the latents are those of the pipeline's own call."""

import pytest
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from tiny import (
    CLOSE,
    PROMPTS,
    controlled,
    controlled_flux,
    controlled_sd3,
    flux,
    latents,
    sd3,
    stable_diffusion,
    stable_diffusion_xl,
    text_unet,
    with_controls,
)
from torch import nn

from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free
from condiff.interop import wrap
from condiff.interop.backbones import control_interval
from condiff.interop.backbones.flux import packed
from condiff.sampling import DDIM, Euler, Inpaint, sample

KINDS = {
    "SD": lambda count: controlled(StableDiffusionControlNetPipeline, stable_diffusion(), count),
    "XL": lambda count: controlled(StableDiffusionXLControlNetPipeline, stable_diffusion_xl(), count),
}


def pixels(count=2, channels=3, seed=6):
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ours(wrapped, cond, steps=5, scale=5.0, solver=None, initial=None):
    return sample(
        wrapped.guided(scale), cond=cond, solver=solver or DDIM(), grid=wrapped.grid(steps),
        initial=latents() if initial is None else initial,
    )  # fmt: skip


def theirs(pipe, image, steps=5, scale=5.0, **options):
    return pipe(
        PROMPTS, image=image, num_inference_steps=steps, guidance_scale=scale, latents=latents(),
        output_type="latent", **options,
    ).images  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_controlnet_equals_its_pipeline(kind):
    pipe = KINDS[kind](1)
    want = theirs(pipe, 0.5 * pixels() + 0.5, controlnet_conditioning_scale=0.7)
    wrapped = wrap(pipe)
    calls = []
    pipe.controlnet.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
    got = ours(wrapped, wrapped.encode(PROMPTS, control=pixels(), scale=0.7))
    torch.testing.assert_close(got, want, **CLOSE)
    assert calls == [4] * 5
    without = ours(wrapped, wrapped.encode(PROMPTS, control=pixels(), scale=0.0))
    assert float((without - got).abs().max()) > 0.05 and calls == [4] * 5  # what counts for nothing isn't called


@pytest.mark.parametrize("kind", KINDS)
def test_two_controlnets_with_scales_and_intervals(kind):
    pipe, pictures = KINDS[kind](2), [pixels(), pixels(1, seed=8)]
    want = theirs(
        pipe, [0.5 * one + 0.5 for one in pictures], controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.3], control_guidance_end=[0.7, 1.0],
    )  # fmt: skip
    wrapped = wrap(pipe)
    grid = wrapped.grid(5)
    intervals = [control_interval(grid, 0.0, 0.7), control_interval(grid, 0.3, 1.0)]
    cond = wrapped.encode(PROMPTS, control=pictures, scale=[0.7, 0.4], interval=intervals)
    torch.testing.assert_close(ours(wrapped, cond), want, **CLOSE)


def test_negative_prompts_and_controls_that_are_left_out():
    pipe = KINDS["SD"](1)
    want = theirs(pipe, 0.5 * pixels() + 0.5, negative_prompt=["dull"] * 2)
    wrapped = wrap(pipe)
    cond = wrapped.encode(PROMPTS, control=pixels())
    guided = wrapped.guided(5.0, negative=["dull"])
    got = sample(guided, cond=cond, solver=DDIM(), grid=wrapped.grid(5), initial=latents())
    torch.testing.assert_close(got, want, **CLOSE)
    # A reference without its control is the pipeline's plain network
    plain = wrap(stable_diffusion()).denoiser
    told = Free(wrapped.denoiser, scale=0.0)(latents(), 0.5, cond).noise
    empty = wrapped.family.words(["", ""])
    torch.testing.assert_close(told, plain(latents(), 0.5, empty).noise, **CLOSE)


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "pooled"])
def test_sd3_with_controls(zeros, monkeypatch):
    """The pipeline draws the latents of its picture anew for each branch of guidance: means here."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    pipe, pictures = controlled_sd3(sd3(layers=2), 2, zeros), [pixels(), pixels(seed=8)]
    pipe.vae.register_to_config(shift_factor=4.0)  # which ControlNets that see no pooled prompt aren't told
    want = pipe(
        PROMPTS, control_image=pictures, num_inference_steps=5, guidance_scale=3.0, latents=latents(), height=16,
        width=16, output_type="latent", controlnet_conditioning_scale=[0.7, 0.4], control_guidance_end=[0.5, 1.0],
    ).images  # fmt: skip
    wrapped = wrap(pipe)
    intervals = [control_interval(wrapped.grid(5), 0.0, 0.5), (0.0, 1.0)]
    cond = wrapped.encode(PROMPTS, control=pictures, scale=[0.7, 0.4], interval=intervals)
    got = ours(wrapped, cond, scale=3.0, solver=Euler())
    torch.testing.assert_close(got, want, **CLOSE)
    other = wrapped.encode(PROMPTS, control=pictures[::-1], scale=[0.7, 0.4])
    assert float((ours(wrapped, other, scale=3.0, solver=Euler()) - got).abs().max()) > 1e-3


def test_flux_with_a_control():
    pipe = controlled_flux(flux())
    want = pipe(
        PROMPTS, control_image=pixels(), num_inference_steps=5, guidance_scale=3.0, latents=packed(latents()),
        height=16, width=16, output_type="latent", controlnet_conditioning_scale=0.7, max_sequence_length=12,
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    wrapped = wrap(pipe, size=(16, 16), length=12)
    cond = wrapped.encode(PROMPTS, control=pixels(), scale=0.7, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(ours(wrapped, cond, scale=3.0, solver=Euler())), want, **CLOSE)


def test_controls_of_the_wrong_sort_are_refused():
    wrapped = wrap(KINDS["SD"](2))
    with pytest.raises(BadValue, match="has 2 ControlNets: give control="):
        wrapped.encode(PROMPTS)
    with pytest.raises(BadValue, match="has 2 ControlNets, got 1 entries in control="):
        wrapped.encode(PROMPTS, control=[pixels()])
    with pytest.raises(BadValue, match="got 3 entries in scale="):
        wrapped.encode(PROMPTS, control=[pixels()] * 2, scale=[1.0] * 3)
    with pytest.raises(BadValue, match=r"\(low, high\) with 0 <= low <= high <= 1"):
        wrapped.encode(PROMPTS, control=[pixels()] * 2, interval=(0.5, 0.2))
    with pytest.raises(BadValue, match=r"pictures of shape \(3, 16, 16\)"):
        wrapped.encode(PROMPTS, control=[pixels()[..., :8]] * 2)
    with pytest.raises(BadValue, match="one per sample is wanted, got 3 for 2"):
        wrapped.encode(PROMPTS, control=[pixels(3)] * 2)
    with pytest.raises(BadValue, match="is controlled by"):
        wrapped.denoiser(latents(), 0.5, {"prompt": wrapped.family.words(PROMPTS)["prompt"]})
    with pytest.raises(BadValue, match="none of 5 steps"):
        control_interval(wrapped.grid(5), 0.5, 0.6)
    pooled = controlled(StableDiffusionControlNetPipeline, stable_diffusion())
    pooled.controlnet.register_to_config(global_pool_conditions=True)
    with pytest.raises(Incompatible, match="pools its picture"):
        wrap(pooled)
    other = with_controls(StableDiffusionControlNetPipeline, stable_diffusion(), [pooled.controlnet])
    other.controlnet = nn.Linear(1, 1)
    with pytest.raises(Incompatible, match="ControlNetModel is known, got Linear"):
        wrap(other)
    other.unet = text_unet(in_channels=9)
    with pytest.raises(Incompatible, match="inpainting network with ControlNets"):
        wrap(other)


# Pictures that are changed


def painted(kind=StableDiffusionInpaintPipeline, make=stable_diffusion, channels=9):
    if make is stable_diffusion:
        pipe = stable_diffusion(unet=text_unet(in_channels=channels))
    else:
        pipe = stable_diffusion_xl(channels=channels)
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    out = kind(**parts, **(extra if make is stable_diffusion else {"add_watermarker": False}))
    out.set_progress_bar_config(disable=True)
    return out


def masks():
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1.0
    return mask


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (StableDiffusionInpaintPipeline, stable_diffusion),
        (StableDiffusionXLInpaintPipeline, stable_diffusion_xl),
    ],
    ids=["SD", "XL"],
)
def test_inpainting_equals_its_pipeline(kind, make):
    pipe = painted(kind, make)
    options = {"mask_image": masks(), "strength": 1.0, "generator": torch.Generator().manual_seed(1)}
    want = theirs(pipe, pixels(), height=16, width=16, **options)
    wrapped = wrap(pipe)
    assert wrapped.denoiser.shape == (4, 8, 8)
    told = {"image": pixels(), "mask": masks() * 2 - 1, "rng": torch.Generator().manual_seed(1)}
    cond = wrapped.encode(PROMPTS, **told)
    torch.testing.assert_close(ours(wrapped, cond), want, **CLOSE)
    shown = Image.fromarray((masks()[0, 0].numpy() * 255).astype("uint8"))
    assert torch.equal(wrapped.encode(PROMPTS, image=pixels(), mask=shown)["mask"].value, cond["mask"].value)
    with pytest.raises(BadValue, match="give image= and mask="):
        wrapped.encode(PROMPTS)
    with pytest.raises(Incompatible, match="'mask' is absent in some rows"):
        Free(wrapped.denoiser, scale=2.0)(latents(), 0.5, cond)


def test_a_plain_network_from_a_noised_picture_or_around_a_known_part():
    """``StableDiffusionImg2ImgPipeline`` at strength 0.6: the last three of five steps."""
    parts = {k: v for k, v in stable_diffusion().components.items() if v is not None}
    pipe = StableDiffusionImg2ImgPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    clean = latents(seed=9)
    want = pipe(
        PROMPTS, image=clean, strength=0.6, num_inference_steps=5, guidance_scale=5.0, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    wrapped = wrap(pipe)
    grid = wrapped.grid(5)[2:]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    start = wrapped.denoiser.process.forward(clean, grid[0], noise=noise).x_t
    guided, cond = wrapped.guided(5.0), wrapped.encode(PROMPTS)
    got = sample(guided, cond=cond, solver=DDIM(), grid=grid, initial=start)
    torch.testing.assert_close(got, want, **CLOSE)
    with pytest.raises(BadValue, match="isn't told pictures"):
        wrapped.encode(PROMPTS, image=pixels(), mask=masks())
    known = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    known[..., :4] = True
    kept = sample(guided, cond=cond, solver=DDIM(), steps=3, seed=0, hooks=[Inpaint(clean, known)])
    assert torch.equal(kept[..., :4], clean[..., :4]) and torch.isfinite(kept).all()
