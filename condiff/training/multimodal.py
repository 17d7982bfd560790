"""MultiModalDenoising: the objective of a latent with heads: its noise, and what each head says (Chen 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.process.algebra import match
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import Denoising, Losses


@dataclass(frozen=True, kw_only=True)
@checked
class MultiModalDenoising:
    """``E |eps - eps_hat(z_t)|^2 + sum_i weight_i loss_i(head_i(z_t), x_i)``, t and noise drawn for each row.

    The heads are trained at every level, although data is decoded at the first alone. Rows in which a subset of the
    modalities is known are told them, and have no loss for their heads.

    Args:
        latent: how the latent's own prediction is compared: its times, weighting, distance, and the transform of
            conditions that aren't modalities.
        weights: of the heads' losses; by default 1 for continuous modalities (per element) and 0.1 for labels (nats).
        known: the probability that some modalities of a row are known, each subset but none and all being as likely;
            by default 0.5 for a network that can be told, else 0.
        detach: heads learn from the trunk's features, but leave the trunk alone.
        by_signal: weight the heads' losses by ``data^2 / (data^2 + noise^2)``: at much noise nothing can be said.

    Raises:
        BadValue: a probability outside [0, 1], a weight below 0, an unknown modality.
        Incompatible: ``known`` > 0 for a network that isn't told, or 0 for one that is: it would never learn what.
    """

    latent: Denoising = field(default_factory=Denoising)
    weights: Mapping[str, float] = field(default_factory=dict)
    known: float | None = None
    detach: bool = False
    by_signal: bool = False

    def __post_init__(self) -> None:
        if self.known is not None and not 0.0 <= self.known <= 1.0:
            raise BadValue(f"known= is a probability, got {self.known}")
        if any(not weight >= 0.0 for weight in self.weights.values()):
            raise BadValue(f"weights of losses must be >= 0, got {dict(self.weights)}")
        if self.latent.antithetic or self.latent.coupling is not None or self.latent.variance is not None:
            raise Incompatible("the latent's Denoising has no antithetic noise, coupling or variance here")

    @property
    def transform(self) -> Any:
        """What happens to conditions that aren't modalities."""
        return self.latent.transform

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch: a dictionary of modalities as x, or the first as x and the others as conditions.

        Raises:
            BadType, BadValue: a batch that doesn't hold the modalities.
        """
        modalities = getattr(denoiser, "modalities", None)
        if modalities is None:
            raise BadType(f"MultiModalDenoising trains a MultiModal, not a {type(denoiser).__name__}")
        self._check(denoiser)
        batch, rng, how = as_batch(batch, denoiser.kinds), as_source(rng), self.latent
        x, cond = modalities.split(batch.x, batch.cond)
        mask = batch.mask if isinstance(batch.mask, Mapping) or batch.mask is None else {next(iter(x)): batch.mask}
        drive, process = modalities.aggregate(x, mask), denoiser.process
        where = drive.device if drive.device.type == "cuda" else "cpu"
        t = how.times.sample(process, drive.shape, rng, where)
        noise = process.noise_law.sample(rng, drive.shape, drive.dtype, drive.device)
        cond = cond if how.transform is None else how.transform(cond, t=t, rng=rng, training=training)
        keep = _there(self._subsets(denoiser, len(drive), rng, drive.device), mask or {})
        if keep:
            cond = cond.replace(**modalities.known(x, keep, mask))
        truth = process.forward(drive, t, noise=noise)
        said = denoiser(truth.x_t, truth.level, cond, detach=self.detach)
        parts = {"latent": torch.stack(list(how.fields(said, truth, None).values())).sum(0)}
        parts |= self._heads(denoiser, said, x, mask or {}, keep)
        return self._summed(batch, parts, modalities, t)

    def _check(self, denoiser: Any) -> None:
        for name in self.weights:
            if name not in denoiser.modalities.kinds:
                raise unknown("modality", name, denoiser.modalities.kinds)
        if self.known is not None and (self.known > 0.0) != denoiser.told:
            raise Incompatible(
                "known=0 leaves what the network is told of modalities untrained: give it no such conditions"
                if denoiser.told
                else "known= needs a network that is told: give it conditions=modalities.conditions()"
            )

    def _subsets(self, denoiser: Any, rows: int, rng: Source, device: Any) -> dict[str, Tensor]:
        """Which modalities of each row are known: name -> (B,) booleans; empty for a network that isn't told."""
        names = list(denoiser.modalities)
        if not denoiser.told or len(names) < 2:
            return {}
        some = rng.bernoulli(0.5 if self.known is None else self.known, (rows,), device)
        subset = 1 + rng.integers(2 ** len(names) - 2, (rows,), device)
        return {name: some & ((subset >> i) & 1).bool() for i, name in enumerate(names)}

    def _heads(self, denoiser: Any, said: Any, x: Mapping[str, Tensor], mask: Mapping, keep: Mapping) -> dict:
        """The loss of each head, (B,), 0 where its modality is known."""
        level, out = said.level, {}
        signal = level.data**2 / (level.data**2 + level.noise**2) if self.by_signal else 1.0
        for name, value in denoiser.said(said).items():
            loss = denoiser.modalities[name].loss(value, x[name], mask.get(name))
            loss = match(signal, loss) * loss if isinstance(signal, Tensor) else loss * signal
            out[name] = torch.where(keep[name], 0.0, loss) if name in keep else loss
        return out

    def _summed(self, batch: Batch, parts: Mapping[str, Tensor], modalities: Any, t: Tensor) -> Losses:
        weights = {name: self.weights.get(name, modalities[name].loss_weight) for name in modalities}
        weighted = [value * weights.get(name, 1.0) for name, value in parts.items()]
        per_sample = torch.stack(weighted).sum(0)
        total = per_sample if batch.weight is None else per_sample * batch.weight.to(per_sample)
        return Losses(total.mean(), per_sample, {name: v.detach().mean() for name, v in parts.items()}, t)


def _there(keep: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which modalities of each row are known, (B,) each, without those that a mask leaves out entirely."""
    some = {name: m.bool().reshape(len(m), -1).any(1) for name, m in mask.items()}
    return {name: k & some[name] if name in some else k for name, k in keep.items()}
