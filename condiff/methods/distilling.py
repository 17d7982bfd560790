"""From a trained run to one that is told its guidance and takes few steps: what ``condiff distill`` does.

The new run has the old one's model as its finished first stage, so that it stands alone: it can be moved, resumed and
sampled without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condiff.conditions import GUIDANCE, Dropout, GuidanceScale
from condiff.config import read_json
from condiff.distill import DistilledGrid, Halving, guided_stage, halving_stages, mark_finished, stage_folder
from condiff.distill.stage import halvings
from condiff.errors import BadValue, Incompatible
from condiff.methods import settings
from condiff.methods.guided_distillation import SCALES, rounds
from condiff.methods.recipe import FIRST, Recipe
from condiff.methods.runs import RunFolder, check_folder, fitted, open_run
from condiff.model_files import save_model
from condiff.networks import LoRA
from condiff.process import Process

FIRST_STEPS = 32  # at least, of the first student: fewer, and its teacher is too coarse a sampler


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What ``condiff distill`` was asked for.

    Args:
        run: the trained run.
        steps: those that are wanted; the last stage has the least. None: only told its guidance.
        scale: range of the guidance scales; None for (1, 4) where the run can be guided.
        start: steps of the first student; by default 32 or the next that halving leads on from, and half of those that
            the run was distilled for where it was.
        training: fields of the training of each stage.
        stochastic: students of the stochastic sampler.
        lora: rank of the updates of all linear layers that are trained, and merged, in place of all weights.
        guidance: what the new run is sampled with; the old one's by default.
        changes: further settings, ``KEY=VALUE``.
        folder: of the new run.
    """

    run: Path
    steps: Sequence[int] = ()
    scale: tuple[float, float] | None = None
    start: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    lora: int | None = None
    guidance: float | None = None
    changes: Sequence[str] = ()
    folder: Path = Path("runs/fast")

    def recipe(self, base: Recipe) -> Recipe:
        """The recipe of a trained run, with the stages behind it.

        Raises:
            Incompatible: a model that this can't be done with.
            BadValue: steps that no halving connects, nothing to do, a guidance outside the scales.
        """
        _check_process(base)
        scales, stages = self._scales(base), []
        first = fitted(replace(base.training, **self.training))
        lora = None if self.lora is None else LoRA(rank=self.lora, targets=())
        if scales is not None and GUIDANCE not in dict(base.network.conditions):
            stages.append(guided_stage(*scales, training=first, lora=lora))
        if self.steps:
            students = replace(rounds(base.training), **self.training)
            counts = halvings(self._first(base), min(self.steps))
            _check_steps(self.steps, counts, base)
            how = {"scales": scales, "stochastic": self.stochastic, "taught": _known(base) is not None}
            stages.extend(halving_stages(counts[0], counts[-1], students, lora=lora, **how))
        if not stages:
            raise BadValue("this run can't be guided, or is told its guidance already: say how many --steps are wanted")
        recipe = replace(base, stages=tuple(stages), method="guided-distillation")
        guidance = base.sampler.guidance if self.guidance is None else self.guidance
        _check_guidance(guidance, scales)
        recipe = replace(recipe, sampler=replace(base.sampler, guidance=guidance))
        return settings.apply(recipe, settings.parse(self.changes))

    def _scales(self, base: Recipe) -> tuple[float, float] | None:
        told = dict(base.network.conditions).get(GUIDANCE)
        if isinstance(told, GuidanceScale):
            if self.scale is not None:
                raise Incompatible(f"this run is told its guidance already, in [{told.low:g}, {told.high:g}]")
            return told.low, told.high
        transform = base.objective.transform
        if transform is not None and not isinstance(transform, Dropout):
            raise Incompatible(
                f"this run's conditions are changed while it is trained ({transform}): a student would have to see "
                "the same, which `condiff distill` doesn't know how to do"
            )
        guidable = transform is not None and bool(base.network.conditions)
        if self.scale is not None and not guidable:
            raise Incompatible(
                "this run was trained with its conditions always there, so that what it says without them means "
                "nothing, and guidance neither: leave --scale out, or train one with dropout (--method cfg)"
            )
        return (self.scale or SCALES) if guidable else None

    def _first(self, base: Recipe) -> int:
        known = _known(base)
        if known is not None:
            _check_known(base, known, self.start, self.stochastic)
            return known // 2
        first = max(self.steps) if self.start is None else self.start
        while self.start is None and first < FIRST_STEPS and max(self.steps) > 0:
            first *= 2
        return first


def _check_process(base: Recipe) -> None:
    if not isinstance(base.process, Process) or base.process.has_source:
        raise Incompatible(f"distillation is for models of values on a path to noise, this run's is {base.process}")
    if isinstance(base.target, tuple) and len(base.target) > 1:
        raise Incompatible(f"distillation is for models of one prediction, this run's predicts {base.target}")


def _known(base: Recipe) -> int | None:
    """The steps that a run was distilled for; None where it knows every level."""
    return base.sampler.grid.trained if isinstance(base.sampler.grid, DistilledGrid) else None


def _check_known(base: Recipe, known: int, start: int | None, stochastic: bool) -> None:
    if known % 2 or start not in (None, known // 2):
        raise BadValue(f"this run was distilled for {known} steps and knows only their levels: no student of others")
    if isinstance(base.objective, Halving) and base.objective.double != stochastic:
        which = "the stochastic sampler: say" if base.objective.double else "the deterministic sampler: leave out"
        raise Incompatible(f"this run was distilled for {which} --stochastic")


def _check_steps(wanted: Sequence[int], counts: Sequence[int], base: Recipe) -> None:
    others = [n for n in wanted if n not in counts]
    if others:
        raise BadValue(f"steps {others} aren't among {list(counts)}, which halving goes through")
    if counts[-1] <= 2 and base.target == "noise":
        raise Incompatible(
            f"a model that predicts noise can't be distilled to {counts[-1]} steps: at pure noise x0 doesn't follow "
            "from it. Stop at 4, or train one that predicts v"
        )


def _check_guidance(guidance: float, scales: tuple[float, float] | None) -> None:
    if scales is not None and not scales[0] <= guidance <= scales[1]:
        low, high = scales
        raise BadValue(
            f"the run is sampled with guidance {guidance:g}, outside --scale {low:g} {high:g}: say --guidance"
        )


def prepare(request: Distillation, dry: bool = False) -> RunFolder:
    """The new run, its first stage taken over; a dry one only looks.

    Raises:
        BadFile: no run there, or the new folder exists.
        Incompatible, BadValue: as :meth:`Distillation.recipe`.
    """
    old = open_run(request.run)
    recipe = request.recipe(old.recipe)
    check_folder(request.folder, dry)
    new = RunFolder(request.folder, recipe, old.request, (old.data, old.unseen))
    if not dry:
        _take_over(old, new)
    return new


def _take_over(old: RunFolder, new: RunFolder) -> None:
    """The old run's model as the finished first stage of the new one."""
    place = stage_folder(new.folder, FIRST)
    raw = old.model("raw", "cpu")
    ema = {"teacher": old.model("ema", "cpu").state_dict()} if old.recipe.training.ema else {}
    note = {**new.note(new.whole.of_stage(FIRST)), "data": read_json(old.folder / "config.json").get("data", {})}
    steps = old.recipe.training.steps
    save_model(place, raw, ema=ema, extra={**note, "from": str(old.folder.resolve())}, step=steps)
    mark_finished(place, steps)
