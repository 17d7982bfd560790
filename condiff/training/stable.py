"""Stable targets: regression on the mean of all data that a noisy state may come from, in place of its own source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.errors import BadValue, Incompatible
from condiff.process import Level, Process, algebra, oracles
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import Denoising, Losses


@dataclass(frozen=True, kw_only=True)
class StableTarget(Denoising):
    """Denoising whose truth is averaged over a reference batch (Xu 2023, arXiv 2302.00670; PFGM++, arXiv 2302.04265).

    The first ``rows`` of a batch are trained on, and all of its R rows are the reference::

        x0 = sum_i w_i x0_i,    w = softmax of the noise's log-density at (x_t - data(t) x0_i) / noise(t)

    Every quantity of the truth follows from this x0 and x_t. It has far less variance than the row's own x0 where many
    rows could have led to x_t, and a bias that vanishes as R grows. Under Student-t noise the weights are those of its
    kernel.

    Args:
        rows: how many rows of a batch are trained on; make batches of R = ``TrainConfig(batch=...)`` rows.

    Raises:
        Incompatible: conditions other than a label (of which the rows of other classes don't count), processes with an
            endpoint, times per frame, masks, antithetic noise.
    """

    rows: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise BadValue(f"rows to train on must be at least 1, got {self.rows}")
        if self.antithetic:
            raise Incompatible("StableTarget has a target of its own for each noise: leave antithetic out")

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        batch = as_batch(batch, getattr(denoiser, "kinds", None))
        if not isinstance(batch.x, Tensor) or batch.mask is not None:
            raise Incompatible("StableTarget takes samples of one variable, without a mask")
        if len(batch) < self.rows:
            raise BadValue(f"{self.rows} rows to train on, and a batch of {len(batch)}: the reference is the batch")
        reference, x = batch, batch.x[: self.rows]
        rng, process = as_source(rng), denoiser.process
        where = x.device if x.device.type == "cuda" else "cpu"
        t = self.times.sample(process, x.shape, rng, where)
        noise = process.noise_law.sample(rng, x.shape, x.dtype, x.device)
        cond = batch.cond.rows(slice(0, self.rows))
        if self.transform is not None:
            cond = self.transform(cond, t=t, rng=rng, training=training)
        weight = None if batch.weight is None else batch.weight[: self.rows]
        x0, noise = averaged(process, reference, x, t, noise, cond)
        return self.at(denoiser, x0, t, noise, cond, weight=weight)


def averaged(
    process: Process, reference: Batch, x: Tensor, t: Tensor, noise: Tensor, cond: Conditions
) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise that x_t is made of on average, ``data x0 + noise z`` still being x_t."""
    label = _label(cond)
    if process.has_source or t.ndim != 1:
        raise Incompatible(f"stable targets are for one time a row and no endpoint, got {process} and {tuple(t.shape)}")
    assert isinstance(reference.x, Tensor)
    labels = None if label is None else reference.cond[label].value
    law = oracles.empirical(process, reference.x, labels=labels)
    level: Level = process.at(t)
    x_t = process.forward(x.double(), level, noise=noise.double()).x_t
    said = law(x_t, level, {} if label is None else {"label": cond[label]})
    clean = algebra.match(torch.as_tensor(level.noise == 0.0), x).bool()
    return torch.where(clean, x, said.x0.to(x.dtype)), torch.where(clean, noise, said.noise.to(x.dtype))


def _label(cond: Conditions) -> str | None:
    """The name of the only condition, a label; None without conditions."""
    others = [name for name, entry in cond.items() if entry.kind != "label"]
    if others or len(cond) > 1:
        raise Incompatible(
            f"which rows share their conditions can be told for one label only, not for {', '.join(cond)}: "
            "use Denoising"
        )
    return next(iter(cond), None)
