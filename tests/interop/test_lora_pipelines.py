"""LoRA of wrapped pipelines: our trainer trains the adapter alone, and plain diffusers loads it."""

import logging

import peft
import pytest
import tiny
import torch

import condiff as cd
from condiff.errors import BadType
from condiff.files import read_tensors
from condiff.interop import add_lora, save_lora, wrap
from condiff.networks import LoRA, lora_names

TOLD = ["a fox", "a red fox"]
PIPELINES = {
    "stable_diffusion": (tiny.stable_diffusion, TOLD),
    "stable_diffusion_v": (lambda: tiny.stable_diffusion(prediction_type="v_prediction"), TOLD),
    "stable_diffusion_xl": (tiny.stable_diffusion_xl, TOLD),
    "sd3": (tiny.sd3, TOLD),
    "flux": (lambda: tiny.flux(guidance=False), TOLD),
    "dit": (tiny.dit, [1, 2]),
}


@pytest.fixture(autouse=True)
def quiet_diffusers():
    """diffusers warns of text encoders that have no adapter."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def drawn(model, told, denoiser=None):
    denoiser = model.denoiser if denoiser is None else denoiser
    return cd.sample(denoiser, cond=model.encode(told), solver=cd.DDIM(), grid=model.grid(3), seed=0)


def latents(model, told):
    """Eight rows of latents with their conditions."""
    cond = {name: entry.value.repeat(4, *(1,) * (entry.value.ndim - 1)) for name, entry in model.encode(told).items()}
    x = torch.randn(8, *model.denoiser.shape, generator=torch.Generator().manual_seed(0))
    kinds = {name: entry.kind for name, entry in model.encode(told).items()}
    return cd.data.TensorData(x, cond, kinds=kinds, range="keep")


@pytest.mark.parametrize("name", PIPELINES)
def test_trained_here_and_loaded_by_plain_diffusers(name, tmp_path):
    make, told = PIPELINES[name]
    model, plain = wrap(make()), make()
    net = model.denoiser.network.net
    before = {n: p.clone() for n, p in net.named_parameters()}
    add_lora(model, LoRA(rank=2, alpha=3.0))
    untrained = drawn(model, told)
    config = {"steps": 3, "batch": 4, "lr": 0.05, "ema": (0.5,), "quiet": True}
    objective = cd.Denoising(weighting=cd.training.MinSNR(gamma=5.0))
    run = cd.train(model.denoiser, latents(model, told), objective, run_dir=tmp_path / "run", **config)
    for n, p in net.named_parameters():
        if "lora_" not in n:
            assert torch.equal(p, before[n.replace(".base_layer", "")]) and not p.requires_grad
    stored, _ = read_tensors(tmp_path / "run" / "model.safetensors")
    assert stored and all("lora_" in key for key in stored)
    save_lora(model, tmp_path / "adapter", run.ema)
    ours = drawn(model, told, run.ema)
    assert (ours - untrained).abs().max() > 1e-3

    if hasattr(plain, "load_lora_weights"):
        plain.load_lora_weights(tmp_path / "adapter")
    else:
        plain.transformer = peft.PeftModel.from_pretrained(plain.transformer, tmp_path / "adapter").base_model.model
    torch.testing.assert_close(drawn(wrap(plain), told), ours, rtol=1e-5, atol=1e-5)


def test_the_pictures_of_the_plain_pipeline_are_ours(tmp_path):
    """End to end: the plain pipeline with the adapter, its own scheduler, guidance and autoencoder."""
    model, plain = wrap(tiny.stable_diffusion()), tiny.stable_diffusion()
    add_lora(model, LoRA(rank=2))
    for key, p in model.denoiser.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    save_lora(model, tmp_path / "a")
    plain.load_lora_weights(tmp_path / "a")
    start = torch.randn(1, *model.denoiser.shape, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = plain("a fox", latents=start, **options).images
    guided = cd.guidance.Free(model.denoiser, scale=3.0)
    ours = cd.sample(guided, initial=start, cond=model.encode(["a fox"]), solver=cd.DDIM(), grid=model.grid(4))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_refusals(tmp_path):
    model = wrap(tiny.stable_diffusion())
    ours = cd.Denoiser(cd.networks.MLP(shape=(4,), width=8), cd.process.Gaussian(cd.process.Rectified()), shape=(4,))
    add_lora(model, LoRA(rank=2))
    assert lora_names(model.pipeline.unet) == ["default"]
    with pytest.raises(BadType, match="wrapped pipeline"):
        save_lora(model, tmp_path / "a", ours)
