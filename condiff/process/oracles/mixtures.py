"""Gaussian and Gaussian-mixture data: the exact denoiser, score, likelihood and classifier at every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate, Incompatible
from condiff.process.algebra import combine
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.oracles.components import Components, Fit, flat, make_components, vanishes, weight_rows
from condiff.process.oracles.labels import (
    as_labels,
    as_log_weights,
    class_logsumexp,
    entry_of_kind,
    label_weights,
    pick,
    read_label,
)
from condiff.process.prediction import Prediction
from condiff.random import as_source

Cond = Mapping[str, Any] | None


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """The denoiser of Gaussian-mixture data. Made by :func:`mixture` or :func:`gaussian`.

    ``cond={"label": y}`` restricts to the components of class y (rows flagged absent take the marginal), so
    that classifier-free and classifier guidance have exact answers. On a process with an endpoint, x0 and the
    endpoint are independent (see :func:`paired` for joint laws).
    """

    process: Process
    shape: tuple[int, ...]
    components: Components
    log_weights: Tensor
    labels: Tensor | None = None

    @property
    def kinds(self) -> dict[str, str]:
        return {} if self.labels is None else {"label": "label"}

    def __call__(self, x_t: Tensor, t: Time, cond: Cond = None) -> Prediction:
        """E[x0 | x_t] and E[z | x_t], from which everything else follows, at both ends of time too."""
        level = self.process.at(t)
        fit, log_joint = self._fit(x_t, level, cond)
        r = log_joint.softmax(-1)[..., None]
        x0, noise = ((r * part).sum(1).reshape(x_t.shape).to(x_t.dtype) for part in (fit.x0, fit.noise))
        return Prediction(x_t, level, {"x0": x0, "noise": noise}, source=self._source(cond))

    def log_prob(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``log p_t(x_t | label)`` in nats, (B,) float64.

        Raises:
            Degenerate: at noise = 0 when the data has no density (no variance in some direction).
        """
        check_density(self.process.at(t), self.components)
        return self._fit(x_t, self.process.at(t), cond)[1].logsumexp(-1)

    def score(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``grad log p_t(x_t | label)``; exists at t = 0 as well."""
        fit, log_joint = self._fit(x_t, self.process.at(t), cond)
        r = log_joint.softmax(-1)[..., None]
        return (r * fit.score).sum(1).reshape(x_t.shape).to(x_t.dtype)

    def guided_score(self, x_t: Tensor, t: Time, cond: Cond, scale: float) -> Tensor:
        """``grad [log p_t(x_t) + scale log p(label | x_t)]``: what guidance of this scale follows at one level.

        The law with density proportional to ``p_t(x) p(y | x)^scale`` at every t is not that of any diffusion
        of tilted data, unless scale is 0 or 1.
        """
        plain = self.score(x_t, t)
        return combine((1.0 - scale, plain), (scale, self.score(x_t, t, cond)))

    def class_log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """``log p(label | x_t)``, (B, classes) float64, differentiable: the exact noisy classifier.

        Raises:
            BadValue: without labels.
        """
        if self.labels is None:
            raise BadValue("this mixture has no classes: give labels= when making it")
        _, log_joint = self._fit(x_t, self.process.at(t), None)
        return class_logsumexp(log_joint, self.labels.to(x_t.device)) - log_joint.logsumexp(-1, keepdim=True)

    def posterior_cov(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """``Cov[x0 | x_t]``, (B, D, D) float64.

        ``Cov_k = C - C a V^{-1} a C`` within component k, plus the spread of the E_k[x0].
        """
        level = self.process.at(t)
        fit, log_joint = self._fit(x_t, level, cond)
        r = log_joint.softmax(-1)
        a, s = (weight_rows(w, x_t) for w in (level.data, level.noise))
        parts = self.components.to(x_t.device)
        eye = torch.eye(fit.x0.shape[-1], dtype=torch.float64, device=x_t.device)
        within = []
        for column in eye:
            c = parts.times_covariance(column.expand_as(fit.x0))
            within.append(c - parts.times_covariance(a * parts._solve(a * c, a, s)[0]))
        mean = (r[..., None] * fit.x0).sum(1)
        spread = torch.einsum("bk,bkd,bke->bde", r, fit.x0, fit.x0) - mean[:, :, None] * mean[:, None, :]
        return torch.einsum("bk,bkde->bde", r, torch.stack(within, -1)) + spread

    def moments(self, t: Time = 0.0, cond: Cond = None) -> tuple[Tensor, Tensor]:
        """Mean (B or 1, *shape) and covariance (B or 1, D, D) of ``x_t``; of the data at t = 0.

        One time for all; with the endpoint held fixed where the process has one.
        """
        level = self.process.at(t)
        source = self._source(cond)
        w = label_weights(self.log_weights, self.labels, read_label(cond)).exp()
        m = self.components.means
        mean = w @ m
        second = torch.einsum("bk,kde->bde", w, self.components.covariances + m[:, :, None] * m[:, None, :])
        eye = torch.eye(m.shape[-1], dtype=torch.float64)
        cov = level.data**2 * (second - mean[:, :, None] * mean[:, None, :]) + level.noise**2 * eye
        mean = (level.data * mean).reshape(-1, *self.shape)
        return (mean if source is None else mean + level.source * source.double()), cov

    def sample(self, n: int, rng: Any = None, cond: Cond = None, dtype: torch.dtype | None = None) -> Tensor:
        """n draws of the data, (n, *shape); of the given classes with ``cond``."""
        return self._draw(n, rng, cond, dtype)[0]

    def sample_labelled(self, n: int, rng: Any = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """n draws of data (n, *shape) with their labels (n,): a training set."""
        if self.labels is None:
            raise BadValue("this mixture has no classes: give labels= when making it")
        x, index = self._draw(n, rng, None, dtype)
        return x, self.labels[index]

    def _draw(self, n: int, rng: Any, cond: Cond, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        rng = as_source(rng)
        index = pick(label_weights(self.log_weights, self.labels, read_label(cond)), rng.uniform((n,)))
        z = rng.normal((n, self.components.means.shape[-1]), torch.float64)
        x = self.components.means[index] + self.components.times_root(z, index)
        return x.reshape(n, *self.shape).to(dtype or torch.get_default_dtype()), index

    def _fit(self, x_t: Tensor, level: Level, cond: Cond) -> tuple[Fit, Tensor]:
        """The components' say, and ``log p(k, x_t | label)`` (B, K)."""
        check_state(x_t, self.shape)
        labels = None if self.labels is None else self.labels.to(x_t.device)
        log_w = label_weights(self.log_weights.to(x_t.device), labels, read_label(cond, x_t.device))
        x = flat(x_t)
        source = self._source(cond)
        if source is not None:
            x = x - weight_rows(level.source, x_t) * flat(source)
        a, s = weight_rows(level.data, x_t), weight_rows(level.noise, x_t)
        fit = self.components.to(x_t.device).fit(x, a, s)
        return fit, log_w + fit.log_prob

    def _source(self, cond: Cond) -> Tensor | None:
        return endpoint(self.process, cond)

    def __repr__(self) -> str:
        classes = "" if self.labels is None else f", {len(set(self.labels.tolist()))} classes"
        return f"Mixture({len(self.log_weights)} components{classes}, shape={self.shape}, process={self.process})"


def check_density(level: Level, components: Components) -> None:
    if vanishes(level.noise) and bool((components.variances == 0.0).any()):
        raise Degenerate(f"these data have no density at noise(t) = 0, t = {level.t}: no variance in some direction")


def check_state(x_t: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x_t.shape[1:]) != shape:
        raise BadValue(f"a state of shape {tuple(x_t.shape)} came to an oracle of samples {shape}")


def check_gaussian(process: Process) -> None:
    if not process.noise_law.gaussian:
        raise Incompatible(
            f"Gaussian mixtures stay mixtures under Gaussian noise only, not {process.noise_law}; "
            "use oracles.empirical, which knows Student-t noise"
        )


def endpoint(process: Process, cond: Cond) -> Tensor | None:
    """The endpoint among the conditions, None for a process without one.

    Raises:
        BadValue: when the process needs one and there is none.
    """
    if not process.has_source:
        return None
    entry = entry_of_kind(cond, "endpoint")
    if entry is None:
        raise BadValue(f"{process} moves to an endpoint: give a condition of kind 'endpoint'")
    return entry.value


def mixture(
    process: Process,
    means: Any,
    covs: Any = None,
    weights: Any = None,
    labels: Any = None,
    *,
    stds: Any = None,
) -> Mixture:
    """The oracle of a Gaussian mixture.

    Args:
        process: any linear-Gaussian process.
        means: (K, *shape).
        covs: full covariances (K, D, D), or (D, D) shared, D the number of entries of a sample.
        weights: (K,), equal by default; normalised here.
        labels: (K,) integers, the class of each component.
        stds: instead of covs: a number, (K,) isotropic, or (K, *shape) diagonal.

    Raises:
        BadValue: shapes that don't fit; singular components (use :func:`empirical` for points).
        Incompatible: noise that isn't Gaussian.

    Example:
        >>> process = Gaussian(Cosine())
        >>> oracle = mixture(process, [[-1.0, 0.0], [1.0, 0.0]], stds=0.1, labels=[0, 1])
        >>> oracle(torch.zeros(1, 2), 0.5, {"label": torch.tensor([1])}).x0
    """
    check_gaussian(process)
    components, shape = make_components(means, covs, stds)
    count = len(components.means)
    if count > 1 and not bool((components.variances > 0.0).all()):
        raise BadValue("a mixture's components must have variance in every direction; for points use oracles.empirical")
    return Mixture(process, shape, components, as_log_weights(weights, count), as_labels(labels, count))


def gaussian(process: Process, mean: Any, cov: Any = None, *, std: Any = None) -> Mixture:
    """The oracle of Gaussian data ``N(mean, cov)``; its denoiser is affine in x_t.

    Args:
        process: any linear-Gaussian process.
        mean: (*shape).
        cov: (D, D), positive semi-definite.
        std: instead of cov: a number, or (*shape) for a diagonal covariance.

    Raises:
        BadValue, Incompatible: as :func:`mixture`.
    """
    check_gaussian(process)
    mean = torch.as_tensor(mean, dtype=torch.float64)[None]
    if std is not None:
        std = torch.as_tensor(std, dtype=torch.float64)
        std = std if std.ndim == 0 else std[None]
    components, shape = make_components(mean, cov, std)
    return Mixture(process, shape, components, torch.zeros(1, dtype=torch.float64))
