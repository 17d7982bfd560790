"""Jointly Gaussian variables, each at a time of its own: the exact denoiser of a joint process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process.algebra import Weight
from condiff.process.gaussian import Gaussian
from condiff.process.joint import Joint
from condiff.process.prediction import Prediction
from condiff.typing import Float


@dataclass(frozen=True, eq=False, repr=False)
class JointNormal:
    """The denoiser of jointly Gaussian variables. Made by :func:`joint_normal`.

    With A and S the data and noise coefficients of every coordinate, each by its variable's time, and x_t = A x0 + S z,
    ``r = (A C A + S^2)^-1 (x_t - A m)``, ``E[x0 | x_t] = m + C A r`` and ``E[z | x_t] = S r``.
    """

    process: Joint
    shape: dict[str, tuple[int, ...]]
    mean: Tensor
    cov: Tensor

    @property
    def kinds(self) -> dict[str, str]:
        return {}

    def __call__(self, x_t: Mapping[str, Tensor], t: Any, cond: Any = None) -> dict[str, Prediction]:
        self.process.check("the state", x_t)
        levels = self.process.at(t)
        state = torch.cat([x_t[name].double().flatten(1) for name in self.shape], dim=1)
        data, noise = (
            torch.cat([_columns(getattr(levels[name], which), x_t[name]) for name in self.shape], dim=1)
            for which in ("data", "noise")
        )
        mean, cov = self.mean.to(state.device), self.cov.to(state.device)
        total = data[:, :, None] * cov * data[:, None, :] + torch.diag_embed(noise * noise)
        r = torch.linalg.solve(total, (state - data * mean)[..., None])[..., 0]
        x0, z = mean + (data * r) @ cov, noise * r
        out, first = {}, 0
        for name, shape in self.shape.items():
            last = first + x_t[name][0].numel()
            values = {"x0": x0[:, first:last], "noise": z[:, first:last]}
            values = {kind: value.unflatten(1, shape).to(x_t[name]) for kind, value in values.items()}
            out[name], first = Prediction(x_t[name], levels[name], values), last
        return out

    def __repr__(self) -> str:
        return f"JointNormal({self.shape}, {self.process})"


def joint_normal(
    process: Joint,
    means: Mapping[str, Tensor],
    cov: Float[Tensor, "n n"],
) -> JointNormal:
    """Variables that are normal together.

    Args:
        process: of :class:`Gaussian` processes.
        means: of one sample of each variable, with one dimension at least.
        cov: covariance of all coordinates, those of the variables one after the other in the order of ``means``.

    Raises:
        BadValue: names that aren't the variables', a covariance of another size, or not positive definite.
        Incompatible: a variable on another process.

    Example:
        >>> pair = Joint({"x": Gaussian(Cosine()), "y": Gaussian(Cosine())})
        >>> joint_normal(pair, {"x": torch.zeros(1), "y": torch.ones(1)}, torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    """
    process.check("means", means)
    for name in process:
        if not isinstance(process[name], Gaussian) or not process[name].noise_law.gaussian:
            raise Incompatible(f"joint_normal needs Gaussian processes, and {name!r} is on {process[name]}")
    mean = torch.cat([torch.as_tensor(m, dtype=torch.float64).flatten() for m in means.values()])
    cov = torch.as_tensor(cov, dtype=torch.float64)
    if any(m.ndim < 1 for m in means.values()) or cov.shape != (len(mean), len(mean)):
        raise BadValue(f"a covariance of shape {(len(mean), len(mean))} is wanted, got {tuple(cov.shape)}")
    if not torch.equal(cov, cov.T) or bool(torch.linalg.cholesky_ex(cov).info):
        raise BadValue("the covariance must be symmetric and positive definite")
    return JointNormal(process, {name: tuple(m.shape) for name, m in means.items()}, mean, cov)


def _columns(weight: Weight, x: Tensor) -> Tensor:
    """A coefficient beside flattened states: (B, D)."""
    weight = torch.as_tensor(weight, dtype=torch.float64, device=x.device)
    return weight.reshape(*weight.shape, *(1,) * (x.ndim - weight.ndim)).expand(x.shape).flatten(1)
