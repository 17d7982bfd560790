"""Recipe: everything that makes a run, as one tree of typed parts.

A method is a function from what the data is to a recipe; the command line overrides single fields of it and
stores the result. ``Recipe.denoiser()`` and ``Recipe.guided()`` assemble the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condiff.conditions import Label, Map, Scalar, Spec, Tokens, Vector
from condiff.denoiser import Denoiser, Denoises, Plain, Precondition
from condiff.errors import BadValue
from condiff.guidance import Free
from condiff.networks import DiTConfig, MLPConfig
from condiff.process import Process
from condiff.sampling import Grid, Solver, Uniform
from condiff.training import Denoising, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a trained model is sampled unless told otherwise.

    Args:
        solver, grid, steps: the update rule and its times.
        guidance: classifier-free scale; 1 is the plain conditional model.
    """

    solver: Solver
    grid: Grid = Uniform()
    steps: int = 25
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadValue(f"sampling steps must be at least 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method at one size on one kind of data."""

    method: str
    network: Any
    process: Process
    target: str | tuple[str, ...] = "velocity"
    precondition: Precondition = Plain()
    objective: Denoising = Denoising()
    training: TrainConfig = TrainConfig()
    sampler: Sampler

    def denoiser(self) -> Denoiser:
        """A freshly initialised denoiser."""
        return Denoiser(self.network.build(), self.process, self.target, self.precondition, shape=self.network.shape)

    def guided(self, denoiser: Denoises, scale: float | None = None) -> Denoises:
        """The denoiser with classifier-free guidance at the recipe's scale, or at another; itself at scale 1."""
        scale = self.sampler.guidance if scale is None else scale
        return denoiser if scale == 1.0 else Free(denoiser, scale=scale)


def embedding_for(kind: str, value: Any, classes: int | None) -> Spec:
    """The default embedding of a condition of a kind, sized by an example of it.

    Raises:
        BadValue: a kind that needs a choice.
    """
    if kind == "label" and classes:
        return Label(classes)
    if kind == "vector":
        return Vector(value.shape[-1])
    if kind == "scalar":
        return Scalar(float(value.min()), float(value.max()))
    if kind == "tokens" and value.ndim == 3:
        return Tokens(value.shape[-1])
    if kind == "map":
        return Map(value.shape[1])
    raise BadValue(
        f"no default embedding for a condition of kind {kind!r} and shape {tuple(value.shape)}; give network="
    )


def default_network(shape: Sequence[int], conditions: Mapping[str, Spec]) -> Any:
    """A network for samples of a shape: an MLP for vectors, else a transformer of at most 256 patches.

    Raises:
        BadValue: a shape that isn't (D,), (C, L), (C, H, W) or (C, D, H, W), or sides no patch divides.
    """
    shape = tuple(shape)
    if len(shape) == 1:
        return MLPConfig(shape=shape, width=256, depth=4, conditions=dict(conditions))
    sides = shape[1:]
    patch = 2
    while _tokens(sides, patch) > 256:
        patch *= 2
    if any(side % patch for side in sides):
        raise BadValue(f"no default patch size divides the sides {sides}: resize to multiples of {patch}")
    small = _tokens(sides, patch) <= 64
    width, depth, heads = (96, 3, 4) if small else (256, 8, 4)
    return DiTConfig(shape=shape, width=width, depth=depth, heads=heads, patch=patch, conditions=dict(conditions))


def default_training(shape: Sequence[int], count: int) -> TrainConfig:
    """A training that suits the size: a minute for small samples, a long one with slower averages otherwise."""
    small = len(shape) > 1 and _tokens(shape[1:], 2) <= 64 and count <= 10_000
    if small or len(shape) == 1:
        return TrainConfig(steps=1000, batch=128, validate_every=100)
    return TrainConfig(steps=20_000, batch=128, lr=3e-4, warmup=500, ema=(0.9995, 0.999), save_every=1000)


def _tokens(sides: Sequence[int], patch: int) -> int:
    count = 1
    for side in sides:
        count *= max(1, side // patch)
    return count
