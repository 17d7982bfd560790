"""Guided distillation: a guided model's many double evaluations become a few single ones, with the scale as an input.

Reference: Meng, Rombach, Gao, Kingma, Ermon, Ho & Salimans, "On Distillation of Guided Diffusion Models", CVPR 2023
(arXiv 2210.03142); its second stage is Salimans & Ho, "Progressive Distillation" (arXiv 2202.00512).

    stage 1    |x_S(x_t, t, c, scale) - x_T(x_t, t) - scale (x_T(x_t, t, c) - x_T(x_t, t))|^2 max(SNR, 1)
               scale drawn for each row; the student begins as the teacher, the embedding of the scale at zero weight
    stage 2    |x_S(x_t, i / N, ...) - x1 - g (x2 - x1)|^2 max(SNR, 1),     N halved, the student the next teacher
               x1, x2: what the teacher says along two DDIM steps, t = i / N to m to s = (i - 1) / N
               g = expm1((l_m - l_s) / 2) / expm1((l_t - l_s) / 2)

Symbols: the paper's w is ``scale - 1``, its z_t, u are x_t, t, and l is the log-SNR. Everything is a part of
:mod:`condiff.distill`: :func:`~condiff.distill.guided_stage`, :func:`~condiff.distill.halving_stages` and
:class:`~condiff.distill.Chain`, which runs and resumes them; models are sampled through
:class:`condiff.guidance.Distilled` by DDIM or, as the paper proposes, by :class:`condiff.sampling.Overshoot`.

What differs from the paper, and why: no code was released. The target of stage 2 is written as the convex combination
above, which is the paper's quotient without its cancellation. The embedding of the scale is the one of the paper and of
latent consistency models, but in condiff's own networks it is added to the time's embedding through a layer of its own,
not put into the time's first layer; wrapped diffusers UNets have it where released weights have it. Encoders
(:func:`~condiff.distill.encoding_stages`) are taught the noise, with the same weights as x0 is; they have the noise in
place of x0 in the combination above.

Claimed: samples of 4 steps are as good as the teacher's of hundreds, and the scale still trades fidelity against
diversity. :func:`reproduce` measures both on digits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import GUIDANCE
from condiff.distill import Chain, guided_stage, halving_stages
from condiff.guidance import Free
from condiff.methods import experiment
from condiff.methods.experiment import Trained
from condiff.methods.facts import Facts
from condiff.methods.recipe import FIRST, Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import frechet, precision_recall
from condiff.networks import MLPConfig
from condiff.process import Cosine, Gaussian
from condiff.sampling import DDIM
from condiff.training import Denoising, TrainConfig, UniformTimes

SCALES = (1.0, 4.0)  # that students are told


def recipe(facts: Facts, start: int = 32, end: int = 4) -> Recipe:
    """The whole chain on data of the given shape and conditions: teacher, guided student, halvings.

    Args:
        start, end: steps of the first and of the last student.

    Raises:
        BadValue: data without conditions: there is nothing to guide with.
    """
    facts.need_conditions("guided-distillation")
    training = facts.training()
    return Recipe(
        method="guided-distillation",
        network=facts.network(),
        process=Gaussian(Cosine()),
        target="v",
        objective=Denoising(times=UniformTimes(), transform=facts.dropout(0.1)),
        training=training,
        sampler=Sampler(solver=DDIM(), steps=2 * start, guidance=2.0),
        stages=(guided_stage(*SCALES, training=training), *halving_stages(start, end, rounds(training), scales=SCALES)),
    )


def rounds(training: TrainConfig) -> TrainConfig:
    """How one halving is trained: half the steps of a training, its rate falling linearly to 0, with fast averages."""
    return replace(training, steps=max(1, training.steps // 2), warmup=0, schedule="linear", ema=(0.99,))


STEPS = (8, 4, 2, 1)  # that are compared
SLIDER = (1.0, 1.5, 2.0, 3.0)
SCALE = 1.5  # of the comparisons
MANY = 64  # steps of the teacher that is the reference
CLAIM = "4 steps of one call come near a guided teacher's 64 of two, and the scale still trades diversity for fidelity"
NOTES = (
    "digits, a residual MLP; {0} training steps of batch 128 for the teacher, a third as many for the guided student, "
    "a sixth for each halving from 32 steps to 1; 500 samples"
)


def reproduce(budget: str = "small") -> Reproduction:
    """Students against the teacher at as many steps, at as many calls, and at 64 steps; the scale as a slider."""
    lab = experiment.Digits("guided-distillation", budget, steps=2500)
    network = MLPConfig(shape=lab.facts.shape, width=128, depth=3, conditions=dict(lab.facts.embeddings))
    chosen = replace(recipe(lab.facts), network=network)
    scores: dict[str, list[float]] = defaultdict(list)
    for seed in lab.seeds:
        teacher = lab.train(chosen.of_stage(FIRST), seed)
        students = distilled(lab, teacher, seed)
        scores["guided student: relative error of x0"].append(error_of(lab, teacher, students["guided"], seed))
        for scale in SLIDER:
            true = drawn(lab, teacher, MANY, scale, seed)
            samples = {f"teacher, {MANY} steps": true}
            for steps in STEPS if scale == SCALE else (4,):
                samples[f"teacher, {steps} steps"] = drawn(lab, teacher, steps, scale, seed)
                samples[f"student, {steps} steps"] = drawn(lab, students[f"steps-{steps}"], steps, scale, seed)
            for name, x in samples.items():
                for what, value in figures(lab, x, true).items():
                    scores[f"{name}, scale {scale:g}: {what}"].append(value)
        lab.say(f"seed {seed}: sampled at {len(SLIDER)} scales")
    return lab.outcome(CLAIM, comparisons(scores), notes=NOTES.format(lab.steps), series=dict(scores))


def distilled(lab: experiment.Digits, teacher: Trained, seed: int) -> dict[str, Trained]:
    """The guided student and those of 32 ... 1 steps, by the names of their stages."""
    base = TrainConfig(steps=max(1, lab.steps // 3), batch=lab.batch, lr=5e-4, ema=(0.99,), seed=seed)
    stages = (guided_stage(*SCALES, training=base), *halving_stages(32, 1, rounds(base), scales=SCALES))
    whole = replace(teacher.recipe, stages=stages)
    chain = Chain(teacher.denoiser, lab.data, stages, quiet=True)  # type: ignore[arg-type]
    status = chain.fit()
    if status.stopped:
        raise SystemExit(status.exit_code)
    lab.say(f"seed {seed}: distilled in {len(stages)} stages")
    return {name: Trained(whole.of_stage(name), model) for name, model in chain.models.items()}  # type: ignore[arg-type]


def drawn(lab: experiment.Digits, model: Trained, steps: int, scale: float, seed: int) -> Tensor:
    """500 samples; the same noise whatever the model."""
    return lab.draw(model, replace(model.recipe.sampler, steps=steps, guidance=scale), seed, num=500)


def figures(lab: experiment.Digits, x: Tensor, true: Tensor) -> dict[str, float]:
    """Of samples, against held-out digits and against the reference's samples of the same noise."""
    labels, features = lab.labels(len(x)), lab.judge.features(x).double()
    real = lab.judge.features(lab.heldout.batch(range(len(lab.heldout)))["x"]).double()
    return {
        "frechet": float(frechet(features, real)),
        "frechet from the reference": float(frechet(features, lab.judge.features(true).double())),
        "rms from the reference": float((x - true).square().mean().sqrt()),
        "accuracy": float((lab.judge.predict(x) == labels).double().mean()),
        "class probability": float(lab.judge.probabilities(x).gather(1, labels[:, None]).mean()),
        "recall": float(precision_recall(real, features, 5).recall),
    }


@torch.no_grad()
def error_of(lab: experiment.Digits, teacher: Trained, student: Trained, seed: int) -> float:
    """Mean squared distance of the guided student's x0 from its target, over the target's variance: on held-out digits,
    at scales over the whole range."""
    rows = lab.heldout.batch(range(len(lab.heldout)))
    count, process = len(rows["x"]), teacher.denoiser.process
    truth = process.forward(rows["x"], torch.linspace(0.05, 0.95, count).double(), rng=20_000 + seed)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * ((torch.arange(count) * 0.618) % 1.0)
    target = Free(teacher.denoiser, scale=scale)(truth.x_t, truth.level, rows["cond"]).x0
    said = student.denoiser(truth.x_t, truth.level, {**rows["cond"], GUIDANCE: scale}).x0
    return float((said - target).square().mean() / target.var())


def comparisons(scores: dict[str, list[float]]) -> tuple[Comparison, ...]:
    """What is claimed, from the figures."""

    def compare(name: str, what: str, base: str, ours: str, lower: bool = True, margin: float = 0.0) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=base,
            baseline=tuple(scores[f"{base}: {what}"]),
            ours_name=ours,
            ours=tuple(scores[f"{ours}: {what}"]),
            lower_is_better=lower,
            margin=margin,
        )

    student, wide = f"student, 4 steps, scale {SCALE:g}", [f"student, 4 steps, scale {s:g}" for s in SLIDER]
    twice, same = (f"teacher, {n} steps, scale {SCALE:g}" for n in (4, 2))
    near = "frechet from the reference"
    probability: dict[str, Any] = {"what": "class probability", "lower": False}
    return (
        compare("Fréchet distance from held-out digits, at half the calls", "frechet", twice, student),
        compare("Fréchet distance from held-out digits, at equal calls", "frechet", same, student, margin=0.3),
        compare("Fréchet distance from the teacher's 64 steps, at half the calls", near, twice, student, margin=0.5),
        compare("the slider: probability of the class", base=wide[0], ours=wide[-1], **probability),
        compare("the slider: recall of held-out data (the price)", "recall", wide[0], wide[-1]),
    )
