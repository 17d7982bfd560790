"""Series: values at regular times, read from tables or GluonTS data sets; what is wrong with them is said at once.

A table is wide, a column of timestamps and a column an item, or long, rows of (item, timestamp, value). Values that are
missing are NaN, and refused unless they are declared to be gaps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from condiff.errors import BadFile, BadType, BadValue, require_extra, unknown

ITEM, TIME, VALUE = ("item_id", "unique_id"), ("timestamp", "ds", "date", "time"), ("target", "y", "value")
TABLES = (".csv", ".txt", ".gz", ".parquet")


@dataclass(frozen=True, eq=False)
class Series:
    """One series.

    Args:
        item: its name.
        start: the timestamp (pandas) of its first value.
        freq: of its values, as pandas names it: ``"h"``, ``"D"``, ``"B"``, ``"MS"`` ...
        values: float64 (n,), NaN where missing.
    """

    item: str
    start: Any
    freq: str
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def observed(self) -> np.ndarray:
        """Booleans (n,), false where missing."""
        return np.isfinite(self.values)

    def times(self, first: int = 0, count: int | None = None) -> Any:
        """Timestamps (a DatetimeIndex) of ``count`` values from the given one on; they may lie behind the last."""
        pandas = require_extra("pandas", "series")
        count = len(self) - first if count is None else count
        offset = pandas.tseries.frequencies.to_offset(self.freq)
        if isinstance(offset, pandas.tseries.offsets.Tick):  # pandas works these out at once
            return pandas.date_range(self.start, periods=first + count, freq=offset)[first:]
        start = offset.rollforward(self.start) + first * offset  # others it walks, one by one
        return pandas.date_range(start, periods=count, freq=offset)

    def cut(self, first: int, last: int | None = None) -> Series:
        """The values from ``first`` to before ``last``."""
        return replace(self, start=self.times(first, 1)[0], values=self.values[first:last])


def frequency(name: str) -> str:
    """The name that pandas has for a frequency: ``"H"`` is ``"h"``, ``"1D"`` is ``"D"``.

    Raises:
        BadValue: one that pandas doesn't know.
    """
    pandas = require_extra("pandas", "series")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # old names
        try:
            return pandas.tseries.frequencies.to_offset(name).freqstr
        except (ValueError, AttributeError, TypeError):
            raise BadValue(f"unknown frequency {name!r}: H, D, B, W, MS, 15min ... as pandas names them") from None


def period_of(start: Any, freq: str) -> Any:
    """The period (pandas) that a timestamp of a frequency begins or ends: a month for ``"MS"``, one for ``"ME"``."""
    pandas = require_extra("pandas", "series")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # periods of business days
        return pandas.date_range(start, periods=1, freq=freq).to_period()[0]


def read_series(
    source: Any,
    freq: str,
    *,
    item: str | None = None,
    time: str | None = None,
    value: str | None = None,
    start: str | None = None,
    gaps: bool = False,
) -> list[Series]:
    """All series of a source.

    Args:
        source: a .csv, .txt (both may be .gz) or .parquet file, a pandas DataFrame or Series, or an iterable of GluonTS
            entries ``{"start", "target", ["item_id"]}`` (a ListDataset, ``dataset.train``).
        freq: of the values.
        item: column of the items of a long table; ``item_id`` or ``unique_id`` when there is one.
        time: column of the timestamps; ``timestamp``, ``ds``, ``date``, ``time``, or the index, or the first one.
        value: column of the values of a long table; ``target``, ``y`` or ``value`` when there is one.
        start: timestamp of the first row, of a wide table without timestamps.
        gaps: whether NaN, empty cells and absent timestamps are gaps; else they are refused.

    Raises:
        BadFile: a missing or unreadable file. BadType: another source, columns that hold no numbers.
        BadValue: an unknown frequency, timestamps that don't increase or don't follow it, missing values without
            ``gaps``, an unknown column.
    """
    pandas = require_extra("pandas", "series")
    freq = frequency(freq)
    if isinstance(source, str | Path):
        source = _table(Path(source), start is not None)
    if isinstance(source, pandas.Series):
        source = source.to_frame(source.name or "series")
    if isinstance(source, pandas.DataFrame):
        found = _of_frame(source, freq, item, time, value, start, gaps)
    elif isinstance(source, Iterable) and not isinstance(source, Mapping | np.ndarray | str):
        found = [_of_entry(entry, i, freq) for i, entry in enumerate(source)]
    else:
        raise BadType(f"series come from a file, a DataFrame or GluonTS entries, got {type(source).__name__}")
    if not found:
        raise BadValue("there are no series")
    return [_checked(series, gaps) for series in found]


def _table(path: Path, headless: bool) -> Any:
    pandas = require_extra("pandas", "series")
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    if path.suffix not in TABLES:
        raise BadFile(f"{path} is none of {', '.join(TABLES)}")
    try:
        if path.suffix == ".parquet":
            frame = pandas.read_parquet(path)
            return frame if frame.index.name not in TIME else frame.reset_index()
        if headless and all(_number(cell) for cell in pandas.read_csv(path, header=None, nrows=1).iloc[0]):
            return pandas.read_csv(path, header=None)
        return pandas.read_csv(path)
    except Exception as error:  # parsers raise whatever they like
        raise BadFile(f"{path} can't be read as a table: {error}") from error


def _said(option: str, value: str) -> str:
    """How an option of a table is said in Python, and in a terminal."""
    return f"{option}= in Python, --option {option}={value} in a terminal"


def _number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _of_frame(
    frame: Any, freq: str, item: str | None, time: str | None, value: str | None, start: str | None, gaps: bool
) -> list[Series]:
    for name in (item, time, value):
        if name is not None and name not in frame.columns:
            raise unknown("column", name, [str(c) for c in frame.columns])
    if not len(frame):
        raise BadValue(f"the table has no rows, its columns are {', '.join(map(str, frame.columns))}")
    item = item or next((name for name in ITEM if name in frame.columns), None)
    stamps, frame = _stamps(frame, time, item, start, freq)
    if item is None:
        columns = {str(name): frame[name] for name in frame.columns}
        try:
            return [_regular(name, stamps, column, freq, gaps) for name, column in columns.items()]
        except BadType as error:
            raise BadType(f"{error}; of a long table, name the column of items ({_said('item', 'COLUMN')})") from error
    value = value or next((name for name in VALUE if name in frame.columns), None)
    if value is None:
        names = ", ".join(map(str, frame.columns))
        raise BadValue(f"say which of the columns {names} holds the values ({_said('value', 'COLUMN')})")
    if frame[item].isna().any():
        raise BadValue(f"row {int(np.argmax(frame[item].isna()))} of the table has no item ({item!r})")
    groups = frame[value].groupby(frame[item].to_numpy(), sort=False)
    return [_regular(str(name), stamps[groups.indices[name]], column, freq, gaps) for name, column in groups]


def _stamps(frame: Any, time: str | None, item: str | None, start: str | None, freq: str) -> tuple[Any, Any]:
    """The timestamps of the rows, and the table without them."""
    pandas = require_extra("pandas", "series")
    if start is not None:
        if time is not None or item is not None:
            raise BadValue(f"{_said('start', 'TIMESTAMP')} is for wide tables without timestamps")
        return pandas.date_range(start, periods=len(frame), freq=freq), frame
    if time is None and isinstance(frame.index, pandas.DatetimeIndex | pandas.PeriodIndex):
        index = frame.index
        return (index.to_timestamp() if isinstance(index, pandas.PeriodIndex) else index), frame
    time = time or next((name for name in TIME if name in frame.columns), None) or frame.columns[0]
    column = frame[time]
    if pandas.api.types.is_numeric_dtype(column):
        raise BadValue(
            f"there is no column of timestamps (the first is {time!r}): name it ({_said('time', 'COLUMN')}), or say "
            f"when the first row is ({_said('start', 'TIMESTAMP')})"
        )
    try:
        return pandas.DatetimeIndex(pandas.to_datetime(column)), frame.drop(columns=[time])
    except (ValueError, TypeError) as error:
        raise BadValue(
            f"column {time!r} holds no timestamps ({error}): name the right one ({_said('time', 'COLUMN')})"
        ) from error


def _regular(name: str, stamps: Any, column: Any, freq: str, gaps: bool) -> Series:
    """One column as a series, its absent timestamps filled with NaN when gaps are allowed."""
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise BadType(f"{name}: values must be numbers ({error})") from error
    if stamps.isna().any():
        raise BadValue(f"{name}: row {int(np.argmax(stamps.isna()))} has no timestamp")
    later = np.asarray(stamps[1:] > stamps[:-1])
    if not later.all():
        i = int(np.argmin(later))
        raise BadValue(f"{name}: timestamps must increase, but {stamps[i + 1]} follows {stamps[i]}: sort the rows")
    whole = _whole(stamps[0], stamps[-1], freq)
    place = whole.get_indexer(stamps)
    if (place < 0).any():
        raise BadValue(
            f"{name}: {stamps[int(np.argmin(place))]} isn't on the grid of frequency {freq} from {stamps[0]}"
        )
    if len(whole) > len(stamps) and not gaps:
        absent = whole[~whole.isin(stamps)]
        raise BadValue(
            f"{name}: {len(absent)} timestamps are absent, the first {absent[0]}: say that gaps are meant "
            f"({_said('gaps', 'true')}), or fill them"
        )
    full = np.full(len(whole), np.nan)
    full[place] = values
    return Series(name, stamps[0], freq, full)


@lru_cache(maxsize=16)
def _whole(start: Any, end: Any, freq: str) -> Any:
    """All timestamps from the first to the last: of the series of a table they are often the same."""
    return require_extra("pandas", "series").date_range(start, end, freq=freq)


def _of_entry(entry: Any, i: int, freq: str) -> Series:
    """A GluonTS entry."""
    pandas = require_extra("pandas", "series")
    if not isinstance(entry, Mapping) or "start" not in entry or "target" not in entry:
        raise BadType(f"entry {i} of the data set must have start and target, got {entry!r:.80}")
    start, target = entry["start"], np.asarray(entry["target"], dtype=np.float64)
    if target.ndim != 1:
        raise BadValue(f"entry {i}: univariate series are (n,), got target {target.shape}")
    if isinstance(start, pandas.Period):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            stamp, own = start.to_timestamp(), start.freq
        if own != period_of(stamp, freq).freq:
            raise BadValue(f"entry {i} has the frequency {start.freqstr}, not {freq}")
        start = stamp
    start = pandas.Timestamp(start)
    return Series(str(entry.get("item_id", i)), start, freq, target)


def _checked(series: Series, gaps: bool) -> Series:
    if np.isinf(series.values).any():
        raise BadValue(f"{series.item}: value {int(np.argmax(np.isinf(series.values)))} is infinite")
    missing = ~series.observed
    if missing.any() and not gaps:
        first = series.times(int(np.argmax(missing)), 1)[0]
        raise BadValue(
            f"{series.item}: {int(missing.sum())} values are missing, the first at {first}: say that "
            f"gaps are meant ({_said('gaps', 'true')}), fill them, or leave the series out"
        )
    if missing.all():
        raise BadValue(f"{series.item}: nothing is observed")
    return series


def entries(items: Sequence[Series]) -> list[dict[str, Any]]:
    """As GluonTS data sets hold them: ``{"item_id", "start": Period, "target"}``, NaN where missing."""
    return [
        {"item_id": one.item, "start": period_of(one.start, one.freq), "target": one.values.astype(np.float32)}
        for one in items
    ]
