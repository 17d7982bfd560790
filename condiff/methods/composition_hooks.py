"""Grids and hooks of the table of compositions; see :mod:`condiff.methods.composition`.

Hooks are set so that they leave the law as it is, but for those that say something of it exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from condiff.sampling import (
    BetaSigmas,
    Boundary,
    ClipResidual,
    ClipX0,
    Displace,
    DynamicThreshold,
    ForVariables,
    GaussianLaw,
    Grid,
    Hook,
    Inpaint,
    Inversion,
    ItoDensity,
    Karras,
    KeepPath,
    KineticEnergy,
    MeanShift,
    Nudge,
    Power,
    Record,
    Segments,
    Shifted,
    Spaced,
    Strided,
    Tail,
    TowardsReference,
    Uniform,
    UniformLogSNR,
    X0Replace,
)

FAR = 50.0  # bounds that nothing reaches
KNOWN = 0.3  # what is given of a sample

GRIDS: dict[str, Callable[[float, float], Grid | Segments]] = {
    "uniform": lambda start, end: Uniform(start=start, end=end),
    "power": lambda start, end: Power(start=start, end=end),
    "shifted": lambda start, end: Shifted(1.5, Uniform(start=start, end=end)),
    "Karras": lambda start, end: Karras(sigma_max=15.0),
    "uniform in log-SNR": lambda start, end: UniformLogSNR(sigma_max=15.0),
    "beta": lambda start, end: BetaSigmas(sigma_max=15.0),
    "spaced": lambda start, end: Spaced("trailing"),
    "strided": lambda start, end: Strided(),
    "tail": lambda start, end: Tail(Uniform(start=start, end=end), skip=2),
    "segments": lambda start, end: Segments(({"a": (0.0, 1.0), "b": (0.0, 1.0)},), grid=Uniform(start=start, end=end)),
}


def _still(x: Tensor, *rest: Any) -> Tensor:
    return torch.zeros_like(x)


def _at_rest(times: Tensor, shape: tuple[int, ...]) -> Inversion:
    """A path on which nothing happens."""
    return Inversion(times.flip(0), [torch.full((1, *shape), KNOWN, dtype=torch.float64)] * len(times), 0)


def _given(shape: tuple[int, ...]) -> Tensor:
    """Every second number."""
    return torch.arange(shape[-1]) % 2 == 0


HOOKS: dict[str, Callable[[Tensor, tuple[int, ...]], Hook]] = {
    "clipped x0": lambda times, shape: ClipX0(-FAR, FAR),
    "clipped residual": lambda times, shape: ClipResidual(FAR),
    "dynamic threshold": lambda times, shape: DynamicThreshold(1.0, bound=FAR),
    "boundary": lambda times, shape: Boundary(sigma_data=1e-6),
    "replaced x0": lambda times, shape: X0Replace(lambda x0, run: x0),
    "towards a reference": lambda times, shape: TowardsReference(torch.zeros(1, *shape), length=1e-9),
    "displaced": lambda times, shape: Displace(_still),
    "nudged": lambda times, shape: Nudge(_still),
    "shifted mean": lambda times, shape: MeanShift(_still),
    "inpainting": lambda times, shape: Inpaint(torch.full(shape, KNOWN), _given(shape)),
    "kept path": lambda times, shape: KeepPath(_at_rest(times, shape), below=1.1, mask=torch.tensor(False)),
    "recorded": lambda times, shape: Record(),
    "kinetic energy": lambda times, shape: KineticEnergy(),
    "Itô density": lambda times, shape: ItoDensity(),
    "of one variable": lambda times, shape: ForVariables({"a": ClipX0(-FAR, FAR)}),
}


def with_hook(name: str, law: GaussianLaw, level: Any, source: Tensor | None) -> GaussianLaw:
    """The law that samples have with a hook, of that without: what is known is known, up to the level's noise."""
    if name not in ("inpainting", "kept path"):
        return law
    known = level.data * torch.full_like(law.mean, KNOWN) + (0.0 if source is None else level.source * source.flatten())
    noisy = level.noise**2 * torch.eye(len(law.mean), dtype=torch.float64)
    if name == "kept path":
        return GaussianLaw(torch.full_like(law.mean, KNOWN), torch.zeros_like(law.cov))
    given = _given(tuple(law.mean.shape))
    both = given[:, None] | given
    return GaussianLaw(torch.where(given, known, law.mean), torch.where(both, noisy, law.cov))
