"""Consecutive Brownian bridge: the frame between two frames, almost without chance.

Reference: Lyu, Li, Jiao & Chen, "Frame Interpolation with Consecutive Brownian Bridge Diffusion", ACM MM 2024
(arXiv 2405.05953). The bridge is BBDM's (Li 2023).

With x0 the middle frame (or its latent) and y the one before or after it, at t = 0 and t = 1::

    x_t = (1 - t) x0 + t y + sqrt(2 t (1 - t) max_variance) z                       process.Bridge.bbdm()
    network: out(x_t, (1 + side t) / 2, frames) = x_t - x0,    side = -1 before, 1 after
    loss    = min(1 / noise(t), 5) |out - (x_t - x0)|,         the side a fair coin
    step    = (1 - s) x0 + s y + sqrt(noise(s)^2 - eta^2 std^2) z_hat + eta std z    sampling.DDIM(eta)
            = x_t - (t - s) / t out + std z    for eta = 1, without reading y        sampling.DDPM()
    std^2   = 2 max_variance s (t - s) / t

Sampling starts at y, a frame, in place of noise, so that little of the result is left to chance: the variances of all
steps add up to 1.8 on the grid of 50 (to 11 for DDPM). A clip is refined by putting a frame into every gap again and
again (:class:`condiff.video.Interpolator`), in pixels or in the latents of a codec whose decoder sees both neighbours.

Different from the released code, on purpose: for eta < 1 it keeps sqrt(noise^2 - std^2) although only eta^2 std^2 of
noise is added, which loses nearly all variance at eta = 0; its second sampler belongs to a bridge of another variance
than its training; the coin is thrown for each batch, here for each row; indices are drawn, here times between them; the
number told is the index plus one over 1000, here t itself (0.001 + 0.998 i / 999); only "next" is offered, here also
"prev" and the mean of both. The flow network and the VQ autoencoder of the paper aren't part of this: a flow is a
function that :class:`condiff.codecs.Autoencoder` takes.

Claimed: closer to the true frame than a diffusion model from noise, and nearly the same for every seed.
:func:`reproduce` measures both on moving bumps.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from condiff.conditions import EitherEnd
from condiff.data import TensorData
from condiff.denoiser import Correction
from condiff.errors import BadValue
from condiff.methods import experiment
from condiff.methods.experiment import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import psnr
from condiff.networks import MLPConfig, TwoSidedConfig, UNetConfig
from condiff.process import Bridge, Discrete, Gaussian
from condiff.random import as_source
from condiff.sampling import DDIM, DDPM, ClipX0, Spaced, Strided
from condiff.training import Denoising, InverseNoise, UniformTimes
from condiff.video import Interpolator

PIXELS = 32
DRAWS = 4  # seeds of the noise, for the spread


def recipe(facts: Facts) -> Recipe:
    """The method on triplets: samples with a condition ``frames`` that holds both neighbours."""
    spec = facts.embeddings.get("frames")
    if getattr(spec, "kind", None) != "frames" or getattr(spec, "frames", None) != 2:
        raise BadValue("frame interpolation needs a condition 'frames' with both neighbours: train on triplets")
    bridge = Bridge.bbdm()
    return Recipe(
        method="consecutive-brownian-bridge",
        network=TwoSidedConfig(network=_network(facts)),
        process=bridge,
        target="x0",
        precondition=Correction(),
        objective=Denoising(
            times=UniformTimes(low=bridge.margin, high=1.0 - bridge.margin),
            weighting=InverseNoise(cap=5.0),
            loss="l1",
            transform=EitherEnd(),
        ),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(eta=1.0), grid=Strided(), steps=50),
    )


def _network(facts: Facts) -> Any:
    """A UNet for pictures, which takes those of other sizes too."""
    if len(facts.shape) != 3:
        return facts.network()
    return UNetConfig(
        shape=facts.shape, width=64, multipliers=(1, 2, 3), attention_levels=(2,), conditions=facts.embeddings
    )


def baseline(ours: Recipe) -> Recipe:
    """The same network as a DDPM: noise prediction from pure noise, told both neighbours."""
    return Recipe(
        method="ddpm",
        network=ours.network.network,
        process=Gaussian(Discrete.ddpm()),
        target="noise",
        objective=Denoising(),
        training=ours.training,
        sampler=Sampler(solver=DDPM(), grid=Spaced("trailing"), steps=50, hooks=(ClipX0(),)),
    )


def bumps(count: int, seed: int) -> TensorData:
    """Triplets of a bump that moves evenly over 32 pixels, in [-1, 1]: random centre, velocity and width."""
    u = as_source(seed).uniform((count, 3))
    centre, velocity, width = 10.0 + 12.0 * u[:, 0], -6.0 + 12.0 * u[:, 1], 1.5 + 1.5 * u[:, 2]
    place = torch.arange(PIXELS, dtype=torch.float64)
    frames = [
        torch.exp(-0.5 * ((place - (centre + k * velocity)[:, None]) / width[:, None]) ** 2) for k in (-1.0, 0.0, 1.0)
    ]
    before, x, after = ((2.0 * frame - 1.0).float() for frame in frames)
    return TensorData(x, cond={"frames": torch.stack([before, after], 1)}, kinds={"frames": "frames"}, name="bumps")


def reproduce(budget: str = "small") -> Reproduction:
    """Error and spread over seeds of the middle frame, bridge against DDPM, with one network and training."""
    data = bumps(50_000, seed=1)
    lab = experiment.Lab("consecutive-brownian-bridge", budget, steps=1500, data=data)
    rows = bumps(256, seed=2).batch(range(256))
    truth, (before, after) = rows["x"], rows["cond"]["frames"].unbind(1)
    ours = recipe(Facts((PIXELS,), Facts.of(data).embeddings))
    ours = replace(ours, network=TwoSidedConfig(network=MLPConfig(**_sizes(ours))))
    errors: dict[str, list[float]] = {"bridge": [], "ddpm": []}
    spread: dict[str, list[float]] = {"bridge": [], "ddpm": []}
    for seed in lab.seeds:
        for name, chosen in (("bridge", ours), ("ddpm", baseline(ours))):
            model = lab.train(chosen, seed)
            sampler = chosen.sampler
            maker = Interpolator(model.denoiser, solver=sampler.solver, grid=sampler.grid, hooks=sampler.hooks)
            drawn = [maker.middle(before, after, seeds=_seeds(seed, k, len(before))) for k in range(DRAWS)]
            errors[name].append(float(torch.stack([psnr(x, truth) for x in drawn]).mean()))
            spread[name].append(float(torch.stack(drawn).std(0).mean()))
            lab.say(f"seed {seed}: {name}, {errors[name][-1]:.2f} dB, spread {spread[name][-1]:.5f}")
    average = float(psnr(0.5 * (before + after), truth).mean())
    comparisons = (
        Comparison(
            name="PSNR of the middle frame, dB",
            baseline_name="DDPM, 50 steps",
            baseline=tuple(errors["ddpm"]),
            ours_name="bridge, 50 steps",
            ours=tuple(errors["bridge"]),
            lower_is_better=False,
            margin=3.0 / abs(fmean(errors["ddpm"])),  # 3 dB
        ),
        Comparison(
            name="standard deviation over seeds",
            baseline_name="DDPM, 50 steps",
            baseline=tuple(spread["ddpm"]),
            ours_name="bridge, 50 steps",
            ours=tuple(spread["bridge"]),
            margin=0.8,
        ),
    )
    claim = "a bridge from a neighbour is closer to the true frame than diffusion from noise, almost without chance"
    notes = f"moving bumps of 32 pixels, {lab.steps} steps of batch 128; the neighbours' average has {average:.1f} dB"
    return lab.outcome(claim, comparisons, notes)


def _sizes(ours: Recipe) -> dict[str, Any]:
    return {"shape": (PIXELS,), "width": 256, "depth": 3, "conditions": ours.network.conditions}


def _seeds(seed: int, draw: int, rows: int) -> list[int]:
    return [10_000_000 * (seed + 1) + 100_000 * draw + i for i in range(rows)]
