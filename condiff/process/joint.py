"""Joint: several variables that are noised together, each with its own process and its own time.

States, levels and predictions are dictionaries over the same names: an image and its label, the two images of an
aligned pair, frames, the nodes and edges of a graph. The variables are independent given the clean ones; only the
denoiser ties them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown
from condiff.process.prior import Prior
from condiff.random import Source, as_source


@dataclass(frozen=True)
class Joint:
    """A dictionary of processes, ``{name: process}``, linear-Gaussian or categorical.

    Everything that takes a time takes one for all variables (a number, a tensor over the batch), or a dictionary of
    times: ``forward(x0, {"image": 0.8, "label": 0.0})``.

    Example:
        >>> joint = Joint({"image": Gaussian(Rectified()), "depth": Gaussian(Cosine())})
        >>> joint.at({"image": 1.0, "depth": 0.0})["depth"].noise
        0.0
    """

    processes: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.processes, Mapping) or not self.processes:
            raise BadType(f"Joint takes a dictionary of processes, {{name: process}}, got {self.processes!r}")
        object.__setattr__(self, "processes", dict(self.processes))

    def __getitem__(self, name: str) -> Any:
        if name not in self.processes:
            raise unknown("variable", name, self.processes)
        return self.processes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.processes)

    def __len__(self) -> int:
        return len(self.processes)

    def check(self, what: str, values: Mapping[str, Any]) -> None:
        """Refuse a dictionary whose names aren't those of the variables.

        Raises:
            BadType: not a dictionary.
            BadValue: missing or unknown names.
        """
        if not isinstance(values, Mapping):
            raise BadType(f"{what} must be a dictionary over {sorted(self)}, got {type(values).__name__}")
        if set(values) != set(self.processes):
            raise BadValue(f"{what} must have the names {sorted(self)}, got {sorted(values)}")

    def each(self, what: str, value: Any) -> dict[str, Any]:
        """A dictionary over the variables as it is, anything else for each of them."""
        if isinstance(value, Mapping):
            self.check(what, value)
            return dict(value)
        return dict.fromkeys(self, value)

    def at(self, t: Any) -> dict[str, Any]:
        """The levels at a common time, or at one time per variable; levels are returned as they are.

        Raises:
            BadValue: times outside [0, 1], or not one for each variable.
        """
        times = self.each("t", t)
        return {name: process.at(times[name]) for name, process in self.processes.items()}

    def levels(self, grid: Any) -> list[dict[str, Any]]:
        """One dictionary of levels per row of a common grid, or of a dictionary of grids of one length.

        Raises:
            BadValue: grids of different lengths.
        """
        grids = self.each("grid", grid)
        rows = {name: process.levels(torch.as_tensor(grids[name])) for name, process in self.processes.items()}
        if len({len(levels) for levels in rows.values()}) > 1:
            raise BadValue(f"all grids must have one length, got { {name: len(r) for name, r in rows.items()} }")
        return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]

    def forward(
        self,
        x0: Mapping[str, Tensor],
        t: Any,
        *,
        source: Mapping[str, Tensor] | None = None,
        noise: Mapping[str, Tensor] | None = None,
        rng: int | torch.Generator | Sequence[int] | Source | None = None,
    ) -> dict[str, Any]:
        """Draw every variable given its clean value: a dictionary of predictions, as each process's ``forward``.

        ``source`` and ``noise`` may name a part of the variables. Draws come from ``rng`` in the order of the
        processes.

        Raises:
            BadValue: names that aren't the variables', or what a process refuses.
        """
        self.check("x0", x0)
        levels, rng = self.at(t), as_source(rng)
        given = {"source": source or {}, "noise": noise or {}}
        for what, values in given.items():
            for name in values:
                if name not in self.processes:
                    raise unknown(f"variable of {what}", name, self.processes)
        out = {}
        for name, process in self.processes.items():
            extra = {what: values[name] for what, values in given.items() if name in values}
            out[name] = process.forward(x0[name], levels[name], rng=rng, **extra)
        return out

    def model_time(self, t: Any) -> dict[str, Tensor]:
        """What a network is told, per variable."""
        times = self.each("t", t)
        return {name: process.model_time(times[name]) for name, process in self.processes.items()}

    @property
    def has_source(self) -> bool:
        """Whether an endpoint enters any of the variables."""
        return any(getattr(process, "has_source", False) for process in self.processes.values())

    def prior(self) -> JointPrior:
        """Every variable from its own process's prior."""
        return JointPrior()


@dataclass(frozen=True)
class JointPrior(Prior):
    """Variables drawn one by one: from the priors named here, the others from their processes' own.

    Example:
        ``JointPrior({"label": Given(labels)})``: the label is known, everything else starts from noise.
    """

    priors: Mapping[str, Prior] = field(default_factory=dict)

    def sample(
        self, level: Any, shape: Any, rng: Source, *, source: Any = None, dtype=torch.float32, device="cpu"
    ) -> Any:
        """Args as in :class:`Prior`, with dictionaries for ``level``, ``shape`` and ``source``."""
        for name in self.priors:
            if name not in level:
                raise unknown("variable of the prior", name, level)
        if not isinstance(shape, Mapping) or set(shape) != set(level):
            raise BadValue(f"shape must be a dictionary over {sorted(level)}, got {shape}")
        source = source or {}
        return {
            name: (self.priors.get(name) or one.process.prior()).sample(
                one, shape[name], rng, source=source.get(name), dtype=dtype, device=device
            )
            for name, one in level.items()
        }
