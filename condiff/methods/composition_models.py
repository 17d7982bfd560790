"""Exact models for the table of compositions, and their laws; see :mod:`condiff.methods.composition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condiff.conditions import GUIDANCE, Condition, Conditions, as_conditions
from condiff.denoiser import Denoiser
from condiff.guidance import Free
from condiff.process import (
    EndpointLaw,
    Interpolant,
    Joint,
    Level,
    Moments,
    Prediction,
    Prior,
    Process,
    TokenPrediction,
    TokenProcess,
    oracles,
)
from condiff.sampling import GaussianLaw
from condiff.token_denoiser import TokenDenoiser

END_MEAN, END_VARIANCE = 0.2, 0.5  # of an endpoint that isn't told


class Told:
    """Gaussian data whose mean is told by conditions: ``x0 | c ~ N(m(c), v)``, exact on every process.

    An absent condition says nothing and leaves more variance. Under Student-t noise the data are one point, ``v = 0``.
    An interpolant's model doesn't see its endpoint, which is drawn from N(0.2, 0.5), unless it is given.

    Args:
        targets: what is predicted; all else follows from that, as with a network.
        kinds: of the conditions that it may be told.
        dims: numbers of a sample, even.
    """

    def __init__(
        self, process: Process, targets: Sequence[str] = ("x0",), kinds: Mapping[str, str] | None = None, dims: int = 2
    ) -> None:
        self.process, self.kinds, self.shape = process, dict(kinds or {}), (dims,)
        self.direction = torch.tensor([1.0, -0.5], dtype=torch.float64).repeat(dims // 2)
        if not targets:
            TokenDenoiser(nn.Identity(), process)  # type: ignore[arg-type]
        self.targets = Denoiser(nn.Identity(), process, targets[0]).targets + tuple(targets[1:])
        self.variance = 0.36 if process.noise_law.gaussian else 0.0
        self._moments: tuple[Any, Any] = (None, None)

    def moments(self, cond: Conditions, rows: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of x0 in each row, (B, D) each."""
        if self._moments[0] != (id(cond), rows):
            self._moments = ((id(cond), rows), (*self._worked_out(cond, rows), cond))
        return self._moments[1][:2]

    def _worked_out(self, cond: Conditions, rows: int) -> tuple[Tensor, Tensor]:
        mean = torch.zeros(rows, *self.shape, dtype=torch.float64)
        var = torch.full_like(mean, self.variance)
        for name, entry in cond.items():
            kept = entry.kept()[:, None]
            value = entry.value.double().reshape(len(entry.value), -1)
            if entry.kind == "observation" and self.variance:
                assert entry.mask is not None
                precision = entry.mask.double() / 0.4
                new = 1.0 / (1.0 / var + precision)
                mean, var = torch.where(kept, new * (mean / var + precision * value), mean), torch.where(kept, new, var)
            elif entry.kind == "endpoint":
                mean = mean + torch.where(kept, 0.5 * value, 0.0)
            elif name in self.kinds:
                mean = mean + torch.where(kept, value.mean(1, keepdim=True) * self.direction, 0.0)
                var = var + torch.where(kept, 0.0, 0.25 if self.variance else 0.0)
        return mean, var

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Prediction:
        level = self.process.at(t)
        cond = as_conditions(cond, self.kinds, x_t.device)
        source, blind = self._source(cond)
        a, b, s = (_column(w) for w in (level.data, level.source, level.noise))
        mean, var = self.moments(cond, len(x_t))
        spread = END_VARIANCE if blind else 0.0
        total = a * a * var + b * b * spread + s * s
        away = x_t - a * mean - b * source
        away = torch.where(total > 0.0, away / torch.where(total > 0.0, total, 1.0), 0.0)
        # The noise of a point is what is left of the state, whatever its law.
        values = {"x0": mean + a * var * away} | ({"noise": s * away} if self.variance else {})
        source = source + b * spread * away if self.process.has_source else None
        truth = Prediction(x_t, level, values, source=source)
        said = {kind: truth.to(kind) for kind in self.targets}
        return Prediction(x_t, level, said, source=None if blind else source)

    def _source(self, cond: Conditions) -> tuple[Any, bool]:
        """The mean of the endpoint, and whether it is only its mean."""
        if not self.process.has_source:
            return 0.0, False
        blind = cond.source is None and isinstance(self.process, Interpolant)
        return (END_MEAN if cond.source is None else cond.source.double()), blind

    def law(self, level: Level, cond: Conditions) -> GaussianLaw:
        """Of x_t, with all conditions."""
        mean, var = self.moments(cond, 1)
        start = self.prior_law(level, cond)
        return GaussianLaw(start.mean + level.data * mean[0], start.cov + torch.diag(level.data**2 * var[0]))

    def prior(self, level: Level, cond: Conditions) -> Prior | None:
        """Where sampling starts from, if not from the process's own prior: below t = 1 the moments of the data."""
        if self._source(cond)[1]:
            return EndpointLaw(_Ends(self.shape))
        if level.t < 1.0 and self.variance:
            mean, var = self.moments(cond, 1)
            return Moments(mean[0], float(var[0].max()))
        return None

    def prior_law(self, level: Level, cond: Conditions) -> GaussianLaw:
        """Of the noise and the endpoint in x_t."""
        source, blind = self._source(cond)
        end = torch.as_tensor(source, dtype=torch.float64).flatten()
        center = torch.zeros(self.shape, dtype=torch.float64) + level.source * end
        spread = level.source**2 * END_VARIANCE if blind else 0.0
        return GaussianLaw(center, (level.noise**2 + spread) * torch.eye(*self.shape, dtype=torch.float64))


class _Ends:
    """The law of an endpoint that isn't told."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, n: int, rng: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return END_MEAN + END_VARIANCE**0.5 * rng.normal((n, *self.shape), dtype)


def _column(w: Any) -> Any:
    return w.reshape(-1, 1) if isinstance(w, Tensor) and w.ndim else w


class TokenTwin:
    """Two tokens of three values with one law for both labels, so that guidance by them makes no difference."""

    law = torch.tensor([0.22, 0.08, 0.05, 0.1, 0.15, 0.02, 0.03, 0.05, 0.3], dtype=torch.float64)

    def __init__(
        self, process: TokenProcess, targets: Sequence[str] = (), kinds: Mapping[str, str] | None = None
    ) -> None:
        if targets:
            Denoiser(nn.Identity(), process, tuple(targets))  # type: ignore[arg-type]
        both = self.law.reshape(1, 3, 3).expand(2, 3, 3)
        self.process, self.oracle = process, oracles.tokens(process, both, torch.tensor([0.5, 0.5]))
        self.shape, self.kinds = self.oracle.shape, {**(kinds or {}), **self.oracle.kinds}

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Any:
        if not x_t.is_floating_point():
            return self.oracle(x_t, t, cond)
        said = self.oracle(x_t.argmax(-1), t, cond)  # of one-hots
        return TokenPrediction(x_t, said.level, said.log_probs)

    def away(self, x: Tensor) -> float:
        """The share of samples (B, 2) that would have to change to have the right frequencies."""
        x = x.argmax(-1) if x.is_floating_point() else x
        drawn = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=len(self.law)).double() / len(x)
        return float((drawn - self.law).abs().sum() / 2)


class Parts:
    """Several variables, each with a model of its own that is told the same conditions."""

    def __init__(self, process: Joint, targets: Sequence[str], kinds: Mapping[str, str]) -> None:
        self.process, self.kinds = process, dict(kinds)
        self.parts: dict[str, Any] = {}
        for name in process:
            if isinstance(process[name], TokenProcess):
                self.parts[name] = TokenTwin(process[name], (), kinds)
            else:
                self.parts[name] = Told(process[name], targets, kinds)
        self.shape = {name: part.shape for name, part in self.parts.items()}

    def __call__(self, x_t: Mapping[str, Tensor], t: Any, cond: Any = None) -> dict[str, Any]:
        level = self.process.at(t)
        return {name: part(x_t[name], level[name], cond) for name, part in self.parts.items()}


class ToldScale:
    """A model that has learned guidance by a label: told the scale, it says in one call what :class:`Free` makes of
    two of the other."""

    def __init__(self, model: Any) -> None:
        self.model, self.process, self.shape = model, model.process, model.shape
        self.targets = getattr(model, "targets", None)
        self.kinds = {**model.kinds, GUIDANCE: "scalar"}

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        cond = as_conditions(cond, self.kinds)
        told = Conditions({name: entry for name, entry in cond.items() if name != GUIDANCE})
        scale: Condition = cond[GUIDANCE]
        return Free(self.model, scale.value.double())(x_t, t, told)
