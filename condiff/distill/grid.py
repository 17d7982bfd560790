"""The grid of a model that was distilled for one number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process import Process
from condiff.sampling import Grid


@dataclass(frozen=True)
class DistilledGrid(Grid):
    """``k / N`` for k = N ... 0, and no other number of steps: elsewhere the model was never taught.

    Args:
        trained: N.

    Raises:
        BadValue: another number of steps.
    """

    trained: int

    def __post_init__(self) -> None:
        if self.trained < 1:
            raise BadValue(f"a model is distilled for at least 1 step, got {self.trained}")

    def times(self, process: Process, steps: int) -> Tensor:
        if steps != self.trained:
            count = f"{self.trained} step{'' if self.trained == 1 else 's'}"
            raise BadValue(
                f"this model was distilled for {count} and knows no levels but theirs, got {steps}: leave the number "
                "out, or take the model of another stage"
            )
        return torch.arange(steps, -1, -1, dtype=torch.float64) / steps
