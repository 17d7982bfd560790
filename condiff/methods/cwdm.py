"""cWDM: a missing scan made from the others at full resolution, by diffusion in the bands of a Haar wavelet.

Reference: Friedrich, Durrer, Wolleb & Cattin, "cWDM: Conditional Wavelet Diffusion Models for Cross-Modality 3D Medical
Image Synthesis", BraTS 2024 (arXiv 2411.17203); on WDM, DGM4MICCAI 2024 (arXiv 2402.19043).

    z_0 = W(x),   z_t = alpha_t z_0 + sigma_t n,   n white        W: 8 bands of half the sides, the low one over 3
    loss = |x0(z_t, t, W(c_1), W(c_2), ...) - z_0|^2              the given scans beside the state, never noised
    x0 -> W(clip(W^-1(x0)))  at every step of the ancestral sampler with variance beta

The codec is :class:`condiff.codecs.Haar`, the process DDPM's table, the solver ``DDPM("beta")`` with
:class:`condiff.sampling.ClipDecoded`. W is orthonormal apart from the 3, so white noise of the bands is white noise of
the voxels, and with ``low=1`` and without clipping it is voxel diffusion, with eight times fewer positions.

What differs from the paper and its code, and why: values lie in [-1, 1] as everywhere here, those of the code in
[0, 1] (W is linear: only the low band moves); a channel says for each given scan that it is there; levels go down by
strided convolutions, where its blocks average; weights are averaged, where its code parses a rate and averages
nothing; samples are put back on the grid, affine and header of what was given, where its script writes the identity;
background is what has the lowest value in *every* given scan, where it looks at the first one alone. The network with
wavelets inside of its blocks, an option that its defaults leave off, isn't here.

Claimed: full-resolution synthesis on one GPU, better than what voxels alone tell. :func:`reproduce` measures it on
generated phantoms against linear regression of the contrasts, and the time of a step against the same network on
voxels; ``benchmarks/volume_memory.py`` the memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import HaarConfig
from condiff.data import Data, phantoms
from condiff.errors import BadValue
from condiff.methods.experiment import Facts, Lab, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import psnr, ssim
from condiff.networks import UNetConfig
from condiff.process import Discrete, Gaussian
from condiff.sampling import DDIM, DDPM, ClipDecoded, ClipX0, Spaced, sample
from condiff.training import Denoising, DiscreteTimes, TrainConfig

LEVELS = 1000
LARGE = 64**3  # voxels from which on network and training are the paper's
SIDE, CASES, TESTS = 32, 100, 20  # of the phantoms
WINDOW = 7  # voxels that structural similarity looks at together
STEPS = 50
WIDTH = 16  # of the network that three seeds can afford


def recipe(facts: Facts, low: float = 3.0) -> Recipe:
    """The method on volumes, or pictures, with any conditions; scans like the sample are seen in bands too.

    Args:
        low: what the low band is divided by.

    Raises:
        BadValue: samples that are neither, or have odd sides.
    """
    if len(facts.shape) not in (3, 4):
        raise BadValue(f"cwdm makes volumes (C, D, H, W) or pictures (C, H, W), got samples {facts.shape}")
    codec = HaarConfig(axes=len(facts.shape) - 1, low=low)
    return Recipe(
        method="cwdm",
        network=network(facts.encoded(codec.build())),
        process=Gaussian(Discrete.ddpm()),
        target="x0",
        objective=Denoising(times=DiscreteTimes(grid=LEVELS)),
        training=training(facts),
        sampler=Sampler(
            solver=DDPM("beta"), grid=Spaced("trailing"), steps=LEVELS, hooks=(ClipDecoded(codec, -1.0, 1.0),)
        ),
        codec=codec,
    )


def network(facts: Facts) -> UNetConfig:
    """The paper's UNet without attention: 64 channels and five levels for large volumes, smaller for smaller ones."""
    sides = facts.shape[1:]
    halvings = max(0, int(math.log2(min(sides) / 4))) if min(sides) >= 4 else 0
    large = math.prod(sides) >= LARGE
    return UNetConfig(
        shape=facts.shape,
        width=64 if large else 32,
        multipliers=(1, 2, 2, 4, 4)[: 1 + min(halvings, 4)],
        layers=2 if large else 1,
        middle_attention=False,
        film="add",
        groups=32 if large else 8,
        conditions=dict(facts.embeddings),
    )


def training(facts: Facts) -> TrainConfig:
    """The paper's for large volumes; minutes for small ones."""
    if math.prod(facts.shape[1:]) >= LARGE:
        return TrainConfig(steps=1_200_000, batch=1, lr=1e-5, schedule="constant", ema=(0.9999,), save_every=10_000)
    return TrainConfig(steps=2000, batch=4, lr=1e-3, warmup=20, ema=(0.98,), save_every=500)


def voxels(facts: Facts) -> Recipe:
    """The baseline of time and memory: the same network, process and sampler on the voxels themselves."""
    own = recipe(facts)
    there = replace(own.network, shape=facts.shape, conditions=dict(facts.embeddings))
    sampler = replace(own.sampler, hooks=(ClipX0(),))
    return replace(own, method="voxels", network=there, sampler=sampler, codec=None)


def with_width(chosen: Recipe, width: int) -> Recipe:
    """The recipe with other channels of the network's first level, which all others are multiples of."""
    return replace(chosen, network=replace(chosen.network, width=width))


def made(model: Trained, data: Data, indices: Sequence[int], steps: int = STEPS, seed: int = 0) -> Tensor:
    """Samples for the conditions of some rows, by DDIM, in the data's own space."""
    codec = model.recipe.build_codec()
    seen = model.recipe.encoded(data).batch(indices)["cond"]
    sampler = model.recipe.sampler
    z = sample(
        model.denoiser,
        solver=DDIM(),
        grid=sampler.grid,
        steps=steps,
        hooks=sampler.hooks,
        cond=seen,
        seed=10_000 + seed,
    )
    return z if codec is None else codec.decode(z)


def regression(train: Data, test: Data, *, mean_only: bool = False) -> Tensor:
    """The target of ``test`` from its conditions by least squares over the voxels of ``train``: (N, *shape).

    Args:
        mean_only: from their mean alone, instead of each with a weight.
    """

    def columns(data: Data) -> tuple[Tensor, Tensor]:
        rows = data.batch(range(len(data)))
        seen = torch.stack([v.flatten() for v in rows["cond"].values()], 1).double()
        seen = seen.mean(1, keepdim=True) if mean_only else seen
        return torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], 1), rows["x"]

    (seen, x), (asked, like) = columns(train), columns(test)
    weights = torch.linalg.lstsq(seen, x.flatten().double()[:, None]).solution
    return (asked @ weights).reshape(like.shape).float().clamp(-1.0, 1.0)


def step_seconds(chosen: Recipe, data: Data, times: int = 5) -> float:
    """Seconds of one network call on one volume, the fastest of several."""
    denoiser, row = chosen.denoiser(0).eval(), chosen.encoded(data).batch([0])
    spent = []
    with torch.no_grad():
        for _ in range(times + 1):
            started = time.perf_counter()
            denoiser(row["x"], 0.5, row["cond"])
            spent.append(time.perf_counter() - started)
    return min(spent[1:])


def reproduce(budget: str = "small") -> Reproduction:
    """PSNR and SSIM of a contrast made from three others, against linear regression; and the time of a step."""
    data, test = phantoms(CASES, SIDE), phantoms(TESTS, SIDE, seed=10_000)
    lab = Lab("cwdm", budget, steps=150, data=data, batch=4)
    facts, truth = Facts.of(data), test.batch(range(TESTS))["x"]
    own, there = (with_width(chosen, WIDTH) for chosen in (recipe(facts), voxels(facts)))
    simple = {"linear regression": regression(data, test), "mean": regression(data, test, mean_only=True)}
    score = {
        "PSNR": lambda x: round(float(psnr(x, truth).mean()), 3),
        "SSIM": lambda x: round(float(ssim(x, truth, window=WINDOW).mean()), 4),
    }
    figures: dict[str, list[float]] = {"PSNR": [], "SSIM": [], "wavelet": [], "voxels": []}
    for seed in lab.seeds:
        model = lab.train(own, seed)
        x = made(model, test, range(TESTS), seed=seed)
        for name, measure in score.items():
            figures[name].append(measure(x))
        figures["wavelet"].append(step_seconds(own, data))
        figures["voxels"].append(step_seconds(there, data))
        lab.say(f"seed {seed}: PSNR {figures['PSNR'][-1]:.2f} dB")
    lines = {f"{metric} of {name}": measure(x) for name, x in simple.items() for metric, measure in score.items()}
    return _outcome(lab, figures, lines)


def _outcome(lab: Lab, figures: dict[str, list[float]], lines: dict[str, float]) -> Reproduction:
    count = len(lab.seeds)
    best = lines["PSNR of linear regression"]
    comparisons = [
        Comparison(
            name=f"PSNR in {STEPS} steps, 2 dB over regression",
            baseline_name="linear regression + 2 dB",
            baseline=(best + 2.0,) * count,
            ours_name="cWDM",
            ours=tuple(figures["PSNR"]),
            lower_is_better=False,
        ),
        Comparison(
            name=f"SSIM in {STEPS} steps",
            baseline_name="linear regression",
            baseline=(lines["SSIM of linear regression"],) * count,
            ours_name="cWDM",
            ours=tuple(figures["SSIM"]),
            lower_is_better=False,
        ),
        Comparison(
            name="seconds a step, a sixth of voxels",
            baseline_name="voxels / 6",
            baseline=tuple(v / 6.0 for v in figures["voxels"]),
            ours_name="wavelets",
            ours=tuple(figures["wavelet"]),
        ),
    ]
    notes = f"{CASES} phantoms of {SIDE}^3 voxels, {TESTS} held out, {lab.steps} training steps of batch {lab.batch}"
    series: dict[str, Any] = {**lines, **{f"{k} by seed": v for k, v in figures.items()}}
    claim = "a contrast made in wavelet bands is better than voxelwise regression, at a sixth of the cost of voxels"
    return lab.outcome(claim, comparisons, notes, series)
