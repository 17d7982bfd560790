"""Hooks of single variables inside the sampling of a joint state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.errors import BadType, Incompatible, unknown
from condiff.process.joint import Joint
from condiff.sampling.checks import check_hooks
from condiff.sampling.joint import Part
from condiff.sampling.loop import Hook, Step


@dataclass(frozen=True, eq=False)
class ForVariables(Hook):
    """Hooks that know one variable, each for its own: ``ForVariables({"image": Inpaint(image, mask)})``.

    A variable whose time repeats in a step isn't touched after it: what is held comes back bit for bit, at the level
    where it is. (UniCon's released sampler replaces the kept part of such a variable by one of the next level.)

    Raises:
        BadType: something that isn't a hook.
        BadValue: a name that isn't a variable's.
        Incompatible: a process of one variable; a hook that looks at the whole trajectory before it starts, or one of
            continuous states for tokens.
    """

    hooks: Mapping[str, Hook]

    def __post_init__(self) -> None:
        for name, hook in self.hooks.items():
            if not isinstance(hook, Hook):
                raise BadType(f"the hook of {name!r} must be a Hook, got {hook!r}")
            if type(hook).start is not Hook.start:
                raise Incompatible(f"{type(hook).__name__} needs the whole run and can't act on one variable of it")

    def start(self, run: Any) -> None:
        if not isinstance(run.denoiser.process, Joint):
            raise Incompatible(f"ForVariables needs a joint state, not {run.denoiser.process}: give the hook itself")
        for name in self.hooks:
            if name not in run.denoiser.process.processes:
                raise unknown("variable", name, run.denoiser.process)
            check_hooks(run.denoiser.process[name], [self.hooks[name]])

    def before(self, x: Any, run: Any) -> Any:
        return {**x, **{n: hook.before(x[n], _run_of(run, n, x[n])) for n, hook in self.hooks.items()}}

    def prediction(self, prediction: Any, run: Any) -> Any:
        said = {n: (hook, prediction[n]) for n, hook in self.hooks.items()}
        return {**prediction, **{n: hook.prediction(one, _run_of(run, n, one.x_t)) for n, (hook, one) in said.items()}}

    def mean(self, mean: Tensor, std: Any, prediction: Any, run: Any) -> Tensor:
        hook = self.hooks.get(run.name)
        return mean if hook is None else hook.mean(mean, std, prediction, run)

    def drawn(self, noise: Tensor, mean: Tensor, std: Any, prediction: Any, run: Any) -> Tensor:
        hook = self.hooks.get(run.name)
        return noise if hook is None else hook.drawn(noise, mean, std, prediction, run)

    def after(self, step: Step, run: Any) -> Any:
        out: Any = dict(step.x_s)
        for name, hook in self.hooks.items():
            own = _of(step, name)
            if not (isinstance(own.t.t, float) and own.t.t == own.s.t):
                out[name] = hook.after(own, _run_of(run, name, own.x_t))
        return out


def _of(step: Step, name: str) -> Step:
    """The step of one variable."""

    def own(value: Any) -> Any:
        return value[name] if isinstance(value, Mapping) else value

    t, s, x_t, x_s = own(step.t), own(step.s), own(step.x_t), own(step.x_s)
    return Step(step.index, t, s, x_t, x_s, own(step.prediction), own(step.noise), step.nfe, step.state)


def _run_of(run: Any, name: str, x: Tensor) -> Any:
    """The run as a hook of one variable sees it."""
    return Part(run, name, x, None)
