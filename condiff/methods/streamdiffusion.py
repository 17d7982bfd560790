"""StreamDiffusion: a live stream of frames through a few-step model, one call of the network a frame.

Reference: Kodaira, Xu, Hazama et al., "StreamDiffusion: A Pipeline-level Solution for Real-time Interactive
Generation", ICCV 2025 (arXiv 2312.12491).

    stream batch       rows 0 .. n - 1 of one call: frame k at its step 0, frame k - 1 at its step 1, ...
                       x^0 = data_0 z + noise_0 eps^0,   x^(i+1) = data_(i+1) x0 + noise_(i+1) eps^(i+1)
    residual guidance  e = delta R + scale (e(x | c) - delta R),   R = (x_t - data z) / noise
    still frames       skipped with probability max(0, (S - eta) / (1 - eta)), S the cosine with the last one worked on

:class:`~condiff.streaming.Stream` is the batch with :class:`~condiff.sampling.Consistency` as its step,
:class:`~condiff.guidance.Anchored` the guidance, :class:`~condiff.streaming.SimilarityFilter` the filter,
:class:`~condiff.streaming.Live` the queues; this module puts them together for pipelines and runs.

What differs from the paper and its code: R is worked out from its definition, which the paper's recursion keeps without
naming z; so it is right with one step, with and without noise between steps, and with the boundary condition, in all of
which the released code departs from it. Frames of one tick, any number, share the noises and go through the rings
together. The filter's count of skips begins anew at every frame that is worked on. Noises, frames and filter are a
state that a stream goes on from bit for bit. Any solver of one evaluation, any process and any parameterisation serve.

Claimed: 1.5 times the throughput of the sequential loop by the batch, up to 2.05 times by the guidance.
:func:`reproduce` counts calls and measures pictures on digits; ``benchmarks/streamdiffusion.py`` measures time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff import interop
from condiff.data import digits
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, unknown
from condiff.guidance import Anchored, Free
from condiff.methods.experiment import Digits, Facts, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import psnr
from condiff.networks import MLPConfig
from condiff.process import Discrete, Gaussian
from condiff.process.table import table_size
from condiff.random import Tape
from condiff.sampling import Boundary, Consistency, Spaced, Uniform, sample
from condiff.streaming import SimilarityFilter, Stream, Translator
from condiff.training import Denoising, UniformTimes

GUIDANCE = ("none", "self", "initialize", "full")


def times_of(process: Any, steps: Sequence[int], of: int = 50) -> Tensor:
    """The times of some steps of a schedule of ``of`` steps, and the clean end: (n + 1,).

    Of a table of N levels step j is the index ``N - 1 - j N / of``, as latent consistency models number them; of a
    continuous process the time ``1 - j / of``. A larger first step keeps more of the input.

    Raises:
        BadValue: steps that don't rise, or lie outside [0, of).
    """
    steps = tuple(steps)
    if not steps or any(isinstance(j, bool) or not isinstance(j, int) for j in steps):
        raise BadValue(f"steps are whole numbers, at least one, got {steps}")
    if list(steps) != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < of:
        raise BadValue(f"steps rise, from 0 to {of - 1} of a schedule of {of}, got {steps}")
    grid = Spaced("trailing") if table_size(process) else Uniform()
    times = grid.times(process, of)
    return torch.cat([times[list(steps)], times.new_zeros(1)])


def guided(
    denoiser: Denoises,
    guidance: str = "self",
    scale: float = 1.2,
    delta: float = 1.0,
    negative: Mapping[str, Any] | None = None,
) -> Denoises:
    """A denoiser with guidance of the given type.

    Args:
        guidance: ``"none"``; ``"self"``, away from the input, for no evaluation; ``"initialize"``, away from what the
            model says of it under the negative conditions, for one evaluation a frame; ``"full"``, classifier-free, for
            one a step.
        scale, delta: see :class:`condiff.guidance.Anchored`.
        negative: conditions of the reference; an empty mapping tells it nothing.

    Raises:
        BadValue: an unknown type, no ``negative`` for one that needs it, or one for one that doesn't.
    """
    if guidance not in GUIDANCE:
        raise unknown("guidance of a stream", guidance, GUIDANCE)
    if (negative is not None) != (guidance in ("initialize", "full")):
        needs = (
            "needs negative conditions ({}: to tell it nothing)" if negative is None else "takes no negative conditions"
        )
        raise BadValue(f"guidance {guidance!r} {needs}")
    if guidance == "none":
        return denoiser
    if guidance == "full":
        return Free(denoiser, scale=scale, negative=negative or None)
    return Anchored(denoiser, scale=scale, delta=delta, negative=negative)


def of_pipeline(
    pipe: Any,
    steps: Sequence[int] = (32, 45),
    of: int = 50,
    *,
    guidance: str = "self",
    scale: float = 1.2,
    delta: float = 1.0,
    negative: str | None = None,
    renoise: bool = True,
    size: tuple[int, int] | None = None,
    still: SimilarityFilter | None = None,
) -> Translator:
    """A diffusers pipeline of pictures told a prompt, as a translator of frames.

    Made for few-step models: weights of latent consistency models, a LoRA of them, turbo models with ``steps=(0,)``.
    ``AutoencoderTiny`` as the pipeline's VAE makes most of what remains beside the network.

    Args:
        steps, of: see :func:`times_of`.
        guidance, scale, delta: see :func:`guided`.
        negative: a prompt, with ``"initialize"`` and ``"full"``.
        renoise: add noise between steps.
        size: height and width of the pictures; those that the pipeline was trained on by default.
        still: which frames aren't worked on.

    Raises:
        BadType: not a pipeline. Incompatible: one that isn't known. BadValue: see :func:`times_of`, :func:`guided`.
    """
    wrapped = interop.wrap(pipe, size=size)
    process = wrapped.denoiser.process
    told = None if negative is None else dict(wrapped.encode([negative]))
    denoiser = guided(wrapped.denoiser, guidance, scale, delta, told)
    hooks = [Boundary()] if table_size(process) else []
    dtype = next(wrapped.denoiser.parameters()).dtype
    times = times_of(process, steps, of)
    stream = Stream(denoiser, times, solver=Consistency(renoise=renoise), hooks=hooks, dtype=dtype)
    channels = 3 if wrapped.codec is not None else stream.shape[0]
    translator = Translator(stream, wrapped.codec, shape=(channels, *wrapped.family.size), still=still)
    translator.encode = wrapped.encode
    return translator


def of_model(
    denoiser: Any,
    steps: Sequence[int],
    of: int = 50,
    *,
    codec: Any = None,
    shape: tuple[int, ...] | None = None,
    renoise: bool = True,
    still: SimilarityFilter | None = None,
    **how: Any,
) -> Translator:
    """A model of pictures that was trained here, as a translator of frames; ``how`` is for :func:`guided`.

    Raises:
        BadType: a model of something else than pictures.
    """
    shape = shape or getattr(denoiser, "shape", None)
    if shape is None or len(shape) != 3:
        raise BadType(f"frames are pictures (C, H, W), and the model makes samples of shape {shape}")
    times = times_of(denoiser.process, steps, of)
    stream = Stream(guided(denoiser, **how), times, solver=Consistency(renoise=renoise))
    return Translator(stream, codec, shape=shape, still=still)


# Reproduction

STEPS, FRAMES, SCALE = (41, 44, 46, 48), 200, 1.2
CLAIM = "the stream is the loop, faster; residual guidance does as full does at half its rows; still frames are free"
NOTES = (
    "digits, {0} training steps of batch 128; steps 41, 44, 46 and 48 of 50, which leave much of the input; 200 noisy "
    "held-out digits, one after the other, each to become the next class; the paper's scale of 1.2 for all; seconds "
    "are the fastest of 5 rounds that alternate"
)


def model(facts: Facts) -> Recipe:
    """A class-conditional model on the table of Stable Diffusion."""
    return Recipe(
        method="streamdiffusion",
        network=MLPConfig(shape=facts.shape, width=256, depth=3, conditions=dict(facts.embeddings)),
        process=Gaussian(Discrete.stable_diffusion()),
        target="v",
        objective=Denoising(times=UniformTimes(), transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=Consistency(), grid=Spaced("trailing"), steps=4),
    )


class Counted:
    """A denoiser that counts the rows it is asked about."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.rows = denoiser, 0
        self.process, self.shape, self.kinds = denoiser.process, denoiser.shape, denoiser.kinds

    def parameters(self) -> Any:
        return self.denoiser.parameters()

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Any:
        self.rows += len(x_t)
        return self.denoiser(x_t, t, cond)


def streamed(net: Counted, frames: Tensor, told: Tensor, seed: int, **how: Any) -> tuple[Tensor, float]:
    """Frames (F, C, H, W) through a stream, and the rows of the network for each."""
    stream = Stream(guided(net, scale=SCALE, **how), times_of(net.process, STEPS))
    stream.start(rng=1000 + seed, check=False)
    before, out = net.rows, []
    for frame, label in zip(frames, told, strict=True):
        out.append(stream.push(frame[None], {"label": label[None]}))
    made = torch.cat([*(x for x in out if x is not None), *stream.drain()])
    return made, (net.rows - before) / (len(frames) + stream.delay)


def reproduce(budget: str = "small") -> Reproduction:
    """Guidance of every type on one stream of digits; calls and pictures with a filter of still frames."""
    lab = Digits("streamdiffusion", budget, steps=1000)
    figures: dict[str, list[float]] = {}
    for seed in lab.seeds:
        trained = lab.train(model(lab.facts), seed)
        measured = (guidance_figures(lab, trained, seed), still_figures(trained, seed), time_figures(trained, seed))
        for name, value in (item for part in measured for item in part.items()):
            figures.setdefault(name, []).append(value)
        lab.say(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.3g}" for k, v in figures.items()))
    return lab.outcome(CLAIM, comparisons(figures), NOTES.format(lab.steps), series=figures)


def guidance_figures(lab: Digits, trained: Trained, seed: int) -> dict[str, float]:
    """Agreement with the class, distance from full guidance, and rows a frame, by the type of guidance."""
    rows = digits("test").batch(range(FRAMES))
    label = (rows["cond"]["label"] + 1) % 10
    noise = torch.randn(rows["x"].shape, generator=torch.Generator().manual_seed(seed))
    frames, net = (rows["x"] + 0.2 * noise).clamp(-1.0, 1.0), Counted(trained.denoiser)
    made, out = {}, {}
    for name in GUIDANCE:
        negative = {"negative": {}} if name in ("initialize", "full") else {}
        made[name], out[f"rows a frame, {name}"] = streamed(net, frames, label, seed, guidance=name, **negative)
    for name, x in made.items():
        out[f"agreement, {name}"] = float((lab.judge.predict(x) == label).double().mean())
        out[f"distance from full, {name}"] = float((x - made["full"]).square().mean().sqrt())
    return out


def still_figures(trained: Trained, seed: int) -> dict[str, float]:
    """Rows and pictures of a stream of which seven frames in ten are the one before, with and without a filter."""
    choice = torch.Generator().manual_seed(seed)
    changes = torch.rand(FRAMES, generator=choice) >= 0.7
    changes[0] = True
    frames, label = digits("test").batch(range(FRAMES))["x"][changes.cumsum(0) - 1], {"label": torch.tensor([3])}
    made, out = {}, {}
    for name, still in (("without", None), ("with", SimilarityFilter(seed=seed))):
        net = Counted(trained.denoiser)
        translator = of_model(net, STEPS, guidance="self", scale=SCALE, still=still)
        translator.stream.start(label, rng=1000 + seed, check=False)
        made[name] = torch.stack(list(translator.clip(frames)))
        out[f"rows a frame, {name} filter"] = net.rows / FRAMES
    changed = psnr(made["with"][changes], made["without"][changes])
    return {**out, "PSNR of changed frames": float(changed.clamp(max=100.0).mean())}


def time_figures(trained: Trained, seed: int, rounds: int = 5) -> dict[str, float]:
    """Seconds a frame of the loop, one frame after the other, and of the stream; how far their pictures are apart."""
    net, frames = trained.denoiser, digits("test").batch(range(min(FRAMES, 40)))["x"][:, None]
    told, times = {"label": torch.tensor([3])}, times_of(net.process, STEPS)
    stream = Stream(net, times).start(told, rng=1000 + seed)
    first, noise = net.process.levels(times)[0], stream.noise

    def loop() -> Tensor:
        starts = [net.process.forward(z, first, noise=noise[:1]).x_t for z in frames]
        how: dict[str, Any] = {"cond": told, "grid": times, "solver": Consistency()}
        return torch.cat([sample(net, initial=x, rng=Tape([*noise[1:, None]]), **how) for x in starts])

    def streamed() -> Tensor:
        return torch.cat([*(x for z in frames if (x := stream.push(z)) is not None), *stream.drain()])

    sides, best, made = {"loop": loop, "stream": streamed}, {}, {}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            made[name] = run()
            best[name] = min(best.get(name, math.inf), time.perf_counter() - began)
    apart = float((made["loop"] - made["stream"]).abs().max())
    return {"stream and loop apart": apart, **{f"seconds a frame, {k}": v / len(frames) for k, v in best.items()}}


def comparisons(figures: Mapping[str, Sequence[float]]) -> tuple[Comparison, ...]:
    """What is claimed, from the figures."""

    def compare(name: str, what: str, base: str, ours: str, lower: bool, margin: float = 0.0) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=base,
            baseline=tuple(figures[f"{what}, {base}"]),
            ours_name=ours,
            ours=tuple(figures[f"{what}, {ours}"]),
            lower_is_better=lower,
            margin=margin,
        )

    return (
        compare("rows of the network a frame", "rows a frame", "full", "self", True, 0.4),
        compare("agreement with the class, away from the input", "agreement", "none", "self", False),
        compare("agreement with the class, away from the first negative", "agreement", "none", "initialize", False),
        compare("distance from full, away from the input", "distance from full", "none", "self", True),
        compare(
            "distance from full, away from the first negative",
            "distance from full",
            "none",
            "initialize",
            True,
        ),
        compare("seconds a frame, four steps", "seconds a frame", "loop", "stream", True, 1.0 - 1.0 / 1.3),
        compare("rows a frame, seven in ten still", "rows a frame", "without filter", "with filter", True, 0.5),
    )
