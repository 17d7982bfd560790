"""SolverScheduler: a solver of condiff where a diffusers pipeline expects a scheduler.

A pipeline owns its loop: it evaluates its network where the scheduler says, hands over the output, and takes the next
state. A rule with one evaluation a step fits as it is. One with several (Heun, Runge-Kutta, DPM-Solver's single steps)
is run as far as the answers reach: where it asks for an evaluation that hasn't been made, the state that it asks about
goes back to the pipeline as the next one, and with the answer the step is run again from its start. Only arithmetic is
repeated, never a network call, and draws are kept.

This module needs diffusers; :func:`condiff.interop.as_scheduler` imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from condiff.conditions import Conditions
from condiff.config import from_config, to_config
from condiff.errors import BadValue, Incompatible
from condiff.interop.export import time_of
from condiff.interop.schedulers import (
    grid_of,
    is_continuous,
    is_flow,
    last_time,
    precondition_of,
    process_of,
)
from condiff.process import Level, Prediction
from condiff.process.algebra import combine, scale
from condiff.random import Source, as_source
from condiff.sampling import Adaptive, Grid, ImplicitDDIM, Solver, State
from condiff.sampling.checks import check_solver
from condiff.sampling.loop import Run, as_grid


class Asked(Exception):
    """A step needs an evaluation that hasn't been made."""

    def __init__(self, x: Tensor, level: Level) -> None:
        super().__init__()
        self.x, self.level = x, level


class Answers(Run):
    """A running step that reads its evaluations, and its draws, from those that were made before."""

    def __init__(self, process: Any, rng: Source) -> None:
        super().__init__(self, Conditions(), rng, ())  # type: ignore[arg-type]
        self.process = process
        self.said: list[Prediction] = []
        self.drawn: list[Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """To the start of the step."""
        self.places = [0, 0]

    def forget(self) -> None:
        """For the next step."""
        self.said, self.drawn = [], []

    def denoise(self, x: Tensor, level: Any, rows: Tensor | None = None) -> Prediction:
        if rows is not None:
            raise Incompatible("a pipeline evaluates all rows: use a solver that doesn't choose among them")
        if self.places[0] == len(self.said):
            raise Asked(x, level)
        self.places[0] += 1
        return self.said[self.places[0] - 1]

    def draw(self, x: Tensor) -> Tensor:
        if self.places[1] == len(self.drawn):
            self.drawn.append(super().draw(x))
        self.places[1] += 1
        return self.drawn[self.places[1] - 1]


class EachRow(Source):
    """A generator per row, as pipelines take them."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.rows = [as_source(g) for g in generators]

    def _draw(self, kind: Any, shape: Any, dtype: Any, device: Any, param: Any) -> Tensor:
        if len(self.rows) != shape[0]:
            raise BadValue(f"{len(self.rows)} generators came for {shape[0]} samples")
        return torch.cat([row._draw(kind, (1, *shape[1:]), dtype, device, param) for row in self.rows])


@dataclass
class Progress:
    """Where a trajectory is: its coefficients from the step it began with, and the step's start."""

    levels: Sequence[Level]
    plan: list[Any]
    run: Answers
    state: State
    x: Tensor
    index: int = 0
    evaluation: int = 0
    waiting: Any = None  # the level of the evaluation that is missing
    asked_elsewhere: bool = False

    def advance(self, solver: Solver) -> Tensor:
        """Run on until an evaluation is missing, or to the end: the state that goes back to the pipeline."""
        self.waiting = None
        while self.index < len(self.plan):
            run, state = self.run, self.state.copy()
            run.rewind()
            run.index, run.t, run.s = self.index, self.levels[self.index], self.levels[self.index + 1]
            try:
                x, _, _ = solver.step(self.x, self.plan[self.index], state, run)
            except Asked as asked:
                self.waiting, self.asked_elsewhere = asked.level, asked.x is not self.x
                return asked.x
            self.x, self.state, self.index = x, state, self.index + 1
            run.forget()
        return self.x


class SolverScheduler(SchedulerMixin, ConfigMixin):
    """A solver as a scheduler; made by :func:`condiff.interop.as_scheduler`.

    Its configuration is that of the scheduler it stands in for, with the solver's beside it, so that a pipeline saves
    and loads it.

    Args:
        solver: the update rule, or its configuration.
        scheduler: the configuration of the scheduler that it stands in for, ``_class_name`` included.
        grid: the times of the steps, or its configuration; those of the scheduler when None.

    Raises:
        BadType: not a solver. Incompatible: a solver of steps that aren't known beforehand, or of inversion.
    """

    config_name = "scheduler_config.json"
    _compatibles: list[str] = []  # noqa: RUF012 - diffusers' own attribute
    order = 1

    def __init__(self, solver: Any, scheduler: Mapping[str, Any], grid: Any = None) -> None:
        self.solver: Solver = from_config(solver) if isinstance(solver, Mapping) else solver
        self.grid: Grid | None = from_config(grid) if isinstance(grid, Mapping) else grid
        own = {k: v for k, v in scheduler.items() if k not in ("solver", "scheduler", "grid")}
        self.like = getattr(diffusers, own["_class_name"]).from_config(own)
        self.process, self.target = process_of(self.like)
        self.precondition = precondition_of(self.like)
        check_solver(self.solver, self.process)
        if isinstance(self.solver, Adaptive):
            raise Incompatible(f"a pipeline asks for its steps beforehand, and {self.solver} chooses them on the way")
        if isinstance(self.solver, ImplicitDDIM):
            raise Incompatible(f"a pipeline goes from noise to data, and {self.solver} the other way: use invert()")
        self.register_to_config(
            **{k: v for k, v in own.items() if not k.startswith("_")},
            solver=to_config(self.solver),
            scheduler=own,
            grid=None if self.grid is None else to_config(self.grid),
        )
        self.begin_index: int | None = None
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(0)
        self.sigmas = torch.zeros(0)
        self._levels: list[Level] = []
        self._asked: list[tuple[int, Level]] = []  # (step, level) of every evaluation
        self._progress: Progress | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler of a stored configuration."""
        out = cls(config["solver"], config["scheduler"], config["grid"])
        return (out, kwargs) if return_unused_kwargs else out

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    # The grid

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a trajectory.

        Args:
            num_inference_steps: solver steps; a step may take several evaluations, each of which has a timestep.
            timesteps, sigmas: instead of a number.
            mu: shift of a schedule that depends on the resolution.

        Raises:
            BadValue: none of the three, or two of them; timesteps that don't decrease.
        """
        given = [v for v in (num_inference_steps if sigmas is None else None, timesteps, sigmas) if v is not None]
        if len(given) != 1:
            raise BadValue("give one of num_inference_steps=, timesteps=, sigmas=")
        times = self._times(num_inference_steps, timesteps, sigmas, mu)
        self._levels = self.process.levels(times)
        self._asked = self._questions()
        told = torch.tensor([self._told(level) for _, level in self._asked], dtype=torch.float64)
        whole = bool((told == told.round()).all())
        self.timesteps = told.to(device=device, dtype=torch.int64 if whole else torch.float32)
        self.num_inference_steps = len(self._levels) - 1
        self.order = -(-len(self._asked) // self.num_inference_steps)
        ratio = [float(v.noise) / max(float(v.data), 1e-12) for v in self._levels]
        self.sigmas = torch.tensor([v.t for v in self._levels] if is_flow(self.like) else ratio, dtype=torch.float32)
        self.begin_index, self._progress = None, None

    def _times(self, steps: int | None, timesteps: Any, sigmas: Any, mu: float | None) -> Tensor:
        if timesteps is not None:
            times = time_of(self.like, torch.as_tensor(timesteps))
            if not bool((times[1:] < times[:-1]).all()):
                raise BadValue(f"timesteps decrease, got {list(timesteps)}")
            return torch.cat([times, last_time(self.like).reshape(1)])
        if self.grid is not None:
            return as_grid(self.grid, len(sigmas) if sigmas is not None else steps, self.process)
        options = {"sigmas": sigmas, "mu": mu}
        number = len(sigmas) if sigmas is not None else steps
        assert number is not None
        return grid_of(self.like, number, **{k: v for k, v in options.items() if v is not None})

    def _questions(self) -> list[tuple[int, Level]]:
        """Every evaluation of the trajectory: those of a dry run, for a rule with several a step."""
        if type(self.solver).step is Solver.step:
            return list(enumerate(self._levels[:-1]))
        found: list[tuple[int, Level]] = []
        x = torch.zeros(1, 1, 1, 1)
        progress = self._start(self._levels, x, as_source(0))
        x = progress.advance(self.solver)
        while progress.waiting is not None:
            level = progress.waiting
            found.append((progress.index, level))
            progress.run.said.append(Prediction(x, level, {"x0": torch.zeros_like(x)}))
            x = progress.advance(self.solver)
        return found

    def _start(self, levels: Sequence[Level], x: Tensor, rng: Source) -> Progress:
        run = Answers(self.process, rng)
        plan = self.solver.plan(levels)
        run.solver, run.levels, run.held, run.steps = self.solver, levels, None, len(plan)
        return Progress(levels, plan, run, self.solver.start(), x)

    def _told(self, level: Level) -> float:
        """The timestep of a level: what the network is told of a table, of flows a thousand times as much."""
        told = float(self.precondition.time(level))
        return told * self.config["num_train_timesteps"] if is_flow(self.like) else told

    # The loop

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies its first, normal state with."""
        return float(self._levels[0].noise) if self._levels and is_continuous(self.like) else 1.0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The evaluation that the pipeline begins with, for pipelines that start late."""
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input of a state."""
        count = self._progress.evaluation if self._progress is not None else self._first(timestep)
        return scale(self.precondition.weights(self._asked[count][1])[0], sample)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state to be evaluated, or the last one.

        Args:
            model_output: of the network, guided; of one that predicts variances too the first half is read.
            timestep: of this evaluation.
            sample: the state that was evaluated.
            generator: where noise comes from; one, or one a sample, and torch's own when None, as everywhere there.

        Raises:
            BadValue: before set_timesteps, or a timestep that no step begins with.
            Incompatible: a solver that displaces the first state.
        """
        x = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
        if self._progress is None:
            self._progress = self._begin(timestep, x, generator)
        progress = self._progress
        if not progress.run.said and not progress.asked_elsewhere:
            progress.x = x  # pipelines may have changed it, for inpainting for instance
        level = progress.waiting
        if level is None:
            raise BadValue("the trajectory is at its end: set_timesteps begins another one")
        out = model_output[:, : x.shape[1]].to(x.dtype)
        _, c_skip, c_out = self.precondition.weights(level)
        value = combine((c_out, out), (c_skip, x)) if c_skip != 0.0 else scale(c_out, out)
        progress.run.said.append(Prediction(x, level, {self._quantity: value}))
        progress.evaluation += 1
        x = progress.advance(self.solver).to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    @property
    def _quantity(self) -> str:
        return self.precondition.target(self.target)

    def _begin(self, timestep: Any, x: Tensor, generator: Any) -> Progress:
        if not self._levels:
            raise BadValue("set_timesteps comes before step")
        first = self._first(timestep)
        step = self._asked[first][0]
        if first and self._asked[first - 1][0] == step:
            raise BadValue(
                f"timestep {timestep} lies inside a step of {self.solver}: begin with one that starts a step"
            )
        generator = torch.default_generator if generator is None else generator
        rng = EachRow(generator) if isinstance(generator, list | tuple) else as_source(generator)
        progress = self._start(self._levels[step:], x, rng)
        progress.evaluation = first
        if progress.advance(self.solver) is not x:
            raise Incompatible(f"{self.solver} displaces the first state, which the pipeline has evaluated already")
        return progress

    def _first(self, timestep: Any) -> int:
        """The evaluation of a timestep: the one that was announced, else the first of its value that begins a step."""
        if self.begin_index is not None or timestep is None:
            return self.begin_index or 0
        number = torch.as_tensor(timestep, dtype=torch.float64, device="cpu").flatten()[0]
        same = torch.nonzero((self.timesteps.cpu().double() - number).abs() < 1e-3).flatten()
        if not len(same):
            raise BadValue(f"timestep {float(number):g} is none of {self.timesteps.tolist()}")
        begins = [i for i in same.tolist() if i == 0 or self._asked[i - 1][0] != self._asked[i][0]]
        return (begins or same.tolist())[0]

    # Noise that pipelines add themselves

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``data(t) x0 + noise(t) z`` at the times of timesteps, one per sample or one for all."""
        times = time_of(self.like, torch.as_tensor(timesteps).flatten()).to(original_samples.device)
        level = self.process.at(times.expand(len(original_samples)))
        return combine((level.data, original_samples), (level.noise, noise)).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)
