"""A picture and its companion, sampled in every direction: what :mod:`condiff.methods.unicon` gives a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.aligned import STRENGTH, Aligned
from condiff.conditions import GUIDANCE, Condition, Conditions, as_conditions
from condiff.denoiser import Denoiser
from condiff.errors import BadValue, unknown
from condiff.guidance import Combine, Distilled, Free, Term
from condiff.networks import Tie, load_pair, save_pair
from condiff.process import Moments
from condiff.sampling import DDIM, Grid, Segments, Solver, Uniform, sample


def tied(denoiser: Denoiser, variables: Sequence[str], own: bool) -> Aligned:
    """Two variables through one denoiser, whose network has the adapter that the second names.

    Raises:
        BadValue: other than two variables.
    """
    if len(variables) != 2:
        raise BadValue(f"a pair has two variables, got {tuple(variables)}: Aligned ties more, with several pairs")
    return Aligned(denoiser, variables, [Tie(variables[0], variables[1], adapter=variables[1], own=own)])


def guided(model: Any, scale: float = 1.0, hearing: float = 0.0) -> Any:
    """``e(nothing) + scale (e(c) - e(nothing)) + hearing (e(c) - e_apart(c))``, in one batched call.

    ``hearing`` needs ``cond["joint"]``, the strength of the joint attention, which :meth:`UniCon.sample` gives. A
    network that was distilled from a guided one is told ``scale``, and called once for it.
    """
    if GUIDANCE in model.kinds:
        model, scale = Distilled(model, scale=scale), 1.0
    if hearing == 0.0:
        return model if scale == 1.0 else Free(model, scale=scale)
    terms = [Term(weight=scale + hearing), Term(weight=-hearing, drop=(STRENGTH,)), Term(weight=1.0 - scale, keep=())]
    return Combine(model, terms if scale != 1.0 else terms[:2])


@dataclass(frozen=True, eq=False)
class UniCon:
    """A model of a picture and its companion, and how it is sampled.

    Args:
        model: the aligned variables; more than two are several companions at once.
        source: the wrapped pipeline that it was made of, for prompts and pixels; None for plain denoisers.
        trigger: what the companion's prompts begin with, such as ``"depth_map, "``.
    """

    model: Aligned
    source: Any = None
    trigger: str = ""

    @classmethod
    def load(
        cls,
        source: Any,
        folder: str | Path,
        variables: Sequence[str] = ("image", "companion"),
        trigger: str = "",
    ) -> UniCon:
        """The model of a denoiser or a wrapped pipeline with the weights that :meth:`save` wrote.

        Raises:
            BadFile, Incompatible: see :func:`condiff.networks.load_pair`.
        """
        denoiser = source if isinstance(source, Denoiser) else source.denoiser
        about = load_pair(denoiser.network, folder, variables[-1])
        model = tied(denoiser, variables, about["own"])
        return cls(model.eval(), None if source is denoiser else source, trigger)

    def save(self, folder: str | Path, adapter: str | None = None) -> None:
        """Write the weights of the tie; see :func:`condiff.networks.save_pair`.

        Args:
            adapter: which one, where there are several; a folder holds one.

        Raises:
            BadValue: several, and none is named; an unknown name.
        """
        names = list(dict.fromkeys(tie.adapter for tie in self.model.ties))
        if adapter is None and len(names) != 1:
            raise BadValue(f"a folder holds the weights of one tie, and here are {', '.join(names)}: say adapter=")
        save_pair(self.model.denoiser.network, folder, adapter or names[0])

    @torch.no_grad()
    def sample(
        self,
        cond: Any = None,
        *,
        given: Mapping[str, Tensor] | None = None,
        hold: Mapping[str, float] | None = None,
        start: Mapping[str, float] | None = None,
        steps: int = 50,
        solver: Solver | None = None,
        grid: Grid | None = None,
        scale: float = 1.0,
        hearing: float = 0.0,
        num: int | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        hooks: Sequence[Any] = (),
    ) -> dict[str, Tensor]:
        """All variables, those that are given too.

        Args:
            cond: prompts or classes (for a wrapped pipeline), or conditions; empty prompts by default.
            given: what is known, by name; pictures where there is a codec.
            hold: given variables that stay at a noisy level, r in (0, 1] of the way to the data; 1 where it isn't
                named. The others follow them the more coarsely, the smaller r is.
            start: given variables that are drawn anew from r in [0, 1) on: 1 - r is the strength of the change.
            steps, solver, grid: of variables that go all the way; DDIM, and the pipeline's own times.
            scale, hearing: see :func:`guided`.
            num: how many, where neither conditions nor given variables say so.
            seed, seeds: one for all (0 by default), or one a row, on which alone its draws then depend.

        Raises:
            BadValue: unknown names, a level without a given variable, sizes that differ, nothing left to sample.
        """
        given, hold, start = self._checked(dict(given or {}), dict(hold or {}), dict(start or {}))
        hold |= {name: 1.0 for name in given if name not in hold and name not in start}
        rows = next((len(v) for v in given.values()), num)
        told = self.told(cond, rows)
        if GUIDANCE in told:
            raise BadValue(f"how strongly the model is guided is scale=: leave {GUIDANCE!r} out of the conditions")
        num = rows or told.batch if num is None else num
        if num is None:
            raise BadValue("say how many samples: num=, conditions or a given variable")
        device = next(self.model.parameters()).device
        told = told.replace(**{STRENGTH: Condition(torch.ones(num, device=device), "strength")}).to(device)
        clean = [name for name, r in hold.items() if r == 1.0] if self._knows_clean else []
        made = sample(
            guided(self.model, scale, hearing),
            solver=DDIM() if solver is None else solver,
            cond=told,
            num=num,
            prior={name: Moments(mean=value) for name, value in given.items()},
            grid=Segments.between(self.model.variables, start, hold, grid=self._grid(grid, steps), clean=tuple(clean)),
            steps=steps if self.source is None or grid is not None else None,
            seed=0 if seed is None and seeds is None else seed,
            seeds=seeds,
            hooks=hooks,
            device=device,
        )
        return made if self._codec is None else {name: self._codec.decode(z) for name, z in made.items()}

    def estimate(self, picture: Tensor, cond: Any = None, **options: Any) -> Tensor:
        """The companion of a picture."""
        first, second = self.model.variables[:2]
        return self.sample(cond, given={first: picture}, **options)[second]

    def joint(self, cond: Any = None, **options: Any) -> dict[str, Tensor]:
        """Picture and companion together."""
        return self.sample(cond, **options)

    @property
    def _codec(self) -> Any:
        return getattr(self.source, "codec", None)

    @property
    def _knows_clean(self) -> bool:
        """Whether the network was told t = 0 in training; one that is told indices of a table wasn't."""
        return not getattr(self.model.denoiser.precondition, "index", False)

    def _grid(self, grid: Grid | None, steps: int) -> Any:
        if grid is not None or self.source is None:
            return Uniform() if grid is None else grid
        return tuple(self.source.grid(steps).tolist())

    def told(self, cond: Any, num: int | None = None) -> Conditions:
        """Prompts, or classes, as the conditions of all variables; ``num`` empty prompts where there are none."""
        if cond is None and num is not None and self.source is not None and "prompt" in self.source.denoiser.kinds:
            cond = [""] * num
        if self.source is None or isinstance(cond, Mapping) or cond is None:
            return as_conditions(cond, self.model.kinds)
        begun = [self.trigger + one for one in cond] if self.trigger else list(cond)
        companions = {f"{n}.": self.source.encode(begun) for n in self.model.variables[1:]}
        own = {prefix + key: entry for prefix, entries in companions.items() for key, entry in entries.items()}
        return self.source.encode(cond).replace(**own)

    def _checked(self, given: dict, hold: dict, start: dict) -> tuple[dict, dict, dict]:
        for name in (*given, *hold, *start):
            if name not in self.model.variables:
                raise unknown("variable", name, self.model.variables)
        for name in (*hold, *start):
            if name not in given:
                raise BadValue(f"{name!r} can't be held or start anywhere but at noise: it isn't given")
        for name, r in hold.items():
            if not 0.0 < r <= 1.0:
                raise BadValue(f"hold[{name!r}] lies in (0, 1], got {r}: at 0 it is noise, and says nothing")
        for name, r in start.items():
            if not 0.0 <= r < 1.0:
                raise BadValue(f"start[{name!r}] lies in [0, 1), got {r}: at 1 it is given as it is")
        device = next(self.model.parameters()).device
        given = {name: value.to(device) for name, value in given.items()}
        if self._codec is not None:
            given = {name: self._codec.encode(value) for name, value in given.items()}
        wanted = self.model.denoiser.shape
        for name, value in given.items():
            if tuple(value.shape[1:]) != wanted:
                raise BadValue(f"{name!r} has samples of shape {tuple(value.shape[1:])}, the model of {wanted}")
        if len({len(value) for value in given.values()}) > 1:
            raise BadValue(f"given variables have one number of rows, got { {n: len(v) for n, v in given.items()} }")
        return given, hold, start
