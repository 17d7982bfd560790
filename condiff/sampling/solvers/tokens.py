"""Update rules for token sequences: ancestral steps, tau-leaping, any-order unmasking, relaxed steps.

All draws are float64 and inverse-CDF (lower precisions mis-sample rare tokens), one or two uniforms per position
and step whatever was decided before, so that a sequence depends on its own seed only: not on its batch, nor on
which evaluations were reused.

Given tokens: start from :func:`infill` and pass ``held=known``; they come back untouched. Where visible tokens may be
noise (uniform processes) also give the known positions t = 0, with a time per position: ``grid * ~known``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate, Incompatible, unknown
from condiff.process.categorical import TokenProcess
from condiff.process.token_level import TokenLevel
from condiff.process.token_prediction import TokenPrediction, one_hot_log, soft
from condiff.random import as_source
from condiff.sampling.solver import Solver, State
from condiff.sampling.solvers.token_filter import TokenFilter


def draw(log_probs: Tensor, u: Tensor) -> Tensor:
    """Ids by inverse CDF from (..., V) log-probabilities and uniforms (...,) on [0, 1); zero probabilities never."""
    cdf = log_probs.double().exp().cumsum(-1)
    cdf = (cdf / cdf[..., -1:]).contiguous()
    return torch.searchsorted(cdf, u[..., None].contiguous(), right=True)[..., 0]


def infill(process: TokenProcess, tokens: Tensor, known: Tensor, rng: Any = None) -> Tensor:
    """The state at t = 1 with some tokens given: ``tokens`` where ``known`` (both (B, L)), the prior elsewhere.

    Raises:
        BadValue: given ids outside the vocabulary, shapes that differ.
    """
    if tokens.shape != known.shape or known.dtype != torch.bool:
        raise BadValue(f"known must be booleans {tuple(tokens.shape)}, got {known.dtype} {tuple(known.shape)}")
    process.check_tokens(tokens[known])
    start = process.prior().sample(process.at(1.0), tokens.shape, as_source(rng), device=tokens.device)
    return torch.where(known, tokens, start)


def steps_down(levels: Sequence[TokenLevel]) -> list[TokenLevel]:
    """The levels that steps arrive at.

    Raises:
        Incompatible: a step up, or levels that aren't those of tokens.
    """
    if not isinstance(levels[0], TokenLevel):
        raise Incompatible(
            f"token solvers need a categorical process such as Absorbing(vocab), not {levels[0].process}"
        )
    for t, s in itertools.pairwise(levels):
        if bool(torch.as_tensor(s.t > t.t).any()):
            raise Incompatible("token solvers go from noise to data: the grid must not go up")
    return list(levels[1:])


def only_absorbing(levels: Sequence[TokenLevel], solver: Any) -> None:
    """Refuse processes whose visible tokens may be noise."""
    process = levels[0].process
    if not (isinstance(process, TokenProcess) and process.visible_is_clean):
        raise Incompatible(f"{type(solver).__name__} needs Absorbing(vocab), not {process}; TokenAncestral takes any")


def evaluate(x: Tensor, state: State, run: Any, reuse: bool | None, kept: TokenFilter | None = None) -> TokenPrediction:
    """The prediction at ``run.t``, with the number of evaluations of each sequence in ``state.extra["nfe"]`` (B,).

    With ``reuse`` a sequence is evaluated again only when one of its tokens has changed and it still holds a MASK
    (Ou 2025, RADD); by default where that is exact: absorbing process, a network that isn't told the time, no hooks.
    ``kept`` acts on what is evaluated, and is reused with it.
    """
    if soft(x):
        raise BadValue("this rule needs a state of ids; RelaxedAncestral takes soft one-hots")
    kept = TokenFilter() if kept is None else kept
    timed = not getattr(run.denoiser, "time_free", True)
    clean = run.denoiser.process.visible_is_clean
    exact = clean and getattr(run.denoiser, "time_free", False) and not run.hooks
    if reuse and (timed or not clean):
        raise Incompatible("reuse=True needs an absorbing process and a denoiser that isn't told the time (time_free)")
    nfe = state.extra.setdefault("nfe", torch.zeros(len(x), dtype=torch.long, device=x.device))
    if not (exact if reuse is None else reuse):
        state.extra["nfe"] = nfe + 1
        return kept(run.denoise(x, run.t))
    last = state.extra.get("x")
    open_ = (x == run.denoiser.process.mask_id).flatten(1).any(-1)
    changed = torch.ones_like(open_) if last is None else (x != last).flatten(1).any(-1)
    stale = open_ & changed
    state.extra["x"], state.extra["nfe"] = x, nfe + stale
    return _evaluate_rows(x, stale, changed & ~open_, state, run, kept)


def _evaluate_rows(
    x: Tensor, stale: Tensor, done: Tensor, state: State, run: Any, kept: TokenFilter
) -> TokenPrediction:
    """What is known of all rows: of the stale ones anew, of those that are done the tokens themselves."""
    if bool(stale.all()):
        prediction = kept(run.denoise(x, run.t))
        state.extra["log_probs"] = prediction.log_probs
        return prediction
    known = state.extra.get("log_probs")
    if bool(stale.any()):
        rows = stale.nonzero()[:, 0]
        new = kept(run.denoise(x[rows], run.t.rows(rows), rows)).log_probs
        known = new.new_zeros(x.shape[0], *new.shape[1:]) if known is None else known
        known = known.index_copy(0, rows, new)
    if known is None:
        known = torch.zeros(*x.shape, run.denoiser.process.vocab, device=x.device)
    if bool(done.any()):
        rows = done.nonzero()[:, 0]
        known = known.index_copy(0, rows, one_hot_log(x[rows], known.shape[-1], known.dtype))
    state.extra["log_probs"] = known
    return TokenPrediction.normalised(x, run.t, known)


@dataclass(frozen=True)
class TokenAncestral(Solver):
    """Draw ``x_s`` from the exact posterior ``q(x_s | x_t)`` under the predicted clean tokens, position by position.

    On an absorbing process a MASK is revealed with probability ``1 - mask_s / mask_t`` (MDLM, RADD's Tweedie step).
    First order in the step: positions that are revealed together are drawn independently.

    Args:
        filter: temperature, top-k and top-p of the predicted tokens.
        reuse: whether unchanged sequences keep their evaluation, see :func:`evaluate`.
    """

    tokens: ClassVar[bool] = True

    filter: TokenFilter = field(default_factory=TokenFilter)
    reuse: bool | None = None

    @property
    def stochastic(self) -> bool:
        return True

    def plan(self, levels: Sequence[TokenLevel]) -> list[TokenLevel]:
        return steps_down(levels)

    def step(self, x: Tensor, c: TokenLevel, state: State, run: Any) -> tuple[Tensor, TokenPrediction, Tensor]:
        prediction = evaluate(x, state, run, self.reuse, self.filter)
        u = run.rng.uniform(x.shape, device=x.device)
        process = run.denoiser.process
        if not process.visible_is_clean:
            return draw(process.posterior(prediction, c), u), prediction, u
        stay = process.stay(run.t, c, x)
        which = run.rng.uniform(x.shape, device=x.device)
        reveal = prediction.masked & ~(u < stay)
        return place(x, reveal, prediction.log_probs, which), prediction, torch.stack([u, which], -1)


def place(x: Tensor, where: Tensor, log_probs: Tensor, u: Tensor) -> Tensor:
    """``x`` with tokens drawn at the chosen positions only."""
    out = x.clone()
    out[where] = draw(log_probs[where], u[where])
    return out


@dataclass(frozen=True)
class TauLeaping(Solver):
    """Each position jumps with probability ``min(1, (t - s) rate)`` to where the reverse rates lead (Campbell 2022).

    The Euler step of the reverse chain, first order; the same as :class:`TokenAncestral` where MASK is lost linearly
    in t. A last step to s = 0 reveals every MASK.
    """

    tokens: ClassVar[bool] = True

    filter: TokenFilter = field(default_factory=TokenFilter)
    reuse: bool | None = None

    @property
    def stochastic(self) -> bool:
        return True

    def plan(self, levels: Sequence[TokenLevel]) -> list[TokenLevel]:
        out = steps_down(levels)
        for t in levels[:-1]:
            if bool((torch.as_tensor(t.retain) == 0.0).any()):
                raise Degenerate(
                    f"the rates of {t.process} are infinite at t = {t.t}, where nothing of the data is left: take a "
                    "schedule that keeps something, such as LogLinear(eps=1e-3), or TokenAncestral"
                )
        return out

    def step(self, x: Tensor, c: TokenLevel, state: State, run: Any) -> tuple[Tensor, TokenPrediction, Tensor]:
        prediction = evaluate(x, state, run, self.reuse, self.filter)
        process = run.denoiser.process
        rates = process.reverse_rates(prediction)
        s, t = process.spread(c.t, x), process.spread(run.t.t, x)
        u, which = (run.rng.uniform(x.shape, device=x.device) for _ in range(2))
        leave = (u < (t - s) * rates.sum(-1)) | (prediction.masked & (s == 0.0))
        return place(x, leave & (t > s), rates.log(), which), prediction, torch.stack([u, which], -1)


ORDERS = ("random", "confidence", "margin", "entropy", "left")


@dataclass(frozen=True)
class Unmask(Solver):
    """Reveal a number of MASK positions per step, in an order; absorbing processes.

    One at a time in random order is exact for exact conditionals (the any-order view of absorbing diffusion, Ou
    2025, and its first-hitting sampler, Zheng 2025); many at a time by confidence is MaskGIT and LLaDA.

    Args:
        per_step: positions per sequence and step; None spreads what is masked evenly over the steps.
        order: ``"random"``; ``"confidence"``, the probability of the token that was drawn; ``"margin"``, that of the
            best token over the second; ``"entropy"``, lowest first; ``"left"`` to right; or a list of positions.
        filter, reuse: as :class:`TokenAncestral`.

    Raises:
        BadValue: an unknown order; fewer steps than it takes.
    """

    tokens: ClassVar[bool] = True

    per_step: int | None = None
    order: str | tuple[int, ...] = "random"
    filter: TokenFilter = field(default_factory=TokenFilter)
    reuse: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.order, str) and self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        if self.per_step is not None and self.per_step < 1:
            raise BadValue(f"per_step must be at least 1, got {self.per_step}")

    @property
    def stochastic(self) -> bool:
        return True

    def plan(self, levels: Sequence[TokenLevel]) -> list[int]:
        """How many steps are left, this one included."""
        steps_down(levels)
        only_absorbing(levels, self)
        return list(range(len(levels) - 1, 0, -1))

    def step(self, x: Tensor, c: int, state: State, run: Any) -> tuple[Tensor, TokenPrediction, Tensor]:
        prediction = evaluate(x, state, run, self.reuse, self.filter)
        masked, log_p = prediction.masked.flatten(1), prediction.log_probs.flatten(1, -2)
        count = masked.sum(-1)
        if self.per_step is not None and int(count.max()) > self.per_step * c:
            raise BadValue(f"{int(count.max())} masked positions need more than {c} steps of {self.per_step}")
        k = -(-count // c) if self.per_step is None else count.clamp(max=self.per_step)
        u, which = (run.rng.uniform(masked.shape, device=x.device) for _ in range(2))
        token = place(x.flatten(1), masked, log_p, which)
        score = torch.where(masked, self._score(log_p, token.clamp(max=log_p.shape[-1] - 1), u), -torch.inf)
        rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        out = torch.where(masked & (rank < k[:, None]), token, x.flatten(1))
        return out.reshape(x.shape), prediction, torch.stack([u, which], -1)

    def _score(self, log_p: Tensor, token: Tensor, u: Tensor) -> Tensor:
        """What is revealed first has the highest score, (B, L)."""
        if self.order == "random":
            return u
        if self.order == "confidence":
            return log_p.gather(-1, token[..., None])[..., 0].double()
        if self.order == "margin":
            best = log_p.exp().topk(2, -1).values
            return (best[..., 0] - best[..., 1]).double()
        if self.order == "entropy":
            return -torch.special.entr(log_p.exp()).sum(-1).double()
        length = token.shape[-1]
        order = range(length) if self.order == "left" else self.order
        if sorted(order) != list(range(length)):
            raise BadValue(f"order must list the positions 0 .. {length - 1} once each, got {self.order}")
        place_of = torch.empty(length, dtype=torch.float64, device=u.device)
        place_of[torch.tensor(order, device=u.device)] = -torch.arange(length, dtype=torch.float64, device=u.device)
        return place_of.expand(token.shape)


@dataclass(frozen=True)
class RelaxedAncestral(Solver):
    """An ancestral step that gradients pass through: Gumbel-softmax on soft one-hots (Wang 2025, DRAKES).

    ``y = softmax((log q + gumbel) / tau)`` with ``q = [p (1 - mask_s / mask_t), mask_s / mask_t]`` over V + 1 ids, and
    ``x_s = (1 - m) x_t + m y`` with m the MASK mass of x_t. ``straight_through`` makes y a hard one-hot with y's
    gradient: states then follow the exact law, only gradients are relaxed. Absorbing processes; a first state of
    ids becomes one-hots.

    Args:
        tau: temperature of the relaxation; towards 0 the step becomes hard.
    """

    tokens: ClassVar[bool] = True

    tau: float = 1.0
    straight_through: bool = True
    filter: TokenFilter = field(default_factory=TokenFilter)

    def __post_init__(self) -> None:
        if not self.tau > 0.0:
            raise BadValue(f"tau must be > 0, got {self.tau}")

    @property
    def stochastic(self) -> bool:
        return True

    def plan(self, levels: Sequence[TokenLevel]) -> list[TokenLevel]:
        only_absorbing(levels, self)
        return steps_down(levels)

    def step(self, x: Tensor, c: TokenLevel, state: State, run: Any) -> tuple[Tensor, TokenPrediction, Tensor]:
        process = run.denoiser.process
        if not soft(x):
            x = torch.nn.functional.one_hot(x, process.vocab + 1).to(torch.get_default_dtype())
        prediction = self.filter(run.denoise(x, run.t))
        stay = process.stay(run.t, c, x).expand(*x.shape[:-1], 1)
        log_p = prediction.log_probs
        log_q = torch.cat([log_p + torch.log1p(-stay).to(log_p.dtype), stay.log().to(log_p.dtype)], -1)
        noise = run.rng.gumbel(log_q.shape, device=x.device)
        y = ((log_q + noise) / self.tau).softmax(-1).to(x.dtype)
        if self.straight_through:
            y = torch.nn.functional.one_hot(y.argmax(-1), y.shape[-1]).to(x.dtype) + (y - y.detach())
        mass = x[..., -1:]
        return (1.0 - mass) * x + mass * y, prediction, noise
