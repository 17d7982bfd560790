"""The boundary condition of consistency models: at the clean end a network's answer is the state itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from condiff.errors import BadValue
from condiff.process import algebra
from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.loop import Hook, Run


@dataclass(frozen=True)
class Boundary(Hook):
    """``x0 <- c_out x0 + c_skip x_t`` with ``c_skip = sd^2 / (s^2 + sd^2)``, ``c_out = s / sqrt(s^2 + sd^2)`` and
    ``s = scaling i``, i the index that the network is told (latent consistency models, Luo 2023).

    Acts after guidance. At indices of noisy states it changes nothing but the seventh digit.

    Args:
        sigma_data: sd.
        scaling: of the index.
    """

    continuous: ClassVar[bool] = True

    sigma_data: float = 0.5
    scaling: float = 10.0

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0.0 and self.scaling > 0.0):
            raise BadValue(f"Boundary needs sigma_data and scaling > 0, got {self}")

    def weights(self, level: Level) -> tuple[Weight, Weight]:
        """``(c_skip, c_out)`` of a level."""
        s = self.scaling * level.model_time
        norm = s * s + self.sigma_data**2
        return algebra.divide(self.sigma_data**2, norm), algebra.divide(s, algebra.sqrt(norm))

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        c_skip, c_out = self.weights(prediction.level)
        return prediction.set("x0", combine((c_out, prediction.x0), (c_skip, prediction.x_t)))
