"""What one step from t to s < t adds to the log-density of a model, from its prediction at t and the step itself.

Both rules read ``log q_s(x_s) - log q_t(x_t)`` off the increment that was made, whatever its drift, as long as its
noise is that of the reverse SDE. No divergence is needed: what it would give cancels against the second derivative
in Itô's formula.

* Itô's formula (Skreta 2024): with the forward SDE ``dx = f_t(x) dt + g dW``, score_i of model i and ``h = t - s``,
  ``<dx, score_i> + h [div f + <f, score_i> - g^2/2 |score_i|^2]``. It goes with :class:`SDE`, whose steps have this
  drift and this noise.
* Kernels, for a given ``spread`` c: Bayes' rule ``log N(x_s; m_i, v) - log q(x_t | x_s)`` with the exact mean
  ``m_i = E_i[x_s | x_t]`` and ``v = k^2 P_s / P_t``, ``P = data^2 c^2 + noise^2``, k the deviation of ``q(x_t | x_s)``.
  It agrees with the other as steps become small, whatever c, needs no derivative of the schedule, stays finite where
  data(t) = 0, and is exact at any step for isotropic Gaussian data of deviation c. It goes with :class:`DDPM` and
  ``DDIM(eta=1)``, whose means are m_i.

A deterministic step has no noise to cancel with: ``-(1 - r) g^2/2 h div score_i`` is then added to Itô's formula, r
being the noise relative to the reverse SDE's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import Degenerate, Incompatible
from condiff.process import algebra
from condiff.process.algebra import Weight, holds, match
from condiff.process.level import Level
from condiff.process.prediction import Prediction

USUAL_SPREAD = 0.5  # of images in [-1, 1]; where Itô's formula needs a stand-in


@dataclass(frozen=True, eq=False)
class Gains:
    """``log q_i`` gains ``<a (x_s - x_t), u_i> + fixed_i + common(x_s)``: affine in x_s but for what all models share.

    Args:
        u: (B, M, D), a vector of each model: its score, or its mean of x_s.
        a: weight over the entries, a number or (B, D).
        fixed: (B, M).
        common: the same for all models, (B,).
        drive: the number that u_i is multiplied with in the mean of a step that goes with the rule.
    """

    x_t: Tensor
    u: Tensor
    a: Weight
    fixed: Tensor
    common: Callable[[Tensor], Tensor]
    drive: Weight

    def at(self, x_s: Tensor) -> Tensor:
        """(B, M) float64."""
        x = x_s.double().flatten(1)
        step = self.a * (x - self.x_t)
        return torch.einsum("bd,bmd->bm", step, self.u) + self.fixed + self.common(x)[:, None]

    def levelled(self, x_s: Tensor, lift: Tensor, free: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The least change of x_s along the differences of the u_i after which all models gain alike, model i
        ``lift_i - lift_1`` more than the first: ``(change (B, D), coefficients c (B, M))``, ``change = sum_i c_i u_i``
        with ``sum_i c_i = 0``.

        With ``delta_i = u_i - u_1`` it solves ``sum_j <a delta_i, delta_j> c_j = lift_i - lift_1 - (gain_i - gain_1)``.
        Models that agree up to rounding have no difference to go along, and nothing changes.

        Args:
            lift: (M,) or (B, M).
            free: (B, D) booleans, the entries that may change; all without.
        """
        gain = self.at(x_s)
        wanted = (lift - gain).broadcast_to(gain.shape)
        wanted = wanted[:, 1:] - wanted[:, :1]
        delta = self.u[:, 1:] - self.u[:, :1]
        delta = delta if free is None else delta * free[:, None]
        weighted = delta * self.a.unsqueeze(1) if isinstance(self.a, Tensor) else delta * self.a
        gram = torch.einsum("bid,bjd->bij", weighted, delta)
        size = self.u.square().sum((1, 2)) * (self.a.amax(1) if isinstance(self.a, Tensor) else self.a)
        c = solve(gram, wanted, size, torch.finfo(x_s.dtype).eps)
        c = torch.cat([-c.sum(1, keepdim=True), c], 1)
        change = torch.einsum("bi,bid->bd", c[:, 1:], delta)
        return change, c


def solve(gram: Tensor, wanted: Tensor, size: Tensor, eps: float) -> Tensor:
    """``gram c = wanted`` in the directions that stand out from rounding, 0 in the others; (B, K, K), (B, K).

    Differences are known to some ``eps`` of what they are the difference of: ``(16 eps)^2 size`` of the Gram matrix is
    rounding.
    """
    if gram.shape[1] == 1:  # two models
        known = gram[..., 0] > 256.0 * eps**2 * size[:, None]
        return torch.where(known, wanted / torch.where(known, gram[..., 0], 1.0), 0.0)
    values, vectors = torch.linalg.eigh(gram)
    known = values > torch.maximum(256.0 * eps**2 * size[:, None], 1e-13 * values[:, -1:])
    inverse = torch.where(known, 1.0 / torch.where(known, values, 1.0), 0.0)
    return torch.einsum("bij,bj,bkj,bk->bi", vectors, inverse, vectors, wanted)


def gains(
    said: Sequence[Prediction],
    s: Level,
    spread: float | None = None,
    divergence: Tensor | None = None,
    noise: float = 1.0,
) -> Gains:
    """The gains of the models that say ``said`` at t, for a step to s. Where the time repeats there are none.

    Args:
        spread: None for Itô's formula, a number for kernels.
        divergence: of the scores, (B, M), for steps with another noise.
        noise: of the step, relative to the reverse SDE's.

    Raises:
        Degenerate: Itô's formula where data(t) = 0 in some rows; where it is 0 in all, kernels take its place.
        Incompatible: a process whose drift or kernel depends on x0; divergences beside a spread.
    """
    t = said[0].level
    started = not isinstance(t.data, Tensor) and t.data == 0.0  # pure noise, where the SDE has no drift
    if spread is None and not (started and divergence is None):
        return _ito(list(said), t, s, divergence, 1.0 - noise)
    if divergence is not None:
        raise Incompatible("kernels compare noises that were drawn; steps with another noise need Itô's formula")
    return _kernels(list(said), t, s, USUAL_SPREAD if spread is None else spread)


def _ito(said: list[Prediction], t: Level, s: Level, divergence: Tensor | None, missing: float) -> Gains:
    process, x_t, h, live = t.process, said[0].x_t, t.t - s.t, t.t > s.t
    f, g2 = process.drift(t), process.diffusion2(t)
    if not (holds(abs(f) < math.inf) and holds(g2 < math.inf)):
        raise Degenerate(
            f"the SDE of {process} has no drift at t = {t.t}, where data(t) = 0: give spread=, the data's deviation, "
            "or start the grid below it, such as Uniform(start=0.99)"
        )
    _check_markov(process, t.d_data - f * t.data, t)
    fh, gh = algebra.where(live, f * h, 0.0), algebra.where(live, g2 * h, 0.0)
    u = _stack(said, noise=algebra.where(live, algebra.divide(-1.0, t.noise), 0.0))
    x, a = x_t.double(), _rows(algebra.where(live, 1.0, 0.0), x_t)
    drift = _rows(fh, x_t) * x.flatten(1) + _endpoint(said, algebra.where(live, (t.d_source - f * t.source) * h, 0.0))
    v, dims = _rows(gh, x_t), x[0].numel()
    fixed = torch.einsum("bd,bmd->bm", drift, u) - 0.5 * (_wide(v) * u.square()).sum(-1)
    if divergence is not None:
        fixed = fixed - 0.5 * missing * _per_row(gh, divergence) * divergence
    common = x.new_full((len(x),), dims * fh) if not isinstance(fh, Tensor) else _rows(fh, x_t).sum(1)  # type: ignore[union-attr]
    return Gains(x.flatten(1), u, a, fixed, lambda _: common, v)


def _kernels(said: list[Prediction], t: Level, s: Level, spread: float) -> Gains:
    process, x_t, live = t.process, said[0].x_t, t.t > s.t
    ratio, k = process.kernel(s, t)
    _check_markov(process, t.data - ratio * s.data, t)
    width_t, width_s = ((level.data * spread) ** 2 + level.noise**2 for level in (t, s))
    shrink = algebra.divide(width_s, width_t)
    back, precision = _inverse(live, k * k), _inverse(live, k * k * shrink)
    weight = algebra.divide(ratio * s.noise * s.noise, t.noise)
    u = _stack(said, x0=algebra.where(live, s.data, 0.0), noise=algebra.where(live, weight, 0.0), source=s.source)
    x, a = x_t.double().flatten(1), _rows(precision, x_t)
    fixed = torch.einsum("bd,bmd->bm", a * x, u) - 0.5 * (_wide(a) * u.square()).sum(-1)
    ratio_, back = _rows(ratio, x_t), _rows(back, x_t)
    away = x - _endpoint(said, t.source - ratio * s.source)
    log = _rows(algebra.where(live, -0.5 * algebra.log(shrink), 0.0), x_t)
    logs = log.sum(1) if isinstance(log, Tensor) else x.shape[1] * log

    def common(x_s: Tensor) -> Tensor:
        return 0.5 * (back * (away - ratio_ * x_s).square() - a * x_s.square()).sum(1) + logs

    return Gains(x, u, a, fixed, common, 1.0)


def _inverse(live: bool | Tensor, weight: Weight) -> Weight:
    """``1 / weight``, 0 where nothing moves."""
    return algebra.where(live, algebra.divide(1.0, algebra.where(live, weight, 1.0)), 0.0)


def _check_markov(process, left: Weight, t: Level) -> None:
    if not holds(abs(left) <= 1e-9):
        raise Incompatible(f"{process} moves by a rule that knows x0 (at t = {t.t}): its log-densities have no SDE")


def _stack(said: list[Prediction], **row: Weight) -> Tensor:
    """``linear(**row)`` of each prediction, (B, M, D) float64."""
    return torch.stack([p.linear(**row).double().flatten(1) for p in said], 1)


def _endpoint(said: list[Prediction], weight: Weight) -> Tensor | float:
    """``weight y`` of a process with an endpoint, (B, D)."""
    source = said[0].source
    return 0.0 if source is None else _rows(weight, source) * source.double().flatten(1)


def _rows(weight: Weight, x: Tensor) -> Weight:
    """A weight over the entries of a flattened state: a number, or (B, D) float64."""
    if not isinstance(weight, Tensor):
        return weight
    return match(weight, x.double()).expand(x.shape).flatten(1)


def _wide(weight: Weight) -> Weight:
    return weight.unsqueeze(1) if isinstance(weight, Tensor) else weight


def _per_row(weight: Weight, like: Tensor) -> Weight:
    """A weight for (B, M).

    Raises:
        Incompatible: times per frame.
    """
    if not isinstance(weight, Tensor):
        return weight
    if weight.ndim > 1:
        raise Incompatible("divergences are of whole samples, and this grid has a time per frame")
    return weight.to(like.device)[:, None]
