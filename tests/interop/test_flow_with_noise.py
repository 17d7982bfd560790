"""A flow pipeline of the real classes, sampled with noise: the same network, any eps, no training."""

import math

import pytest
import torch
from tiny import CLOSE, latents, sd3

from condiff.guidance import Free
from condiff.interop import wrap
from condiff.random import Tape
from condiff.sampling import SDE, Euler, sample, trajectory

PROMPTS = ["a red fox", "two cats"]


@torch.no_grad()
def test_sd3_without_noise_is_its_own_pipeline():
    pipe = sd3()
    theirs = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, latents=latents(), output_type="latent").images
    wrapped = wrap(pipe)
    ours = sample(
        Free(wrapped.denoiser, scale=3.0), cond=wrapped.encode(PROMPTS), solver=SDE(0.0), grid=wrapped.grid(5),
        initial=latents(),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("noise", [0.5, lambda level: 0.8 * level.noise])
@torch.no_grad()
def test_a_step_with_noise_derives_the_score_from_the_velocity(noise):
    """``eta = x + (1 - t) u``, ``s = -eta / t``: the step of the SDE, from the transformer's own output."""
    wrapped = wrap(sd3())
    cond, draws = wrapped.encode(PROMPTS), [latents(seed=s) for s in range(5)]
    steps = list(
        trajectory(
            wrapped.denoiser, latents(), solver=SDE(noise, "constant"), grid=wrapped.grid(5), cond=cond, rng=Tape(draws)
        )
    )
    process = wrapped.denoiser.process
    for step, z in list(zip(steps, draws, strict=True))[:-1]:
        level, dt = process.at(step.t.t), step.s.t - step.t.t
        eps = noise(level) if callable(noise) else noise
        u, sigma, rate = step.prediction.velocity, level.noise, level.d_noise
        eta = step.x_t + (1.0 - sigma) * u / rate
        by_hand = step.x_t + dt * u - abs(dt) * eps * eta / sigma + math.sqrt(2 * eps * abs(dt)) * z
        torch.testing.assert_close(step.x_s, by_hand, **CLOSE)
    last = steps[-1]
    torch.testing.assert_close(last.x_s, last.prediction.x0, **CLOSE)  # ends at the posterior mean, without noise
    assert bool(torch.isfinite(last.x_s).all())


@torch.no_grad()
def test_guided_in_half_precision_and_decoded():
    pipe = sd3()
    pipe.transformer.to(torch.bfloat16)
    wrapped = wrap(pipe)
    guided = Free(wrapped.denoiser, scale=2.0)
    kwargs = {"cond": wrapped.encode(PROMPTS), "grid": wrapped.grid(4), "seeds": [1, 2]}
    noisy = sample(guided, solver=SDE(0.5, "constant"), **kwargs)
    plain = sample(guided, solver=Euler(), **kwargs)
    assert float((noisy - plain).abs().max()) > 0.1
    images = wrapped.codec.decode(noisy)
    assert images.shape == (2, 3, 16, 16) and bool(torch.isfinite(images).all())
