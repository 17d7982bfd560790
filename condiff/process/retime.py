"""Retimed: a denoiser trained on one Gaussian path, used on another.

Two paths ``x_t = data x0 + noise z`` with the same law of z differ only by a change of time and a scale of the state:
where their log-SNRs agree, ``x' = k x`` with ``k = |(data', noise')| / |(data, noise)|``, and so do ``E[x0 | x]`` and
``E[z | x]``. A model of Stable Diffusion is thus sampled on the straight path, a flow model on EDM's, without any
training (Karras 2022; kinetic-optimal paths).

A path to an endpoint is one of these paths once the endpoint's share is taken off, ``x_t - source y``: a model without
an endpoint also serves a residual process or a bridge, and with y = 0 the residual process generates (RDDM, Liu 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight, combine, scale
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.prediction import Prediction

OUTSIDE = ("refuse", "nearest")
_TOLERANCE = 1e-6  # by which the log-SNRs may differ, relative to 1 + |log-SNR|: what the inverse loses


class Retimed:
    """A denoiser for ``process`` whose inner denoiser lives on its own path.

    Args:
        denoiser: any denoiser of a Gaussian path with an invertible log-SNR.
        process: the path to be sampled. One with an endpoint finds it among the conditions; the inner denoiser sees
            that entry only if it was built for its name.
        outside: what happens where the inner path doesn't reach (the pure noise of a straight path, for a model whose
            last level keeps some signal): ``"refuse"``, or ``"nearest"``, which takes what the inner model says of the
            same state at its own end, an approximation as good as its prior there.

    Raises:
        Incompatible: an inner path with an endpoint or without an inverse of the log-SNR, or different laws of noise.

    Example:
        >>> straight = Retimed(stable_diffusion, Gaussian(Rectified()))
        >>> sample(straight, solver=Euler(), grid=Uniform(start=straight.start_time), steps=20, num=4)
    """

    def __init__(self, denoiser: Any, process: Any, *, outside: str = "refuse") -> None:
        if outside not in OUTSIDE:
            raise unknown("treatment of what lies outside", outside, OUTSIDE)
        inner = denoiser.process
        for path in (inner, process):
            if not isinstance(path, Process) or (path is inner and path.has_source):
                raise Incompatible(f"re-timing needs paths from data to noise, not {path}")
        inner.time(torch.zeros(1, dtype=torch.float64))  # refuses a path without an inverse
        if inner.noise_law != process.noise_law and not (inner.noise_law.gaussian and process.noise_law.gaussian):
            raise Incompatible(f"{inner} and {process} have different laws of noise: no scale makes them one")
        self.denoiser, self.process, self.outside = denoiser, process, outside
        self._matches: dict[float, tuple[Level, Weight, bool]] = {}

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a sample, the inner denoiser's."""
        return self.denoiser.shape

    @property
    def kinds(self) -> Any:
        """The kinds of the inner denoiser's conditions."""
        return getattr(self.denoiser, "kinds", {})

    def start(self) -> None:
        """Reset an inner denoiser that has a state."""
        if hasattr(self.denoiser, "start"):
            self.denoiser.start()

    def parameters(self) -> Any:
        """The inner parameters, where there are some."""
        parameters = getattr(self.denoiser, "parameters", None)
        return parameters() if callable(parameters) else iter(())

    @property
    def start_time(self) -> float:
        """The latest time on this path that the inner path reaches: where a grid may start."""
        return float(self.process.time(torch.tensor(self.denoiser.process.at(1.0).log_snr, dtype=torch.float64)))

    def match(self, t: Time) -> tuple[Level, Weight, bool]:
        """The inner level with the log-SNR of ``t``, the factor k on the state, and whether the log-SNRs do agree.

        Raises:
            BadValue: where the inner path doesn't reach, unless ``outside="nearest"``.
        """
        level = self.process.at(t)
        if isinstance(level.t, Tensor):
            return self._match(level)
        if level.t not in self._matches:  # a sampler comes back to the same few times
            if len(self._matches) > 4096:
                self._matches.clear()
            self._matches[level.t] = self._match(level)
        return self._matches[level.t]

    def _match(self, level: Level) -> tuple[Level, Weight, bool]:
        wanted = torch.as_tensor(level.log_snr, dtype=torch.float64)
        time = self.denoiser.process.time(wanted)
        inner = self.denoiser.process.at(time if isinstance(level.t, Tensor) else float(time))
        reached = torch.as_tensor(inner.log_snr, dtype=torch.float64)
        room = _TOLERANCE * (1.0 + torch.minimum(wanted.abs(), reached.abs()))
        close = (wanted == reached) | ((wanted - reached).abs() <= room)
        exact = bool(close.all())
        if not exact and self.outside == "refuse":
            first, last = (self.denoiser.process.at(x).log_snr for x in (0.0, 1.0))
            raise BadValue(
                f"t = {level.t} has log-SNR {wanted.tolist()}, the inner path covers {last:.6g} .. {first:.6g}: "
                f"start the grid at t = {self.start_time:.6f} (Retimed.start_time), or use outside='nearest'"
            )
        return inner, algebra.divide(_norm(inner), _norm(level)), exact

    def __call__(self, x_t: Tensor, t: Time, cond: Any = None) -> Prediction:
        inner, k, exact = self.match(t)
        level, source = self.process.at(t), None
        state = x_t
        if self.process.has_source:
            cond, source = self._without_endpoint(cond)
            state = combine((1.0, x_t), (-1.0 * level.source, source.to(x_t)))
        said = self.denoiser(scale(k, state), inner, cond)
        values = _carried(said, k) if exact else {"x0": said.x0, "noise": said.noise}
        return Prediction(x_t, level, values, source=source, aux=said.aux)

    def _without_endpoint(self, cond: Any) -> tuple[Any, Tensor]:
        """The conditions as the inner denoiser knows them, and the endpoint."""
        source = getattr(cond, "source", None)
        if source is None:
            raise BadValue(f"{self.process} moves to an endpoint: give a condition of kind 'endpoint'")
        return cond.for_kinds(self.kinds), source

    def __repr__(self) -> str:
        return f"Retimed({self.denoiser.process} -> {self.process})"


def _carried(said: Prediction, k: Weight) -> dict[str, Tensor]:
    """What was predicted, for the outer path: x0 and noise are the same, velocities become v, which has no clock."""
    values = {}
    for kind, value in said.values.items():
        if kind in ("x0", "noise"):
            values[kind] = value
        elif kind == "score":
            values[kind] = scale(k, value)
        else:
            values["v"] = scale(algebra.divide(1.0, k), said.v)
    return values


def _norm(level: Level) -> Weight:
    """``|(data, noise)|``, which neither end makes zero."""
    return algebra.sqrt(level.data * level.data + level.noise * level.noise)
