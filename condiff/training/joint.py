"""JointDenoising: the objective of joint states, one :class:`Denoising` per variable and one network call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from condiff.errors import BadType, unknown
from condiff.process import TokenPrediction
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import Denoising, Losses


@dataclass(frozen=True, kw_only=True)
class JointDenoising:
    """``sum_v weight_v E w_v(t_v) d_v(said_v, true_v)`` over the variables of a :class:`condiff.process.Joint`.

    Args:
        variables: how each variable is compared (of tokens the times alone count: they are compared by the mean
            cross-entropy of those that are masked, in nats); a plain ``Denoising()`` for those that aren't named. Their
            ``transform`` and ``antithetic`` have no meaning here.
        weights: of the variables; 1 for those that aren't named.
        tied: all variables are drawn at one time, that of the first; else each has its own, and the model learns
            every conditional law (UniDiffuser, Bao 2023).
        transform: what happens to the conditions, as in :class:`Denoising`; its ``t`` is a dictionary.
    """

    variables: Mapping[str, Denoising] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    tied: bool = False
    transform: Any = None

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch whose x is a dictionary.

        Raises:
            BadType: a batch of one variable.
            BadValue: names that aren't variables of the process.
        """
        batch, rng, joint = as_batch(batch, getattr(denoiser, "kinds", None)), as_source(rng), denoiser.process
        if not isinstance(batch.x, Mapping):
            raise BadType("JointDenoising takes x as a dictionary of variables; one variable has Denoising")
        for name in (*self.variables, *self.weights):
            if name not in joint.processes:
                raise unknown("variable", name, joint.processes)
        times = self._times(joint, batch.x, rng)
        truth = joint.forward(batch.x, times, rng=rng)
        cond = batch.cond if self.transform is None else self.transform(batch.cond, t=times, rng=rng, training=training)
        said = denoiser({n: p.x_t for n, p in truth.items()}, {n: p.level for n, p in truth.items()}, cond)
        return self._losses(batch, said, truth, times)

    def _times(self, joint: Any, x: Mapping[str, Tensor], rng: Source) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, process in joint.processes.items():
            where = x[name].device if x[name].device.type == "cuda" else "cpu"
            drawn = None if self.tied and out else self._how(name).times.sample(process, x[name].shape, rng, where)
            out[name] = next(iter(out.values())) if drawn is None else drawn
        return out

    def _how(self, name: str) -> Denoising:
        return self.variables.get(name) or Denoising()

    def _losses(self, batch: Batch, said: Mapping[str, Any], truth: Mapping[str, Any], times: dict) -> Losses:
        parts, masks = {}, cast("dict[str, Tensor]", batch.mask or {})
        for name in truth:
            if isinstance(truth[name], TokenPrediction):
                parts[name] = masked_cross_entropy(said[name], truth[name])
                continue
            fields = self._how(name).fields(said[name], truth[name], masks.get(name))
            parts[name] = torch.stack(list(fields.values())).sum(0)
        per_sample = torch.stack([self.weights.get(name, 1.0) * value for name, value in parts.items()]).sum(0)
        weighted = per_sample if batch.weight is None else per_sample * batch.weight.to(per_sample)
        logged = {name: value.detach().mean() for name, value in parts.items()}
        return Losses(torch.mean(weighted), per_sample, logged, times)


def masked_cross_entropy(said: TokenPrediction, truth: TokenPrediction) -> Tensor:
    """``-log c`` of the tokens that are masked, 0 for the others, averaged over a row: (B,)."""
    log_c = said.log_probs.gather(-1, truth.tokens[..., None])[..., 0]
    return torch.where(truth.masked, -log_c, 0.0).flatten(1).mean(1)
