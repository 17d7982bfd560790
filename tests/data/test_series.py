"""Series and their windows: what is read, what is refused, lags with masks, scales, patterns, the split in time."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from condiff.data import Series, Windows, WindowSpec, missing, open_data, read_series, season_of, series, split
from condiff.data.series import entries
from condiff.data.windows import features, gather, known, padded
from condiff.errors import BadFile, BadType, BadValue
from condiff.training.batch import as_batch

SPEC = WindowSpec(freq="h", horizon=3, context=5, lags=(2, 6))


def wide(n=40, items=("a", "b"), freq="h"):
    index = pd.date_range("2024-01-01", periods=n, freq=freq)
    return pd.DataFrame({name: np.arange(n) + 100.0 * i for i, name in enumerate(items)}, index=index)


def long(frame):
    melted = frame.rename_axis("timestamp").reset_index().melt("timestamp", var_name="item_id", value_name="target")
    return melted.sort_values(["timestamp", "item_id"])  # items interleaved


# Reading


def same(one, other):
    assert [s.item for s in one] == [s.item for s in other]
    for a, b in zip(one, other, strict=True):
        assert a.start == b.start and a.freq == b.freq
        np.testing.assert_array_equal(a.values, b.values)


@pytest.fixture
def reference():
    return read_series(wide(), "H")


def test_wide_long_files_and_gluonts_say_the_same(tmp_path, reference):
    frame = wide()
    frame.rename_axis("when").to_csv(tmp_path / "wide.csv")
    long(frame).to_csv(tmp_path / "long.csv", index=False)
    frame.rename_axis("time").reset_index().to_parquet(tmp_path / "wide.parquet")
    renamed = long(frame).rename(columns={"item_id": "who", "timestamp": "at", "target": "load"})
    same(read_series(tmp_path / "wide.csv", "1H"), reference)
    same(read_series(str(tmp_path / "long.csv"), "h"), reference)
    same(read_series(tmp_path / "wide.parquet", "h"), reference)
    same(read_series(renamed, "h", item="who", time="at", value="load"), reference)
    same(read_series(frame["a"], "h"), reference[:1])
    assert reference[1].item == "b" and reference[1].values[3] == 103.0
    assert str(reference[0].times(39, 2)[-1]) == "2024-01-02 16:00:00"


def test_gluonts_data_sets_in_and_out(reference):
    from gluonts.dataset.common import ListDataset

    again = read_series(ListDataset(entries(reference), freq="h"), "h")
    same(again, reference)
    assert entries(reference)[0]["start"] == pd.Period("2024-01-01", freq="h")


@pytest.mark.parametrize("freq", ["MS", "QS", "W", "B", "15min"])
def test_entries_of_every_frequency_come_back(freq):
    found = read_series(wide(freq=freq), freq)
    again = read_series(entries(found), freq)
    for one, other in zip(found, again, strict=True):
        assert one.times().equals(other.times())
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("freq", ["h", "D", "B", "2B", "W", "3W", "W-WED", "MS", "2MS", "ME", "QS", "15min", "2D"])
def test_timestamps_of_any_part_are_those_of_the_whole(freq):
    """Also of a start that no value of the frequency lies at: the first one is the next that does."""
    for start in ("2024-01-01", "2024-01-06", "2024-02-29"):
        one = Series("a", pd.Timestamp(start), freq, np.zeros(40))
        whole = pd.date_range(start, periods=70, freq=freq)
        for first, count in ((0, None), (0, 1), (7, 1), (39, None), (40, 30)):
            found = one.times(first, count)
            assert found.equals(whole[first : 40 if count is None else first + count]) and found.freq == whole.freq
        assert one.cut(9).start == whole[9]


def test_tables_without_timestamps_need_a_start(tmp_path):
    path = tmp_path / "rates.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("1.0,5.0\n2.0,6.0\n3.0,7.0\n")
    found = read_series(path, "D", start="1990-01-01")
    assert [s.item for s in found] == ["0", "1"] and found[1].values.tolist() == [5.0, 6.0, 7.0]
    with pytest.raises(BadValue, match="no column of timestamps"):
        read_series(path, "D")


def test_a_column_of_dates_may_be_a_parquet_file_s_index(tmp_path):
    frame = wide().rename_axis("time")
    frame.index = frame.index.astype(str)  # as of a table that was read from a .csv
    frame.to_parquet(tmp_path / "load.parquet")
    same(read_series(tmp_path / "load.parquet", "h"), read_series(wide(), "h"))


def test_gaps_are_filled_where_they_are_declared():
    frame = wide(10).drop(wide(10).index[4])
    frame.iloc[2, 0] = np.nan
    a, b = read_series(frame, "h", gaps=True)
    assert np.flatnonzero(~a.observed).tolist() == [2, 4] and np.flatnonzero(~b.observed).tolist() == [4]
    assert b.values[5] == 105.0


def nan_inside():
    frame = wide()
    frame.iloc[7, 1] = np.nan
    return frame


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: read_series(wide(), "fortnightly"), BadValue, "unknown frequency"),
        (lambda: read_series(wide().iloc[::-1], "h"), BadValue, "timestamps must increase"),
        (lambda: read_series(wide().iloc[[0, 1, 1, 2]], "h"), BadValue, "timestamps must increase"),
        (lambda: read_series(wide().drop(wide().index[3]), "h"), BadValue, "1 timestamps are absent"),
        (lambda: read_series(wide(freq="30min"), "h"), BadValue, "isn't on the grid"),
        (lambda: read_series(nan_inside(), "h"), BadValue, "b: 1 values are missing, the first at 2024-01-01 07"),
        (lambda: read_series(wide() / 0.0, "h", gaps=True), BadValue, "infinite"),
        (lambda: read_series(wide() * np.nan, "h", gaps=True), BadValue, "nothing is observed"),
        (lambda: read_series(wide().astype(str) + "x", "h"), BadType, "must be numbers"),
        (lambda: read_series(long(wide()).rename(columns={"item_id": "shop"}), "h"), BadType, "--option item=COLUMN"),
        (lambda: read_series(wide().iloc[:0], "h"), BadValue, "no rows"),
        (lambda: read_series(long(wide()).rename(columns={"target": "sold"}), "h"), BadValue, "--option value=COLUMN"),
        (lambda: read_series(long(wide()), "h", item="itemid"), BadValue, "unknown column"),
        (lambda: read_series(np.zeros(3), "h"), BadType, "DataFrame"),
        (lambda: read_series([{"target": [1.0]}], "h"), BadType, "start and target"),
        (lambda: read_series(entries(read_series(wide(freq="D"), "D")), "h"), BadValue, "entry 0 has the frequency D"),
        (lambda: read_series(long(wide()).replace({"item_id": {"b": None}}), "h"), BadValue, "row 1 .* no item"),
        (lambda: read_series([], "h"), BadValue, "no series"),
        (lambda: read_series("nowhere.csv", "h"), BadFile, "no such file"),
        (lambda: read_series(__file__, "h"), BadFile, "none of"),
        (lambda: series(wide(), "h", 3), BadValue, "shorter context and fewer lags needs less"),
        (lambda: series(wide(freq="15min"), "15min", 3), BadValue, "no customary lags"),
        (lambda: series(wide(), "h", 3, context=5, lags=(34,)), BadValue, "34 more for lags"),
        (lambda: series(wide(), "h", 0), BadValue, "at least 1"),
        (lambda: series(wide(), "h", 3.5), BadType, "number of steps"),
        (lambda: Windows(read_series(wide(), "h"), SPEC, told="all"), BadValue, "unknown history"),
        (lambda: Windows(read_series(wide(freq="D"), "D"), SPEC), BadValue, "frequency D, the windows h"),
        (lambda: Windows(read_series(wide(16), "h"), SPEC).cut(0.1), BadValue, "too few steps of a .*: 5, where 3"),
        (lambda: missing("upwards", 5), BadValue, "unknown pattern"),
        (lambda: missing("end", 5, share=1.0), BadValue, "share"),
    ],
)
def test_refusals(make, error, message):
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(error, match=message):
        make()


# Windows


def test_customary_lags_and_contexts():
    hourly, daily = WindowSpec.of("H", 24), WindowSpec.of("D", 30)
    assert hourly.lags == tuple(24 * k for k in (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)) and hourly.context == 336
    assert daily.lags == tuple(30 * k for k in range(1, 13)) and daily.shape == (390, 13)
    assert [season_of(f) for f in ("H", "D", "B", "MS", "W", "7D")] == [24, 1, 5, 12, 1, 1]


def test_channels_are_lagged_copies_over_the_scale_of_the_context(reference):
    data = Windows(reference, SPEC)
    assert len(data) == 2 * (40 - 8 - 6 + 1) and data.shape == (8, 3)
    which, start = data.place(torch.tensor([0, 26, 27]))
    assert which.tolist() == [0, 0, 1] and start.tolist() == [6, 32, 6]
    x = data.batch([2])["x"][0]  # begins at step 8
    scale = np.mean(np.arange(8, 13))
    np.testing.assert_allclose(x[:, 0], np.arange(8, 16) / scale, rtol=1e-6)
    np.testing.assert_allclose(x[:, 1], np.arange(6, 14) / scale, rtol=1e-6)
    np.testing.assert_allclose(x[:, 2], np.arange(2, 10) / scale, rtol=1e-6)


def test_missing_entries_are_missing_in_every_lag(reference):
    values = padded(reference[:1])
    values[0, 12:15] = torch.nan  # the horizon of the window that begins at 7
    window = gather(values, torch.tensor([7]), SPEC)
    assert window.mask[0, :, 0].tolist() == [True] * 5 + [False] * 3
    assert window.mask[0, :, 1].tolist() == [True] * 7 + [False]  # two steps later
    assert window.mask[0, :, 2].all()
    assert (window.values[~window.mask] == 0.0).all() and torch.isfinite(window.values).all()
    first = gather(values, torch.tensor([0]), SPEC)  # before the first step nothing is known
    assert first.mask[0, :, 2].tolist() == [False] * 6 + [True] * 2


def test_the_scale_sees_observed_entries_only_and_is_never_zero():
    values = torch.tensor([[2.0, torch.nan, -4.0, torch.nan, torch.nan, 9.0, 9.0, 9.0]], dtype=torch.float64)
    spec = WindowSpec(freq="h", horizon=3, context=5)
    zero = torch.zeros(1, dtype=torch.long)
    assert float(gather(values, zero, spec).scale) == 3.0
    flat = values.clone()
    flat[:, :5] = 0.0
    assert float(gather(flat, zero, spec).scale) == 1.0
    assert float(gather(flat, zero, spec, torch.tensor([7.0])).scale) == 7.0
    back = gather(5.0 * values, zero, spec)
    torch.testing.assert_close(back.values, gather(values, zero, spec).values)
    torch.testing.assert_close(
        (back.values * back.scale)[0, :, 0], (5.0 * values[0]).nan_to_num(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("pattern", ["none", "random", "beginning", "end"])
def test_a_conditional_model_is_told_what_is_left_of_the_history(reference, pattern):
    data = Windows(reference, SPEC, told=pattern)
    row = data.batch([5])
    told = row["cond"]["features"][0]
    assert data.shape == (8, 1) and told.shape == (8, 4) and row["x"].shape == (1, 8, 1)
    hidden = ~told[:5, -1].bool()
    wanted = {"none": [0] * 5, "beginning": [1, 1, 0, 0, 0], "end": [0, 0, 0, 1, 1]}
    assert pattern == "random" or hidden.tolist() == [bool(v) for v in wanted[pattern]]
    assert int(hidden.sum()) == (0 if pattern == "none" else 2)
    assert (told[5:, -1] == 0.0).all() and (told[5:, 2] == 0.0).all()  # the horizon
    assert told[7, 0] == 0.0  # its lag by 2 lies in the horizon
    torch.testing.assert_close(told[:5, 2], torch.where(hidden, 0.0, row["x"][0, :5, 0]))
    for i in range(2, 7):  # lags that lie in the context are hidden with it
        assert (told[i, 0] == 0.0) == (i - 2 < 5 and bool(hidden[i - 2]))


def test_what_is_known_without_hiding_is_the_mask_of_a_series_that_ends_with_the_context(reference):
    values = padded(reference[:1])[:, :20]
    values[:, 12:] = torch.nan
    window = gather(values, torch.tensor([7]), SPEC)
    told = known(torch.zeros(1, 5, dtype=torch.bool), SPEC)
    assert torch.equal(window.mask, told)
    assert features(window, told).shape == (1, 8, 4)


def test_gaps_do_not_count_in_the_loss():
    data = series(nan_inside(), "h", 3, context=5, lags=(2,), gaps=True)
    rows = data.batch(range(len(data)))
    assert (~rows["mask"]).sum() > 0 and torch.isfinite(rows["x"]).all()
    assert as_batch(rows).mask is not None
    assert "1.2% of the values are missing" in data.describe()


def test_the_split_is_in_time(reference):
    data = Windows(reference, SPEC)
    early, late = split(data, 0.2)
    last = int(early.place(torch.arange(len(early)))[1].max()) + SPEC.length  # behind what training sees
    first = int(late.place(torch.arange(len(late)))[1].min()) + SPEC.context  # the first horizon
    assert last <= first == 40 - round(0.2 * (26 + 3))
    assert len(early) % 2 == 0 and early.fingerprint() != late.fingerprint() != data.fingerprint()


def test_training_knows_nothing_of_what_is_held_out():
    """Not even the size that a context of zeros is scaled by."""
    frame = wide()
    frame.iloc[:20] = 0.0
    frame.iloc[20:24, 0] = 6.0
    changed = frame.copy()
    changed.iloc[31:] *= 1000.0  # behind all windows of the training part
    seen, again = (Windows(read_series(f, "h"), SPEC).cut(0.3) for f in (frame, changed))
    assert int(seen[0].last[0]) + SPEC.length == 31
    a, b = (part.batch(range(len(part)))["x"] for part in (seen[0], again[0]))
    assert torch.equal(a, b) and float(a.abs().max()) > 0.0
    assert float(seen[0].level[0]) == pytest.approx(frame.iloc[:31, 0].mean())
    assert float(again[1].level[0]) > 100.0


def test_what_is_hidden_has_no_part_in_the_scale(reference):
    """A conditional model is told a history over the mean size of what is left of it."""
    data = Windows(reference, SPEC, told="end")
    row = data.batch([5])
    which, start = (int(v) for v in data.place(torch.tensor([5])))
    values = reference[which].values[start : start + SPEC.length]
    np.testing.assert_allclose(row["x"][0, :, 0], values / np.abs(values[:3]).mean(), rtol=1e-6)


def test_from_the_words_of_a_command_line(tmp_path):
    wide().rename_axis("t").to_csv(tmp_path / "load.csv")
    data = open_data("series", path=tmp_path / "load.csv", freq="H", horizon=3, context=5, lags=[2])
    assert data.name == "load.csv" and "context 5, horizon 3, lags [2]" in data.describe()
