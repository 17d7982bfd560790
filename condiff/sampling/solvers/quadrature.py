"""Integrals of the tables of :class:`~condiff.sampling.ModelStatistics` along one step, for DPM-Solver-v3.

Everything is relative to the step's start ``lam_0``: ``L = int l``, ``S = int s``, ``B = int e^-S b`` and the moments
``E_n = int e^(L + S) (lam - lam_0)^n / n! dlam`` from there. They are trapezoids over the nodes between, in float64,
with the tables linear in between: a step may begin and end anywhere in their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import NonFinite
from condiff.sampling.model_statistics import ModelStatistics

END = -1  # the place of the step's end, beside 0 (its start), 1, 2, ... (starts of the steps before)


class Line(NamedTuple):
    """``x_s = x x_t + sum_j past_j f_j + constant``: tensors of one sample's shape, f_0 the newest."""

    x: Tensor
    past: list[Tensor]
    constant: Tensor


class Step:
    """A step from ``lams[0]`` to ``end``, with the starts of the steps before it.

    With ``g = e^-S f - B`` the update is ``x_s = data_s / data_t e^-L x_t - data_s e^-L (int e^(L + S) g + C)``,
    ``C = int e^(L + S) B``.

    Raises:
        NonFinite: (from :meth:`line`) tables that overflow.
    """

    def __init__(self, tables: ModelStatistics, lams: Sequence[float], end: float) -> None:
        self.lams, self.end, self.depth = list(lams), end, len(lams)
        lam = _nodes_between(tables, [*lams, end])
        self._index = {p: int((lam - v).abs().argmin()) for p, v in ((END, end), *enumerate(lams))}
        l, s, b = (_between(tables, table, lam) for table in (tables.l, tables.s, tables.b))  # noqa: E741
        start = self._index[0]
        self.own = l[start]
        big_l, self._s = (_running(table, lam, start) for table in (l, s))
        self._b = _running(torch.exp(-self._s) * b, lam, start)
        self.decay = torch.exp(-big_l[self._index[END]])
        weight, way = torch.exp(big_l + self._s), lam - lams[0]
        self.moments = [
            self._to_end(_along(way**n / math.factorial(n), weight) * weight, lam) for n in range(self.depth + 1)
        ]
        self.offset = self._to_end(weight * self._b, lam)

    def _to_end(self, values: Tensor, lam: Tensor) -> Tensor:
        return _running(values, lam, self._index[0])[self._index[END]]

    def ways(self, places: Sequence[int]) -> list[float]:
        """``lam - lam_0`` of the places."""
        return [(self.end if p == END else self.lams[p]) - self.lams[0] for p in places]

    def terms(self, places: Sequence[int], pseudo: bool) -> dict[int, Tensor]:
        """Weights of g at the places in ``int e^(L + S) (g - g_0)``, g being the polynomial through them."""
        rows = derivative_weights(self.ways(places), pseudo)
        return {
            p: sum((row[k] * self.moments[n] for n, row in enumerate(rows, start=1)), torch.zeros_like(self.offset))
            for k, p in enumerate(places)
        }

    def line(self, x: float, data: float, terms: Mapping[int, Tensor], places: Sequence[int], offset: Tensor) -> Line:
        """``x x_t - data e^-L (sum_p terms_p g_p + offset)`` in terms of f at the places, in their order."""
        scale = -data * self.decay
        past, constant = [], offset
        for p in places:
            term, i = terms[p], self._index[p]
            past.append(scale * torch.exp(-self._s[i]) * term)
            constant = constant - term * self._b[i]
        line = Line(x * self.decay, past, scale * constant)
        if not all(bool(torch.isfinite(w.float()).all()) for w in (line.x, line.constant, *past)):
            raise NonFinite(
                f"the step from lam = {self.lams[0]:.4g} to {self.end:.4g} overflows by the tables: s and l are too "
                "large there, as when they were measured on a few states only; a few hundred are customary"
            )
        return line

    def predictor(self, ratio: float, data: float, pseudo: bool, order: int | None = None) -> Line:
        """The step with the polynomial through the newest ``order`` values."""
        places = list(range(self.depth if order is None else order))
        terms = self.terms(places, pseudo)
        terms[0] = terms[0] + self.moments[0]
        return self.line(ratio, data, terms, places, self.offset)

    def correction(self, data: float, pseudo_predictor: bool, pseudo: bool) -> Line | None:
        """What a value at the step's end changes of the state there: the line's weights of f at the end, at the start,
        before it, ... None where it changes nothing.

        The new value stands behind the first one, about which g is expanded; the order stays that of the step, or is
        one higher (``pseudo``).
        """
        places = [0, END, *range(1, self.depth)][: self.depth + (1 if pseudo else 0)]
        if len(places) == 1:
            return None
        order = [END, *range(self.depth)]
        new, old = self.terms(places, pseudo), self.terms(list(range(self.depth)), pseudo_predictor)
        zero = torch.zeros_like(self.offset)
        change = {p: new.get(p, zero) - old.get(p, zero) for p in order}
        return self.line(1.0, data, change, order, zero)._replace(x=torch.ones((), dtype=torch.float64))


def derivative_weights(ways: Sequence[float], pseudo: bool) -> list[list[float]]:
    """For n = 1, ..., k - 1 the weights of k values in the n-th derivative at the first, 0.

    They are those of the polynomial through all values; or (``pseudo``) of divided differences: the n-th derivative
    from the first n + 1 values only.
    """
    rows = []
    for n in range(1, len(ways)):
        if pseudo:
            use = ways[: n + 1]
            found = [1.0 / math.prod(a - b for j, b in enumerate(use) if j != i) for i, a in enumerate(use)]
            rows.append([math.factorial(n) * w for w in found] + [0.0] * (len(ways) - n - 1))
    if pseudo or len(ways) < 2:
        return rows
    powers = torch.tensor([[w**n for n in range(1, len(ways))] for w in ways[1:]], dtype=torch.float64)
    inverse = torch.linalg.inv(powers)  # a = inverse (g_m - g_0), derivative n = n! a_n
    for n, row in enumerate(inverse.tolist(), start=1):
        scaled = [math.factorial(n) * w for w in row]
        rows.append([-sum(scaled), *scaled])
    return rows


def _nodes_between(tables: ModelStatistics, points: Sequence[float]) -> Tensor:
    """The points and all nodes between them, rising; a point within round-off of a node takes its place."""
    nodes, given = tables.nodes, torch.tensor(points, dtype=torch.float64)
    apart = 1e-6 * float(nodes[1] - nodes[0])
    inside = nodes[(nodes > given.min() + apart) & (nodes < given.max() - apart)]
    far = ((inside[:, None] - given).abs() > apart).all(1)
    return torch.cat([inside[far], given]).unique()


def _between(tables: ModelStatistics, table: Tensor, lam: Tensor) -> Tensor:
    """A table at any lam, linear between its nodes, (M, *shape)."""
    place = (lam - tables.ends[0]) / (tables.ends[1] - tables.ends[0]) * (len(table) - 1)
    left = place.floor().clamp(0, len(table) - 2).long()
    u = _along(place.sub(left).clamp(0.0, 1.0), table)
    return (1.0 - u) * table[left] + u * table[left + 1]


def _along(values: Tensor, like: Tensor) -> Tensor:
    """(M,) against (M, *shape)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _running(values: Tensor, lam: Tensor, start: int) -> Tensor:
    """The trapezoidal integral from node ``start`` to every node."""
    pieces = 0.5 * (values[1:] + values[:-1]) * _along(lam.diff(), values)
    total = torch.cat([torch.zeros_like(values[:1]), pieces.cumsum(0)])
    return total - total[start]
