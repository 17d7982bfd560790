"""Ca2-VDM: long video, chunk by chunk, at the same cost for each: frames that are done are looked at from a cache.

Reference: Gao, Shi, Zhang, Wang, Xiao & Chen, "Ca2-VDM: Efficient Autoregressive Video Diffusion Model with Causal
Generation and Cache Sharing", ICML 2025 (arXiv 2411.16375).

A clip is ``[prefix | target]``. Frames of the prefix are told time 0, those of the target t, and along time a frame
sees only those before it::

    P ~ U{n0, n0 + l, n0 + 2 l, ... < L}                                    training.PrefixLengths(given, chunk, frames)
    loss = mean over target frames of (noise - noise_hat)^2 + KL in bits    training.PrefixDenoising(perturb=t_p)
    input: prefix at level t_p (told 0), target at level t
    sampling: write(frames, time 0) once; every step of the next chunk reads   video.Rollout(context="cached")

A prefix frame's features depend on earlier frames and on time 0, never on t nor on what follows. Its keys and values
are therefore the same in all steps of all later chunks, and ``Rollout(context="recomputed")``, which puts the frames
themselves before the chunk, makes the same video for the same noise. Once the cache drops frames the two differ: deep
keys still tell of frames that are gone.

:class:`condiff.networks.VideoTransformer` has the parts: causal attention along time that takes kept keys and values,
attention of each target frame to the P' = 3 newest given frames (prefix-enhanced), positions in a circle, a flag for
clean frames.

Different from the released code, on purpose: both caches are queues, so that chunks may be shorter than P' (there the
reference cache holds the newest write only); frames that become context are perturbed once, with a cache or without
(there anew for every chunk without one); each block has its own modulation of the time, as in DiT (there one for all,
plus a table); clips are cut at a random start; a step into t = 0 has no variance term, since samplers return its mean.

Claimed: the quality of a context that is recomputed, at a constant cost per chunk. :func:`reproduce` measures time and
equality, and on moving digits what a long context is worth.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.data import bouncing_ball
from condiff.data.clips import FIRST
from condiff.denoiser import Denoiser
from condiff.errors import BadValue
from condiff.methods import experiment
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler, default_patch
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.methods.rolling import rollout
from condiff.networks import VideoTransformerConfig
from condiff.process import Discrete, Gaussian, Rectified
from condiff.sampling import DDIM, DDPM, Spaced, Uniform
from condiff.training import (
    Denoising,
    DiscreteTimes,
    LearnedVariance,
    PrefixDenoising,
    PrefixLengths,
    TrainConfig,
)

GIVEN, MADE, CHUNK, CHUNKS, SPEED = 5, 12, 4, 6, (0.3, 1.2)


def recipe(facts: Facts, chunk: int | None = None) -> Recipe:
    """The method on clips (F, C, H, W), continued from as many first frames as the data gives.

    Args:
        chunk: frames that are made together; about a third of those that aren't given, at most 8, by default.

    Raises:
        BadValue: samples that aren't clips, or clips too short to be continued.
    """
    if len(facts.shape) != 4:
        raise BadValue(
            f"ca2-vdm continues clips (frames, channels, height, width), and the data has {facts.shape}: "
            "condiff train video --data FOLDER --given 1"
        )
    frames, conditions = facts.shape[0], dict(facts.embeddings)
    first: Any = conditions.pop(FIRST, None)
    given = 1 if first is None else first.frames
    if frames <= given:
        raise BadValue(f"clips of {frames} frames have none behind the {given} that are given")
    chunk = chunk or default_chunk(frames - given)
    dropout = replace(facts, embeddings=conditions).dropout(0.1)
    return Recipe(
        method="ca2-vdm",
        network=network(facts.shape, conditions),
        process=Gaussian(Discrete.ddpm()),
        target="noise",
        objective=PrefixDenoising(
            base=Denoising(
                times=DiscreteTimes(),
                transform=dropout,
                variance=LearnedVariance(weight=1.0 / (1000 * math.log(2.0))),
            ),
            lengths=PrefixLengths(given=given, chunk=chunk, frames=frames),
            perturb=0.05,
            left_out=FIRST,
        ),
        training=facts.training(),
        sampler=Sampler(solver=DDPM("learned_range"), grid=Spaced("linspace"), steps=100),
    )


def default_chunk(frames: int) -> int:
    """A third of the frames, at most 8; somewhat fewer where whole chunks fill them then."""
    third = min(8, -(-frames // 3))
    return next((n for n in range(third, third // 2, -1) if frames % n == 0), third)


def network(shape: tuple[int, ...], conditions: dict[str, Any]) -> VideoTransformerConfig:
    """A network for clips, small for small frames."""
    patch = default_patch(shape[2:])
    small = shape[2] * shape[3] <= 1024
    width, depth, heads = (96, 4, 4) if small else (384, 12, 6)
    return VideoTransformerConfig(
        shape=tuple(shape),
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        flag=True,
        learned_variance=True,
        conditions=conditions,
    )


def baseline(ours: Recipe) -> Recipe:
    """The same network behind one frame, which can't tell where a thing is going."""
    objective: Any = ours.objective
    chunk = objective.lengths.chunk
    lengths = PrefixLengths(given=1, chunk=chunk, frames=1 + chunk)
    network = replace(ours.network, max_frames=1 + chunk)  # so that it has learnt all positions that come
    return replace(ours, network=network, objective=replace(objective, lengths=lengths))


def centres(x: Tensor) -> Tensor:
    """Where the bright thing in each frame is, in pixels: (B, F, 2) of clips (B, F, 1, H, W)."""
    weight = (0.5 * (x[:, :, 0] + 1.0)).clamp(0.0, 1.0).double()
    weight = torch.where(weight > 0.2, weight, 0.0)
    total = weight.sum((-2, -1)).clamp_min(1e-6)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in x.shape[-2:])
    return torch.stack([weight.sum(-1) @ rows / total, weight.sum(-2) @ columns / total], dim=-1)


def small(facts: Facts) -> Recipe:
    """The recipe at a size that learns a bouncing ball in a minute: straight lines with times near the noise, where the
    context counts, and x0 as the target."""
    ours = recipe(facts, chunk=CHUNK)
    objective: Any = ours.objective
    lengths = PrefixLengths(given=GIVEN, chunk=CHUNK, frames=GIVEN + MADE)
    return replace(
        ours,
        network=replace(ours.network, width=64, depth=3, patch=8, learned_variance=False),
        process=Gaussian(Rectified(shift=4.0)),
        target="x0",
        objective=replace(objective, base=Denoising(), lengths=lengths, perturb=0.02),
        training=TrainConfig(lr=3e-3, warmup=30, ema=(0.99,)),
        sampler=Sampler(solver=DDIM(), grid=Uniform(), steps=8),
    )


def reproduce(budget: str = "small") -> Reproduction:
    """A bouncing ball: where it is behind a long context and behind one frame; time of a chunk, cached or not."""
    data = bouncing_ball(50_000, frames=GIVEN + MADE, side=16, speed=SPEED)
    lab = experiment.Lab("ca2-vdm", budget, steps=800, data=data, batch=32)
    truth = bouncing_ball(256, frames=GIVEN + MADE, side=16, speed=SPEED, seed=1).batch(range(256))["x"]
    long = small(Facts(data.shape, count=len(data)))
    errors: dict[str, list[list[float]]] = {"one frame": [], "long": []}
    seconds: dict[str, list[list[float]]] = {"cached": [], "recomputed": []}
    differences, frames = [], {"true": shown(truth)}
    sides = {"one frame": (baseline(long), "recomputed"), "long": (long, "cached")}
    for seed in lab.seeds:
        for name, (chosen, context) in sides.items():
            model = lab.train(chosen, seed)
            first = truth[:, GIVEN - chosen.objective.lengths.given : GIVEN]  # type: ignore[union-attr]
            made = rollout(model.denoiser, chosen, context=context).generate(first, MADE, seed=seed)[:, -MADE:]
            away = centres(made) - centres(truth[:, -MADE:])
            errors[name].append(away.norm(dim=-1).mean(0).tolist())
            frames[f"behind {name}"] = shown(torch.cat([truth[:, :GIVEN], made], dim=1))
            lab.say(f"seed {seed}: {name}, {errors[name][-1][-1]:.2f} pixels from the true place after {MADE} frames")
        spent, difference = time_of_chunks(long, seed)
        differences.append(difference)
        for name, each in spent.items():
            seconds[name].append(each)
        lab.say(f"seed {seed}: chunk {CHUNKS}: " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in spent.items()))
    comparisons = (
        Comparison(
            name=f"pixels from the true place of the ball, {MADE} frames on",
            baseline_name="same network behind 1 frame",
            baseline=tuple(each[-1] for each in errors["one frame"]),
            ours_name=f"behind {GIVEN} to {GIVEN + MADE - CHUNK} frames",
            ours=tuple(each[-1] for each in errors["long"]),
            margin=0.3,
        ),
        Comparison(
            name=f"the same at the end of the first chunk, {CHUNK} frames on",
            baseline_name="same network behind 1 frame",
            baseline=tuple(each[CHUNK - 1] for each in errors["one frame"]),
            ours_name=f"behind {GIVEN} frames",
            ours=tuple(each[CHUNK - 1] for each in errors["long"]),
            margin=0.3,
        ),
        Comparison(
            name=f"seconds of chunk {CHUNKS}, the same video to 1e-4",
            baseline_name="context recomputed",
            baseline=tuple(each[-1] for each in seconds["recomputed"]),
            ours_name="context cached",
            ours=tuple(each[-1] for each in seconds["cached"]),
            margin=1.0 / 3.0,
        ),
        Comparison(
            name=f"seconds of chunk {CHUNKS} over chunk 1",
            baseline_name="context recomputed",
            baseline=tuple(each[-1] / each[0] for each in seconds["recomputed"]),
            ours_name="context cached",
            ours=tuple(each[-1] / each[0] for each in seconds["cached"]),
        ),
    )
    claim = "a long context at a constant cost per chunk: kept keys and values give the video that recomputing gives"
    notes = f"a ball in 16 x 16 pixels, {GIVEN} frames given, chunks of {CHUNK}, {lab.steps} steps of batch 32"
    series = {"pixels": errors, "largest difference": differences, "seconds": seconds, "frames": frames}
    return lab.outcome(claim, comparisons, notes, series)


def shown(x: Tensor) -> list[str]:
    """The frames of the first clip, a byte a pixel, as hexadecimal digits."""
    return [bytes(frame.flatten().tolist()).hex() for frame in figures.to_uint8(x[0])]


@torch.no_grad()
def shaken(denoiser: Denoiser, seed: int) -> Denoiser:
    """The denoiser with noise on all weights, in place: a fresh one has zeros where it would matter what is seen."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=rng).to(parameter)
    return denoiser


def time_of_chunks(chosen: Recipe, seed: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each chunk with a cache and without, the fastest of a few rolls in turn; and how far videos differ.

    The network has random weights, which time doesn't depend on, and positions for all frames.
    """
    frames = GIVEN + CHUNKS * CHUNK
    chosen = replace(chosen, network=replace(chosen.network, max_frames=frames, patch=4))
    denoiser = shaken(chosen.denoiser(seed).eval(), seed)
    first = bouncing_ball(2, frames=GIVEN, side=16, speed=SPEED, seed=seed).batch(range(2))["x"]
    best = {name: [math.inf] * CHUNKS for name in ("cached", "recomputed")}
    videos = {}
    for _ in range(3):
        for name, spent in best.items():
            roll = rollout(denoiser, chosen, context=name, max_context=frames - CHUNK).start(first, seed=seed)
            made = []
            for k in range(CHUNKS):
                started = time.perf_counter()
                made.append(roll.advance())
                spent[k] = min(spent[k], time.perf_counter() - started)
            videos[name] = torch.cat(made, dim=1)
    size = float(videos["recomputed"].abs().max())
    return best, float((videos["cached"] - videos["recomputed"]).abs().max()) / size
