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
from dataclasses import replace
from typing import Any

from condiff.data.clips import FIRST
from condiff.errors import BadValue
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler, default_patch
from condiff.networks import VideoTransformerConfig
from condiff.process import Discrete, Gaussian
from condiff.sampling import DDPM, Spaced
from condiff.training import Denoising, DiscreteTimes, LearnedVariance, PrefixDenoising, PrefixLengths


def recipe(facts: Facts, chunk: int | None = None) -> Recipe:
    """The method on clips (F, C, H, W), continued from as many first frames as the data gives.

    Args:
        chunk: frames that are made together; a third of those that aren't given, at most 8, by default.

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
    chunk = chunk or min(8, max(1, -(-(frames - given) // 3)))
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
