"""What runs on series remember, and how they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.config import from_config
from condiff.data import Data, Recalled, Subset, Windows, WindowSpec
from condiff.errors import BadValue, require_extra
from condiff.methods.recipe import Sampler


class RecalledWindows(Recalled):
    """Windows of series that aren't here: others can be forecast like them.

    Args:
        facts: as :func:`condiff.data.remember` returns them, with ``spec``, ``start`` and the series' ``sizes``.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.spec: WindowSpec = from_config(facts["spec"])
        self.start, self.sizes = str(facts["start"]), tuple(facts["sizes"])


def windows_of(data: Data) -> Windows:
    """The windows that a data set is.

    Raises:
        BadValue: others, or those of a run whose series aren't here.
    """
    whole = data.data if isinstance(data, Subset) else data
    if not isinstance(whole, Windows):
        raise BadValue(f"{data.name} isn't here: this needs the series that the model was trained on")
    return whole


def spec_of(data: Any) -> WindowSpec | None:
    """What the windows of a data set are; None for other data."""
    whole = data.data if isinstance(data, Subset) else data
    return whole.spec if isinstance(whole, Windows | RecalledWindows) else None


def how(sampler: Sampler) -> dict[str, Any]:
    """A run's sampler as :func:`condiff.series.paths` takes it."""
    return {"solver": sampler.solver, "grid": sampler.grid, "steps": sampler.steps}


def table_of(x: Tensor, data: Data) -> Any:
    """New windows (N, L) as a DataFrame like the data's: from its first timestamp, over its series' sizes in turn."""
    pandas = require_extra("pandas", "series")
    whole: Any = data.data if isinstance(data, Subset) else data
    scale = torch.tensor(whole.sizes, dtype=torch.float64)[torch.arange(len(x)) % len(whole.sizes)]
    index = pandas.date_range(whole.start, periods=x.shape[1], freq=whole.spec.freq, name="timestamp")
    columns = {f"sample-{i}": row.numpy() for i, row in enumerate(x.double() * scale[:, None])}
    return pandas.DataFrame(columns, index=index)
