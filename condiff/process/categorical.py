"""Categorical processes: token sequences that lose tokens to MASK and to uniform noise.

At time t a token is *visible* with probability ``1 - mask(t)``, else it is MASK (id V), for good. A visible token is
still the original with probability ``retain(t)``, else a uniform draw over the V tokens::

    q(x_t = w | x0 = v) = (1 - mask) (retain [w = v] + (1 - retain) / V)        q(x_t = MASK | x0) = mask

Absorbing diffusion has retain = 1, uniform diffusion mask = 0; the (a, b, c) kernel of VQ-Diffusion and CDCD has both,
``a + b = (1 - mask) (retain + (1 - retain) / V)``, ``c = mask``. Kernels between two times have the same form with
the ratios ``(1 - mask_t) / (1 - mask_s)`` and ``retain_t / retain_s``. Posteriors are exact, in float64 log space.

t = 0 is data: at t = 0 exactly nothing is lost, also when a schedule loses a share right after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible
from condiff.fields import checked
from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.keep import Keep, LinearKeep, LogLinear, RatioKeep
from condiff.process.level import level_at, levels_on
from condiff.process.token_level import TokenLevel, TokenPrior, TokenTime
from condiff.process.token_prediction import TokenPrediction, soft
from condiff.random import Source, as_source


class TokenProcess(ABC):
    """Base of the categorical processes. Subclasses give two :class:`Keep` schedules (or None)."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    vocab: int

    @property
    @abstractmethod
    def masking(self) -> Keep | None:
        """What stays visible; None when there is no MASK."""

    @property
    @abstractmethod
    def shuffling(self) -> Keep | None:
        """What of the visible is retained; None when visible tokens are always the original."""

    @property
    def mask_id(self) -> int:
        """The id of MASK, V."""
        return self.vocab

    @property
    def visible_is_clean(self) -> bool:
        """Whether every visible token is the original, so that predictions carry it over."""
        return self.shuffling is None

    def _check_vocab(self) -> None:
        if isinstance(self.vocab, bool) or not isinstance(self.vocab, int) or self.vocab < 2:
            raise BadValue(f"vocab must be an integer, at least 2 (MASK not counted), got {self.vocab!r}")

    # Levels

    def curves(self, t: Tensor) -> tuple[Tensor, ...]:
        """``(mask, lost, visible, retain, d_mask, d_lost)`` at float64 times of any shape; nothing is lost at t = 0."""
        parts = self.masking, self.shuffling
        zero, start = torch.zeros_like(t), t == 0.0
        return (
            *(zero if k is None else torch.where(start, 0.0, k.lost(t)) for k in parts),
            *(zero + 1.0 if k is None else torch.where(start, 1.0, k.keep(t)) for k in parts),
            *(zero if k is None else k.d_lost(t) for k in parts),
        )

    def at(self, t: TokenTime) -> TokenLevel:
        """The level at ``t``. A level of this process is returned as it is.

        Raises:
            BadValue: when ``t`` lies outside [0, 1].
        """
        return level_at(TokenLevel, self, t)

    def levels(self, grid: Tensor) -> list[TokenLevel]:
        """One level per row of a grid ``(N,)`` (numbers) or ``(N, ...)`` (tensors)."""
        return levels_on(TokenLevel, self, grid)

    def model_time(self, t: Tensor) -> Tensor:
        """The number a network of this process is told."""
        return t

    # Forward

    def forward(
        self,
        x0: Tensor,
        t: TokenTime,
        *,
        noise: Tensor | None = None,
        rng: int | torch.Generator | Source | None = None,
    ) -> TokenPrediction:
        """Draw ``x_t`` given ``x0``: a prediction whose ``x_t`` is the state and whose tokens are ``x0``.

        Args:
            x0: ids (B, ...) below V.
            t: one time, one per row (B,), or one per position.
            noise: uniforms on [0, 1) of x0's shape, when they are given: a position is the original below
                ``1 - mask - lost'``, a uniform token up to ``1 - mask``, MASK above. So one draw at all times
                loses tokens in one order.
            rng: where noise is drawn from.

        Raises:
            BadType: x0 that isn't integer.
            BadValue: ids outside the vocabulary (MASK included), shapes that don't match.
        """
        self.check_tokens(x0)
        level = self.at(t)
        if isinstance(level.t, Tensor) and level.t.shape != x0.shape[: level.t.ndim]:
            raise BadValue(
                f"t of shape {tuple(level.t.shape)} must match the leading dimensions of x0 {tuple(x0.shape)}"
            )
        if noise is None:
            noise = as_source(rng).uniform(x0.shape, device=x0.device)
        elif noise.shape != x0.shape:
            raise BadValue(f"noise of shape {tuple(noise.shape)} must have the shape of x0, {tuple(x0.shape)}")
        visible = self.spread(level.visible, x0)
        kept = visible * self.spread(level.retain, x0)
        x_t = torch.where(noise < kept, x0, self.mask_id)
        if not self.visible_is_clean:
            share = (noise - kept) / (visible - kept).clamp_min(torch.finfo(torch.float64).tiny)
            other = (share * self.vocab).long().clamp(0, self.vocab - 1)
            x_t = torch.where((noise >= kept) & (noise < visible), other, x_t)
        return TokenPrediction(x_t, level, tokens=x0)

    def mask_share(
        self, x0: Tensor, share: float | Tensor, rng: int | torch.Generator | Source | None = None
    ) -> TokenPrediction:
        """Each position masked with probability ``share``, whatever the schedule (RADD's lambda-DCE).

        Args:
            x0: ids (B, L).
            share: a number or (B,), in [0, 1].

        The level is the one at which this share is masked, the nearest where a schedule doesn't reach it.

        Raises:
            Incompatible: a process that does more than mask.
            BadValue: a share outside [0, 1].
        """
        masking = self._only_masking(x0, "masking a share")
        share = torch.as_tensor(share, dtype=torch.float64, device=x0.device).expand(x0.shape[0])
        if not bool(((share >= 0.0) & (share <= 1.0)).all()):
            raise BadValue(f"share must lie in [0, 1], got {share.tolist()}")
        hidden = as_source(rng).uniform(x0.shape, device=x0.device) < self.spread(share, x0)
        return TokenPrediction(torch.where(hidden, self.mask_id, x0), self.at(masking.time(share)), tokens=x0)

    def mask_count(
        self, x0: Tensor, k: int | Tensor, rng: int | torch.Generator | Source | None = None
    ) -> TokenPrediction:
        """Exactly ``k`` positions of each row masked, uniformly chosen (any-order training, RADD's k-DCE).

        Args:
            x0: ids (B, L).
            k: a number or (B,), between 0 and L.

        The level is the one at which a share k / L is masked on average.

        Raises:
            Incompatible: a process that does more than mask.
            BadValue: k outside [0, L].
        """
        masking = self._only_masking(x0, "masking an exact count")
        k = torch.as_tensor(k, device=x0.device).expand(x0.shape[0])
        if bool(((k < 0) | (k > x0.shape[1])).any()):
            raise BadValue(f"k must lie in [0, {x0.shape[1]}], got {k.tolist()}")
        rank = as_source(rng).uniform(x0.shape, device=x0.device).argsort(-1).argsort(-1)
        t = masking.time(k.double() / x0.shape[1])
        return TokenPrediction(torch.where(rank < k[:, None], self.mask_id, x0), self.at(t), tokens=x0)

    def _only_masking(self, x0: Tensor, what: str) -> Keep:
        self.check_tokens(x0)
        if not self.visible_is_clean or self.masking is None:
            raise Incompatible(f"{what} belongs to Absorbing, not {self}")
        return self.masking

    def check_tokens(self, x0: Tensor) -> None:
        """Refuse what isn't clean tokens (see :meth:`forward`)."""
        if x0.dtype.is_floating_point or x0.dtype == torch.bool:
            raise BadType(f"tokens must be integer ids, got {x0.dtype}")
        if x0.device.type != "cpu" or not x0.numel():
            return
        low, high = int(x0.min()), int(x0.max())
        if not 0 <= low <= high < self.vocab:
            raise BadValue(f"clean tokens must lie in [0, {self.vocab}) (MASK is {self.vocab}), got {low} .. {high}")

    def prior(self) -> TokenPrior:
        """The law at t = 1: MASK everywhere, or uniform tokens without a MASK."""
        return TokenPrior()

    @staticmethod
    def spread(weight: Weight, x: Tensor) -> Tensor:
        """A coefficient in float64, broadcast over the trailing dimensions of x (B, ...)."""
        out = torch.as_tensor(weight, dtype=torch.float64, device=x.device)
        return out.reshape(out.shape + (1,) * (x.ndim - out.ndim)) if out.ndim else out

    # Kernels and posteriors

    def log_likelihood(self, x_t: Tensor, t: TokenTime) -> Tensor:
        """``log q(x_t^i | x0^i = v)`` for ids x_t, (B, ..., V) float64."""
        level = self.at(t)
        mask, lost, visible, retain = (self.spread(w, x_t)[..., None] for w in level[1:5])
        same = x_t[..., None] == torch.arange(self.vocab, device=x_t.device)
        token = visible * (retain * same + lost / self.vocab)
        return torch.where((x_t == self.mask_id)[..., None], mask, token).log()

    def transition(self, s: TokenLevel, t: TokenLevel) -> Tensor:
        """The kernel ``q(x_t = column | x_s = row)`` for s <= t at common times, (V + 1, V + 1) float64."""
        stay, hide = (algebra.divide(w, s.visible) for w in (t.visible, t.mask - s.mask))
        retain, lose = (algebra.divide(w, s.retain) for w in (t.retain, t.lost - s.lost))
        out = torch.zeros(self.vocab + 1, self.vocab + 1, dtype=torch.float64)
        eye = torch.eye(self.vocab, dtype=torch.float64)
        out[:-1, :-1] = stay * (retain * eye + lose / self.vocab)
        out[:-1, -1] = hide
        out[-1, -1] = 1.0
        return out

    def posterior(self, prediction: TokenPrediction, s: TokenTime) -> Tensor:
        """``log q(x_s | x_t) = log sum_v p(x0 = v | x_t) q(x_s | x_t, x0 = v)`` for s < t, (B, ..., V + 1) float64.

        MASK stays with probability ``mask_s / mask_t`` and else becomes v with ``retain_s p(v) + (1 - retain_s) / V``.
        A visible token j stays visible; with ``r(v) = p(v) / q(j | v)`` and ``R = sum r``, it was w with probability
        ``q(j | w) (retain_s r(w) + (1 - retain_s) R / V)`` (Gu 2022, VQ-Diffusion, eq. 11, in the log domain).

        Raises:
            BadValue: a soft state, or s that isn't below t.
        """
        x, t, s = prediction.x_t, prediction.level, self.at(s)
        if soft(x):
            raise BadValue("a posterior needs a state of ids, not soft one-hots")
        if not algebra.holds(self.spread(s.t, x) <= self.spread(t.t, x)):
            raise BadValue(f"a posterior goes back in time: s = {s.t} must not exceed t = {t.t}")
        log_p = prediction.log_probs.double()
        masked = (x == self.mask_id)[..., None]
        if self.visible_is_clean:
            hidden = visible = log_p
        else:
            lost_s, retain_s = (self.spread(w, x)[..., None] for w in (s.lost, s.retain))
            hidden = _log_add(log_p + retain_s.log(), (lost_s / self.vocab).log())
            visible = self._visible_posterior(log_p, x, t, s)
        stay = self.stay(t, s, x)[..., None]
        data = torch.where(masked, hidden + torch.log1p(-stay), visible)
        return torch.cat([data, torch.where(masked, stay, 0.0).log()], -1)

    def stay(self, t: TokenLevel, s: TokenLevel, x: Tensor) -> Tensor:
        """The probability ``mask_s / mask_t`` that a MASK of time t is one at s < t already, broadcast over x."""
        mask_t = self.spread(t.mask, x)
        return torch.where(mask_t > 0.0, self.spread(s.mask, x) / mask_t, 1.0)

    def _visible_posterior(self, log_p: Tensor, x: Tensor, t: TokenLevel, s: TokenLevel) -> Tensor:
        lost_t, retain_t, lost_s, retain_s = (
            self.spread(w, x)[..., None] for w in (t.lost, t.retain, s.lost, s.retain)
        )
        same = x[..., None] == torch.arange(self.vocab, device=x.device)
        step = (retain_t / retain_s * same + (lost_t - lost_s) / retain_s / self.vocab).log()
        log_r = log_p - (retain_t * same + lost_t / self.vocab).log()
        # at t = 0 the only possible x0 is x itself, whatever p says
        log_r = torch.where(lost_t > 0.0, log_r, torch.where(same, 0.0, -torch.inf))
        total = log_r.logsumexp(-1, keepdim=True)
        return step + _log_add(log_r + retain_s.log(), (lost_s / self.vocab).log() + total)

    # Rates of the continuous-time chain

    def rates(self, t: TokenTime) -> tuple[Weight, Weight]:
        """Forward rates of one visible token: to MASK, and of being replaced by a uniform draw (possibly itself)."""
        level = self.at(t)
        return algebra.divide(level.d_mask, level.visible), algebra.divide(level.d_lost, level.retain)

    def log_ratios(self, prediction: TokenPrediction) -> Tensor:
        """``log p_t(y) / p_t(x_t)`` for y that differs from x_t at one position, by being w there, (B, ..., V + 1).

        The concrete score (Lou 2024). The ratio is ``E[q(w | x0) / q(x_t | x0)]`` over ``p(x0 | x_t)``, provided that
        every x0 can have led to x_t. Visible tokens of an absorbing process exclude the other x0, so that nothing
        follows there: nan (and no jump goes that way).
        """
        x, level = prediction.x_t, prediction.level
        log_r = prediction.log_probs.double() - self.log_likelihood(x, level)
        total = log_r.logsumexp(-1, keepdim=True)
        mask, lost, visible, retain = (self.spread(w, x)[..., None] for w in level[1:5])
        data = visible.log() + _log_add(retain.log() + log_r, (lost / self.vocab).log() + total)
        out = torch.cat([data, mask.log() + total], -1)
        return torch.where(prediction.masked[..., None], out, torch.nan) if self.visible_is_clean else out

    def reverse_rates(self, prediction: TokenPrediction) -> Tensor:
        """Rates at which each position jumps backwards in time to w != x_t, (B, ..., V + 1) float64.

        ``Q(w -> x_t) p_t(y) / p_t(x_t)``: MASK becomes w at ``d_mask / mask E[q(w | x0) | visible]``, a visible token
        w at the shuffling rate / V times the ratio. Zero towards x_t itself and towards MASK.
        """
        x, level = prediction.x_t, prediction.level
        mask, lost, _, retain, d_mask, d_lost = (self.spread(w, x)[..., None] for w in level[1:-1])
        probs = prediction.probs.double()
        masked = (x == self.mask_id)[..., None]
        reveal = torch.where(mask > 0.0, d_mask / mask, 0.0)
        data = torch.where(masked, reveal * (retain * probs + lost / self.vocab), 0.0)
        if not self.visible_is_clean:
            same = x[..., None] == torch.arange(self.vocab, device=x.device)
            jump = d_lost / retain / self.vocab * self.log_ratios(prediction)[..., :-1].exp()
            data = torch.where(masked, data, torch.where(same, 0.0, jump))
        return torch.cat([data, torch.zeros_like(data[..., :1])], -1)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp(a) + exp(b))``, -inf with zero gradient where both are -inf."""
    a, b = torch.broadcast_tensors(a, b)
    nothing = torch.isneginf(a) & torch.isneginf(b)
    return torch.where(nothing, -torch.inf, torch.logaddexp(torch.where(nothing, 0.0, a), torch.where(nothing, 0.0, b)))


@dataclass(frozen=True)
class Absorbing(TokenProcess):
    """Tokens turn into MASK and stay MASK (Austin 2021; MDLM, RADD). Visible tokens are clean."""

    vocab: int
    schedule: Keep = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        self._check_vocab()

    @property
    def masking(self) -> Keep:
        return self.schedule

    @property
    def shuffling(self) -> None:
        return None


@dataclass(frozen=True)
class UniformTokens(TokenProcess):
    """Tokens turn into uniform draws (Hoogeboom 2021; D3PM-uniform). There is no MASK."""

    vocab: int
    schedule: Keep = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        self._check_vocab()

    @property
    def masking(self) -> None:
        return None

    @property
    def shuffling(self) -> Keep:
        return self.schedule


def _vq_visible() -> Keep:
    return LinearKeep(start=9e-6, end=0.99999)


def _vq_retain() -> Keep:
    return RatioKeep(top=LinearKeep(start=1e-5, end=1.0 - 9e-6), bottom=_vq_visible())


@dataclass(frozen=True)
class MaskAndUniform(TokenProcess):
    """Tokens turn into MASK or into uniform draws (Gu 2022, VQ-Diffusion; CDCD).

    Args:
        vocab: number of data tokens V.
        visible: what isn't masked.
        retain: what of the visible is the original.

    The defaults are VQ-Diffusion's linear shares: the original from 0.99999 to 9e-6, MASK from 9e-6 to 0.99999.
    """

    vocab: int
    visible: Keep = field(default_factory=_vq_visible)
    retain: Keep = field(default_factory=_vq_retain)

    def __post_init__(self) -> None:
        self._check_vocab()

    @property
    def masking(self) -> Keep:
        return self.visible

    @property
    def shuffling(self) -> Keep:
        return self.retain
