"""A finite data set as a law: the exact denoiser of a mixture of points, under Gaussian or Student-t noise.

This is what a network with unlimited capacity converges to on its training set. With ``q_i = |x_t - a d_i|^2 / s^2``
the posterior over the points d_i is the softmax of ``log w_i + log kernel(q_i)``::

    Gaussian     -q / 2
    Student-t    -(D + df) / 2 * log(1 + q / df)       (PFGM++, Xu 2023, with r = s sqrt(df))

D is the number of entries of a sample. df = inf is the Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate
from condiff.process.algebra import Weight
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.noise import NoiseLaw
from condiff.process.oracles.components import flat, vanishes, weight_rows
from condiff.process.oracles.labels import as_labels, as_log_weights, class_logsumexp, label_weights, pick, read_label
from condiff.process.oracles.mixtures import Cond, check_state, endpoint
from condiff.process.prediction import Prediction
from condiff.random import as_source

CHUNK = 2**22  # entries of the (rows, points) matrix that are held at a time


@dataclass(frozen=True, eq=False, repr=False)
class Empirical:
    """The denoiser of a finite data set. Made by :func:`empirical`.

    ``cond={"label": y}`` restricts to the points of class y. Entries at noise = 0 (clean frames) are matched
    exactly: the posterior is over the points that are nearest there.
    """

    process: Process
    shape: tuple[int, ...]
    points: Tensor
    log_weights: Tensor
    labels: Tensor | None = None

    @property
    def kinds(self) -> dict[str, str]:
        return {} if self.labels is None else {"label": "label"}

    def __call__(self, x_t: Tensor, t: Time, cond: Cond = None) -> Prediction:
        """E[x0 | x_t] and E[z | x_t]."""
        level = self.process.at(t)
        points = self.points.to(x_t.device)
        x0s, noises = [], []
        for part in self._parts(x_t, level, cond):
            x0 = part.log_joint.softmax(-1) @ points
            clean, a, s = part.s == 0.0, part.a, part.s
            x0 = torch.where(clean, part.x / torch.where(clean, a, 1.0), x0)
            x0s.append(x0)
            noises.append(torch.where(clean, 0.0, (part.x - a * x0) / torch.where(clean, 1.0, s)))
        x0, noise = (torch.cat(rows).reshape(x_t.shape).to(x_t.dtype) for rows in (x0s, noises))
        return Prediction(x_t, level, {"x0": x0, "noise": noise}, source=endpoint(self.process, cond))

    def posterior(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``p(i | x_t)``: which points x_t may come from, (B, N) float64."""
        parts = self._parts(x_t, self.process.at(t), cond)
        return torch.cat([part.log_joint.softmax(-1) for part in parts])

    def log_prob(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``log p_t(x_t | label)`` in nats, (B,) float64.

        Raises:
            Degenerate: where noise(t) = 0: points have no density.
        """
        level = self._noisy(t)
        return torch.cat([part.log_joint.logsumexp(-1) for part in self._parts(x_t, level, cond)])

    def score(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``grad log p_t(x_t | label)``, under Student-t noise too: ``-E[(D + df) / (df + q) (x_t - a x0)] / s^2``.

        Raises:
            Degenerate: where noise(t) = 0.
        """
        level, points = self._noisy(t), self.points.to(x_t.device)
        df = getattr(self.process.noise_law, "df", math.inf)
        out = []
        for part in self._parts(x_t, level, cond):
            r = part.log_joint.softmax(-1)
            if not math.isinf(df):
                r = r * (part.x.shape[-1] + df) / (df + part.q)
            out.append(-(r.sum(-1, keepdim=True) * part.x - part.a * (r @ points)) / part.s**2)
        return torch.cat(out).reshape(x_t.shape).to(x_t.dtype)

    def class_log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """``log p(label | x_t)``, (B, classes) float64.

        Raises:
            BadValue: without labels.
        """
        if self.labels is None:
            raise BadValue("this data set has no classes: give labels= when making it")
        labels = self.labels.to(x_t.device)
        joints = [part.log_joint for part in self._parts(x_t, self.process.at(t), None)]
        return torch.cat([class_logsumexp(j, labels) - j.logsumexp(-1, keepdim=True) for j in joints])

    def posterior_cov(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``Cov[x0 | x_t]``, (B, D, D) float64."""
        r, points = self.posterior(x_t, t, cond), self.points.to(x_t.device)
        mean = r @ points
        return torch.einsum("bn,nd,ne->bde", r, points, points) - mean[:, :, None] * mean[:, None, :]

    def sample(self, n: int, rng: Any = None, cond: Cond = None, dtype: torch.dtype | None = None) -> Tensor:
        """n draws of the data, with replacement, (n, *shape)."""
        weights = label_weights(self.log_weights, self.labels, read_label(cond))
        index = pick(weights, as_source(rng).uniform((n,)))
        return self.points[index].reshape(n, *self.shape).to(dtype or torch.get_default_dtype())

    def _noisy(self, t: Time) -> Level:
        level = self.process.at(t)
        if vanishes(level.noise):
            raise Degenerate(f"a finite data set has no density at noise(t) = 0, t = {level.t}")
        return level

    def _parts(self, x_t: Tensor, level: Level, cond: Cond) -> Iterator[_Part]:
        """The batch in chunks of rows, each with its joint log-probabilities over the points."""
        check_state(x_t, self.shape)
        x = flat(x_t)
        source = endpoint(self.process, cond)
        if source is not None:
            x = x - weight_rows(level.source, x_t) * flat(source)
        x = x[:, 0]
        a, s = (_expand(w, x_t, x) for w in (level.data, level.noise))
        points, weights = self.points.to(x.device), self.log_weights.to(x.device)
        labels = None if self.labels is None else self.labels.to(x.device)
        label = read_label(cond, x.device)
        size = max(1, CHUNK // len(points))
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            chosen = None if label is None else (label[0][rows], label[1][rows])
            log_w = label_weights(weights, labels, chosen)
            part = _part(x[rows], a[rows], s[rows], points, log_w, self.process.noise_law)
            if vanishes(level.noise):
                part = replace(part, log_joint=part.log_joint + _matching(part, points, log_w))
            yield part

    def __repr__(self) -> str:
        classes = "" if self.labels is None else f", {len(set(self.labels.tolist()))} classes"
        return f"Empirical({len(self.points)} points{classes}, shape={self.shape}, process={self.process})"


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows: states (b, D) with their coefficients, distances q (b, N) and ``log p(i, x_t)`` (b, N)."""

    x: Tensor
    a: Tensor
    s: Tensor
    q: Tensor
    log_joint: Tensor


def _expand(w: Weight, x_t: Tensor, x: Tensor) -> Tensor:
    rows = weight_rows(w, x_t)
    if not isinstance(rows, Tensor):
        return torch.full_like(x, rows)
    return rows[:, 0].expand(x.shape)


def _part(x: Tensor, a: Tensor, s: Tensor, points: Tensor, log_w: Tensor, law: NoiseLaw) -> _Part:
    clean = s == 0.0
    safe = torch.where(clean, 1.0, s)
    q = squared_distances(x, a, torch.where(clean, 0.0, 1.0 / safe**2), points)
    dims = (~clean).sum(-1, keepdim=True)
    log_like = law.log_kernel(q, dims) + law.log_normaliser(x.shape[-1]) - torch.log(safe).sum(-1, keepdim=True)
    return _Part(x, a, s, q, log_w + log_like)


def squared_distances(x: Tensor, a: Tensor, weight: Tensor, points: Tensor) -> Tensor:
    """``sum_e weight (x - a d_i)^2`` for x, a, weight (b, D) and points (N, D) -> (b, N).

    Written out as a matrix product; the nearest point's value, which sets the scale of the others, is
    recomputed directly, free of cancellation.
    """
    centre = points.mean(0)
    x, points = x - a * centre, points - centre
    q = (weight * x * x).sum(-1, keepdim=True) - 2.0 * (weight * a * x) @ points.mT + (weight * a * a) @ (points**2).mT
    nearest = q.argmin(-1, keepdim=True)
    exact = (weight * (x - a * points[nearest[:, 0]]) ** 2).sum(-1, keepdim=True)
    return ((q - q.gather(-1, nearest)).clamp_min(0.0)) + exact


def _matching(part: _Part, points: Tensor, log_w: Tensor) -> Tensor:
    """0 for the points of positive weight that are nearest in the clean entries, -inf for the others, (b, N)."""
    clean = (part.s == 0.0).double()
    gap = squared_distances(part.x, part.a, clean, points)
    gap = torch.where(torch.isneginf(log_w), torch.inf, gap)
    tolerance = 1e-10 * (clean * part.x * part.x).sum(-1, keepdim=True) + 1e-300
    return torch.where(gap <= gap.amin(-1, keepdim=True) + tolerance, 0.0, -torch.inf)


def empirical(process: Process, data: Any, labels: Any = None, weights: Any = None) -> Empirical:
    """The oracle of a finite data set.

    Args:
        process: any linear-Gaussian process, its noise normal or Student-t.
        data: (N, *shape).
        labels: (N,) integers.
        weights: (N,), equal by default.

    Raises:
        BadValue: shapes that don't fit.
        Incompatible: another noise law.
    """
    process.noise_law.log_normaliser(1)  # refuses a law without a known density
    data = torch.as_tensor(data)
    if data.ndim < 2 or len(data) == 0:
        raise BadValue(f"data must be (samples, *shape of a sample), got {tuple(data.shape)}")
    points = data.detach().double().flatten(1)
    if not bool(torch.isfinite(points).all()):
        raise BadValue("data must be finite")
    count = len(points)
    return Empirical(process, tuple(data.shape[1:]), points, as_log_weights(weights, count), as_labels(labels, count))
