"""Hooks: what may be done inside a step, at the places that :class:`~condiff.sampling.loop.Hook` names.

Several hooks act in the order in which they are given. What a hook does to a prediction happens after guidance, since
a guided denoiser is one denoiser: x0 is clipped once, not in each branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import BadType, BadValue
from condiff.process.algebra import Weight, row_quantile, scale
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.loop import Hook, Run, Step


@dataclass(frozen=True)
class ClipX0(Hook):
    """x0 clipped to ``[low, high]``; the noise follows from x_t and the clipped x0.

    Args:
        keep_noise: leave the noise as it was predicted, as DDIM of released pipelines does.
    """

    continuous: ClassVar[bool] = True

    low: float = field(default=-1.0, metadata={"infinite": True})
    high: float = field(default=1.0, metadata={"infinite": True})
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise BadValue(f"ClipX0 needs low < high, got {self.low} and {self.high}")

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        x0 = prediction.x0.clamp(self.low, self.high)
        if not self.keep_noise:
            return prediction.set("x0", x0)
        values = {"x0": x0, "noise": prediction.noise}
        return Prediction(prediction.x_t, prediction.level, values, prediction.source, dict(prediction.aux))


@dataclass(frozen=True)
class ClipDecoded(Hook):
    """x0 clipped to ``[low, high]`` where it is decoded: ``encode(clamp(decode(x0)))`` (Friedrich 2024, WDM).

    Bounds on the latents themselves would be something else: a wavelet coefficient says nothing alone. A codec that
    isn't an exact inverse of itself adds its own error at every step.

    Args:
        codec: the configuration of a codec without weights, such as :class:`condiff.codecs.HaarConfig`, or a codec.
    """

    continuous: ClassVar[bool] = True

    codec: Any
    low: float = field(default=-1.0, metadata={"infinite": True})
    high: float = field(default=1.0, metadata={"infinite": True})
    _built: dict[torch.device, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise BadValue(f"ClipDecoded needs low < high, got {self.low} and {self.high}")
        if not hasattr(self.codec, "build") and not isinstance(self.codec, Codec):
            raise BadType(f"ClipDecoded needs a codec, or its configuration, got {self.codec!r}")

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        x0 = prediction.x0
        codec = self._on(x0.device)
        return prediction.set("x0", codec.encode(codec.decode(x0).clamp(self.low, self.high)))

    def _on(self, device: torch.device) -> Codec:
        if isinstance(self.codec, Codec):
            return self.codec
        if device not in self._built:
            self._built[device] = self.codec.build().to(device)
        return self._built[device]


@dataclass(frozen=True)
class DynamicThreshold(Hook):
    """Dynamic thresholding (Saharia 2022, sec. 2.3): per sample, with ``s = max(quantile(|x0|), bound)``,

    ``x0 -> bound clip(x0, -s, s) / s``. Samples that stay within the bound are left alone.

    Args:
        most: that s may be, as released pipelines limit it; what is larger is clipped.
    """

    continuous: ClassVar[bool] = True

    quantile: float = 0.995
    bound: float = 1.0
    most: float = field(default=math.inf, metadata={"infinite": True})

    def __post_init__(self) -> None:
        if not (0.0 < self.quantile <= 1.0 and 0.0 < self.bound <= self.most):
            raise BadValue(
                f"needs 0 < quantile <= 1 and 0 < bound <= most, got {self.quantile}, {self.bound} and {self.most}"
            )

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        x0 = prediction.x0
        s = row_quantile(x0.abs().flatten(1), self.quantile).clamp(self.bound, self.most)
        s = s.reshape(-1, *(1,) * (x0.ndim - 1))
        return prediction.set("x0", torch.minimum(torch.maximum(x0, -s), s) * (self.bound / s))


@dataclass(frozen=True)
class ClipResidual(Hook):
    """The residual ``y - x0`` clipped to ``[-bound, bound]``, beside the noise as it was predicted.

    Samples and endpoints in [-1, 1] differ by up to 2. With ``x0`` given, x0 is clipped to ``[-x0, x0]`` as well, and
    the last step, to t = 0, returns it. ``ClipResidual(1.0, x0=1.0)`` is what the released code of RDDM (Liu 2023)
    does: whatever follows from a clipped quantity follows from its clipped value, the noise is never clipped. Its bound
    of 1 distorts strong degradations.

    Args:
        bound: of the residual.
        x0: of the sample, or None for none.
    """

    continuous: ClassVar[bool] = True

    bound: float = 2.0
    x0: float | None = None

    def __post_init__(self) -> None:
        if not (self.bound > 0.0 and (self.x0 is None or self.x0 > 0.0)):
            raise BadValue(f"ClipResidual needs bounds > 0, got {self.bound} and {self.x0}")

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        said, clean = prediction, prediction.values.get("x0")
        if self.x0 is not None and set(said.values) == {"noise"}:  # its residual follows from the clipped sample
            clean = said.x0.clamp(-self.x0, self.x0)
            residual, noise = said.set("x0", clean).residual, said.noise
        else:
            residual = said.residual.clamp(-self.bound, self.bound)
            noise = said.noise if "noise" in said.values else said.set("residual", residual).noise
        new = Prediction(said.x_t, said.level, {"residual": residual, "noise": noise}, said.source, dict(said.aux))
        if self.x0 is not None:
            new.aux["clipped_x0"] = (new.x0 if clean is None else clean).clamp(-self.x0, self.x0)
        return new

    def mean(self, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        if self.x0 is None or isinstance(run.s.t, Tensor) or run.s.t != 0.0:
            return mean
        return prediction.aux["clipped_x0"]


@dataclass(frozen=True, eq=False)
class X0Replace(Hook):
    """x0 replaced by ``fn(x0, run)``: projections onto an observation, harmonised colours, a decoded and re-encoded
    image. ``run.t``, ``run.s``, ``run.index`` and ``run.cond`` say where the step is.

    Raises:
        BadValue: when the replacement has another shape.

    Example:
        >>> X0Replace(lambda x0, run: x0 - H.T @ (H @ x0 - y))
    """

    continuous: ClassVar[bool] = True

    fn: Callable[[Tensor, Run], Tensor]

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        return prediction.set("x0", self.fn(prediction.x0, run))


@dataclass(frozen=True, eq=False)
class Displace(Hook):
    """The state displaced at the start of each step: ``x_t + fn(x_t, run)``."""

    continuous: ClassVar[bool] = True

    fn: Callable[[Tensor, Run], Tensor]

    def before(self, x: Tensor, run: Run) -> Tensor:
        delta = self.fn(x, run)
        if delta.shape != x.shape:
            raise BadValue(f"a displacement of shape {tuple(delta.shape)} must have the state's, {tuple(x.shape)}")
        return x + delta


@dataclass(frozen=True, eq=False)
class MeanShift(Hook):
    """Guidance of the posterior mean (Dhariwal & Nichol 2021, alg. 1): ``mean + scale (std^2 + extra) grad``.

    Args:
        grad: ``grad(u, level, cond)``, the gradient of a per-sample log-density, such as
            ``condiff.guidance.gradient(log_prob)``.
        scale: strength.
        at: where the gradient is taken: ``"x_t"``, ``"mean"`` or ``"x0"``, the denoised sample, taken as if it were
            the gradient at x_t (both told the level of x_t).
        extra: ``extra(variance, run)``, variance added to that of the step, such as :class:`SineBoost`; steps
            without noise (ODE solvers, the last step) are guided by nothing else.
    """

    continuous: ClassVar[bool] = True

    grad: Callable[[Tensor, Level, Any], Tensor]
    scale: float = 1.0
    at: str = "x_t"
    extra: Callable[[Weight, Run], Weight] | None = None

    def __post_init__(self) -> None:
        if self.at not in ("x_t", "mean", "x0"):
            raise BadValue(f"at must be 'x_t', 'mean' or 'x0', got {self.at!r}")
        if not math.isfinite(self.scale):
            raise BadValue(f"scale must be finite, got {self.scale}")

    def mean(self, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        variance = std * std
        if self.extra is not None:
            variance = variance + self.extra(variance, run)
        if self.scale == 0.0 or (not isinstance(variance, Tensor) and variance == 0.0):
            return mean
        u = mean if self.at == "mean" else getattr(prediction, self.at)
        return mean + scale(self.scale * variance, self.grad(u, prediction.level, run.cond))


@dataclass(frozen=True, eq=False)
class Record(Hook):
    """Keeps something of every step, by default the new state.

    Example:
        >>> record = Record(lambda step: step.prediction.x0)
        >>> sample(model, solver=DDIM(), steps=20, num=4, hooks=[record])
        >>> torch.stack(record.values)
    """

    what: Callable[[Step], Any] = lambda step: step.x_s
    values: list[Any] = field(default_factory=list, init=False)

    def after(self, step: Step, run: Run) -> Tensor:
        if step.index == 0:
            self.values.clear()
        self.values.append(self.what(step))
        return step.x_s
