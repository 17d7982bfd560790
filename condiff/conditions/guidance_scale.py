"""The strength of guidance as something that a network is told: what distilled models have in place of a second call.

The scale is canonical, 1 for the plain conditional model; embeddings are those of ``w = scale - 1``, as in the papers
and in released weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from condiff.conditions.condition import Condition, Conditions
from condiff.conditions.specs import Spec
from condiff.errors import BadValue
from condiff.fields import checked
from condiff.process.algebra import holds
from condiff.random import as_source
from condiff.typing import Float, Tensor

GUIDANCE = "guidance"  # the name that the entry has unless told otherwise
_ROUND_OFF = 1e-6


def scale_features(scale: Float[Tensor, " batch"], features: int = 256) -> Float[Tensor, "batch {features}"]:
    """``[sin(1000 w f_k), cos(1000 w f_k)]`` of ``w = scale - 1``, ``f_k = 10000^(-k / (features / 2 - 1))``.

    Kingma 2021 (VDM), as Meng 2023 and latent consistency models have it: (B,) -> (B, features). Arguments reach tens
    of thousands, so that they are worked out in float64.

    Raises:
        BadValue: features that aren't an even number of at least 4.
    """
    if features < 4 or features % 2:
        raise BadValue(f"features of a scale come in pairs, at least two: got {features}")
    half = features // 2
    k = torch.arange(half, dtype=torch.float64, device=scale.device)
    angles = (1000.0 * (scale.double() - 1.0))[:, None] * 10000.0 ** (-k / (half - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass(frozen=True)
class GuidanceScale(Spec):
    """A guidance scale in [low, high], by the features of :func:`scale_features`; at zero weight to begin with.

    So a network that is extended by it says what it said before, whatever the scale. Values beyond the range are
    refused where they can be read: the features nearly repeat themselves, and say nothing there.
    """

    low: float = 1.0
    high: float = 4.0
    features: int = 256
    kind: ClassVar[str] = "scalar"
    role: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise BadValue(f"a range of scales must have low < high, got [{self.low}, {self.high}]")
        scale_features(torch.ones(1), self.features)

    def check(self, scale: float | Tensor) -> None:
        """
        Raises:
            BadValue: a scale outside the range.
        """
        room = _ROUND_OFF * max(abs(self.low), abs(self.high))
        if not holds((scale >= self.low - room) & (scale <= self.high + room)):
            shown = scale.tolist()[:5] if isinstance(scale, Tensor) else scale
            raise BadValue(f"this model was trained for guidance scales in [{self.low:g}, {self.high:g}], got {shown}")

    def build(self, width: int) -> nn.Module:
        return ScaleEmbedding(self, width)


class ScaleEmbedding(nn.Module):
    """``W2 silu(W1 features(scale))`` with W2 = 0 at the start: (B,) -> (B, width)."""

    def __init__(self, spec: GuidanceScale, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.fc1, self.fc2 = nn.Linear(spec.features, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, entry: Condition | None, batch: int) -> Float[Tensor, "{batch} width"]:
        """
        Raises:
            BadValue: no scale, also in some rows only, or one outside the range.
        """
        if entry is None or (entry.keep is not None and not holds(entry.keep)):
            raise BadValue(
                "this network is told the strength of its guidance in each row: sample guidance.Distilled(model, "
                "scale=...), or give it among the conditions"
            )
        self.spec.check(entry.value)
        features = scale_features(entry.value, self.spec.features)
        return self.fc2(F.silu(self.fc1(features.to(self.fc1.weight.dtype))))


@dataclass(frozen=True, kw_only=True)
@checked
class RandomScale:
    """A transform that tells each row a guidance scale, uniform on [low, high]: what distillation draws.

    An entry that is there stays. Outside of losses, where no times are drawn, nothing is added: there whoever samples
    says the scale.
    """

    low: float = 1.0
    high: float = 4.0
    name: str = GUIDANCE

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise BadValue(f"a range of scales must have low <= high, got [{self.low}, {self.high}]")

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        if t is None or self.name in cond:
            return cond
        rows = cond.batch or len(t)
        device = next((entry.value.device for entry in cond.values()), None)
        u = as_source(rng).uniform((rows,), torch.float64)
        scale = (self.low + (self.high - self.low) * u).to(device=device, dtype=torch.float32)
        return cond.replace(**{self.name: Condition(scale, "scalar")})
