"""The loop: one generator of steps, which everything that samples is built on.

``trajectory(...)`` yields a :class:`Step` for each step; ``sample(...)`` returns the last state. Both follow a
grid of times from noise (1) towards data (0), or the other way for inversion, or up and down as a list says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadType, BadValue, Incompatible
from condiff.fields import checked
from condiff.process.algebra import Weight
from condiff.process.joint import Joint, JointPrior
from condiff.process.prediction import Prediction
from condiff.process.prior import Prior
from condiff.process.token_prediction import TokenPrediction
from condiff.random import Source, as_source
from condiff.sampling.checks import check_held, check_hooks, check_solver, check_start, check_state, matched
from condiff.sampling.grid import Grid, Uniform
from condiff.sampling.joint import hold_given, join, shapes, sources
from condiff.sampling.segments import Segments
from condiff.sampling.solver import Solver, State

Tensors = Any  # a Tensor, or a dictionary of them over the variables of a joint process
Levels = Any  # a Level or a TokenLevel, or a dictionary of them
Times = Grid | Segments | Sequence[float] | Tensor | Mapping[str, Any] | None


class Hook:
    """Things to do inside a step; override what is needed. Each returns what it was given, or a replacement.

    Attributes:
        continuous: whether it is for one continuous state only, and is refused for tokens and joint ones.
    """

    continuous: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    def start(self, run: Run) -> None:
        """Before the first step of a trajectory: begin anew, refuse what doesn't fit in ``run``."""

    def before(self, x: Tensor, run: Run) -> Tensor:
        """The state at the start of a step (at ``run.t``): displace it, replace its known part."""
        return x

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        """What the denoiser said: replace x0, shift the noise or score (``prediction.set``)."""
        return prediction

    def mean(self, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        """The mean of x_s, before its noise is added."""
        return mean

    def drawn(self, noise: Tensor, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        """The noise of a step that has some, before it is added: ``x_s = mean + std noise``."""
        return noise

    def after(self, step: Step, run: Run) -> Tensor:
        """The new state ``step.x_s``."""
        return step.x_s


@dataclass(slots=True)
class Step:
    """One step of a trajectory: from ``x_t`` at ``t`` to ``x_s`` at ``s``.

    ``prediction`` is the step's first evaluation, ``noise`` the draw that was used (None for none), ``nfe`` the
    number of network calls so far. Tokens have levels and predictions of their own kind; in a joint state all of
    these are dictionaries over the variables.
    """

    index: int
    t: Levels
    s: Levels
    x_t: Tensors
    x_s: Tensors
    prediction: Prediction | TokenPrediction | dict[str, Any] | None
    noise: Tensor | dict[str, Any] | None
    nfe: int
    state: State

    @property
    def dx(self) -> Tensors:
        """The increment ``x_s - x_t``, noise included."""
        if isinstance(self.x_t, dict):
            return {name: self.x_s[name] - x for name, x in self.x_t.items()}
        return self.x_s - self.x_t


class Run:
    """The running trajectory, as solvers and hooks see it: where it is, and what they may ask for.

    ``solver`` is the rule, ``levels`` those of the whole grid, ``held`` the mask of what is held, if there is one.
    """

    solver: Solver
    levels: Sequence[Levels]
    held: Any

    def __init__(self, denoiser: Denoises, cond: Any, rng: Source, hooks: Sequence[Hook]) -> None:
        self.denoiser, self.cond, self.rng, self.hooks = denoiser, cond, rng, tuple(hooks)
        self.nfe = 0
        self.index = 0
        self.steps = 0  # of the whole trajectory
        self.t: Levels
        self.s: Levels

    def denoise(self, x: Tensor, level: Any, rows: Tensor | None = None) -> Any:
        """One evaluation, with the hooks around it; counts one network call.

        ``rows`` are the indices of x in the batch, when x is only a part of it: conditions follow.
        """
        self.nfe += 1
        prediction = self.denoiser(x, level, self.cond if rows is None else self.cond.rows(rows))
        for hook in self.hooks:
            prediction = hook.prediction(prediction, self)
        return prediction

    def on_mean(self, mean: Tensor, std: Weight, prediction: Prediction) -> Tensor:
        for hook in self.hooks:
            mean = hook.mean(mean, std, prediction, self)
        return mean

    def on_drawn(self, noise: Tensor, mean: Tensor, std: Weight, prediction: Prediction) -> Tensor:
        for hook in self.hooks:
            noise = hook.drawn(noise, mean, std, prediction, self)
        return noise

    def draw(self, x: Tensor) -> Tensor:
        """Noise of the process's law, of x's shape."""
        return self.denoiser.process.noise_law.sample(self.rng, x.shape, x.dtype, x.device)


def as_grid(grid: Times, steps: int | None, process: Any) -> Tensors:
    """A grid object with a number of steps, or explicit times -> float64 times, (N + 1, ...).

    For a joint process a dictionary of them, from one grid for all variables or from a dictionary of grids.

    Raises:
        BadValue: steps < 1, fewer than two times, times outside [0, 1], steps beside explicit times.
        BadType: a name in place of a grid.
    """
    if isinstance(grid, Segments):
        if not isinstance(process, Joint):
            raise Incompatible(f"Segments are the grid of several variables, not of {process}")
        return grid.grids(process, steps)
    if isinstance(process, Joint):
        return {name: as_grid(one, steps, process[name]) for name, one in process.each("grid", grid).items()}
    if isinstance(grid, Grid) or grid is None:
        if steps is None:
            raise BadValue("give steps=, the number of solver steps, or a list of times as grid=")
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise BadType(f"steps must be an integer, got {steps!r}")
        if steps < 1:
            raise BadValue(f"steps must be at least 1, got {steps}")
        return (grid or Uniform()).times(process, steps)
    if steps is not None:
        raise BadValue("grid= already lists the times: leave steps= out")
    if isinstance(grid, str):
        raise BadType(f"grid= takes a Grid such as Uniform(), or a list of times, got {grid!r}")
    times = torch.as_tensor(grid, dtype=torch.float64)
    if times.ndim == 0 or times.shape[0] < 2:
        raise BadValue(f"a grid needs at least two times, got {times.tolist()}")
    return times


def trajectory(
    denoiser: Denoises,
    x: Tensors,
    *,
    solver: Solver,
    cond: Mapping[str, Any] | Conditions | None = None,
    steps: int | None = None,
    grid: Times = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    hooks: Sequence[Hook] = (),
    held: Tensors | None = None,
    up: str | None = None,
) -> Iterator[Step]:
    """Step from the given state ``x`` along a grid, yielding every step.

    Args:
        denoiser: anything with the Denoiser interface. Hooks of its own (``step_hooks``, of guidance with a memory) act
            after the given ones.
        x: the state at the grid's first time, (B, ...); a dictionary for a joint process.
        solver: the update rule.
        cond: conditions.
        steps: number of steps of the grid.
        grid: a :class:`Grid`, or explicit times: (N + 1,) for all, (N + 1, B) per row, (N + 1, B, F) per frame; for a
            joint process also a dictionary of grids, one per variable, or :class:`Segments`.
        rng: where noise comes from.
        hooks: called inside each step, in order.
        held: booleans that broadcast to x; what is held comes back bit for bit. For a joint process a dictionary.
        up: what a step to more noise does: ``"integrate"`` the solver's own rule backwards (inversion),
            ``"renoise"`` a draw from the forward kernel, without a network call (RePaint). By default stochastic
            solvers renoise and deterministic ones integrate.

    Gradients flow when they are enabled: the caller decides.
    """
    process = denoiser.process
    check_solver(solver, process)
    levels = process.levels(as_grid(grid, steps, process))
    cond = matched(as_conditions(cond, getattr(denoiser, "kinds", None), _device_of(x)), x)
    _check(denoiser, x, levels, cond, held, hooks)
    solver.check(denoiser, x)
    held = held if held is None or isinstance(held, Mapping) else held.to(_device_of(x))
    run = Run(denoiser, cond, as_source(rng), (*hooks, *getattr(denoiser, "step_hooks", ())))
    solver = join(solver, process, levels, up)
    run.solver, run.levels, run.held = solver, levels, held
    state = solver.start()
    begin = getattr(denoiser, "start", None)
    if begin is not None:
        begin()  # stateful guidance begins anew
    plan = solver.plan(levels)
    run.steps = len(plan)
    for hook in run.hooks:
        hook.start(run)
    for index, c in enumerate(plan):
        run.index, run.t, run.s = index, levels[index], levels[index + 1]
        for hook in run.hooks:
            x = hook.before(x, run)
        x_s, prediction, noise = solver.step(x, c, state, run)
        if held is not None:
            x_s = hold_given(held, x, x_s)
        step = Step(index, run.t, run.s, x, x_s, prediction, noise, run.nfe, state)
        for hook in run.hooks:
            step.x_s = hook.after(step, run)
        yield step
        x = step.x_s


def sample(
    denoiser: Denoises,
    *,
    solver: Solver,
    num: int | None = None,
    cond: Mapping[str, Any] | Conditions | None = None,
    steps: int | None = None,
    grid: Times = None,
    initial: Tensors | None = None,
    prior: Prior | Mapping[str, Prior] | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    hooks: Sequence[Hook] = (),
    held: Tensors | None = None,
    up: str | None = None,
    grad: bool = False,
    progress: bool | Callable[[int, int], None] = False,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Tensors:
    """Draw samples: the last state of a :func:`trajectory`.

    Args:
        num: how many; by default as many as there are conditions, seeds, or rows of ``initial``.
        initial: the state at the grid's first time; drawn from ``prior`` when absent.
        prior: law of the initial state, pure noise by default; a dictionary names it for some variables.
        seed, seeds, rng: one seed for the batch, one per sample, or any source. One of them.
        shape: shape of one sample (a dictionary for a joint process), when the denoiser doesn't know it.
        hooks, held, up: as in :func:`trajectory`.
        grad: keep the graph (reward guidance, fine-tuning through the sampler).
        progress: show a bar, or call this with (steps that are done, all steps) behind each.

    Returns:
        (num, *shape), or a dictionary of such.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise BadType(f"seed= is one integer for the batch, got {seed!r}; one per sample are seeds=")
    if seeds is not None and not hasattr(seeds, "__len__"):
        raise BadType(f"seeds= is one integer per sample, got {seeds!r}; one for the batch is seed=")
    given = [r for r in (seed, seeds, rng) if r is not None]
    if len(given) > 1:
        raise BadValue("give one of seed=, seeds=, rng=")
    source = as_source(given[0] if given else None)
    if device is None:
        device = device_of(denoiser) if initial is None else _device_of(initial)
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), device)
    process = denoiser.process
    times = as_grid(grid, steps, process)
    if initial is None:
        shape = denoiser.shape if shape is None else shape
        if not shape:
            raise BadValue("the denoiser doesn't know the shape of a sample: give shape= or initial=")
        count = _count(num, cond, seeds)
        initial = initial_state(prior, process, times, count, shape, rng=source, cond=cond, dtype=dtype, device=device)
    elif prior is not None or shape is not None:
        raise BadValue("give initial=, the state itself, or prior= and shape=")
    else:
        _count(num, cond, seeds, initial)
    run = trajectory(denoiser, initial, solver=solver, cond=cond, grid=times, rng=source, hooks=hooks, held=held, up=up)
    total = len(next(iter(times.values())) if isinstance(times, dict) else times) - 1
    if progress is True:
        from tqdm.auto import tqdm

        run = tqdm(run, total=total, desc="sampling", unit="step", leave=False)
    x = initial
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        for step in run:
            x = step.x_s
            if callable(progress):
                progress(step.index + 1, total)
    return x


def initial_state(
    prior: Any,
    process: Any,
    times: Any,
    num: int,
    shape: Any,
    *,
    rng: Source,
    cond: Conditions,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
) -> Tensors:
    """The states of ``num`` samples at the first time of a grid, (num, *shape), drawn from a prior.

    Args:
        prior: the law; the process's own when None, a dictionary for some variables of a joint process.
        times: as :func:`as_grid` returns them.
        shape: of one sample, a dictionary for a joint process.
        cond: conditions, of which endpoints are read.
    """
    level: Any
    source: Any
    _check_prior(prior)
    if isinstance(process, Joint):
        level = process.levels({name: grid[:1] for name, grid in times.items()})[0]
        prior = JointPrior(prior) if isinstance(prior, Mapping) else prior
        shape, source = shapes(process, num, shape), sources(cond, process)
    else:
        level, shape, source = process.levels(times[:1])[0], (num, *shape), cond.source
    return (prior or process.prior()).sample(level, shape, rng, source=source, dtype=dtype, device=device)


def _check(denoiser: Any, x: Any, levels: list[Any], cond: Conditions, held: Any, hooks: Sequence[Hook]) -> None:
    """Refuse what doesn't fit together, before the first network call."""
    if isinstance(hooks, Hook):
        raise BadType(f"hooks= is a list: [{type(hooks).__name__}(...)]")
    process = denoiser.process
    check_hooks(process, hooks)
    if isinstance(process, Joint):
        process.check("the state", x)
        ends = sources(cond, process)
        for name, part in x.items():
            check_state(process[name], part, [level[name] for level in levels], ends.get(name))
    else:
        check_state(process, x, levels, cond.source)
        if all(getattr(type(hook), "prediction", None) is Hook.prediction for hook in hooks):  # a hook may know x0
            check_start(denoiser, levels)
    masks = {} if held is None else held if isinstance(x, dict) else {"": held}
    for name, part in (x if isinstance(x, dict) else {"": x}).items():
        if isinstance(masks, Mapping) and name in masks:
            check_held(masks[name], part)


def _check_prior(prior: Any) -> None:
    for one in prior.values() if isinstance(prior, Mapping) else [prior] if prior is not None else []:
        if not isinstance(one, Prior):
            raise BadType(f"prior= takes a Prior such as Moments(), or a dictionary of them, got {one!r}")


def _device_of(x: Any) -> torch.device:
    return next(iter(x.values())).device if isinstance(x, dict) else x.device


def _count(num: int | None, cond: Conditions, seeds: Sequence[int] | None, initial: Any = None) -> int:
    if num is not None and (isinstance(num, bool) or not isinstance(num, int)):
        raise BadType(f"num must be an integer, got {num!r}")
    if num is not None and num < 1:
        raise BadValue(f"num must be at least 1, got {num}")
    rows = None if initial is None else len(next(iter(initial.values())) if isinstance(initial, dict) else initial)
    sizes = {"num": num, "cond": cond.batch, "seeds": len(seeds) if seeds is not None else None, "initial": rows}
    known = {k: v for k, v in sizes.items() if v is not None}
    if not known:
        raise BadValue("say how many samples: num=, seeds= or conditions")
    if len(set(known.values())) > 1:
        raise BadValue(f"the number of samples must agree, got {known}")
    if 0 in known.values():
        raise BadValue(f"nothing to sample, got {known}")
    return next(iter(known.values()))
