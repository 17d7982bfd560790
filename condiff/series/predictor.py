"""A model of windows as GluonTS's tools take one: for its backtests and evaluators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from condiff.data import WindowSpec, read_series
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.series.forecast import forecast
from condiff.series.paths import check_members


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """``predictor.predict(dataset)`` yields a GluonTS ``SampleForecast`` behind the end of each series, in their order.

    It has what GluonTS asks of its own predictors. The data set is read as it goes, some series at a time.

    Args:
        denoiser, spec: a model of windows, and what they are.
        members: sample paths, where ``predict`` isn't told a number.
        gaps: whether NaN is a missing value, as in GluonTS's data sets; else it is refused.
        at_once: series that are forecast together.
        how: guidance, solver, seed and so on, see :func:`condiff.series.paths`.

    Raises:
        BadValue: fewer than one path or series at once; :meth:`predict` as :func:`condiff.series.forecast`.

    Example:
        >>> from gluonts.evaluation import Evaluator, make_evaluation_predictions
        >>> forecasts, truth = make_evaluation_predictions(dataset.test, model.predictor(scale=4.0), num_samples=100)
        >>> scores, by_series = Evaluator()(truth, forecasts)
    """

    denoiser: Denoises
    spec: WindowSpec
    members: int = 100
    gaps: bool = True
    at_once: int = 64
    how: Mapping[str, Any] = field(default_factory=dict)

    lead_time = 0

    def __post_init__(self) -> None:
        check_members(self.members)
        if isinstance(self.at_once, bool) or not isinstance(self.at_once, int) or self.at_once < 1:
            raise BadValue(f"at_once is a number of series, at least 1, got {self.at_once!r}")

    @property
    def prediction_length(self) -> int:
        """Steps that are forecast: the horizon."""
        return self.spec.horizon

    def predict(self, dataset: Iterable[Mapping[str, Any]], num_samples: int | None = None) -> Iterator[Any]:
        """Forecasts of the entries ``{"start", "target", ["item_id"]}`` of a data set."""
        members = self.members if num_samples is None else num_samples
        entries = ({"item_id": str(i), **entry} for i, entry in enumerate(dataset))
        while some := list(islice(entries, self.at_once)):
            items = read_series(some, self.spec.freq, gaps=self.gaps)
            for made in forecast(self.denoiser, items, self.spec, members=members, **self.how):
                yield made.to_gluonts()
