"""Variational bounds on the likelihood of a Gaussian diffusion, and units of likelihood.

For times ``t_0 < t_1 < ... < t_T`` (Ho 2020, eq. 5; Kingma 2021, eq. 11-14), with ``s = t_{i-1}``, ``t = t_i``::

    log p(x) >= - KL(q(x_T | x) || p(x_T))                        prior
                - sum_i E KL(q(x_s | x_t, x) || p(x_s | x_t))     steps
                + E log p(x | x_{t_0})                            reconstruction

``p(x_s | x_t) = q(x_s | x_t, x0_hat(x_t))`` is the ancestral sampler, so that each KL is exactly
``(SNR_s - SNR_t) |x - x0_hat|^2 / 2``. The expectations take one draw of x_t each: the result is an unbiased
estimate of a **lower bound**.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import as_conditions
from condiff.errors import BadValue, Incompatible
from condiff.process.table import table_size
from condiff.random import Source, as_source
from condiff.typing import Float


class Elbo(NamedTuple):
    """Terms of the bound in nats, each per sample: ``total = reconstruction - steps.sum(0) - prior``.

    ``total`` (B,) estimates a lower bound on log p(x): of a density, or with ``bins`` of a probability.
    """

    total: Tensor
    prior: Tensor
    steps: Tensor
    reconstruction: Tensor

    kind = "lower bound"


def _squared(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).sum(dim=1)


def _snr(level: Any) -> float:
    return (level.data / level.noise) ** 2


def elbo(
    denoiser: Any,
    x: Float[Tensor, "batch *shape"],
    times: Tensor,
    rng: Any = None,
    cond: Any = None,
    bins: int | None = None,
) -> Elbo:
    """The bound of the ancestral sampler with posterior variance on the given times.

    Args:
        denoiser: anything with the Denoiser interface on a Gaussian process without endpoint.
        x: samples.
        times: increasing in (0, 1], at least two; noise(t_0) > 0 is the width of the last Gaussian.
        rng: of the draws of x_t.
        cond: conditions.
        bins: x holds that many levels, evenly spaced from -1 to 1, and the bound is on their probability
            (Ho 2020, eq. 13); None: a bound on the density, through ``N(x; x0_hat, (noise / data)^2)`` at t_0.

    Raises:
        BadValue: times that don't increase or touch 0; with ``bins``, values off the levels.
        Incompatible: an endpoint, or noise that isn't Gaussian.
    """
    levels, source = _checked(denoiser, times), as_source(rng)
    prior, steps = latent_terms(denoiser, x, levels, source, cond)
    first = levels[0]
    std, mean = first.noise / first.data, noised(denoiser, x, first, source, cond).x0
    reconstruction = _log_density(x, mean, std) if bins is None else _log_probability(x, mean, std, bins)
    return Elbo(reconstruction - steps.sum(dim=0) - prior, prior, steps, reconstruction)


def _checked(denoiser: Any, times: Tensor) -> list[Any]:
    """The levels of a bound, from the data up."""
    process = denoiser.process
    if process.has_source or not process.noise_law.gaussian:
        raise Incompatible(f"the bound of elbo() is for Gaussian noise without an endpoint, not for {process}")
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not (times.diff() > 0).all():
        raise BadValue(f"elbo needs at least two increasing times, got {times.tolist()}")
    levels = process.levels(times)
    if levels[0].noise <= 0.0 or levels[0].data <= 0.0:
        raise BadValue(f"the first time must have noise > 0 and data > 0 (t = {levels[0].t}): start above 0")
    return levels


def noised(denoiser: Any, x: Tensor, level: Any, rng: Source, cond: Any) -> Any:
    """What is said of one draw of x_t."""
    process = denoiser.process
    noise = process.noise_law.sample(rng, x.shape, x.dtype, x.device)
    return denoiser(process.forward(x, level, noise=noise).x_t, level, cond)


def latent_terms(denoiser: Any, x: Tensor, levels: list[Any], rng: Source, cond: Any) -> tuple[Tensor, Tensor]:
    """``(prior (B,), steps (T, B))``; at both ends of the prior's the standard deviation is noise(t_T)."""
    prior = 0.5 * _snr(levels[-1]) * _squared(x)
    steps = [
        denoiser.process.posterior_error(t, s) * _squared(x - noised(denoiser, x, t, rng, cond).x0)
        for s, t in pairwise(levels)
    ]
    return prior, torch.stack(steps)


class JointElbo(NamedTuple):
    """As :class:`Elbo`, with the reconstruction of every modality: ``total = sum_i reconstruction_i - steps - prior``.

    ``total`` (B,) estimates a lower bound on ``log p(x_1, ..., x_N)``, or with ``known`` on the law of the others
    given those: densities of continuous modalities, probabilities of labels.
    """

    total: Tensor
    prior: Tensor
    steps: Tensor
    reconstruction: dict[str, Tensor]

    kind = "lower bound"


def _steps(process: Any) -> Tensor:
    size = table_size(process)
    if size is None:
        raise Incompatible(f"{process} has no table of steps: give times=, increasing from above 0")
    return torch.arange(1, size + 1, dtype=torch.float64) / size


@torch.no_grad()
def joint_elbo(
    denoiser: Any,
    samples: Mapping[str, Tensor],
    times: Tensor | None = None,
    rng: Any = None,
    cond: Any = None,
    known: Sequence[str] = (),
) -> JointElbo:
    """The bound of ancestral sampling of a latent that carries several modalities (Chen 2024)::

        log p(X) >= - KL(q(z_T | X) || p(z_T)) - sum_{t >= 2} E KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t))
                    + sum_i E log p(x_i | z_1)

    with ``p(z_{t-1} | z_t) = q(z_{t-1} | z_t, E_hat(z_t))`` and the heads' ``p(x_i | z_1)``. There is no term at t = 1:
    ``z_0 = 0`` whatever the data.

    Args:
        denoiser: a :class:`~condiff.multimodal.MultiModal`.
        samples: name -> values, of all modalities.
        times: as in :func:`elbo`; by default all steps of the process's table.
        known: modalities that the network is told, whose own terms are left out.

    Raises:
        BadValue: as :func:`elbo`; all known. Incompatible: a process without a table, and no times.
    """
    modalities = denoiser.modalities
    modalities.check(samples)
    for name in known:
        modalities[name]  # refuses an unknown one
    if len(set(known)) == len(modalities):
        raise BadValue("all modalities are known: nothing is left to bound")
    if known and not denoiser.told:
        raise Incompatible(f"this network can't be told of {list(known)}")
    levels, source = _checked(denoiser, _steps(denoiser.process) if times is None else times), as_source(rng)
    told = as_conditions(cond, denoiser.kinds)
    told = told.replace(**modalities.known({name: samples[name] for name in known}))
    drive = modalities.aggregate(samples)
    prior, steps = latent_terms(denoiser, drive, levels, source, told)
    said = denoiser.said(noised(denoiser, drive, levels[0], source, told))
    found = modalities.log_prob(said, samples, levels[0])
    found = {name: value for name, value in found.items() if name not in known}
    return JointElbo(torch.stack(list(found.values())).sum(0) - steps.sum(0) - prior, prior, steps, found)


def _log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    dims = x[0].numel()
    return -0.5 * _squared(x - mean) / std**2 - dims * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _log_probability(x: Tensor, mean: Tensor, std: float, bins: int) -> Tensor:
    """log of the Gaussian's mass in the cell of each value; the first and last cell reach to infinity."""
    if bins < 2:
        raise BadValue(f"bins must be at least 2, got {bins}")
    width = 2.0 / (bins - 1)
    cell = (x.double() + 1.0) / width
    index = cell.round()
    if float((cell - index).abs().max()) > 1e-3 or float(index.min()) < 0 or float(index.max()) > bins - 1:
        raise BadValue(
            f"x must hold the {bins} levels -1, {-1 + width:.4g}, ..., 1; it runs {x.min():g} to {x.max():g}"
        )
    centre = index * width - 1.0 - mean.double()
    upper = torch.where(index == bins - 1, torch.inf, (centre + width / 2) / std)
    lower = torch.where(index == 0, -torch.inf, (centre - width / 2) / std)
    # In the upper tail both are near 1: mirror, so that the difference keeps its digits.
    mirror = lower > 0
    low, high = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return (top + torch.log(-torch.expm1(bottom - top))).flatten(1).sum(dim=1)


def denoising_log_prob(
    log_snr: Float[Tensor, " levels"], errors: Float[Tensor, "*batch levels"], dims: int
) -> Float[Tensor, "*batch"]:
    """log p(x) in nats from the denoising errors at all levels, exact for the exact denoiser (Guo 2005; Kong 2023).

    With ``z = sqrt(snr) x + eps`` and e the expected squared error of the noise, summed over the elements of a sample,

    ``log p = -(d / 2) log(2 pi e) + (1/2) int [d snr / (1 + snr) - e] d log snr``.

    The integral is a trapezoid over the levels that are given, so they must reach from pure noise (e near 0, as the
    square of the signal) to clean data (e near d); what is left out is of the order of ``snr`` at the low end and
    ``1 / snr`` at the high one. Differences between conditions need only the levels at which their errors differ.

    Args:
        log_snr: increasing, float64.
        errors: ``E |eps - eps_hat|^2`` at each level.
        dims: d, numbers in a sample.

    Raises:
        BadValue: levels that don't increase, or of another number than the errors.
    """
    log_snr, errors = log_snr.double(), errors.double()
    if log_snr.ndim != 1 or len(log_snr) < 2 or not bool((log_snr.diff() > 0).all()):
        raise BadValue(f"needs at least two increasing log-SNRs, got shape {tuple(log_snr.shape)}")
    if errors.shape[-1:] != log_snr.shape:
        raise BadValue(f"{len(log_snr)} levels need as many errors, got {tuple(errors.shape)}")
    gap = dims * torch.sigmoid(log_snr) - errors
    return 0.5 * torch.trapezoid(gap, log_snr) - 0.5 * dims * math.log(2.0 * math.pi * math.e)


def bits_per_dim(nats: Tensor, dims: int, bin_width: float | None = None) -> Tensor:
    """Log-likelihoods in nats per sample -> bits per dimension (lower is better).

    Args:
        nats: log p(x) or a bound on it.
        dims: numbers in a sample.
        bin_width: of uniformly dequantised levels, such as 2 / 256 for bytes in [-1, 1], when ``nats`` is a
            log-density: the density over a cell becomes its probability. None for probabilities.
    """
    if dims < 1 or (bin_width is not None and not bin_width > 0):
        raise BadValue(f"bits_per_dim needs dims >= 1 and bin_width > 0, got {dims} and {bin_width}")
    bits = -torch.as_tensor(nats, dtype=torch.float64) / (dims * math.log(2.0))
    return bits if bin_width is None else bits - math.log2(bin_width)


def nats_per_sample(bits: Tensor, dims: int, bin_width: float | None = None) -> Tensor:
    """The inverse of :func:`bits_per_dim`."""
    bits = torch.as_tensor(bits, dtype=torch.float64)
    return -(bits if bin_width is None else bits + math.log2(bin_width)) * dims * math.log(2.0)
