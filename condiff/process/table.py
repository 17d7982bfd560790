"""Discrete tables: the schedules of models that were trained on N numbered noise levels (DDPM, Stable Diffusion).

Index i of the table is the time ``t = (i + 1) / N``, exactly; t = 0 is clean. At these nodes the curves take
the table's values. Between them log alpha is linear in t, as DPM-Solver has it (Lu 2022, appendix D.4), and so it
is from the clean end, where log alpha = 0, to index 0. Where the table ends in alpha = 0 (zero terminal SNR) its
last piece is linear in alpha instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown
from condiff.process.schedule import Schedule

RULES = ("linear", "scaled_linear", "cosine", "sigmoid", "custom")
_SNAP = 1e-9  # distance to a node, in steps, below which a time is that node: (i + 1) / N * N is not always i + 1


def linear_betas(steps: int, start: float, end: float) -> Tensor:
    """Evenly spaced from ``start`` to ``end`` (Ho 2020)."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, start: float, end: float) -> Tensor:
    """Evenly spaced square roots (latent diffusion)."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int, max_beta: float = 0.999) -> Tensor:
    """``1 - f((i + 1) / N) / f(i / N)`` with ``f(t) = cos(pi/2 (t + 0.008) / 1.008)^2``, capped (Nichol 2021)."""
    cosine = torch.sin(0.5 * math.pi / 1.008 * (1.0 - torch.arange(steps + 1, dtype=torch.float64) / steps))
    return (1.0 - (cosine[1:] / cosine[:-1]) ** 2).clamp(max=max_beta)


def sigmoid_betas(steps: int, start: float, end: float) -> Tensor:
    """A logistic ramp over (-6, 6) from ``start`` to ``end`` (GeoDiff)."""
    return torch.sigmoid(torch.linspace(-6.0, 6.0, steps, dtype=torch.float64)) * (end - start) + start


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The table shifted and scaled in ``sqrt(alphas_cumprod)`` so that it ends in 0 (Lin 2023, alg. 1).

    Raises:
        BadValue: a table of fewer than two levels.
    """
    if alphas_cumprod.numel() < 2:
        raise BadValue("zero terminal SNR needs a table of at least two levels")
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


@dataclass(frozen=True, kw_only=True, repr=False)
class Discrete(Schedule):
    """A table of N levels. Use a constructor: :meth:`ddpm`, :meth:`stable_diffusion`, :meth:`cosine`, ...

    Args:
        rule: how the betas are made, ``"custom"`` for a given table.
        steps: N, any number.
        beta_start, beta_end: ends of the rule's betas (not for cosine and custom).
        zero_terminal_snr: rescale so that the last level is pure noise.
        alphas_cumprod: the table ``alpha^2`` of the custom rule.

    Example:
        >>> schedule = Discrete.stable_diffusion()
        >>> schedule.model_time(schedule.at_index(981)).item()
        981.0
    """

    rule: str = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    alphas_cumprod: tuple[float, ...] | None = None
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule of a table", self.rule, RULES)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise BadType(f"steps must be an integer, got {self.steps!r}")
        if self.steps < 1:
            raise BadValue(f"a table needs steps >= 1, got {self.steps}")
        if (self.rule == "custom") != (self.alphas_cumprod is not None):
            raise BadValue(f"alphas_cumprod belongs to rule='custom', got rule={self.rule!r}")
        if self.alphas_cumprod is not None and len(self.alphas_cumprod) != self.steps:
            raise BadValue(f"steps={self.steps} but alphas_cumprod has {len(self.alphas_cumprod)} levels")
        if self.rule not in ("cosine", "custom") and not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise BadValue(f"betas need 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}")
        table = self._build()
        steady = torch.cat([torch.ones(1, dtype=torch.float64), table]).diff() < 0.0
        if not (bool(steady.all()) and float(table[-1]) >= 0.0):
            raise BadValue("alphas_cumprod must fall strictly from below 1 and stay >= 0 (betas between 0 and 1)")
        log_alpha = 0.5 * torch.log(torch.cat([torch.ones(1, dtype=torch.float64), table]))
        self._tables[torch.device("cpu")] = log_alpha

    def __repr__(self) -> str:
        if self.alphas_cumprod is not None:
            first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
            return f"Discrete(rule='custom', steps={self.steps}, alphas_cumprod={first:.6g} .. {last:.6g})"
        ends = "" if self.rule == "cosine" else f", beta_start={self.beta_start:g}, beta_end={self.beta_end:g}"
        zero = ", zero_terminal_snr=True" if self.zero_terminal_snr else ""
        return f"Discrete(rule={self.rule!r}, steps={self.steps}{ends}{zero})"

    # Constructors

    @classmethod
    def ddpm(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options) -> Discrete:
        """Linear betas (Ho 2020)."""
        return cls(rule="linear", steps=steps, beta_start=beta_start, beta_end=beta_end, **options)

    @classmethod
    def stable_diffusion(
        cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options
    ) -> Discrete:
        """Betas linear in their square roots: Stable Diffusion 1, 2 and XL (``scaled_linear``)."""
        return cls(rule="scaled_linear", steps=steps, beta_start=beta_start, beta_end=beta_end, **options)

    @classmethod
    def cosine(cls, steps: int = 1000, **options) -> Discrete:
        """The capped cosine (``squaredcos_cap_v2``)."""
        return cls(rule="cosine", steps=steps, **options)

    @classmethod
    def sigmoid(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options) -> Discrete:
        """Betas on a logistic ramp."""
        return cls(rule="sigmoid", steps=steps, beta_start=beta_start, beta_end=beta_end, **options)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor, **options) -> Discrete:
        """A given table of betas; the last may be 1."""
        betas = torch.as_tensor(betas, dtype=torch.float64).flatten()
        if not bool(((betas > 0.0) & (betas <= 1.0)).all()):
            raise BadValue(f"betas must lie in (0, 1], got {betas.min():.6g} .. {betas.max():.6g}")
        return cls.from_alphas_cumprod(torch.cumprod(1.0 - betas, 0), **options)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float] | Tensor, **options) -> Discrete:
        """A given table of ``alpha^2``, as schedulers store it."""
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).flatten().tolist()
        return cls(rule="custom", steps=len(table), alphas_cumprod=tuple(table), **options)

    def _build(self) -> Tensor:
        if self.alphas_cumprod is not None:
            table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        elif self.rule == "cosine":
            table = torch.cumprod(1.0 - cosine_betas(self.steps), 0)
        else:
            rules = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "sigmoid": sigmoid_betas}
            table = torch.cumprod(1.0 - rules[self.rule](self.steps, self.beta_start, self.beta_end), 0)
        return zero_terminal_snr(table) if self.zero_terminal_snr else table

    # The table

    @property
    def table(self) -> Tensor:
        """``alpha^2`` at the indices 0 .. N - 1 (``alphas_cumprod``), float64 (N,)."""
        return torch.exp(2.0 * self._log_alphas(torch.device("cpu"))[1:])

    @property
    def betas(self) -> Tensor:
        """``1 - alpha_i^2 / alpha_(i-1)^2``, float64 (N,)."""
        return -torch.expm1(2.0 * self._log_alphas(torch.device("cpu")).diff())

    def at_index(self, index: int | float | Tensor) -> Tensor:
        """The time ``(index + 1) / N`` of an index, which may be fractional; -1 is the clean end.

        Raises:
            BadValue: an index outside [-1, N - 1].
        """
        index = torch.as_tensor(index, dtype=torch.float64)
        if not bool(((index >= -1.0) & (index <= self.steps - 1)).all()):
            raise BadValue(f"an index of {self.steps} levels lies in [-1, {self.steps - 1}], got {index.tolist()}")
        return (index + 1.0) / self.steps

    def model_time(self, t: Tensor) -> Tensor:
        """The index ``t N - 1`` that a network was trained on, fractional between the nodes; -1 is clean."""
        return self._position(t) - 1.0

    def network_time(self, t: Tensor) -> Tensor:
        """t itself, ``(index + 1) / N``."""
        return t

    def _log_alphas(self, device: torch.device) -> Tensor:
        """log alpha at the clean end and at all indices, (N + 1,)."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def _position(self, t: Tensor) -> Tensor:
        """t in steps; times within round-off of a node are the node."""
        x = t * self.steps
        off = (torch.round(x) - x).detach()
        return x + torch.where(off.abs() < _SNAP, off, torch.zeros_like(off))

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha at the two nodes around t, and the fraction of the way; a node belongs to the piece before it."""
        x, table = self._position(t), self._log_alphas(t.device)
        left = (torch.ceil(x.detach()) - 1.0).clamp(0, self.steps - 1).long()
        return table[left], table[left + 1], x - left

    # Curves

    def _curves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and ``sigma^2``."""
        a, b, u = self._piece(t)
        last = torch.isinf(b)
        log_alpha = (1.0 - u) * a + u * torch.where(last, a, b)
        alpha = torch.where(last, torch.exp(a) * (1.0 - u), torch.exp(log_alpha))
        return alpha, torch.where(last, (1.0 - alpha) * (1.0 + alpha), -torch.expm1(2.0 * log_alpha))

    def alpha(self, t: Tensor) -> Tensor:
        return self._curves(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._curves(t)[1])

    def d_alpha(self, t: Tensor) -> Tensor:
        """From the piece before t (towards the data) at a node, where the curve has a corner."""
        a, b, _ = self._piece(t)
        return self.steps * torch.where(torch.isinf(b), -torch.exp(a), (b - a) * self.alpha(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)  # inf at t = 0

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        alpha, var = self._curves(t)
        return 2.0 * torch.log(alpha) - torch.log(var)

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-log_snr.double(), threshold=700.0)
        table = self._log_alphas(log_alpha.device)
        right = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.steps)
        a, b = table[right - 1], table[right]
        inner = (a - log_alpha) / torch.where(torch.isinf(b), 1.0, a - b)
        u = torch.where(torch.isinf(b), -torch.expm1(log_alpha - a), inner)
        return ((right - 1 + u) / self.steps).clamp(0.0, 1.0)


def table_size(process: Any) -> int | None:
    """The number of numbered levels of a process with a table (index i is t = (i + 1) / N)."""
    return getattr(getattr(process, "schedule", None), "steps", None)
