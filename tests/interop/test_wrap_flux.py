"""FLUX: packed latents, a guidance that the network is told, a shift that depends on the resolution."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from tiny import CLOSE, PROMPTS, flux

from condiff.errors import BadValue, Incompatible
from condiff.guidance import Distilled, Free
from condiff.interop import wrap
from condiff.interop.backbones.flux import packed, places, unpacked
from condiff.sampling import Euler, UniPC, sample

SIZE = {"height": 16, "width": 24}


def start(seed=3):
    return torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(seed))


def theirs(pipe, steps=6, output="latent", **options):
    options = {"max_sequence_length": 12, "latents": packed(start()), **SIZE, **options}
    return pipe(PROMPTS, num_inference_steps=steps, output_type=output, **options).images


def test_packing_is_the_pipelines():
    z = start()
    tokens = packed(z)
    assert torch.equal(tokens, FluxPipeline._pack_latents(z, 2, 4, 8, 12))
    assert torch.equal(unpacked(tokens, 8, 12), z)
    assert torch.equal(places(8, 12, z), FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic shift", "fixed shift"])
def test_a_told_guidance_equals_the_pipeline_in_one_call_a_step(dynamic):
    pipe = flux(dynamic=dynamic)
    want = theirs(pipe, guidance_scale=4.0)
    wrapped = wrap(pipe, size=(16, 24), length=12)
    assert wrapped.denoiser.shape == (4, 8, 12)
    seen, call = [], pipe.transformer.forward
    pipe.transformer.forward = lambda x, **told: seen.append(told["guidance"].tolist()) or call(x, **told)
    ours = sample(
        wrapped.guided(4.0), cond=wrapped.encode(PROMPTS), solver=Euler(), grid=wrapped.grid(6),
        initial=start(),
    )  # fmt: skip
    torch.testing.assert_close(packed(ours), want, **CLOSE)
    assert seen == [[4.0, 4.0]] * 6


def test_negative_prompts_beside_a_told_guidance():
    pipe = flux()
    want = theirs(pipe, guidance_scale=3.5, true_cfg_scale=2.0, negative_prompt=["dull"] * 2)
    wrapped = wrap(pipe, size=(16, 24), length=12)
    negative = wrapped.encode(["dull"])
    guided = Free(Distilled(wrapped.denoiser, scale=3.5), scale=2.0, negative=negative)
    ours = sample(guided, cond=wrapped.encode(PROMPTS), solver=Euler(), grid=wrapped.grid(6), initial=start())
    torch.testing.assert_close(packed(ours), want, **CLOSE)
    with pytest.raises(Incompatible, match=r"Free\(wrapped.guided"):
        wrapped.guided(3.5, negative=["dull"])


def test_unipc_and_a_network_without_guidance():
    pipe = flux(guidance=False)
    pipe.scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", use_dynamic_shifting=True
    )
    want = theirs(pipe)
    wrapped = wrap(pipe, size=(16, 24), length=12)
    ours = sample(
        wrapped.guided(), cond=wrapped.encode(PROMPTS), solver=UniPC(2), grid=wrapped.grid(6),
        initial=start(),
    )  # fmt: skip
    torch.testing.assert_close(packed(ours), want, **CLOSE)
    with pytest.raises(Incompatible, match="has no guidance"):
        wrapped.guided(3.5)


def test_the_shift_depends_on_the_resolution():
    pipe = flux()
    small, large = wrap(pipe, size=(16, 16)).grid(4), wrap(pipe, size=(64, 64)).grid(4)
    assert bool((large[1:-1] > small[1:-1]).all()) and small[0] == large[0] == 1.0
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    assert torch.equal(wrap(pipe, size=(16, 16)).grid(4), wrap(pipe, size=(64, 64)).grid(4))


def test_pixels_are_the_pipelines():
    pipe = flux()
    want = theirs(pipe, output="pt")
    wrapped = wrap(pipe, size=(16, 24), length=12)
    latent = unpacked(theirs(pipe), 8, 12)
    with torch.no_grad():
        images = wrapped.codec.decode(latent)
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), want, **CLOSE)


def test_what_is_missing_or_of_another_size_is_refused():
    pipe = flux()
    with pytest.raises(BadValue, match="multiples of 4 pixels"):
        wrap(pipe, size=(18, 16))
    with pytest.raises(BadValue, match="between 1 and 512 tokens"):
        wrap(pipe, length=513)
    with pytest.raises(BadValue, match="leave frames= out"):
        wrap(pipe, size=(16, 16), frames=3)
    wrapped = wrap(pipe, size=(16, 24), length=12)
    with pytest.raises(BadValue, match="how strongly it is guided"):
        wrapped.denoiser(start(), 0.5, wrapped.encode(PROMPTS))
    with pytest.raises(BadValue, match="unknown condition of FluxPipeline 'contrl'"):
        wrapped.encode(PROMPTS, contrl=1)
