"""Windows of series: context and horizon, scaled by the context, with lagged copies as channels, and their masks.

A window of length L = context + horizon that begins at step p has channel 0, the series, and a channel for each lag G,
the same values G steps earlier. An entry is missing where its own value is: the horizon of a forecast, and what of it a
lag reaches. Values are divided by ``s = mean |observed context|``; missing ones are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import Data, Refused, hash_tensor
from condiff.data.held_out import SHARE, held_count
from condiff.data.missing import PATTERNS, missing
from condiff.data.series import Series, frequency, read_series
from condiff.errors import BadType, BadValue, unknown
from condiff.random import derive_seed
from condiff.typing import Bool, Float, Int

LAGS = {
    "h": tuple(24 * k for k in (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)),
    "D": tuple(30 * k for k in range(1, 13)),
    "B": tuple(30 * k for k in range(1, 13)),
}
CONTEXTS = {"h": 336, "D": 360, "B": 360}
SEASONS = {"s": 3600, "min": 1440, "h": 24, "D": 1, "B": 5, "W": 1, "M": 12, "Q": 4}


def season_of(freq: str) -> int:
    """Steps of the season that forecasts are compared with, as GluonTS has it; 1 where there is no customary one."""
    return SEASONS.get(frequency(freq).split("-")[0].removesuffix("S").removesuffix("E") or "s", 1)


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """What a window is.

    Args:
        freq: of the series.
        horizon, context: steps to forecast, steps that are given.
        lags: in steps.

    Raises:
        BadValue: sizes below 1.
    """

    freq: str
    horizon: int
    context: int
    lags: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "lags", tuple(self.lags))
        if min(self.horizon, self.context, *self.lags, *([] if self.lags else [1])) < 1:
            raise BadValue(f"horizon, context and lags are at least 1 step, got {self}")

    @classmethod
    def of(cls, freq: str, horizon: int, context: int | None = None, lags: Sequence[int] | None = None) -> WindowSpec:
        """With the customary lags and context of hourly and daily series where none are given.

        Raises:
            BadValue: a frequency that has no customary ones.
        """
        name = frequency(freq)
        for what, given, table in (("lags", lags, LAGS), ("context", context, CONTEXTS)):
            if given is None and name not in table:
                raise BadValue(f"there is no customary {what} for the frequency {freq!r}: give {what}= in steps")
        return cls(
            freq=name,
            horizon=horizon,
            context=CONTEXTS[name] if context is None else context,
            lags=LAGS[name] if lags is None else tuple(lags),
        )

    @property
    def length(self) -> int:
        """L, context and horizon."""
        return self.context + self.horizon

    @property
    def shape(self) -> tuple[int, int]:
        """Of a window, (L, 1 + lags)."""
        return self.length, 1 + len(self.lags)

    @property
    def reach(self) -> int:
        """How far lags look back behind a window's first step."""
        return max(self.lags, default=0)

    def places(self) -> Tensor:
        """The step of each entry, from the window's first one on, negative for what lies before it: (L, 1 + lags)."""
        return torch.arange(self.length)[:, None] - torch.tensor([0, *self.lags])


@dataclass(frozen=True, eq=False)
class Window:
    """Windows as a model knows them.

    Args:
        values: scaled, 0 where missing.
        mask: true where observed.
        scale: what values were divided by.
    """

    values: Float[Tensor, "batch length channels"]
    mask: Bool[Tensor, "batch length channels"]
    scale: Float[Tensor, " batch"]

    def rows(self, index: Tensor) -> Window:
        """Some of the windows, or some several times."""
        return Window(self.values[index], self.mask[index], self.scale[index])


def gather(
    series: Float[Tensor, "items n"],
    starts: Int[Tensor, " batch"],
    spec: WindowSpec,
    fallback: Float[Tensor, " batch"] | None = None,
    visible: Bool[Tensor, "batch length channels"] | None = None,
    which: Int[Tensor, " batch"] | None = None,
) -> Window:
    """The windows that begin at steps ``starts``, of each series or of those by number ``which``; float64, NaN where
    missing.

    What lies before a series' first step is missing. The scale is the mean size of the observed context (of its
    ``visible`` part), ``fallback`` where that is 0 or nothing is observed, and 1 where that is 0 as well.
    """
    at = starts[:, None, None] + spec.places()
    inside = (at >= 0) & (at < series.shape[1])
    which = torch.arange(len(series)) if which is None else which
    values = series[which[:, None, None], at.clamp(0, series.shape[1] - 1)].double()
    mask = inside & values.isfinite()
    values = torch.where(mask, values, 0.0)
    seen = mask if visible is None else mask & visible
    scale = mean_size(values[:, : spec.context, 0], seen[:, : spec.context, 0])
    for other in (fallback, torch.ones_like(scale)):
        scale = scale if other is None else torch.where(scale > 0.0, scale, other.to(scale))
    return Window(values / scale[:, None, None], mask, scale)


def mean_size(values: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute value of the entries in the mask, along the last axis; 0 where there are none."""
    return torch.where(mask, values.abs(), 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def features(window: Window, known: Bool[Tensor, "batch length channels"]) -> Float[Tensor, "batch length features"]:
    """What a conditional model is told of a window: known lags, known values and their mask, (B, L, lags + 2)."""
    known = known & window.mask
    seen = torch.where(known, window.values, 0.0)
    return torch.cat([seen[..., 1:], seen[..., :1], known[..., :1].to(seen)], dim=-1)


class Windows(Data):
    """All windows of some series, a sample each.

    Args:
        items: the series.
        spec: what a window is.
        told: what the samples of a conditional model are told (condition ``features``), their history: ``"none"``
            hides nothing of its context, ``"random"``, ``"beginning"`` and ``"end"`` hide half of it, see
            :func:`condiff.data.missing`, and ``"any"`` one of the four by chance. The sample is then the series alone.
            None for unconditional models.
        first, last: per series, the smallest and largest step that a window begins at.
        seed: of what is hidden.

    Raises:
        BadValue: series of another frequency, or too short for one window.
    """

    def __init__(
        self,
        items: Sequence[Series],
        spec: WindowSpec,
        *,
        told: str | None = None,
        first: Sequence[int] | None = None,
        last: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "series",
        refused: Sequence[Refused] = (),
    ) -> None:
        if told is not None and told not in (*PATTERNS, "any"):
            raise unknown("history told", told, (*PATTERNS, "any"))
        self.items, self.spec, self.told, self.seed, self.name = list(items), spec, told, seed, name
        for one in self.items:
            check_length(one, spec, spec.length)
        self.first = torch.tensor([spec.reach] * len(self.items) if first is None else list(first))
        ends = [len(one) - spec.length for one in self.items]
        self.last = torch.tensor(ends if last is None else list(last))
        counts = self.last - self.first + 1
        if int(counts.min()) < 1:
            raise BadValue(f"{self.items[int(counts.argmin())].item}: no window lies in this part of the series")
        self._ends = counts.cumsum(0)
        self.values = padded(self.items)
        told_of = torch.arange(self.values.shape[1]) < (self.last + spec.length)[:, None]  # not what is held out
        self.level = mean_size(self.values.nan_to_num(), self.values.isfinite() & told_of)
        self.shape = (spec.length, 1) if told else spec.shape
        self.kinds = {"features": "map"} if told else {}
        self.refused, self.gaps = tuple(refused), bool(any((~one.observed).any() for one in self.items))
        self.notes = tuple(self._notes())

    def _notes(self) -> list[str]:
        steps = sorted({len(one) for one in self.items})
        span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        missing_share = 1.0 - float(np.mean([one.observed.mean() for one in self.items]))
        lines = [
            f"{len(self.items)} series of {span} steps of frequency {self.spec.freq}, each window over its own mean"
        ]
        lines.append(f"context {self.spec.context}, horizon {self.spec.horizon}, lags {list(self.spec.lags)}")
        return lines + ([f"{missing_share:.1%} of the values are missing"] if self.gaps else [])

    @property
    def start(self) -> str:
        """The first timestamp of all series."""
        return str(min(one.start for one in self.items))

    @property
    def sizes(self) -> list[float]:
        """Mean absolute value of each series, up to the end of its last window."""
        return self.level.tolist()

    @property
    def value_range(self) -> tuple[float, float]:
        some = self.batch(torch.linspace(0, len(self) - 1, min(len(self), 256), dtype=torch.float64).long())["x"]
        return float(some.min()), float(some.max())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The series and the first step of windows by number, (B,) each."""
        which = torch.searchsorted(self._ends, index, right=True)
        before = torch.cat([torch.zeros(1, dtype=torch.long), self._ends])[which]
        return which, self.first[which] + index - before

    def windows(self, index: Tensor, visible: Tensor | None = None) -> Window:
        """Windows by number, scaled by their context, or by what is visible of it."""
        which, start = self.place(index)
        return gather(self.values, start, self.spec, self.level[which], visible, which)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        if self.told is None:
            window = self.windows(index)
            mask = {"mask": window.mask} if self.gaps else {}
            return {"x": window.values.float(), "cond": {}, **mask}
        seeds = [derive_seed(self.seed, epoch, i) for i in index.tolist()]
        hidden = torch.stack([missing(self._pattern(s), self.spec.context, s) for s in seeds])
        visible = known(hidden, self.spec)
        window = self.windows(index, visible)
        told = features(window, visible)
        mask = {"mask": window.mask[..., :1]} if self.gaps else {}
        return {"x": window.values[..., :1].float(), "cond": {"features": told.float()}, **mask}

    def _pattern(self, seed: int) -> str:
        return PATTERNS[seed % len(PATTERNS)] if self.told == "any" else str(self.told)

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.spec} {self.told} {self.seed} {self.first.tolist()} {self.last.tolist()}".encode())
        digest.update(str([(one.item, str(one.start)) for one in self.items]).encode())
        hash_tensor(digest, "values", self.values)

    def cut(self, held_out: float = SHARE, seed: int = 0) -> tuple[Windows, Windows]:
        """``(training, held out)`` in time: the horizons of the last windows, at least one, are seen by no training.

        Args:
            held_out: share of each series' steps behind its first window's context.

        Raises:
            BadValue: a series that is too short for both.
        """
        spec, train, test = self.spec, [], []
        for one, first, last in zip(self.items, self.first.tolist(), self.last.tolist(), strict=True):
            what = f"steps of {one.item} behind its first context (of {len(one)})"
            steps = last - first + spec.horizon
            held = held_count(steps, held_out, least=spec.horizon, stay=spec.horizon, what=what)
            train.append(last - held)
            test.append(last + spec.horizon - held)
        options = {"told": self.told, "seed": self.seed, "refused": self.refused}
        early = Windows(self.items, spec, first=self.first.tolist(), last=train, name=f"{self.name}/train", **options)
        late = Windows(self.items, spec, first=test, last=self.last.tolist(), name=f"{self.name}/held-out", **options)
        late.chosen = "the end of each series"
        return early, late


def known(hidden: Bool[Tensor, "batch context"], spec: WindowSpec) -> Bool[Tensor, "batch length channels"]:
    """Which entries a window's history has, lags included: not the horizon's, nor those hidden in the context."""
    at = spec.places()
    context = torch.nn.functional.pad(~hidden, (0, spec.horizon))  # false along the horizon
    return torch.where(at < 0, True, context[:, at.clamp_min(0)])


def padded(items: Sequence[Series]) -> Tensor:
    """The series as rows, NaN behind the ends of shorter ones, float64 (items, n)."""
    out = torch.full((len(items), max(map(len, items))), torch.nan, dtype=torch.float64)
    for row, one in zip(out, items, strict=True):
        row[: len(one)] = torch.from_numpy(one.values)
    return out


def sizes(items: Sequence[Series]) -> Tensor:
    """Mean absolute value of what is observed of each series, (items,); 0 where nothing is."""
    means = [np.nansum(np.abs(one.values)) / max(1, int(one.observed.sum())) for one in items]
    return torch.tensor(means, dtype=torch.float64)


def check_length(one: Series, spec: WindowSpec, steps: int) -> None:
    """A series has so many steps, and before them those that lags look back to.

    Raises:
        BadValue: it is shorter, or of another frequency than its windows.
    """
    if one.freq != spec.freq:
        raise BadValue(f"{one.item} has frequency {one.freq}, the windows {spec.freq}")
    if len(one) < steps + spec.reach:
        raise BadValue(
            f"{one.item} has {len(one)} steps: {steps} and {spec.reach} more for lags are needed. A model with a "
            "shorter context and fewer lags needs less (--context N --option lags=[1] when it is trained)"
        )


def series(
    path: Any,
    freq: str,
    horizon: int,
    *,
    context: int | None = None,
    lags: Sequence[int] | None = None,
    item: str | None = None,
    time: str | None = None,
    value: str | None = None,
    start: str | None = None,
    gaps: bool = False,
    told: str | None = None,
    seed: int = 0,
) -> Windows:
    """Windows of a table, DataFrame or GluonTS data set: :func:`read_series`, :class:`WindowSpec`, :class:`Windows`.

    Raises: as those.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int):
        raise BadType(f"horizon is a number of steps, got {horizon!r}")
    items = read_series(path, freq, item=item, time=time, value=value, start=start, gaps=gaps)
    spec = WindowSpec.of(freq, horizon, context, lags)
    name = str(path).rsplit("/", 1)[-1] if isinstance(path, str) or hasattr(path, "suffix") else "series"
    return Windows(items, spec, told=told, seed=seed, name=name)
