"""Kinetic energy along sampled trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.sampling.loop import Hook, Run, Step


@dataclass(frozen=True, eq=False)
class KineticEnergy(Hook):
    """Sums ``|x_s - x_t|^2 / |s - t|`` over a trajectory's steps, per sample: ``int |dx/dt|^2 dt`` as steps shrink.

    With a deterministic solver this is the energy of the model's own paths, which
    :func:`condiff.process.kinetic_energy` predicts from the data's separation.

    Example:
        >>> energy = KineticEnergy()
        >>> sample(model, solver=Euler(), steps=200, num=500, hooks=[energy])
        >>> energy.per_dim.mean()
    """

    continuous: ClassVar[bool] = True

    _sums: list[Tensor] = field(default_factory=list, init=False)
    _dims: list[int] = field(default_factory=list, init=False)

    def after(self, step: Step, run: Run) -> Tensor:
        if step.index == 0:
            self._sums.clear()
            self._dims[:] = [step.x_t[0].numel()]
        moved = step.dx.double().flatten(1).square().sum(1)
        dt = torch.as_tensor(step.s.t - step.t.t, dtype=torch.float64, device=moved.device).abs()
        self._sums.append(torch.where(dt > 0.0, moved / dt, 0.0))
        return step.x_s

    @property
    def per_dim(self) -> Tensor:
        """Energy of each sample's path over its number of entries, (B,) float64.

        Raises:
            BadValue: before anything was sampled.
        """
        if not self._sums:
            raise BadValue("no trajectory was sampled with this hook yet")
        return torch.stack(self._sums).sum(0) / self._dims[0]
