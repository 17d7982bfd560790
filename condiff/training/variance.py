"""Learned variances: the variational term of Nichol & Dhariwal (2021), section 3.1.

The network's side output ``f = (aux["variance"] + 1) / 2`` puts the log-variance of a step from t to
``s = t - 1 / steps`` between that of the posterior (f = 0) and that of the forward kernel (f = 1), eq. 15. With
``L = log(noise_t^2 / noise_s^2)`` the divergence of the model's step from the true posterior is, per element in nats::

    KL = (f L + exp(-f L) (1 + (SNR_s - SNR_t) (x0 - x0_hat)^2) - 1) / 2

x0_hat enters as a constant: the term trains the variance only. A step into t = 0 has no term, because samplers
return its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process import Prediction
from condiff.process.algebra import match


@dataclass(frozen=True, kw_only=True)
class LearnedVariance:
    """``weight * steps * KL`` for the variance head of a network.

    Args:
        steps: of the sampler whose variances are learned.
        weight: of the bound's ``steps`` terms (the paper's lambda).
    """

    steps: int = 1000
    weight: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.weight > 0.0:
            raise BadValue(f"LearnedVariance needs steps >= 1 and weight > 0, got {self.steps} and {self.weight}")

    def __call__(self, said: Prediction, truth: Prediction) -> Tensor:
        """The term of every element, (B, ...).

        Raises:
            Incompatible: a network without a variance head.
        """
        head = said.aux.get("variance")
        if head is None:
            raise Incompatible("LearnedVariance needs a variance head: build the network with learned_variance=True")
        head = head if head.dtype == torch.float64 else head.float()
        error2 = (truth.x0 - said.x0.detach()).to(head.dtype).square()
        return self.weight * self.steps * self.divergence((head + 1.0) / 2.0, error2, truth)

    def divergence(self, fraction: Tensor, error2: Tensor, truth: Prediction) -> Tensor:
        """KL per element in nats, for f and ``(x0 - x0_hat)^2`` of the state's shape."""
        t = truth.level
        times = torch.as_tensor(t.t, dtype=torch.float64)
        s = t.process.at((times - 1.0 / self.steps).clamp_min(0.0))
        inside = s.noise > 0.0
        spread = torch.where(inside, 2.0 * torch.log(t.noise / s.noise), 0.0)
        gain = torch.where(inside, (s.data / s.noise) ** 2 - (t.data / t.noise) ** 2, 0.0)
        spread, gain, inside = (match(w, error2) for w in (spread, gain, inside))
        log_ratio = fraction * spread
        return inside * 0.5 * (log_ratio + torch.exp(-log_ratio) * (1.0 + gain * error2) - 1.0)
