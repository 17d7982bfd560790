"""What a trajectory does and when: the plane it turns in, which features are decided first, what becomes of a change.

The diagnostics of Wang & Vastola (2023, arXiv 2303.02490), for any denoiser and any deterministic solver. Beside each
measured figure stands what Gaussian data with the same mean and principal components would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible, unknown
from condiff.process import PrincipalLaw
from condiff.process.principal_law import check_path
from condiff.sampling.grid import Grid
from condiff.sampling.late import likeness
from condiff.sampling.loop import as_grid, trajectory
from condiff.sampling.solver import Solver
from condiff.typing import Float, Tensor

Cond = Mapping[str, Any] | Conditions | None


@dataclass(frozen=True, eq=False)
class TrajectoryAnalysis:
    """What :func:`analyse` found, over N steps and the first r components.

    Args:
        times: of the states, (N + 1,), falling.
        sigmas: ``noise / data`` there, (N + 1,).
        plane: share of each trajectory's length in the span of its two ends, ``1 - |x - projection|^2 / |x|^2`` summed
            over its states, (B,). Two dimensions hold all of a rotation.
        rotation: the same for the one rotation that the theory names, ``data_t x_0 + noise_t x_T / noise_T``, (B,).
        decided: share of the samples' final variance along each component that E[x0 | x_t] has already, (N, r).
        predicted: the same for Gaussian data, ``data^2 v / (data^2 v + noise^2)``, (N, r).
        variances: of the components, (r,).
        explained: share of the score that the Gaussian's explains at each step, (N,); NaN where there is no data.
    """

    times: Tensor
    sigmas: Tensor
    plane: Tensor
    rotation: Tensor
    decided: Tensor
    predicted: Tensor
    variances: Tensor
    explained: Tensor

    def emergence(self, which: str = "decided") -> Tensor:
        """The first time at which half of each component's variance is decided, (r,); NaN where that never happens."""
        if which not in ("decided", "predicted"):
            raise unknown("curve", which, ("decided", "predicted"))
        past = getattr(self, which) >= 0.5
        first = past.to(torch.int8).argmax(0)
        return torch.where(past.any(0), self.times[:-1][first], torch.nan)

    def as_dict(self) -> dict[str, Any]:
        """The figures that one would quote, JSON-ready."""
        return {
            "plane": float(self.plane.mean()),
            "rotation": float(self.rotation.mean()),
            "variances": self.variances.tolist(),
            "emergence": [None if t != t else t for t in self.emergence().tolist()],
            "predicted_emergence": [None if t != t else t for t in self.emergence("predicted").tolist()],
        }

    def figure(self, path: str | Path, components: int = 4) -> Path:
        """Draw what is decided when, and how much of the score the Gaussian explains, as a PNG."""
        from condiff.figures import curves

        shown = range(min(components, len(self.variances)))
        times = self.times[:-1].tolist()
        decided = {f"component {k + 1}": self.decided[:, k].tolist() for k in shown}
        theory = {f"component {k + 1}": self.predicted[:, k].tolist() for k in shown}
        panels = {
            "share decided, model": {"x": times, **decided},
            "share decided, Gaussian": {"x": times, **theory},
            "score explained by the Gaussian": {"x": times, "explained": self.explained.tolist()},
        }
        return curves(panels, path, x_label="t")


def analyse(
    denoiser: Denoises,
    law: PrincipalLaw,
    x: Float[Tensor, "batch *shape"],
    *,
    solver: Solver,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    cond: Cond = None,
    components: int = 8,
) -> TrajectoryAnalysis:
    """Sample from ``x`` and look at the way.

    Args:
        denoiser: any denoiser of a path from data to Gaussian noise.
        law: of the data; its components are the features that are followed.
        x: states at the grid's first time, (B, ...); a few dozen give smooth curves.
        solver: a deterministic one.
        steps, grid: as in sampling.
        cond: conditions, one per row.
        components: how many, from the largest on.

    Raises:
        Incompatible: a stochastic solver, an endpoint, other noise.
        BadValue: states of another shape, fewer than two of them.

    Example:
        >>> found = analyse(model, law, 80.0 * torch.randn(64, 1, 8, 8), solver=Heun(), grid=Karras(), steps=40)
        >>> found.figure("trajectory.png")
    """
    check_path(denoiser.process)
    law.check_state(x)
    _deterministic(solver)
    if len(x) < 2:
        raise BadValue(f"shares of variance need at least two trajectories, got {len(x)}")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    times = as_grid(grid, steps, denoiser.process)
    law, states, says, explained = law.to(x.device), [x], [], []
    with torch.no_grad():
        for step in trajectory(denoiser, x, solver=solver, cond=cond, grid=times):
            said: Any = step.prediction
            if said is None:
                raise Incompatible(f"{solver} doesn't say what it evaluated; use one such as DDIM() or Heun()")
            states.append(step.x_s)
            says.append(said.x0)
            close = step.t.data == 0.0 or step.t.noise == 0.0
            explained.append(float("nan") if close else likeness(denoiser, law, step.x_t, step.t, cond).explained)
    levels = denoiser.process.levels(times)
    path = torch.stack(states, 1).double().flatten(2)  # (B, N + 1, D)
    data, noise = (
        torch.tensor([getattr(level, k) for level in levels], dtype=torch.float64) for k in ("data", "noise")
    )
    v = law.variances[:components].double()
    a2, s2 = data[:-1, None] ** 2, noise[:-1, None] ** 2
    return TrajectoryAnalysis(
        times=times,
        sigmas=noise / data,
        plane=_in_plane(path),
        rotation=_rotated(path, data.to(path.device), noise.to(path.device)),
        decided=_decided(torch.stack(says), path[:, -1], law, len(v)).cpu(),
        predicted=torch.where(v > 0.0, a2 * v / (a2 * v + s2), 0.0) if len(v) else a2[:, :0],
        variances=v.cpu(),
        explained=torch.tensor(explained, dtype=torch.float64),
    )


def _deterministic(solver: Solver) -> None:
    if solver.stochastic:
        raise Incompatible(f"{solver} draws noise: trajectories of the ODE are looked at, use DDIM() or Heun()")


def _share(path: Tensor, near: Tensor) -> Tensor:
    return 1.0 - (path - near).square().sum((1, 2)) / path.square().sum((1, 2))


def _in_plane(path: Tensor) -> Tensor:
    """Share of each path (B, N + 1, D) in the span of its two ends."""
    ends = path[:, [0, -1]]
    basis, _ = torch.linalg.qr(ends.mT)
    return _share(path, path @ basis @ basis.mT)


def _rotated(path: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    first, last = path[:, :1], path[:, -1:]
    return _share(path, data[:, None] * last + (noise / noise[0])[:, None] * first)


def _decided(says: Tensor, final: Tensor, law: PrincipalLaw, count: int) -> Tensor:
    """Variance of E[x0 | x_t] (N, B, ...) along each component, over that of the samples (B, D); (N, count)."""
    basis = law.basis[:count].double()
    along = says.double().flatten(2) @ basis.mT
    return along.var(1, correction=0) / (final @ basis.mT).var(0, correction=0)


@dataclass(frozen=True, eq=False)
class Propagation:
    """What became of a displacement.

    Args:
        growth: ``u . (x' - x) / size`` at the last level, u the direction, for each row, (B,).
        sideways: ``|x' - x|`` at the last level beside that direction, over the size, (B,).
        predicted: the growth for Gaussian data; NaN for a direction that isn't a component.
    """

    growth: Tensor
    sideways: Tensor
    predicted: float


def propagate(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    direction: int | Float[Tensor, "*shape"],
    size: float,
    *,
    law: PrincipalLaw,
    solver: Solver,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    cond: Cond = None,
) -> Propagation:
    """Follow a displacement of the state at the grid's first time to its last.

    Args:
        x: states at the first time: from noise, or from a level on the way (``grid=Tail(...)``).
        direction: the index of a component of the law, or any vector, which is normalised.
        size: length of the displacement; small compared with the state.

    Raises:
        BadValue: a component that isn't there, a direction of another shape or without length, a size of 0.
        Incompatible: as :func:`analyse`.
    """
    check_path(denoiser.process)
    law.check_state(x)
    _deterministic(solver)
    index = direction if isinstance(direction, int) else None
    if index is not None and not 0 <= index < law.rank:
        raise BadValue(f"component {index} isn't one of 0 .. {law.rank - 1}")
    unit = torch.as_tensor(law.basis[index].reshape(law.shape) if index is not None else direction).to(x)
    if tuple(unit.shape) != law.shape or not float(unit.norm()) > 0.0 or size == 0.0:
        raise BadValue(f"a direction of shape {law.shape} with some length is needed, and a size other than 0")
    unit = unit / unit.norm()
    times = as_grid(grid, steps, denoiser.process)
    ends = []
    with torch.no_grad():
        for start in (x, x + size * unit):
            last = start
            for step in trajectory(denoiser, start, solver=solver, cond=cond, grid=times):
                last = step.x_s
            ends.append(last.double().flatten(1))
    moved = (ends[1] - ends[0]) / size
    flat = unit.double().flatten()
    growth = moved @ flat
    sideways = (moved - growth[:, None] * flat).norm(dim=1)
    along = law.gains(denoiser.process, float(times[0]), float(times[-1]))[0] if index is not None else None
    return Propagation(growth, sideways, float("nan") if along is None else float(along[index]))
