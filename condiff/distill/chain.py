"""Chain: trainings one after the other, in one folder, which a killed run goes on with where it was.

``RUN/`` is a run's folder whose model is that of the last stage; ``RUN/stages/NAME/`` is the folder of each, with
its own configuration, metrics, checkpoints and model. A stage that is finished is marked so and isn't repeated; the
one that was cut short resumes bit for bit, as :class:`~condiff.training.Trainer` does.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from condiff.config import read_json
from condiff.distill.stage import Stage, check_stages
from condiff.errors import BadFile, BadType, BadValue
from condiff.files import alone_in, write_json
from condiff.model_files import CONFIG, check_same, copy_model, find_weights, load_weights, save_model
from condiff.training import Status, Trainer
from condiff.training.parallel import Parallel
from condiff.training.run_folder import claim, describe_run

STAGES = "stages"
FINISHED = "finished.json"
Sampled = Callable[[Stage, nn.Module, int, Path | None], Any]


class Chain:
    """Stages, run one after the other on one data set.

    Args:
        start: the denoiser that the first stage begins with; it is left as it is.
        data, validation, quiet, device: as for :class:`~condiff.training.Trainer`.
        stages: in order.
        run_dir: the run's folder; None writes no files.
        sample: ``sample(stage, denoiser, step, folder)``, as the trainer's.
        resume: continue the run in ``run_dir``.
        extra: further entries of its config.json.
        extras: the same for the folders of stages, by name.

    Raises:
        BadFile, BadValue, BadType, Incompatible: as the trainer.

    Example:
        >>> stages = [guided_stage(1.0, 4.0, config), *halving_stages(32, 4, config, scales=(1.0, 4.0))]
        >>> chain = Chain(teacher, data, stages, "runs/fast")
        >>> chain.fit()
        >>> fast = chain.models["steps-4"]
    """

    def __init__(
        self,
        start: nn.Module,
        data: Any,
        stages: Sequence[Stage],
        run_dir: str | Path | None = None,
        *,
        validation: Any = None,
        sample: Sampled | None = None,
        resume: bool = False,
        quiet: bool = False,
        extra: Mapping[str, Any] | None = None,
        extras: Mapping[str, Mapping[str, Any]] | None = None,
        device: Any = None,
    ) -> None:
        if not isinstance(start, nn.Module):
            raise BadType(f"a chain begins with a denoiser that is a module, got {type(start).__name__}")
        self.stages = check_stages(stages)
        self.start, self.data, self.validation, self.sample = start, data, validation, sample
        self.folder = None if run_dir is None else Path(run_dir)
        self.quiet, self.device, self.extras = quiet, device, extras or {}
        self.models: dict[str, nn.Module] = {}
        first = self.stages[0].training
        self.parallel = Parallel(first.parallel, device, first.precision)
        self.record = self._record(extra or {})
        if self.folder is None:
            if resume:
                raise BadValue("resume=True needs run_dir=, the run to continue")
            return
        claim(self.folder, self.record, resume, self.parallel)
        stored = read_json(self.folder / CONFIG).get(STAGES)
        check_same(stored, self.record[STAGES], f"{self.folder} was run in other stages")

    def _record(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        final, last = self.start, self.stages[-1]
        for stage in self.stages:
            final = stage.student(final)  # refuses networks that can't be told more, before hours of work
        told = {**extra, STAGES: [stage.config() for stage in self.stages]}
        return describe_run(final, last.objective, last.training, self.data, told)

    def fit(self) -> Status:
        """Train the stages that aren't finished, to the end or until a signal.

        Returns:
            The last stage's status, or that of the one in which a signal stopped it.

        Raises:
            NonFinite, BadFile: as the trainer.
        """
        try:
            with alone_in(self.folder if self.parallel.main else None, "training"):
                return self._run()
        finally:
            self.parallel.close()

    def _run(self) -> Status:
        model, status = self.start, Status(0)
        for place, stage in enumerate(self.stages, 1):
            student = stage.student(model)
            if self._finished(stage):
                status = Status(read_json(self._place(stage) / FINISHED)["step"], stage=stage.name)
            else:
                if self.parallel.main and not self.quiet:
                    print(f"stage {place} of {len(self.stages)}: {stage.name}", file=sys.stderr, flush=True)
                trainer = self._trainer(stage, stage.trained(model), stage.taught(model))
                status = trainer.fit()._replace(stage=stage.name)
                if status.stopped:
                    return status
                if stage.lora is not None:
                    self._merge(stage, trainer, status.step)
                self._mark(stage, status.step)
                if self.folder is None:
                    student = stage.merged(trainer.averaged())
            if self.folder is not None:
                weights = "ema" if stage.training.ema else "raw"
                load_weights(student, find_weights(self._place(stage), weights))  # type: ignore[arg-type]
            model = self.models[stage.name] = student.eval()
        if self.folder is not None and self.parallel.main:
            copy_model(self._place(self.stages[-1]), self.folder, self.record)
        return status

    def _trainer(self, stage: Stage, student: nn.Module, objective: Any) -> Trainer:
        place = None if self.folder is None else self._place(stage)
        sample = self.sample
        return Trainer(
            student,
            self.data,
            objective,
            stage.training,
            place,
            validation=self.validation,
            sample=None if sample is None else lambda model, step, folder: sample(stage, model, step, folder),
            resume=place is not None and place.is_dir(),
            quiet=self.quiet,
            extra={"stage": stage.config(), **self.extras.get(stage.name, {})},
            device=self.device,
        )

    # Files

    def _place(self, stage: Stage) -> Path:
        assert self.folder is not None
        return stage_folder(self.folder, stage.name)

    def _finished(self, stage: Stage) -> bool:
        return self.folder is not None and (self._place(stage) / FINISHED).is_file()

    def _merge(self, stage: Stage, trainer: Trainer, step: int) -> None:
        """The stage's model with what was learned merged into its weights, in place of the two apart."""
        if self.folder is not None and self.parallel.main:
            names = [] if trainer.engine.ema is None else list(trainer.engine.ema.averages)
            ema = {name: stage.merged(trainer.averaged(name)).state_dict() for name in names}
            whole = stage.merged(copy.deepcopy(trainer.denoiser))
            save_model(self._place(stage), whole, ema=ema, extra=trainer.record, step=step)

    def _mark(self, stage: Stage, step: int) -> None:
        if self.folder is not None and self.parallel.main:
            mark_finished(self._place(stage), step)
        self.parallel.wait()


def stage_folder(run: Path, name: str) -> Path:
    """Where a stage of a run lies."""
    return run / STAGES / name


def mark_finished(folder: Path, step: int) -> None:
    """Say that a stage need not be run (again).

    Raises:
        BadFile: it holds no model.
    """
    if not (folder / CONFIG).is_file():
        raise BadFile(f"there is no model in {folder}")
    write_json(folder / FINISHED, {"step": step})
