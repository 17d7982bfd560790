"""What is remembered of data that isn't here, for models that are used without what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.data.base import Data, Subset
from condiff.data.ranges import IDENTITY, Affine
from condiff.data.tokenizer import Tokenizer
from condiff.data.volumes import Volumes
from condiff.errors import BadFile


def remember(data: Data) -> dict[str, Any]:
    """The facts of a data set that its model is used with, JSON-ready: shapes, kinds, names of classes, scales."""
    whole = data.data if isinstance(data, Subset) else data
    affine = getattr(whole, "affine", IDENTITY)
    example, shape = data.example(), data.shape
    return {
        "name": data.name,
        "count": len(data),
        "shape": {k: list(v) for k, v in shape.items()} if isinstance(shape, Mapping) else list(shape),
        "range": list(data.value_range),
        "kinds": dict(data.kinds),
        "conditions": {k: [str(v.dtype).removeprefix("torch."), *v.shape[1:]] for k, v in example.items()},
        "classes": list(data.classes),
        "vocab": data.vocab,
        "paired": data.paired,
        "affine": list(affine) if isinstance(affine, Affine) else list(IDENTITY),
    }


class Recalled(Data):
    """A data set of which only :func:`remember`'s facts are here: its rows can't be had.

    Args:
        facts: as :func:`remember` returns them.
        tokenizer: of text.
    """

    def __init__(self, facts: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> None:
        shape = facts["shape"]
        shapes: Any = {k: tuple(v) for k, v in shape.items()} if isinstance(shape, Mapping) else tuple(shape)
        self.shape = shapes
        self.name, self.kinds, self.classes = facts["name"], dict(facts["kinds"]), tuple(facts["classes"])
        self.vocab, self.paired, self._facts = facts["vocab"], facts["paired"], dict(facts)
        self.affine, self.tokenizer = Affine(*facts["affine"]), tokenizer

    def __len__(self) -> int:
        return int(self._facts["count"])

    def example(self) -> dict[str, Tensor]:
        """Zeros of the shapes and types that conditions have."""
        said = self._facts["conditions"].items()
        return {k: torch.zeros(1, *shape, dtype=getattr(torch, dtype)) for k, (dtype, *shape) in said}

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        raise BadFile(
            f"{self.name}, which the model was trained on, isn't here: give every condition yourself, with --condition "
            "or --label; evaluating and training on need the data"
        )

    def restore(self, x: Tensor) -> Tensor:
        return self.affine.inverse(x)

    @property
    def value_range(self) -> tuple[float, float]:
        low, high = self._facts["range"]
        return low, high

    def _content(self, digest: Any) -> None:
        digest.update(repr(sorted(self._facts.items())).encode())


class RecalledVolumes(Recalled, Volumes):
    """Scans without their cases: others can be made like them, and samples written where those lie.

    Args:
        facts: as :func:`remember` returns them, with the ``target``, its ``condition`` and the ``percentiles``.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        how = {"percentiles": facts["percentiles"], "name": facts["name"]}
        Volumes.__init__(self, {}, facts["target"], facts["condition"], facts["shape"][1:], **how)
        Recalled.__init__(self, facts)
