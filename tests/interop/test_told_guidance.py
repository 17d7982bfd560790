"""Stable Diffusion told its guidance: as diffusers tells it, at zero weight at first, and distilled in stages."""

import copy

import diffusers
import pytest
import tiny
import torch

import condiff as cd
from condiff.conditions import GuidanceScale, scale_features
from condiff.distill import Chain, extended, guided_stage, halving_stages
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Distilled, Free
from condiff.networks import LoRA
from condiff.training import TrainConfig


def told_pipeline(seed=0):
    """The network of a latent consistency model."""
    torch.manual_seed(seed)
    unet = tiny.text_unet(time_cond_proj_dim=8)
    return tiny.stable_diffusion(seed, unet=unet)


def test_it_is_told_as_the_pipeline_tells_it():
    pipe = told_pipeline()
    wrapped = cd.interop.wrap(pipe)
    assert wrapped.denoiser.kinds["guidance"] == "scalar"
    x, cond = torch.randn(2, 4, 8, 8), wrapped.encode(["a fox", "a hat"])
    said = wrapped.denoiser(x, 0.5, {**cond, "guidance": torch.tensor([3.0, 7.5])})
    with torch.no_grad():
        theirs = pipe.unet(
            x,
            499.0,
            encoder_hidden_states=cond["prompt"].value,
            timestep_cond=pipe.get_guidance_scale_embedding(torch.tensor([2.0, 6.5]), 8),
        ).sample
    assert torch.allclose(next(iter(said.values.values())), theirs, atol=3e-4)  # theirs: sines in float32
    assert not torch.allclose(
        said.values["noise"][0], wrapped.denoiser(x, 0.5, {**cond, "guidance": torch.ones(2)}).noise[0]
    )


def test_features_are_those_of_latent_consistency_models():
    w = torch.tensor([0.0, 0.37, 2.0, 7.5], dtype=torch.float64)
    theirs = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding(None, w, 256, torch.float64)
    assert torch.allclose(scale_features(1.0 + w, 256), theirs.double(), atol=3e-4)  # their frequencies are of float32


def test_a_generation_is_that_of_the_pipeline():
    pipe = told_pipeline()
    wrapped = cd.interop.wrap(pipe)
    start = torch.randn(1, 4, 8, 8)
    theirs = pipe("a fox", num_inference_steps=4, guidance_scale=5.0, latents=start, output_type="latent").images
    guided = wrapped.guided(5.0)
    assert isinstance(guided, Distilled)
    ours = cd.sample(guided, initial=start, cond=wrapped.encode(["a fox"]), solver=cd.DDIM(), grid=wrapped.grid(4))
    assert torch.allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("make", [tiny.stable_diffusion, tiny.stable_diffusion_xl])
def test_extended_it_says_what_it_said(make):
    wrapped = cd.interop.wrap(make())
    student = extended(wrapped.denoiser, {"guidance": GuidanceScale(1.0, 8.0, features=8)})
    x, cond = torch.randn(3, 4, 8, 8), wrapped.encode(["a", "b", "c"])
    plain = wrapped.denoiser(x, 0.3, cond)
    told = student(x, 0.3, {**cond, "guidance": torch.tensor([1.0, 4.0, 8.0])})
    assert torch.equal(plain.noise, told.noise)
    assert student.network.net.config.time_cond_proj_dim == 8
    assert type(student.network.net) is diffusers.UNet2DConditionModel
    assert student.network.net is not wrapped.denoiser.network.net
    with pytest.raises(BadValue, match=r"scales in \[1, 8\]"):
        copy.deepcopy(student)(x, 0.3, {**cond, "guidance": torch.tensor([1.0, 9.0, 8.0])})
    with pytest.raises(Incompatible, match="already"):
        extended(student, {"guidance": GuidanceScale()})
    with pytest.raises(Incompatible, match="by a GuidanceScale"):
        extended(wrapped.denoiser, {"label": cd.conditions.Label(3)})


class Latents:
    """Random latents with encoded prompts."""

    def __init__(self, wrapped, count=8):
        self.x = torch.randn(count, *wrapped.denoiser.shape)
        self.prompt = wrapped.encode([f"{i}" for i in range(count)])["prompt"].value
        self.kinds = wrapped.denoiser.kinds

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        return {"x": self.x[indices], "cond": {"prompt": self.prompt[indices]}}


def test_a_pipeline_is_distilled_in_stages():
    wrapped = cd.interop.wrap(tiny.stable_diffusion(prediction_type="v_prediction"))
    config = TrainConfig(steps=2, batch=2, lr=1e-3, ema=(), tensorboard=False)
    stages = [guided_stage(1.0, 8.0, config, features=8), *halving_stages(4, 2, config, scales=(1.0, 8.0))]
    chain = Chain(wrapped.denoiser, Latents(wrapped), stages, quiet=True)
    chain.fit()
    fast = chain.models["steps-2"]
    x = cd.sample(Distilled(fast, 5.0), cond=wrapped.encode(["a fox"]), solver=cd.DDIM(), steps=2, seed=0)
    assert x.shape == (1, 4, 8, 8) and bool(x.isfinite().all())
    saved = fast.network.net.state_dict()
    assert bool(saved["time_embedding.cond_proj.weight"].any())  # it was trained
    before, after = wrapped.denoiser.network.net.state_dict(), tiny.stable_diffusion().unet.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # the pipeline is as it was


def test_a_pipeline_is_distilled_by_low_rank_updates():
    """Attention and the embedding of the scale learn, all else stays; the network is a plain one again."""
    wrapped = cd.interop.wrap(tiny.stable_diffusion(prediction_type="v_prediction"))
    config = TrainConfig(steps=2, batch=2, lr=1e-3, ema=(), tensorboard=False)
    stage = guided_stage(1.0, 8.0, config, features=8, lora=LoRA(rank=2))
    chain = Chain(wrapped.denoiser, Latents(wrapped), [stage], quiet=True)
    chain.fit()
    before, net = wrapped.denoiser.network.net.state_dict(), chain.models["guided"].network.net
    after = net.state_dict()
    assert set(after) == {*before, "time_embedding.cond_proj.weight"} and bool(
        after["time_embedding.cond_proj.weight"].any()
    )
    changed = {k for k, v in before.items() if not torch.equal(after[k], v)}
    assert changed and all(".attn" in k and k.endswith("weight") for k in changed)
    assert type(net) is diffusers.UNet2DConditionModel and all(p.requires_grad for p in net.parameters())


def test_the_target_is_the_guided_pipeline():
    wrapped = cd.interop.wrap(tiny.stable_diffusion())
    objective = guided_stage(1.0, 8.0).objective.of(wrapped.denoiser)
    cond = wrapped.encode(["a", "b"])
    x = torch.randn(2, 4, 8, 8)
    truth = wrapped.denoiser.process.forward(x, 0.4, rng=0)
    scales = torch.tensor([2.0, 7.5])
    aim = objective.aim(truth, cond.replace(guidance=cd.conditions.Condition(scales, "scalar")))
    for row, scale in enumerate(scales.tolist()):
        one = Free(wrapped.denoiser, scale=scale)(truth.x_t[row : row + 1], 0.4, cond.rows([row]))
        assert torch.allclose(aim.noise[row : row + 1], one.noise, atol=1e-5)


def test_refusals():
    wrapped = cd.interop.wrap(told_pipeline())
    x, cond = torch.randn(1, 4, 8, 8), wrapped.encode(["a"])
    with pytest.raises(BadValue, match="how strongly it is guided"):
        wrapped.denoiser(x, 0.5, cond)
    with pytest.raises(Incompatible, match="no negative prompt"):
        wrapped.guided(3.0, negative=["bad"])
    with pytest.raises(Incompatible, match="use Free"):
        Distilled(cd.interop.wrap(tiny.stable_diffusion()).denoiser, 3.0)
