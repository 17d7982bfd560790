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
not put into the time's first layer; wrapped diffusers UNets have it where released weights have it. The distilled
encoder is left out; :func:`condiff.sampling.invert` walks a distilled model backwards.

Claimed: samples of 4 steps are as good as the teacher's of hundreds, and the scale still trades fidelity against
diversity. :func:`reproduce` measures both on digits.
"""

from __future__ import annotations

from dataclasses import replace

from condiff.distill import guided_stage, halving_stages
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler
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
