"""Hooks of single variables inside the sampling of a joint state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.errors import BadType, Incompatible, unknown
from condiff.process.joint import Joint
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
        Incompatible: a process of one variable; a hook that looks at the whole trajectory before it starts.
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

    def before(self, x: Any, run: Any) -> Any:
        return {**x, **{n: hook.before(x[n], Part(run, n, x[n], None)) for n, hook in self.hooks.items()}}

    def prediction(self, prediction: Any, run: Any) -> Any:
        x = {name: said.x_t for name, said in prediction.items()}
        said = {n: hook.prediction(prediction[n], Part(run, n, x[n], None)) for n, hook in self.hooks.items()}
        return {**prediction, **said}

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
                out[name] = hook.after(own, Part(run, name, own.x_t, None))
        return out


def _of(step: Step, name: str) -> Step:
    """The step of one variable."""
    parts = [v[name] if isinstance(v, Mapping) else v for v in (step.x_t, step.x_s, step.prediction, step.noise)]
    return Step(step.index, step.t[name], step.s[name], *parts, step.nfe, step.state)
