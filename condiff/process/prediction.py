"""Prediction: everything that is said about one state ``x_t``, from whichever quantity was predicted.

Each quantity is a row in the basis (x0, source, noise)::

    x_t       (data,   source,   noise)      velocity  (d_data, d_source, d_noise)
    x0        (1, 0, 0)                      v         (-noise, 0, data)
    noise     (0, 0, 1)                      score     (0, 0, -1 / noise)
    residual  (-1, 1, 0)                     mean_velocity  (d_data, d_source, 0)

and any wanted row is a combination of the known ones. So there is one rule, not a table of 36 formulas, all
conversions are inverses of each other, and a quantity fails exactly where it doesn't exist: ``x0`` from
``noise`` where data(t) = 0, ``noise`` from ``x0`` where noise(t) = 0. ``velocity`` and ``v`` give everything
at both ends (their determinants with x_t don't vanish).

``v`` is that of Salimans & Ho (2022) on a variance-preserving path. ``mean_velocity`` is the v of stochastic
interpolants, the velocity without its noise (Albergo 2023). ``residual = source - x0`` (RDDM).
``score`` is the gradient of log p_t and exists for Gaussian noise only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from condiff.errors import BadValue, Degenerate, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight, combine, finite
from condiff.process.level import Level

KINDS = ("x0", "noise", "velocity", "v", "score", "residual", "mean_velocity")
Row = tuple[Weight, Weight, Weight]  # over (x0, source, noise)
_ROUND_OFF = 1e-12  # of a weight of the endpoint that is zero in exact arithmetic


def row(kind: str, level: Level) -> Row:
    """The row of a quantity in the basis (x0, source, noise)."""
    if kind == "x0":
        return 1.0, 0.0, 0.0
    if kind == "noise":
        return 0.0, 0.0, 1.0
    if kind == "velocity":
        return level.d_data, level.d_source, level.d_noise
    if kind == "v":
        return -level.noise, 0.0, level.data
    if kind == "score":
        return 0.0, 0.0, algebra.divide(-1.0, level.noise)
    if kind == "residual":
        return -1.0, 1.0, 0.0
    if kind == "mean_velocity":
        return level.d_data, level.d_source, 0.0
    if kind == "x_t":
        return level.data, level.source, level.noise
    if kind == "source":
        return 0.0, 1.0, 0.0
    raise unknown("prediction", kind, KINDS)


def _needs_source(want: Row) -> bool:
    # Tensors come from the level's own curves, which are zero without an endpoint.
    return not isinstance(want[1], Tensor) and want[1] != 0.0


def _solve2(known: tuple[Row, Row], want: Row) -> tuple[Weight, Weight]:
    """Weights (p, q) with ``p known_0 + q known_1 = want`` in the components (x0, noise)."""
    (a, _, s), (k0, _, k1), (w0, _, w1) = known[0], known[1], want
    det = a * k1 - s * k0
    top = w0 * k1 - w1 * k0
    # top = 0: the wanted row is a multiple of known_1, also where known_1 is parallel to x_t and det = 0.
    multiple = algebra.where(k1 != 0.0, algebra.divide(w1, k1), algebra.divide(w0, k0))
    q = algebra.where(top == 0.0, multiple, algebra.divide(a * w1 - s * w0, det))
    return algebra.divide(top, det), q


def _blank(column: int, *rows: Row) -> bool:
    """Whether none of the rows holds x0 (column 0) or the source (1): it isn't in the state at this one time."""
    return all(not isinstance(row[column], Tensor) and row[column] == 0.0 for row in rows)


def _least(column: int, known: tuple[Row, Row, Row], want: Row) -> tuple[Weight, Weight, Weight]:
    """The smallest weights with ``sum_i w_i known_i = want`` where one column is blank: two equations for three."""
    top, low = ([row[i] for row in known] for i in (1 - column, 2))
    aa, ab, bb = (sum(p * q for p, q in zip(x, y, strict=True)) for x, y in ((top, top), (top, low), (low, low)))
    det = aa * bb - ab * ab
    p = algebra.divide(want[1 - column] * bb - want[2] * ab, det)
    q = algebra.divide(want[2] * aa - want[1 - column] * ab, det)
    return tuple(p * a + q * b for a, b in zip(top, low, strict=True))  # type: ignore[return-value]


def _noiseless(*rows: Row) -> bool:
    return not any(bool((row[2] != 0.0).any()) if isinstance(row[2], Tensor) else row[2] != 0.0 for row in rows)


def _swapped(row: Row) -> Row:
    return row[0], row[2], row[1]


def _det3(a: Row, b: Row, c: Row) -> Weight:
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def _solve3(known: tuple[Row, Row, Row], want: Row) -> tuple[Weight, Weight, Weight]:
    """Cramer's rule for ``sum_i w_i known_i = want``."""
    a, b, c = known
    det = _det3(a, b, c)
    tops = _det3(want, b, c), _det3(a, want, c), _det3(a, b, want)
    scale = algebra.divide(1.0, det)  # inf where the rows are dependent, which the caller refuses
    return tuple(top * scale for top in tops)  # type: ignore[return-value]


class Prediction:
    """What is known about ``x_t`` at a level.

    Args:
        x_t: the state, (B, ...).
        level: its time with coefficients.
        values: one predicted quantity, or several fields of one model (``{"velocity": b, "noise": eta}``).
        source: the endpoint y, where the process has one.
        aux: side outputs (variance head, exits, balance losses, component predictions).

    The quantities are attributes, worked out on first use: ``.x0 .noise .velocity .v .score .residual .mean_velocity``.
    """

    __slots__ = ("_known", "aux", "level", "source", "values", "x_t")

    def __init__(
        self,
        x_t: Tensor,
        level: Level,
        values: dict[str, Tensor],
        source: Tensor | None = None,
        aux: dict[str, Any] | None = None,
    ) -> None:
        self.x_t, self.level, self.values, self.source = x_t, level, values, source
        self.aux = {} if aux is None else aux
        self._known = dict(values)

    def to(self, kind: str) -> Tensor:
        """The quantity ``kind``.

        Raises:
            Degenerate: where it doesn't follow from what was predicted (a coefficient is zero).
            Incompatible: a score under non-Gaussian noise; an endpoint that was not given.
        """
        value = self._known.get(kind)
        if value is None:
            value = self._known[kind] = self._derive(kind)
        return value

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t], the denoised sample."""
        return self.to("x0")

    @property
    def noise(self) -> Tensor:
        """E[z | x_t]."""
        return self.to("noise")

    @property
    def velocity(self) -> Tensor:
        """E[d x_t / dt | x_t], the drift of the probability-flow ODE."""
        return self.to("velocity")

    @property
    def v(self) -> Tensor:
        """E[data z - noise x0 | x_t]."""
        return self.to("v")

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -E[z | x_t] / noise."""
        return self.to("score")

    @property
    def residual(self) -> Tensor:
        """E[y - x0 | x_t]."""
        return self.to("residual")

    @property
    def mean_velocity(self) -> Tensor:
        """E[d (data x0 + source y) / dt | x_t] = velocity - d_noise E[z | x_t]."""
        return self.to("mean_velocity")

    def _derive(self, kind: str) -> Tensor:
        level = self.level
        if kind == "score" and not level.process.noise_law.gaussian:
            raise Incompatible(
                f"the score of {level.process} is not -noise / noise(t): its noise law {level.process.noise_law} "
                "is not Gaussian. Use x0, noise or velocity."
            )
        return self._combine(row(kind, level), kind)

    def _combine(self, want: Row, kind: str) -> Tensor:
        level, terms = self.level, self._terms(kind, want)
        if not all(finite(w) for w, _ in terms):
            raise Degenerate(
                f"{kind} does not follow from {' and '.join(self.values)} at t = {level.t}: "
                f"data(t) = {level.data}, noise(t) = {level.noise}. Predict velocity or v, or stop before this end."
            )
        return combine(*terms)

    def _terms(self, kind: str, want: Row) -> list[tuple[Weight, Tensor]]:
        """The weights and tensors whose combination is the wanted row."""
        level, values = self.level, self.values
        has_source = level.process.has_source
        if "x0" in values and "noise" in values and (self.source is not None or not has_source):
            terms = [(want[0], values["x0"]), (want[2], values["noise"])]
            return terms if self.source is None else [*terms, (want[1], self.source)]
        names = list(values)
        first = row(names[0], level)
        state = row("x_t", level)
        if not has_source and not _needs_source(want) and names[0] != "residual":
            p, q = _solve2((state, first), want)
            return [(p, self.x_t), (q, values[names[0]])]
        if len(names) >= 2:
            known = (state, first, row(names[1], level))
            column = next((i for i in (0, 1) if _blank(i, *known, want)), None)
            weights = _solve3(known, want) if column is None else _least(column, known, want)
            if self.source is None or all(finite(w) for w in weights):
                return list(zip(weights, (self.x_t, values[names[0]], values[names[1]]), strict=True))
        p, q = _solve2((state, first), want)
        r = want[1] - p * state[1] - q * first[1]
        if self.source is not None:
            return [(p, self.x_t), (q, values[names[0]]), (r, self.source)]
        if not isinstance(r, Tensor) and abs(r) <= _ROUND_OFF:  # a bridge's posterior, given x_t, doesn't depend on y
            return [(p, self.x_t), (q, values[names[0]])]
        if _noiseless(state, first, want):  # in the plane of x0 and y, as in an interpolant without noise
            p, q = _solve2((_swapped(state), _swapped(first)), _swapped(want))
            return [(p, self.x_t), (q, values[names[0]])]
        raise Incompatible(
            f"{kind} of {level.process} needs the endpoint y: put an entry of kind 'endpoint' among the conditions"
        )

    def linear(self, x0: Weight = 0.0, noise: Weight = 0.0, source: Weight = 0.0) -> Tensor:
        """``x0 E[x0] + source y + noise E[z]`` in one combination of what is known: most update rules are one.

        Raises:
            Degenerate: as :meth:`to`.
        """
        return self._combine((x0, source, noise), "this combination")

    def set(self, kind: str, value: Tensor, **aux: Any) -> Prediction:
        """A prediction of the same state that says ``value`` for ``kind``; everything else follows from it.

        Raises:
            BadValue: an unknown kind, or a value of another shape.
        """
        if kind not in KINDS:
            raise unknown("prediction", kind, KINDS)
        if value.shape != self.x_t.shape:
            raise BadValue(f"{kind} of shape {tuple(value.shape)} must have the shape of x_t, {tuple(self.x_t.shape)}")
        return Prediction(self.x_t, self.level, {kind: value}, self.source, {**self.aux, **aux})

    def part(self, index: Any, level: Level) -> Prediction:
        """The same about a part of the state, ``x_t[index]``, whose level is given; side outputs of the state's leading
        shape are cut as well."""

        def cut(value: Any) -> Any:
            same = isinstance(value, Tensor) and value.shape[:2] == self.x_t.shape[:2]
            return value[index] if same else value

        source = None if self.source is None else self.source[index]
        values = {kind: value[index] for kind, value in self.values.items()}
        return Prediction(self.x_t[index], level, values, source, {k: cut(v) for k, v in self.aux.items()})

    def __repr__(self) -> str:
        return f"Prediction({', '.join(self.values)}; x_t {tuple(self.x_t.shape)}, t={self.level.t})"


def mix(predictions: list[Prediction], weights: list[Weight], kind: str | None = None) -> Prediction:
    """``sum_i weight_i prediction_i`` of one state, in the quantity ``kind`` (that of the first by default).

    With weights that sum to 1 the result doesn't depend on ``kind``: all quantities are affine in each other.
    """
    first = predictions[0]
    kinds = list(first.values) if kind is None else [kind]
    values = {k: combine(*((w, p.to(k)) for w, p in zip(weights, predictions, strict=True))) for k in kinds}
    return Prediction(first.x_t, first.level, values, first.source, {"parts": predictions})
