"""Denoiser: a network, the process it was trained on, and what its output means.

``denoiser(x_t, t, cond) -> Prediction`` is the one interface that networks, analytic oracles, wrapped
pipelines and guided denoisers share. Anything with that call, a ``process`` and a ``shape`` is a denoiser.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from condiff.conditions import Conditions, as_conditions
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight, combine, scale
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.prediction import KINDS, Prediction
from condiff.process.schedule import Schedule


@runtime_checkable
class Denoises(Protocol):
    """What solvers, guidance and objectives need of a denoiser."""

    @property
    def process(self) -> Process: ...

    @property
    def shape(self) -> tuple[int, ...] | None: ...

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Prediction: ...


class Precondition(ABC):
    """How the state enters the network and what its output means: ``value = skip x_t + out F(in x_t, time)``."""

    @abstractmethod
    def weights(self, level: Level) -> tuple[Weight, Weight, Weight]:
        """``(c_in, c_skip, c_out)``."""

    def target(self, target: str) -> str:
        """The quantity that ``skip x_t + out F`` is."""
        return target

    def time(self, level: Level) -> Weight:
        """The number the network is told; the process's ``network_time``, in [0, 1], unless overridden."""
        return level.network_time

    def check(self, process: Process) -> None:  # noqa: B027
        """Refuse a process that the scalings make no sense for, with :class:`Incompatible`."""


@dataclass(frozen=True)
class Plain(Precondition):
    """The network sees x_t and its output is the target.

    Args:
        index: tell it the process's ``model_time`` instead, the index of a table, as released networks expect.
    """

    index: bool = False

    def weights(self, level: Level) -> tuple[Weight, Weight, Weight]:
        return 1.0, 0.0, 1.0

    def time(self, level: Level) -> Weight:
        return level.model_time if self.index else level.network_time


@dataclass(frozen=True)
class Told(Plain):
    """Plain, but the network is told a coefficient of the level in place of its time: ``"data"``, ``"source"`` or
    ``"noise"``.

    A network that removes one thing of several needs to know how much of that there is (RDDM's two clocks, Liu 2023);
    it then serves every process whose coefficients lie on the same two curves, in whatever order they are run through.

    Args:
        coefficient: which.
    """

    coefficient: str = "noise"

    def __post_init__(self) -> None:
        if self.coefficient not in COEFFICIENTS:
            raise unknown("coefficient of a level", self.coefficient, COEFFICIENTS)
        if self.index:
            raise BadValue("a network that is told a coefficient is told no index: leave index=True out")

    def time(self, level: Level) -> Weight:
        return getattr(level, self.coefficient)


COEFFICIENTS = ("data", "source", "noise")


@dataclass(frozen=True)
class Correction(Precondition):
    """The network's output is what has to be taken away: ``x0 = x_t - F(x_t, time)``, whose target is ``x_t - x0``.

    What bridges are trained on (BBDM, Li 2023, "grad"): near the data nothing has to be learned.
    """

    def weights(self, level: Level) -> tuple[Weight, Weight, Weight]:
        return 1.0, 1.0, -1.0

    def target(self, target: str) -> str:
        return "x0"


@dataclass(frozen=True)
class EDMPrecondition(Precondition):
    """Karras 2022, table 1, for any process: with ``s = noise / data`` and ``y = x_t / data``,

    ``x0 = c_skip y + c_out F(c_in y, log(s) / 4)``, ``c_skip = sd^2 / (s^2 + sd^2)``,
    ``c_out = s sd / sqrt(s^2 + sd^2)``, ``c_in = 1 / sqrt(s^2 + sd^2)``; sd is the data's standard deviation.
    Written without dividing by data(t), so that data(t) = 0 is fine.

    Args:
        sigma_data: sd.
        any_variance: also for noise without a variance (Student-t with at most two degrees of freedom), whose
            scalings no longer keep the network's input and target at unit variance.
    """

    sigma_data: float = 0.5
    any_variance: bool = False

    def check(self, process: Process) -> None:
        law = getattr(process, "noise_law", None)
        if law is not None and math.isinf(law.variance) and not self.any_variance:
            raise Incompatible(
                f"EDMPrecondition scales by variances, and {law} has none: use StudentT(df) with df > 2, Plain(), or "
                "EDMPrecondition(any_variance=True) if that is meant"
            )

    def weights(self, level: Level) -> tuple[Weight, Weight, Weight]:
        a, s, sd = level.data, level.noise, self.sigma_data
        norm2 = s * s + a * a * sd * sd
        norm = algebra.sqrt(norm2)
        return algebra.divide(1.0, norm), algebra.divide(a * sd * sd, norm2), algebra.divide(s * sd, norm)

    def target(self, target: str) -> str:
        return "x0"

    def time(self, level: Level) -> Weight:
        return -0.125 * level.log_snr


class Denoiser(nn.Module):
    """A network with a process and a target.

    Args:
        network: ``network(x, time, cond) -> Tensor`` (or ``(Tensor, aux)``), x (B, ...), time (B,) or t's shape.
        process: the law that made the network's inputs.
        target: the quantity (or quantities, side by side in dim 1) that the network outputs.
        precondition: scalings around the network.
        shape: shape of one sample; samplers use it when no initial state is given.

    Raises:
        BadValue: an unknown target, a state of another shape than ``shape``.
        BadType: a schedule in place of a process.
        Incompatible: a process of tokens or of several variables; a network that doesn't output as many quantities as
            there are targets.
    """

    space: str | None = None  # what its samples are, where they are latents: those of other autoencoders don't mix

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        target: str | Sequence[str] = "velocity",
        precondition: Precondition | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        targets = (target,) if isinstance(target, str) else tuple(target)
        for name in targets:
            if name not in KINDS:
                raise unknown("prediction target", name, KINDS)
        if isinstance(process, Schedule):
            raise BadType(f"a schedule isn't a process yet: Gaussian({process!r})")
        if not isinstance(process, Process):
            raise Incompatible(
                f"Denoiser predicts {' and '.join(targets)} of one continuous state, not of {process}: tokens have "
                "TokenDenoiser, and joint states any callable that gives a prediction per variable"
            )
        outputs = getattr(getattr(network, "config", None), "outputs", len(targets))
        if outputs != len(targets):
            raise Incompatible(
                f"{len(targets)} targets {targets} need a network with outputs={len(targets)}, this one has {outputs}"
            )
        self.network, self.process = network, process
        self.precondition = precondition or Plain()
        self.precondition.check(process)
        self.targets = tuple(self.precondition.target(name) for name in targets)
        self.shape = tuple(shape) if shape is not None else None

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds of the conditions that the network declares."""
        return getattr(self.network, "condition_kinds", {})

    def forward(
        self, x_t: Tensor, t: Time, cond: Mapping[str, Any] | Conditions | None = None, **options: Any
    ) -> Prediction:
        """``options`` go to the network, such as the cache of a :class:`condiff.networks.VideoTransformer`."""
        if self.shape is not None and x_t.shape[1:] != self.shape and not self._other_length(x_t):
            raise BadValue(f"a state of shape {tuple(x_t.shape)} came to a denoiser of samples {self.shape}")
        level = self.process.at(t)
        check_times(level.t, x_t)
        cond = as_conditions(cond, self.kinds, x_t.device)
        c_in, c_skip, c_out = self.precondition.weights(level)
        out = self.network(scale(c_in, x_t), time_tensor(self.precondition.time(level), x_t), cond, **options)
        out, aux = out if isinstance(out, tuple) else (out, None)
        parts = (out,) if len(self.targets) == 1 else out.chunk(len(self.targets), dim=1)
        values = {k: combine((c_out, f), (c_skip, x_t)) for k, f in zip(self.targets, parts, strict=True)}
        source = cond.source
        return Prediction(x_t, level, values, source=None if source is None else source.to(x_t.dtype), aux=aux)

    def write(self, x: Tensor, t: Time, cond: Mapping[str, Any] | Conditions | None, cache: Any) -> None:
        """Put finished frames (B, F, ...), told the time t, into the cache of a network over frames."""
        level = self.process.at(t)
        c_in, _, _ = self.precondition.weights(level)
        cond = as_conditions(cond, self.kinds, x.device)
        self.network.write(scale(c_in, x), time_tensor(self.precondition.time(level), x), cond, cache)  # type: ignore[operator]

    def _other_length(self, x_t: Tensor) -> bool:
        """Whether these are samples with another number of frames, to a network that takes any."""
        assert self.shape is not None
        same = x_t.ndim == len(self.shape) + 1 and x_t.shape[2:] == self.shape[1:]
        return same and getattr(self.network, "any_frames", False)

    def on(self, process: Process) -> Denoiser:
        """The same network, and its weights, as a denoiser on another process. Nothing is converted: that makes sense
        where the network is told all that it needs to know of the level (:class:`Told`); else see
        :class:`condiff.process.Retimed`.
        """
        new = Denoiser(self.network, process, self.targets, self.precondition, self.shape).train(self.training)
        new.space = self.space
        return new

    def config(self) -> dict[str, Any]:
        """Everything needed to build it again, weights apart, as JSON-ready data; see :meth:`from_config`.

        Parts that condiff doesn't publish (a network or a process of your own) are noted as ``{"own": name}``.
        """
        network = getattr(self.network, "config", self.network)
        return {
            "network": part_config(network if dataclasses.is_dataclass(network) else self.network),
            "process": part_config(self.process),
            "target": list(self.targets),
            "precondition": part_config(self.precondition),
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, network: nn.Module | None = None, process: Process | None = None
    ) -> Denoiser:
        """The denoiser of a :meth:`config`, with fresh weights.

        Args:
            network, process: the parts that are one's own, not condiff's.

        Raises:
            BadValue: unknown parts or fields, or a part of one's own that is missing here.
        """
        names = ("network", "process", "target", "precondition", "shape")
        return cls(
            *built_parts("denoiser", config, names, network, process),
            from_config(config.get("target", "velocity")),
            built_part("precondition", config.get("precondition"), None),
            config.get("shape"),
        )

    def extra_repr(self) -> str:
        return f"process={self.process}, target={self.targets}, precondition={self.precondition}, shape={self.shape}"


def device_of(denoiser: Any, like: Tensor | None = None) -> torch.device:
    """Where the weights are. Without any, and for offloaded ones, which lie nowhere until a call, where ``like`` is, or
    the CPU."""
    parameters: Any = getattr(denoiser, "parameters", None)
    first = None if parameters is None else next(iter(parameters()), None)
    if first is not None and first.device.type != "meta":
        return first.device
    return torch.device("cpu") if like is None else like.device


def part_config(value: Any) -> Any:
    """A part as JSON-ready data, or a note of the type of one that condiff doesn't publish."""
    if dataclasses.is_dataclass(value):
        try:
            return to_config(value)
        except BadType:
            pass
    return {"own": f"{type(value).__module__}.{type(value).__qualname__}"}


def built_parts(
    what: str, config: Mapping[str, Any], names: Sequence[str], network: Any, process: Any
) -> tuple[nn.Module, Any]:
    """Network and process of a denoiser's configuration; those that are given are taken as they are.

    Raises:
        BadValue: a field that isn't among the names, an unknown part, a part of one's own that is missing here.
    """
    for key in config:
        if key not in names:
            raise unknown(f"field of a {what}", key, names)
    part = built_part("network", config.get("network"), network)
    built = part if isinstance(part, nn.Module) else part.build()
    return built, built_part("process", config.get("process"), process)


def built_part(name: str, config: Any, given: Any) -> Any:
    """A given part, else the one that the configuration describes."""
    if given is not None or config is None:
        return given
    if isinstance(config, Mapping) and "own" in config:
        raise BadValue(f"the {name} of this denoiser is {config['own']}, which is not condiff's: give {name}=")
    return from_config(config)


def check_times(t: Weight, x: Tensor) -> None:
    """Refuse a tensor of times that doesn't lie along the leading dimensions of the state, ``(B,)``, ``(B, F)`` ...

    Behind the batch a size of 1 stands for all.
    """
    if not isinstance(t, Tensor) or t.ndim == 0:
        return
    behind = zip(t.shape[1:], x.shape[1:], strict=False)
    if t.ndim > x.ndim or t.shape[0] != x.shape[0] or any(n not in (1, m) for n, m in behind):
        raise BadValue(f"times of shape {tuple(t.shape)} must match the leading dimensions of x {tuple(x.shape)}")


def time_tensor(time: Weight, x: Tensor) -> Tensor:
    """The network's time input: (B,) from one time, else as it is, in float32."""
    if isinstance(time, Tensor):
        time = time.expand(x.shape[:1]) if time.ndim == 0 else time
        return time.to(device=x.device, dtype=torch.float32)
    return torch.full(x.shape[:1], time, dtype=torch.float32, device=x.device)
