"""Multistep rules in half the log-SNR, ``l = log(data / noise)``, for DPM-Solver and UniPC.

With a prediction of x0 the probability-flow ODE (and the SDE of relative noise level n) has the exact solution::

    x_s = noise_s / noise_t e^(-n h) x_t + data_s int_0^h k e^(-k (h - u)) x0(l_t + u) du
        + noise_s sqrt(1 - e^(-2 n h)) z

with ``h = l_s - l_t`` and ``k = 1 + n`` (Lu 2022b, eq. 9; n = 1 is the reverse SDE). With a prediction of the noise
it is ``x_s = data_s / data_t x_t + noise_s int_0^h k e^(-k (h - u)) noise(l_t + u) du`` with ``k = -1`` (Lu 2022a,
eq. 3.4). A rule of order p replaces the prediction by the polynomial through the last p evaluations.

Everything here is worked out for a whole grid at once: tensors (N, ...) in float64, one row per step. The constant
part of the polynomial is the DDIM step, which is finite at both ends; what is added to it are *corrections*, dropped
elementwise where the history doesn't reach or h is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from condiff.process.level import Level


class Steps(NamedTuple):
    """A grid as steps: its levels in columns (N + 1, ...), and for every step h and how far back history reaches."""

    t: Tensor
    data: Tensor
    noise: Tensor
    source: Tensor
    h: Tensor  # (N, ...), 0 where the time repeats, +-inf at the ends

    @property
    def count(self) -> int:
        return self.h.shape[0]


def columns(levels: Sequence[Level]) -> Steps:
    """The columns of a grid."""
    if isinstance(levels[0].t, Tensor):
        t, data, source, noise = (torch.stack([torch.as_tensor(level[i]) for level in levels]) for i in range(4))
    else:
        t, data, source, noise = torch.tensor([level[:4] for level in levels], dtype=torch.float64).unbind(1)
    half_log_snr = torch.log(data) - torch.log(noise)
    h = half_log_snr[1:] - half_log_snr[:-1]
    h = torch.where(torch.isnan(h), math.inf * (t[:-1] - t[1:]), h)  # a bridge's end, where data = noise = 0
    h = torch.where(t[1:] == t[:-1], 0.0, h)
    return Steps(t, data, noise, source, h)


def back(column: Tensor, by: int) -> Tensor:
    """The column of ``by`` steps earlier; 0 before the first step."""
    if by >= column.shape[0]:
        return torch.zeros_like(column)
    return torch.cat([torch.zeros_like(column[:by]), column[: column.shape[0] - by]])


def reach(h: Tensor, count: int) -> list[Tensor]:
    """For k = 1 .. count: whether the evaluation k steps back may be used, i.e. all steps since then and the present
    one are finite and go the same way."""
    ok, usable = torch.isfinite(h), []
    for k in range(1, count + 1):
        earlier = back(h, k)
        ok = ok & (h * earlier > 0.0) & torch.isfinite(earlier)
        usable.append(ok)
    return usable


def capped(usable: Sequence[Tensor], orders: Sequence[int]) -> list[Tensor]:
    """``usable`` with at most ``orders[i] - 1`` differences in step i."""
    if not usable:
        return []
    cap = torch.tensor(orders, device=usable[0].device).reshape(-1, *[1] * (usable[0].ndim - 1))
    return [ok & (cap > k) for k, ok in enumerate(usable, start=1)]


def moments(h: Tensor, k: float | Tensor, count: int) -> list[Tensor]:
    """``I_j = int_0^h k e^(-k (h - u)) u^j du`` for j < count, by parts: ``I_j = h^j - j / k I_(j-1)``."""
    out = [-torch.expm1(-k * h)]
    for j in range(1, count):
        out.append(h**j - (j / k) * out[-1])
    return out


def newton(nodes: Sequence[Tensor], moment: Sequence[Tensor]) -> list[Tensor]:
    """``N_k = int prod_(i < k) (u - u_i)`` of each Newton polynomial, from the moments."""
    poly, out = [torch.ones_like(moment[0])], []
    for node in nodes:
        out.append(sum(c * m for c, m in zip(poly, moment, strict=False)))
        shifted = [torch.zeros_like(node), *poly]
        poly = [a - node * b for a, b in zip(shifted, [*poly, torch.zeros_like(node)], strict=True)]
    return out


def corrections(nodes: Sequence[Tensor], integrals: Sequence[Tensor], usable: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the evaluations at the nodes in ``sum_(k >= 1) N_k f[u_0, ..., u_k]`` (divided differences).

    ``usable[k - 1]`` says where the k-th difference may be used; it implies those before it.
    """
    weights = []
    for j in range(len(nodes)):
        total = torch.zeros_like(integrals[0])
        for k in range(max(j, 1), len(nodes)):
            scale = torch.ones_like(total)
            for i in range(k + 1):
                if i != j:
                    scale = scale * (nodes[j] - nodes[i])
            total = total + torch.where(usable[k - 1], integrals[k] / scale, 0.0)
        weights.append(total)
    return weights
