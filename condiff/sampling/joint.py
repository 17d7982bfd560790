"""Joint sampling: one denoiser call per step for all variables, each with its own solver, state and times.

The state ``x``, the levels and the predictions are dictionaries over the variables of a
:class:`~condiff.process.Joint` process; :func:`sample` and :func:`trajectory` take them as they take tensors. A
variable whose time repeats in a step comes back bit for bit: a grid per variable (a dictionary) says who moves when,
so that joint, conditional and coarse-to-fine generation are one call with different grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process.joint import Joint
from condiff.sampling.checks import check_solver
from condiff.sampling.solver import Solver, State
from condiff.sampling.solvers.renoise import directed


@dataclass(frozen=True)
class JointSolver(Solver):
    """A solver for every variable, or one for all.

    Any rule that evaluates once per step serves (Heun doesn't). Hooks see dictionaries; ``Hook.mean`` and
    ``Hook.drawn`` are called per variable, with ``run.name``.

    Example:
        ``JointSolver({"image": DPMSolver(), "label": TokenAncestral()})``
    """

    joint: ClassVar[bool] = True

    solvers: Solver | Mapping[str, Solver]

    def __post_init__(self) -> None:
        parts = self.solvers.values() if isinstance(self.solvers, Mapping) else [self.solvers]
        for part in parts:
            if not isinstance(part, Solver) or isinstance(part, JointSolver):
                raise BadType(f"JointSolver takes a solver, or a dictionary of solvers, got {part!r}")
        if isinstance(self.solvers, Mapping):
            object.__setattr__(self, "solvers", dict(self.solvers))

    @property
    def stochastic(self) -> bool:
        parts = self.solvers.values() if isinstance(self.solvers, Mapping) else [self.solvers]
        return any(part.stochastic for part in parts)

    def named(self, names: Sequence[str]) -> dict[str, Solver]:
        """The solver of each variable.

        Raises:
            BadValue: a dictionary with other names.
        """
        solvers = self.solvers if isinstance(self.solvers, Mapping) else dict.fromkeys(names, self.solvers)
        if set(solvers) != set(names):
            raise BadValue(f"solvers must have the names {sorted(names)}, got {sorted(solvers)}")
        return {name: solvers[name] for name in names}

    def directed(self, levels: Sequence[dict[str, Any]], up: str | None) -> JointSolver:
        """With each variable's rule for steps to more noise, where its own grid has some."""
        solvers = self.named(list(levels[0]))
        for name, solver in solvers.items():
            check_solver(solver, levels[0][name].process)
        return JointSolver({n: directed(s, [level[n] for level in levels], up) for n, s in solvers.items()})

    def plan(self, levels: Sequence[Any]) -> list[dict[str, Any]]:
        solvers = self.named(list(levels[0]))
        plans = {name: solver.plan([level[name] for level in levels]) for name, solver in solvers.items()}
        return [
            {name: (solvers[name], c) for name, c in zip(plans, step, strict=True)}
            for step in zip(*plans.values(), strict=True)
        ]

    def step(self, x: Any, c: dict[str, Any], state: State, run: Any) -> tuple[Any, Any, Any]:
        predictions = run.denoise(x, run.t)
        x_s, noises = {}, {}
        for name, (solver, own) in c.items():
            x_s[name], noises[name] = x[name], None
            if not (isinstance(run.t[name].t, float) and run.t[name].t == run.s[name].t):
                own_state = state.extra.get(name) or state.extra.setdefault(name, solver.start())
                part = Part(run, name, x[name], predictions[name])
                x_s[name], _, noises[name] = solver.step(x[name], own, own_state, part)
        return x_s, predictions, noises


class Part:
    """The run as the solver of one variable sees it: its level, its process, its endpoint, and the one evaluation."""

    def __init__(self, run: Any, name: str, x: Tensor, prediction: Any) -> None:
        self.run, self.name, self.x, self.prediction = run, name, x, prediction
        self.t, self.s, self.index = run.t[name], run.s[name], run.index
        self.rng, self.hooks = run.rng, run.hooks
        self.denoiser = SimpleNamespace(process=run.denoiser.process[name])

    @property
    def nfe(self) -> int:
        return self.run.nfe

    @property
    def cond(self) -> Conditions:
        """The conditions, with the endpoint of this variable only."""
        entries = self.run.cond.items()
        return Conditions({name: c for name, c in entries if c.kind != "endpoint" or name == self.name})

    def denoise(self, x: Tensor, level: Any, rows: Tensor | None = None) -> Any:
        """The prediction of this step.

        Raises:
            Incompatible: a second evaluation, or one elsewhere: the other variables are not there.
        """
        if self.prediction is None or rows is not None or x is not self.x or level is not self.t:
            raise Incompatible(
                f"the solver of {self.name!r} evaluates more than once per step, which a joint step can't: "
                "use one with a single evaluation (DDIM, Euler, DPMSolver, ...)"
            )
        prediction, self.prediction = self.prediction, None
        return prediction

    def on_mean(self, mean: Tensor, std: Any, prediction: Any) -> Tensor:
        for hook in self.hooks:
            mean = hook.mean(mean, std, prediction, self)
        return mean

    def on_drawn(self, noise: Tensor, mean: Tensor, std: Any, prediction: Any) -> Tensor:
        for hook in self.hooks:
            noise = hook.drawn(noise, mean, std, prediction, self)
        return noise

    def draw(self, x: Tensor) -> Tensor:
        """Noise of this variable's law."""
        return self.denoiser.process.noise_law.sample(self.rng, x.shape, x.dtype, x.device)


# What the loop does to a state, for dictionaries


def join(solver: Solver, process: Any, levels: Sequence[Any], up: str | None) -> Solver:
    """The rule for this process's grid: per variable on a joint one; see :func:`directed`."""
    if isinstance(process, Joint):
        return (solver if isinstance(solver, JointSolver) else JointSolver(solver)).directed(levels, up)
    return directed(solver, levels, up)


def hold_given(held: Any, x: Any, x_s: Any) -> Any:
    """``x_s``, but ``x`` bit for bit where ``held``; of a dictionary only the variables that ``held`` names.

    Raises:
        BadType: a single mask for several variables.
    """
    if not isinstance(x, dict):
        return torch.where(held, x, x_s)
    if not isinstance(held, Mapping) or not set(held) <= set(x):
        raise BadType(f"held must be a dictionary over some of {sorted(x)}, as the state is")
    given = {name: mask.to(x[name].device) for name, mask in held.items()}
    return {name: torch.where(given[name], x[name], v) if name in given else v for name, v in x_s.items()}


def sources(cond: Conditions, process: Joint) -> dict[str, Tensor]:
    """The endpoints among the conditions: an entry of kind 'endpoint' belongs to the variable of its name."""
    return {name: c.value for name, c in cond.items() if c.kind == "endpoint" and name in process.processes}


def shapes(process: Joint, num: int, shape: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the initial states.

    Raises:
        BadValue: no shape for some variable.
    """
    if not isinstance(shape, Mapping):
        raise BadValue(f"shape must be a dictionary over {sorted(process)}, got {shape}")
    process.check("shape", shape)
    return {name: (num, *shape[name]) for name in process}
