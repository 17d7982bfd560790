"""Encoders: students that walk from data to noise, in as few steps as others walk back (Meng 2023, section 3.4).

An encoder and a sampler of few steps are an editor: encode by one model, decode by another, or under another condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from condiff.conditions import Conditions, RandomScale
from condiff.distill.stage import Stage, halvings
from condiff.distill.teaching import Taught
from condiff.errors import BadValue, Incompatible
from condiff.networks import LoRA
from condiff.process import Level, Prediction, algebra
from condiff.process.algebra import Weight, combine
from condiff.sampling import DDIM, Inversion, invert
from condiff.sampling.inversion import AtData
from condiff.training import DiscreteTimes, Times, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Encoding(Taught):
    """One step of DDIM towards noise in place of two of the teacher's: :class:`Halving` the other way.

    A student of N ``steps`` is taught at ``s = i / N``, i = 0 ... N - 1. The teacher steps from s to ``m = s + 1 / 2N``
    and on to ``u = s + 1 / N``, where it says the noise n1 and then n2. The aim is the noise with which a single step
    leads from s to u to the same state. With l the log-SNR it is a convex combination, in which nothing cancels:

        ``n1 + h (n2 - n1)``,    ``h = expm1((l_u - l_m) / 2) / expm1((l_u - l_s) / 2)``

    At the first step s is the data itself, and the student says there what noise leads on.

    Args:
        steps: N of the student.
        direct: the teacher is such a student itself, of 2 N steps. Others aren't asked at the data, of which they know
            no noise: the noise is 0 there, as in :func:`condiff.sampling.invert`.

    Raises:
        BadValue: fewer than one step.
        Incompatible: a student that predicts x0, which says nothing of the noise at the data; an endpoint.
    """

    steps: int
    direct: bool = False
    target: str | tuple[str, ...] | None = "noise"
    times: Times = field(init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadValue(f"an encoder takes at least 1 step, got {self.steps}")
        object.__setattr__(self, "times", DiscreteTimes(grid=tuple(i / self.steps for i in range(self.steps))))
        super().__post_init__()

    def check_student(self, denoiser: Any) -> None:
        """
        Raises:
            Incompatible: one that predicts x0.
        """
        if tuple(getattr(denoiser, "targets", ())) == ("x0",):
            raise Incompatible(
                "an encoder begins at the data, where x0 says nothing of the noise: predict v, noise or the velocity"
            )

    def lesson(self, truth: Prediction, cond: Conditions) -> Prediction:
        s, process = truth.level, truth.level.process
        if process.has_source:
            raise Incompatible(f"encoders lead to noise; {process} leads to an endpoint")
        m, u = (process.at(s.t + part / self.steps) for part in (0.5, 1.0))
        teacher = self.teacher if self.direct else AtData(self.teacher)
        first = teacher(truth.x_t, s, cond)
        second = teacher(first.linear(x0=m.data, noise=m.noise), m, cond)
        h = upper(s, m, u)
        return Prediction(truth.x_t, s, {"noise": combine((1.0 - h, first.noise), (h, second.noise))})


def upper(s: Level, m: Level, u: Level) -> Weight:
    """``h`` of :class:`Encoding`, for s < m < u: in (0, 1], 1 where u is noise alone."""
    half = lambda a, b: algebra.expm1(0.5 * (a.log_snr - b.log_snr))
    return algebra.divide(half(u, m), half(u, s))


def encoding_stages(
    start: int,
    end: int = 1,
    training: TrainConfig | None = None,
    *,
    scales: tuple[float, float] | None = None,
    lora: LoRA | None = None,
) -> tuple[Stage, ...]:
    """The stages that make an encoder of a model: students of ``start``, ``start / 2`` ... ``end`` steps to noise.

    Args: as :func:`~condiff.distill.halving_stages`.

    Raises:
        BadValue: ends that no halving connects.
    """
    transform = None if scales is None else RandomScale(low=scales[0], high=scales[1])
    return tuple(
        Stage(
            name=f"encode-{n}",
            objective=Encoding(steps=n, direct=n < start, transform=transform),
            training=TrainConfig() if training is None else training,
            lora=lora,
        )
        for n in halvings(start, end)
    )


def encode(
    encoder: Any, x: Tensor, steps: int, cond: Mapping[str, Any] | Conditions | None = None, **options: Any
) -> Inversion:
    """From data to noise by an encoder, which is asked at the data too.

    Args:
        encoder: a student of :class:`Encoding`, of that many steps.
        options: of :func:`condiff.sampling.invert`.

    Example:
        >>> noise = encode(encoder, image, 4, {"label": cat}).latent
        >>> other = sample(fast, initial=noise, cond={"label": dog}, solver=DDIM(), grid=DistilledGrid(4), steps=4)
    """
    return invert(encoder, x, solver=DDIM(), steps=steps, cond=cond, ask_at_data=True, **options)
