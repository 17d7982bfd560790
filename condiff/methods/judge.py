"""Who says which class a sample shows: a classifier of real data that shares nothing with the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.data import Data
from condiff.errors import require_extra
from condiff.metrics import digit_classifier

MOST_ROWS = 5000


class SupportVectors:
    """A support vector machine on the values of real, labelled samples."""

    def __init__(self, data: Data) -> None:
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
        batch = data.batch(rows)
        self.machine = require_extra("sklearn.svm", "metrics").SVC(C=10.0, gamma="scale")
        self.machine.fit(batch["x"].flatten(1).double().numpy(), batch["cond"]["label"].numpy())

    def predict(self, x: Tensor) -> Tensor:
        """(B, ...) -> classes (B,)."""
        return torch.from_numpy(self.machine.predict(x.detach().cpu().flatten(1).double().numpy()))


def judge_of(source: str, data: Data) -> Any:
    """The judge of a data set; None for data without at least two classes."""
    if source == "digits":
        return digit_classifier()
    return SupportVectors(data) if len(data.classes) > 1 else None
