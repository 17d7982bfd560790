"""Jointly Gaussian (or Gaussian-mixture) pairs (x0, y): exact denoisers for processes with an endpoint.

``x_t = a x0 + b y + s z``. Given y, x0 is a mixture with means ``m_x + G (y - m_y)``, ``G = C_xy C_yy^{-1}``, and
weights ``w_k N(y; m_y, C_yy)``: the denoiser of a network that sees y. A network that doesn't see y (stochastic
interpolants) learns the average over y given x_t; with ``V = Cov(x_t)`` and ``u = V^{-1} (x_t - E x_t)``::

    E[x0] = m_x + (C_xx a + C_xy b) u      E[y] = m_y + (C_yx a + C_yy b) u      E[z] = s u
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.oracles.components import Components, flat, make_components, weight_rows
from condiff.process.oracles.labels import as_labels, as_log_weights, label_weights, pick, read_label
from condiff.process.oracles.mixtures import Cond, check_gaussian, check_state, endpoint
from condiff.process.prediction import Prediction
from condiff.random import as_source


@dataclass(frozen=True, eq=False, repr=False)
class Paired:
    """The denoiser of joint Gaussian-mixture pairs. Made by :func:`paired`.

    ``joint`` holds the components of the stacked (x0, y), 2 D dimensions.
    """

    process: Process
    shape: tuple[int, ...]
    joint: Components
    log_weights: Tensor
    labels: Tensor | None = None
    blind: bool = False

    @property
    def kinds(self) -> dict[str, str]:
        return {"endpoint": "endpoint"} | ({} if self.labels is None else {"label": "label"})

    def __call__(self, x_t: Tensor, t: Time, cond: Cond = None) -> Prediction:
        """E[x0 | x_t, y] and E[z | x_t, y]; blind: E[x0 | x_t], E[z | x_t] and, as the source, E[y | x_t].

        A blind oracle has a score and a velocity at both ends too, where they don't follow from E[z | x_t] = 0.
        """
        check_state(x_t, self.shape)
        level = self.process.at(t)
        if self.blind:
            values = {k: v.reshape(x_t.shape).to(x_t.dtype) for k, v in self._average(x_t, level, cond).items()}
            source = values.pop("source")
            return Prediction(x_t, level, values, source=source)
        x0, noise = (part.reshape(x_t.shape).to(x_t.dtype) for part in self._given(x_t, level, cond))
        return Prediction(x_t, level, {"x0": x0, "noise": noise}, source=endpoint(self.process, cond))

    def log_prob(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``log p_t(x_t | y, label)``, or ``log p_t(x_t | label)`` when blind; (B,) float64."""
        check_state(x_t, self.shape)
        level = self.process.at(t)
        if self.blind:
            return self._average_fit(x_t, level, cond)[0].logsumexp(-1)
        return self._given_fit(x_t, level, cond)[0].logsumexp(-1)

    def given(self, y: Tensor, cond: Cond = None) -> tuple[Components, Tensor]:
        """The law of x0 given y (B, *shape): components with means (B, K, D), and log-weights (B, K)."""
        mx, my, cxx, cxy, cyy = self._blocks(y.device)
        gain = torch.linalg.solve(cyy, cxy.mT).mT
        away = flat(y) - my
        means = mx + torch.einsum("kde,bke->bkd", gain, away)
        variances, basis = torch.linalg.eigh(cxx - gain @ cxy.mT)
        log_y = Components(my, *torch.linalg.eigh(cyy)).fit(flat(y), 1.0, 0.0).log_prob
        return Components(means, variances.clamp_min(0.0), basis), (self._weights(y.device, cond) + log_y).log_softmax(
            -1
        )

    def sample(self, n: int, rng: Any = None, cond: Cond = None, dtype: torch.dtype | None = None):
        """n pairs ``(x0, y)``, each (n, *shape)."""
        rng = as_source(rng)
        index = pick(self._weights("cpu", cond), rng.uniform((n,)))
        z = rng.normal((n, self.joint.means.shape[-1]), torch.float64)
        both = self.joint.means[index] + self.joint.times_root(z, index)
        x0, y = (part.reshape(n, *self.shape).to(dtype or torch.get_default_dtype()) for part in both.chunk(2, -1))
        return x0, y

    def _weights(self, device: Any, cond: Cond) -> Tensor:
        labels = None if self.labels is None else self.labels.to(device)
        return label_weights(self.log_weights.to(device), labels, read_label(cond, device))

    def _blocks(self, device: Any) -> tuple[Tensor, ...]:
        joint = self.joint.to(device)
        mx, my = joint.means.chunk(2, -1)
        top, bottom = joint.covariances.chunk(2, -2)
        (cxx, cxy), (_, cyy) = top.chunk(2, -1), bottom.chunk(2, -1)
        return mx, my, cxx, cxy, cyy

    def _given_fit(self, x_t: Tensor, level: Level, cond: Cond):
        y = endpoint(self.process, cond)
        assert y is not None
        parts, log_w = self.given(y, cond)
        a, b, s = (weight_rows(w, x_t) for w in (level.data, level.source, level.noise))
        fit = parts.fit(flat(x_t) - b * flat(y), a, s)
        return log_w + fit.log_prob, fit.x0, fit.noise

    def _given(self, x_t: Tensor, level: Level, cond: Cond) -> tuple[Tensor, Tensor]:
        log_joint, x0, noise = self._given_fit(x_t, level, cond)
        r = log_joint.softmax(-1)[..., None]
        return (r * x0).sum(1), (r * noise).sum(1)

    def _average_fit(self, x_t: Tensor, level: Level, cond: Cond):
        mx, my, cxx, cxy, cyy = self._blocks(x_t.device)
        x = flat(x_t)
        a, b, s = (
            torch.as_tensor(weight_rows(w, x_t), dtype=torch.float64).expand(x.shape)
            for w in (level.data, level.source, level.noise)
        )
        away = x - a * mx - b * my

        def sides(c: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return left[..., :, None] * c * right[..., None, :]

        cross = sides(cxy, a, b)
        var = sides(cxx, a, a) + cross + cross.mT + sides(cyy, b, b) + torch.diag_embed(s * s)
        root = torch.linalg.cholesky(var)
        u = torch.cholesky_solve(away[..., None], root)[..., 0]
        log_det = 2.0 * torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum(-1)
        log_prob = -0.5 * ((u * away).sum(-1) + log_det + x.shape[-1] * math.log(2.0 * math.pi))

        def times(c: Tensor, v: Tensor) -> Tensor:
            return torch.einsum("kde,bke->bkd", c, v)

        x0 = mx + times(cxx, a * u) + times(cxy, b * u)
        y = my + times(cxy.mT, a * u) + times(cyy, b * u)
        return self._weights(x_t.device, cond) + log_prob, x0, s * u, y, -u

    def _average(self, x_t: Tensor, level: Level, cond: Cond) -> dict[str, Tensor]:
        log_joint, *parts = self._average_fit(x_t, level, cond)
        r = log_joint.softmax(-1)[..., None]
        x0, noise, y, score = ((r * part).sum(1) for part in parts)
        rates = (weight_rows(w, x_t) for w in (level.d_data, level.d_source, self.process.noise_d_noise(level)))
        a, b, half = (w[:, 0] if isinstance(w, Tensor) else w for w in rates)
        return {"x0": x0, "noise": noise, "velocity": a * x0 + b * y - half * score, "score": score, "source": y}

    def __repr__(self) -> str:
        blind = ", blind" if self.blind else ""
        return f"Paired({len(self.log_weights)} components, shape={self.shape}{blind}, process={self.process})"


def paired(
    process: Process, means: Any, covs: Any, weights: Any = None, labels: Any = None, *, blind: bool = False
) -> Paired:
    """The oracle of jointly Gaussian (mixture) pairs of data and endpoint.

    Args:
        process: a process with an endpoint.
        means: (K, 2, *shape), or (2, *shape) for one component: of x0 and of y.
        covs: (K, 2D, 2D) or (2D, 2D): of x0 and y stacked.
        weights: (K,), equal by default.
        labels: (K,) integers, the class of each component.
        blind: the denoiser doesn't see y: it averages over y given x_t, also when a condition holds it.

    Raises:
        BadValue: shapes that don't fit; endpoints without variance in some direction.
        Incompatible: a process without endpoint, or with noise that isn't Gaussian.
    """
    check_gaussian(process)
    if not process.has_source:
        raise Incompatible(f"{process} has no endpoint: use oracles.mixture, or a process with one")
    means, covs = (torch.as_tensor(v, dtype=torch.float64) for v in (means, covs))
    if means.shape[0] == 2 and covs.ndim == 2 and 2 * means[0].numel() == covs.shape[0]:
        means = means[None]
    if means.ndim < 3 or means.shape[1] != 2:
        raise BadValue(f"means must be (components, 2, *shape) or (2, *shape), got {tuple(means.shape)}")
    joint, shape = make_components(means, covs, None)
    out = Paired(process, shape[1:], joint, as_log_weights(weights, len(means)), as_labels(labels, len(means)), blind)
    if float(torch.linalg.eigvalsh(out._blocks("cpu")[4]).min()) <= 0.0:
        raise BadValue("the covariance of the endpoint must be positive definite")
    return out
