"""What a trajectory refuses at the door, before the first network call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.denoiser import check_times
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process.categorical import TokenProcess
from condiff.process.gaussian import Process
from condiff.process.joint import Joint
from condiff.sampling.solver import Solver


def check_solver(solver: Any, process: Any) -> None:
    """
    Raises:
        BadType: the class of a solver, a name, anything else.
        Incompatible: a solver of continuous states for tokens, a joint solver for one variable.
    """
    if isinstance(solver, type) and issubclass(solver, Solver):
        raise BadType(f"solver= takes an instance: {solver.__name__}()")
    if not isinstance(solver, Solver):
        raise BadType(f"solver= takes a solver such as DDIM(), got {solver!r}")
    if solver.joint and not isinstance(process, Joint):
        raise Incompatible(f"{type(solver).__name__} needs a Joint process, not {process}")
    if isinstance(process, TokenProcess) and not solver.tokens:
        raise Incompatible(
            f"{solver} is for continuous states, {process} needs one of tokens, such as TokenAncestral()"
        )


def check_hooks(process: Any, hooks: Sequence[Any]) -> None:
    """
    Raises:
        Incompatible: a hook of one continuous state, and tokens or a joint state.
    """
    if isinstance(process, Process):
        return
    for hook in hooks:
        if getattr(hook, "continuous", False):
            advice = ": give ForVariables({name: hook}), for one of them" if isinstance(process, Joint) else ""
            raise Incompatible(f"{type(hook).__name__} acts on one continuous state, not on {process}{advice}")


def check_state(process: Any, x: Tensor, levels: Sequence[Any], source: Tensor | None) -> None:
    """The state of one variable beside its times and its endpoint.

    Raises:
        BadType: integers as the state of a linear-Gaussian process.
        BadValue: times or an endpoint of another shape.
    """
    for level in levels[:1]:
        check_times(level.t, x)
    if not isinstance(process, Process):
        return
    if not x.dtype.is_floating_point:
        raise BadType(f"the state of {process} must be a floating point tensor, got {x.dtype}")
    if process.has_source and source is not None and source.shape != x.shape:
        raise BadValue(f"the endpoint of shape {tuple(source.shape)} must have the state's, {tuple(x.shape)}")


def check_held(held: Any, x: Tensor) -> None:
    """
    Raises:
        BadType: a mask that isn't boolean.
        BadValue: one that doesn't broadcast to the state.
    """
    if not isinstance(held, Tensor) or held.dtype != torch.bool:
        raise BadType(f"held must be booleans, true where held, got {getattr(held, 'dtype', held)}")
    try:
        fits = torch.broadcast_shapes(held.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise BadValue(f"held of shape {tuple(held.shape)} doesn't fit a state of shape {tuple(x.shape)}")


def check_start(denoiser: Any, levels: Sequence[Any]) -> None:
    """A network that predicts the noise says nothing of x0 at a level without data.

    Raises:
        Degenerate: when the grid has such a step.
    """
    targets = set(getattr(denoiser, "targets", None) or ())
    if not targets or not targets <= {"noise", "score"} or isinstance(levels[0], Mapping):
        return
    for t, s in pairwise(levels):
        if bool(torch.as_tensor((t.data == 0.0) & (t.t != s.t)).any()):
            raise Degenerate(
                f"x0 does not follow from the {' and '.join(sorted(targets))} at t = 1 of {denoiser.process}, where "
                "data(t) = 0: start the grid below it, such as Uniform(start=0.999), or train the model on velocity, v "
                "or x0"
            )


def matched(cond: Conditions, x: Any) -> Conditions:
    """Endpoints in the state's dtype, so that they don't change it."""
    cast = {}
    for name, entry in cond.items():
        like = x.get(name) if isinstance(x, Mapping) else x
        if entry.kind == "endpoint" and isinstance(like, Tensor) and entry.value.dtype != like.dtype:
            cast[name] = entry.map(lambda v, d=like.dtype: v.to(d) if v.dtype.is_floating_point else v)
    return cond.replace(**cast) if cast else cond
