"""Stage: one training procedure of several, which begins with what the one before has made."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from condiff.conditions import GUIDANCE, GuidanceScale, RandomScale
from condiff.config import to_config
from condiff.distill.grid import DistilledGrid
from condiff.distill.teaching import GuidedDistillation, Halving, Taught
from condiff.errors import BadType, BadValue, Incompatible
from condiff.model_files import describe
from condiff.networks import LoRA, attach_lora, detach_lora
from condiff.random import seeded_weights
from condiff.sampling import DDIM, Grid, Overshoot, Solver
from condiff.training import Denoising, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training procedure.

    Args:
        name: of the stage, and of its folder: small letters, digits and dashes.
        objective: what is minimised. One with a teacher (:class:`Taught`, or anything with ``of(teacher)``) is given
            the frozen result of the stage before.
        training: how; optimizer and averages begin anew.
        conditions: what the network is told from here on, name -> spec. Those that begin at zero weight leave what it
            says as it was.
        solver, grid, steps: what the stage's model is sampled with; as before where None.
        lora: trains low-rank updates, and what the stage adds, in place of all weights. They are merged at its end, so
            that its model is like any other.

    Raises:
        BadType, BadValue: another name or training. Incompatible: updates of weights that are sharded.
    """

    name: str
    objective: Any = field(default_factory=Denoising)
    training: TrainConfig = field(default_factory=TrainConfig)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    solver: Solver | None = None
    grid: Grid | None = None
    steps: int | None = None
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise BadValue(f"a stage is named by small letters, digits and dashes, got {self.name!r}")
        if not isinstance(self.training, TrainConfig):
            raise BadType(f"training= takes a TrainConfig, got {self.training!r}")
        if self.lora is not None and self.training.parallel == "fsdp":
            raise Incompatible("low-rank updates can't be merged into weights that are sharded: use parallel='ddp'")

    def student(self, before: Any) -> Any:
        """A denoiser that begins as the one before: a copy, told more where the stage says so.

        Raises:
            Incompatible: a network that can't be told more, or can't learn what it is taught.
        """
        with seeded_weights(self.training.seed):
            out = extended(before, self.conditions) if self.conditions else copy.deepcopy(before)
        if isinstance(self.objective, Taught):
            self.objective.check_student(out)
        return out

    def trained(self, before: Any) -> Any:
        """:meth:`student`, with what is trained of it: everything, or low-rank updates beside what it didn't have.

        Raises:
            BadValue: no layers to update.
        """
        out = self.student(before)
        if self.lora is not None:
            attach_lora(out, self.lora, seed=self.training.seed)
            had = {name for name, _ in before.named_parameters()}
            for name, value in out.named_parameters():
                value.requires_grad_(value.requires_grad or _plain(name) not in had)
        return out

    def merged(self, after: Any) -> Any:
        """What was trained, as a model like any other."""
        if self.lora is not None:
            detach_lora(after, merge=True)
            after.requires_grad_(True)
        return after

    def taught(self, before: Any) -> Any:
        """The objective, with the model before as its teacher where it takes one."""
        return self.objective.of(before) if hasattr(self.objective, "of") else self.objective

    def config(self) -> dict[str, Any]:
        """As JSON-ready data, with notes of the parts that condiff doesn't publish."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: describe(v) if dataclasses.is_dataclass(v) else to_config(v) for n, v in fields.items()}


def _plain(name: str) -> str:
    """The name that a weight has where nothing is updated."""
    return name.replace(".base_layer.", ".").split(".lora_")[0]


def extended(denoiser: Any, conditions: Mapping[str, Any]) -> Any:
    """A copy of a denoiser whose network is told more; see :meth:`condiff.networks.Network.extended`.

    Raises:
        Incompatible: a network that can't be.
    """
    grow = getattr(getattr(denoiser, "network", None), "extended", None)
    if grow is None:
        inside = type(getattr(denoiser, "network", denoiser)).__name__
        raise Incompatible(f"{inside} can't be told more ({', '.join(conditions)}): it has no extended(conditions)")
    memo = {id(denoiser.network): nn.Identity()}  # copied by extended itself
    out = copy.deepcopy(denoiser, memo)
    out.network = grow(conditions)
    return out.train(denoiser.training)


def guided_stage(
    low: float = 1.0,
    high: float = 4.0,
    training: TrainConfig | None = None,
    *,
    name: str = GUIDANCE,
    features: int = 256,
    lora: LoRA | None = None,
) -> Stage:
    """The stage that turns a classifier-free guided model into one that is told its scale, in [low, high].

    Args:
        name: of the condition that holds the scale.
        features: of its embedding; see :func:`condiff.conditions.scale_features`.
        lora: see :class:`Stage`.
    """
    return Stage(
        name="guided",
        objective=GuidedDistillation(transform=RandomScale(low=low, high=high, name=name), name=name),
        training=TrainConfig() if training is None else training,
        conditions={name: GuidanceScale(low, high, features)},
        lora=lora,
    )


def halving_stages(
    start: int,
    end: int = 1,
    training: TrainConfig | None = None,
    *,
    scales: tuple[float, float] | None = None,
    stochastic: bool = False,
    taught: bool = False,
    lora: LoRA | None = None,
) -> tuple[Stage, ...]:
    """The stages that halve a model's steps, from ``start`` to ``end``: students of ``start``, ``start / 2`` ... steps.

    Args:
        start: steps of the first student; its teacher is walked in twice as many.
        end: steps of the last.
        training: of each; the learning rate falls to 0 in each.
        scales: range of the guidance scales that the model is told; None for one that isn't told any.
        stochastic: students of :class:`~condiff.sampling.Overshoot` in place of DDIM.
        taught: the first teacher is such a student itself, of ``2 start`` steps.
        lora: see :class:`Stage`.

    Raises:
        BadValue: ends that no halving connects.
    """
    counts = halvings(start, end)
    transform = None if scales is None else RandomScale(low=scales[0], high=scales[1])
    direct = {n: stochastic and (taught or n < start) for n in counts}
    solver = Overshoot() if stochastic else DDIM()
    return tuple(
        Stage(
            name=f"steps-{n}",
            objective=Halving(steps=n, double=stochastic, direct=direct[n], transform=transform),
            training=TrainConfig() if training is None else training,
            solver=solver,
            grid=DistilledGrid(n),
            steps=n,
            lora=lora,
        )
        for n in counts
    )


def halvings(start: int, end: int) -> list[int]:
    """``start, start / 2, ... end``.

    Raises:
        BadValue: there is no such sequence.
    """
    counts = [start]
    while counts[-1] > end and counts[-1] % 2 == 0:
        counts.append(counts[-1] // 2)
    if end < 1 or counts[-1] != end:
        raise BadValue(f"halving {start} steps again and again doesn't lead to {end}: use {end} times 2, 4, 8 ...")
    return counts


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """
    Raises:
        BadType: something that isn't a stage.
        BadValue: no stages, or two of one name.
    """
    stages = tuple(stages)
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise BadType(f"a chain of trainings is a list of one or more Stage(...), got {stages}")
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise BadValue(f"the stages of a chain have different names, got {', '.join(names)}")
    return stages
