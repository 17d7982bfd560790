"""Paired data as the variables of a joint state: the sample and the condition that belongs to it, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condiff.data.base import Data, Indices
from condiff.errors import BadType, BadValue, unknown


class AsVariables:
    """Rows ``{"x": {variable: Tensor}, "cond": {...}}`` of a data set of pairs, for :class:`condiff.Aligned` and other
    denoisers of joint states.

    Args:
        data: with a condition for every variable but the sample itself.
        names: variable -> what it is in the data, ``"x"`` for the sample or the name of a condition.

    Attributes:
        shape: of one sample of each variable.
        kinds: of the conditions that aren't variables.

    Raises:
        BadValue: fewer than two variables, a name that the data doesn't have, one thing under two names.

    Example:
        >>> import torch; from condiff.data import TensorData
        >>> scans = TensorData(torch.zeros(8, 1, 4, 4), {"depth": torch.zeros(8, 1, 4, 4)})
        >>> AsVariables(scans, image="x", depth="depth").batch(range(3))["x"]["depth"].shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(self, data: Data, **names: str) -> None:
        if not isinstance(data, Data):
            raise BadType(f"AsVariables takes a data set, got {type(data).__name__}")
        for source in names.values():
            if source != "x" and source not in data.kinds:
                raise unknown(f"condition of {data.name}", source, ("x", *data.kinds))
        if len(names) < 2 or len(set(names.values())) != len(names):
            raise BadValue(f"two or more variables, each something else of the data, are wanted, got {names}")
        self.data, self.names = data, dict(names)
        self.name = f"{data.name} as {', '.join(names)}"
        self.kinds: Mapping[str, str] = {n: kind for n, kind in data.kinds.items() if n not in names.values()}
        first = self.batch([0])["x"]
        self.shape = {name: tuple(value.shape[1:]) for name, value in first.items()}

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Indices, epoch: int = 0) -> dict[str, Any]:
        """Rows by index; augmentations are those of the data, the same for all variables of a row."""
        rows = self.data.batch(indices, epoch)
        x = {name: rows["x"] if source == "x" else rows["cond"][source] for name, source in self.names.items()}
        return {"x": x, "cond": {n: v for n, v in rows["cond"].items() if n not in self.names.values()}}

    def fingerprint(self) -> str:
        """That of the data, and which variables are made of it."""
        return f"{self.data.fingerprint()} {sorted(self.names.items())}"

    def __repr__(self) -> str:
        return f"AsVariables({self.data!r}, {self.names})"
