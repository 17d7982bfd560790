"""Together: a sample and what belongs to it, all of which is generated: a picture and its class, for instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from condiff.data.base import Data, Subset
from condiff.data.recalled import Recalled, remember
from condiff.data.variables import AsVariables
from condiff.errors import BadValue, Incompatible

FIRST = {1: "x", 2: "x", 3: "image", 4: "volume"}  # what a sample is called, by its axes


class Together(Data):
    """Rows ``{"x": {"image": ..., "label": ...}, "cond": {...}}`` of a data set with conditions.

    Args:
        data: of values.
        beside: the conditions that are generated beside the sample; all by default. The others stay conditions.

    Attributes:
        shape: of one sample of each.
        facts: of the same data with everything as a condition, as :func:`condiff.data.remember` has them.

    Raises:
        BadValue: no condition, or one that the data doesn't have. Incompatible: samples that are tokens.

    Example:
        >>> import condiff as cd
        >>> Together(cd.data.digits(), ["label"]).shape
        {'image': (1, 8, 8), 'label': ()}
    """

    paired = False

    def __init__(self, data: Data, beside: Sequence[str] | None = None) -> None:
        names = list(data.kinds) if beside is None else [beside] if isinstance(beside, str) else list(beside)
        if data.vocab is not None:
            raise Incompatible(f"{data.name} holds tokens: what is generated together are values and classes")
        if not names:
            raise BadValue(f"{data.name} has no conditions that could be generated beside its samples")
        self.data, self.first = data, FIRST.get(len(data.shape), "x")
        self.rows = AsVariables(data, **{self.first: "x"}, **{name: name for name in names})
        self.name, self.refused, self.notes = data.name, data.refused, data.notes
        self.kinds, shapes = self.rows.kinds, self.rows.shape
        self.shape: Any = shapes
        self.facts = _facts(data, self.first, names)

    @property
    def labels(self) -> Tensor | None:
        return self.data.labels

    @property
    def spans(self) -> Tensor | None:
        return self.data.spans

    def restore(self, x: Any) -> Any:
        """The sample in the units that it is stored in."""
        return {**x, self.first: self.data.restore(x[self.first])}

    @property
    def value_range(self) -> tuple[float, float]:
        return self.data.value_range

    def __len__(self) -> int:
        return len(self.data)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        return self.rows.batch(index, epoch)

    def _content(self, digest: Any) -> None:
        digest.update(self.rows.fingerprint().encode())

    def info(self) -> dict[str, Any]:
        """The facts of the data, with a note of what is generated."""
        info = self.data.info()
        return {**info, "notes": [*info["notes"], f"generated together: {', '.join(self.shape)}"]}


class RecalledTogether(Recalled):
    """Such data of which only the facts are here."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.facts = facts["together"]


def of_together(data: Any) -> Together | RecalledTogether | None:
    """The data that is generated together, of which ``data`` may be a part; None for other data."""
    whole = data.data if isinstance(data, Subset) else data
    return whole if isinstance(whole, Together | RecalledTogether) else None


def _facts(data: Data, first: str, names: Sequence[str]) -> dict[str, Any]:
    row = data.batch([0])
    every = {first: row["x"], **{name: row["cond"][name] for name in names}}
    kinds = {first: "vector" if len(data.shape) == 1 else "map", **{name: data.kinds[name] for name in names}}
    shapes = {name: [str(v.dtype).removeprefix("torch."), *v.shape[1:]] for name, v in every.items()}
    return {**remember(data), "kinds": kinds, "conditions": shapes}
