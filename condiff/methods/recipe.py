"""Recipe: everything that makes a run, as one tree of typed parts.

A method is a function from what the data is to a recipe; the command line overrides single fields of it and
stores the result. ``Recipe.denoiser()`` and ``Recipe.guided()`` assemble the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from condiff.codecs import Codec
from condiff.conditions import (
    GUIDANCE,
    Endpoint,
    Frames,
    GuidanceScale,
    Label,
    Map,
    Scalar,
    Spec,
    Tokens,
    Vector,
)
from condiff.data import Data, Encoded
from condiff.denoiser import Denoiser, Denoises, Plain, Precondition
from condiff.distill import Stage
from condiff.errors import BadValue, Incompatible, unknown
from condiff.guidance import Distilled, Free
from condiff.multimodal import MultiModal, Parts
from condiff.networks import DiTConfig, MLPConfig, TokenTransformerConfig
from condiff.process import Driven, Joint, Prior, Process
from condiff.process.categorical import TokenProcess
from condiff.random import seeded_weights
from condiff.sampling import Grid, Hook, Solver, Uniform
from condiff.sampling.joint import join
from condiff.sampling.loop import as_grid
from condiff.token_denoiser import TokenDenoiser
from condiff.training import (
    Denoising,
    JointDenoising,
    MultiModalDenoising,
    PrefixDenoising,
    TokenDenoising,
    TrainConfig,
)

FIRST = "teacher"  # what the first training of several is called


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a trained model is sampled unless told otherwise.

    Args:
        solver, grid, steps: the update rule and its times.
        guidance: classifier-free scale; 1 is the plain conditional model.
        hooks: what else is done inside each step, such as clipping x0.
        prior: law of the initial state; the process's own when None.
    """

    solver: Solver
    grid: Grid = Uniform()
    steps: int = 25
    guidance: float = 1.0
    hooks: tuple[Hook, ...] = ()
    prior: Prior | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadValue(f"sampling steps must be at least 1, got {self.steps}")
        if not math.isfinite(self.guidance):
            raise BadValue(f"guidance must be finite, got {self.guidance}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method at one size on one kind of data.

    With a ``codec``, the configuration of one without weights such as :class:`condiff.codecs.HaarConfig`, network and
    process live in its latents; data, conditions and samples are what they were.

    With ``stages``, trainings that follow the first one (called ``"teacher"``), each from the result of the one before;
    the model of the run is the last one's, which :attr:`last` is the recipe of.
    """

    method: str
    network: Any
    process: Process | TokenProcess | Joint
    target: str | tuple[str, ...] = "velocity"
    precondition: Precondition = Plain()
    objective: Denoising | TokenDenoising | JointDenoising | PrefixDenoising | MultiModalDenoising = Denoising()
    training: TrainConfig = TrainConfig()
    sampler: Sampler
    codec: Any = None
    stages: tuple[Stage, ...] = ()

    def chain(self) -> tuple[Stage, ...]:
        """All stages, the first training among them."""
        return (Stage(name=FIRST, objective=self.objective, training=self.training), *self.stages)

    def of_stage(self, name: str) -> Recipe:
        """The recipe of one stage's model, as if it had been trained alone.

        Raises:
            BadValue: an unknown stage.
        """
        out = replace(self, stages=())
        names = [stage.name for stage in self.chain()]
        if name not in names:
            raise unknown("stage", name, names)
        for stage in self.stages[: names.index(name)]:
            told = {**dict(getattr(out.network, "conditions", {})), **stage.conditions}
            network = replace(out.network, conditions=told) if stage.conditions else out.network
            how = {"solver": stage.solver, "grid": stage.grid, "steps": stage.steps}
            sampler = replace(out.sampler, **{k: v for k, v in how.items() if v is not None})
            objective, training = stage.objective, stage.training
            out = replace(out, network=network, objective=objective, training=training, sampler=sampler)
        return out

    @property
    def last(self) -> Recipe:
        """The recipe of the last stage's model."""
        return self.of_stage(self.chain()[-1].name)

    def build_codec(self, device: Any = "cpu") -> Codec | None:
        """The codec between data and the network's space."""
        return None if self.codec is None else self.codec.build().to(device)

    def encoded(self, data: Data) -> Data:
        """The data as the network sees it."""
        codec = self.build_codec()
        return data if codec is None else Encoded(data, codec)

    def denoiser(self, seed: int | None = None) -> Any:
        """A freshly initialised denoiser, a function of the seed when one is given.

        Raises:
            Incompatible: a process that no denoiser of ``DENOISERS`` is made for, or parts that don't fit.
        """
        with seeded_weights(seed):
            network = self.network.build()
        self._check_endpoint()
        times = as_grid(self.sampler.grid, self.sampler.steps, self.process)
        levels: Any = self.process.levels(times)
        join(self.sampler.solver, self.process, levels, None).plan(levels)  # what can't be, before training
        build = next((make for law, make in DENOISERS.items() if isinstance(self.process, law)), None)
        if build is None:
            known = ", ".join(law.__name__ for law in DENOISERS)
            raise Incompatible(f"no denoiser is known for {self.process}: there are those of {known}")
        return build(self, network)

    def _check_endpoint(self) -> None:
        """
        Raises:
            Incompatible: data with an endpoint that neither the process nor the network would see.
        """
        if isinstance(self.process, TokenProcess) or self.process.has_source:
            return  # tokens have no endpoint
        for name, spec in dict(getattr(self.network, "conditions", {})).items():
            if isinstance(spec, Endpoint) and not spec.concat:
                raise Incompatible(
                    f"{self.process} starts from noise, and the data's endpoint {name!r} would be ignored: use a "
                    "process with an endpoint, such as Interpolant(), or data without one"
                )

    def guided(self, denoiser: Denoises, scale: float | None = None) -> Denoises:
        """The denoiser with classifier-free guidance at the recipe's scale, or at another; itself at scale 1.

        A network that is told its scale is told this one.
        """
        scale = self.sampler.guidance if scale is None else scale
        if isinstance(dict(getattr(self.network, "conditions", {})).get(GUIDANCE), GuidanceScale):
            return Distilled(denoiser, scale=scale)
        return denoiser if scale == 1.0 else Free(denoiser, scale=scale)


def _of_values(recipe: Recipe, network: Any) -> Denoiser:
    assert isinstance(recipe.process, Process)
    return Denoiser(network, recipe.process, recipe.target, recipe.precondition, shape=recipe.network.shape)


def _of_tokens(recipe: Recipe, network: Any) -> TokenDenoiser:
    assert isinstance(recipe.process, TokenProcess)
    told = getattr(recipe.network, "time", True)
    return TokenDenoiser(network, recipe.process, recipe.network.shape, time_free=not told)


def _of_modalities(recipe: Recipe, network: Any) -> Any:
    """A latent of several modalities, or of one tensor as any other."""
    if not isinstance(network, Parts):
        return _of_values(recipe, network)
    assert isinstance(recipe.process, Driven) and isinstance(recipe.target, str)
    return MultiModal(network.network, recipe.process, network.modalities, recipe.target)


# Which denoiser makes samples of a process: the first law that it is.
DENOISERS: dict[type, Callable[[Recipe, Any], Any]] = {
    TokenProcess: _of_tokens,
    Driven: _of_modalities,
    Process: _of_values,
}


def embedding_for(kind: str, value: Any, classes: int | None) -> Spec:
    """The default embedding of a condition of a kind, sized by an example of it.

    Raises:
        BadValue: a kind that needs a choice.
    """
    if kind == "label" and classes and int(value.max()) < classes:
        return Label(classes)
    if kind == "vector":
        return Vector(value.shape[-1])
    if kind == "scalar":
        return Scalar(float(value.min()), float(value.max()))
    if kind == "tokens" and value.ndim == 3:
        return Tokens(value.shape[-1])
    if kind == "map":
        return Map(_channels(value))
    if kind == "endpoint":
        return Endpoint(_channels(value))
    if kind == "frames" and value.ndim > 2:
        return Frames(value.shape[1], value.shape[2])
    raise BadValue(
        f"no default network takes a condition of kind {kind!r} and shape {tuple(value.shape)}: leave it out, give it "
        "as a label named label, a scalar, a vector or a map, or build the network in Python"
    )


def _channels(value: Any) -> int:
    """Of maps: the last axis of series (B, L, C), the one behind the batch of all others."""
    return value.shape[-1 if value.ndim == 3 else 1]


def default_token_network(shape: Sequence[int], vocab: int, count: int) -> TokenTransformerConfig:
    """A transformer over token sequences, small for little text."""
    small = count * math.prod(shape) <= MANY_TOKENS
    width, depth, heads = (128, 4, 4) if small else (512, 8, 8)
    return TokenTransformerConfig(shape=tuple(shape), vocab=vocab, width=width, depth=depth, heads=heads)


def default_token_training(shape: Sequence[int], count: int) -> TrainConfig:
    """A training that suits the amount of text: minutes for little, a long one with slower averages otherwise."""
    if count * math.prod(shape) <= MANY_TOKENS:
        return TrainConfig(steps=2000, batch=64, lr=1e-3, warmup=100, weight_decay=0.0, validate_every=200)
    return TrainConfig(
        steps=50_000,
        batch=128,
        lr=3e-4,
        warmup=2500,
        weight_decay=0.0,
        clip=1.0,
        ema=(0.9995, 0.999),
        save_every=1000,
        validate_every=1000,
    )


MANY_TOKENS = 2_000_000
MOST_TOKENS = 256  # what attention is cheap for


def default_network(shape: Sequence[int], conditions: Mapping[str, Spec]) -> Any:
    """A network for samples of a shape: an MLP for vectors, else a transformer of at most 256 patches if it can be.

    Raises:
        BadValue: a shape that isn't (D,), (L, C), (C, H, W) or (C, D, H, W), or sides that no patch divides.
    """
    shape = tuple(shape)
    if len(shape) not in (1, 2, 3, 4):
        raise BadValue(f"no default network for samples of shape {shape}: (D,), (L, C), (C, H, W) or (C, D, H, W)")
    if len(shape) == 1:
        return MLPConfig(shape=shape, width=256, depth=4, conditions=dict(conditions))
    sides = _sides(shape)
    patch = default_patch(sides)
    width, depth, heads = (96, 3, 4) if _tokens(sides, patch) <= 64 else (256, 8, 4)
    return DiTConfig(shape=shape, width=width, depth=depth, heads=heads, patch=patch, conditions=dict(conditions))


def default_training(shape: Sequence[int], count: int) -> TrainConfig:
    """A training that suits the size: a minute for small samples, a long one with slower averages otherwise."""
    small = len(shape) > 1 and _tokens(_sides(shape), 2) <= 64 and count <= 10_000
    if small or len(shape) == 1:
        return TrainConfig(steps=1000, batch=128, validate_every=100)
    return TrainConfig(
        steps=20_000, batch=128, lr=3e-4, warmup=500, ema=(0.9995, 0.999), save_every=1000, validate_every=500
    )


def _sides(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that are cut into patches; series are (L, C), all else has its channels first."""
    return tuple(shape[:1] if len(shape) == 2 else shape[1:])


def default_patch(sides: Sequence[int]) -> int:
    """The smallest patch from 2 to 16 that leaves at most 256 tokens; else more tokens, then larger patches."""
    for smallest, largest, most in ((2, 16, MOST_TOKENS), (1, 16, 4 * MOST_TOKENS), (17, 64, 4 * MOST_TOKENS)):
        for patch in range(smallest, largest + 1):
            if not any(side % patch for side in sides) and _tokens(sides, patch) <= most:
                return patch
    raise BadValue(
        f"no patch cuts sides of {' x '.join(map(str, sides))} evenly into at most {4 * MOST_TOKENS} tokens: resize, "
        "crop or pad the samples, to multiples of 8 or 16 for instance"
    )


def _tokens(sides: Sequence[int], patch: int) -> int:
    return math.prod(max(1, side // patch) for side in sides)
