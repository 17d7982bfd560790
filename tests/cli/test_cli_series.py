"""``condiff train series``, ``forecast``, ``impute``, ``refine`` and ``sample`` on a small table."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from condiff.cli.main import main
from condiff.data import hourly

HOURS = 300


def table(gaps=(), hours=HOURS):
    items = hourly(2, hours)
    frame = pd.DataFrame({one.item: one.values for one in items}, index=items[0].times())
    for row in gaps:
        frame.iloc[row, 0] = np.nan
    return frame.rename_axis("timestamp")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    table().to_csv(folder / "load.csv")
    table(range(100, 112)).to_csv(folder / "gaps.csv")
    words = ["train", "series", "--data", str(folder / "load.csv"), "--freq", "H", "--horizon", "6", "--context", "24"]
    small = ["network.width=8", "network.states=4", "sampler.steps=4", "training.tensorboard=false"]
    sets = [word for one in small for word in ("--set", one)]
    assert main([*words, "--option", "lags=[24]", "--steps", "4", *sets, "--out", str(folder / "run"), "--json"]) == 0
    return folder


def run(*words):
    return main([str(word) for word in words])


def test_a_run_says_what_it_forecasts(where):
    metrics = json.loads((where / "run" / "metrics.json").read_text())
    assert {"crps", "crps_seasonal_naive", "linear_predictive_score"} <= set(metrics)
    assert (where / "run" / "samples.png").is_file()
    assert "weighted quantile loss" in (where / "run" / "report.html").read_text()


def test_forecast_writes_quantiles_samples_and_a_picture(where, capsys):
    out = where / "f.csv"
    told = ["--samples", 7, "--steps", 3, "--guidance", "squares", "--scale", 0.1, "--horizon", 4]
    assert run("forecast", where / "run", "--data", where / "load.csv", *told, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["series"] == 2
    frame, samples = pd.read_csv(out, parse_dates=["timestamp"]), np.load(out.with_suffix(".npz"))
    assert len(frame) == 8 and frame.timestamp[0] == table().index[-1] + pd.Timedelta("1h")
    assert samples["series-1"].shape == (7, 4) and (where / "f.png").is_file()
    np.testing.assert_allclose(frame["0.5"][4:], np.sort(samples["series-1"], axis=0)[3], rtol=1e-6)
    assert run("forecast", where / "run", "--data", where / "load.csv", "--out", out) == 2  # it is there


def test_what_is_said_reaches_the_sampler(where):
    """Each option makes other sample paths."""
    loads, told = ["--data", where / "load.csv", "--overwrite"], ["--samples", 2, "--steps", 3, "--scale", 0.1]
    asked = {
        "forecast": (
            told,
            ["--guidance squares", "--scale 0.3", "--shift state", "--solver ddim", "--steps 4", "--seed 1"],
        ),
        "refine": (["--base", "naive", *told[:2]], ["--guidance squares", "--iterations 2", "--seed 1"]),
    }
    for command, (usual, options) in asked.items():
        found = []
        for i, option in enumerate(["", *options]):
            out = where / f"{command}-{i}.csv"
            assert run(command, where / "run", *loads, *usual, *option.split(), "--out", out) == 0
            found.append(np.load(out.with_suffix(".npz"))["series-1"])
        for option, samples in zip(options, found[1:], strict=True):
            assert samples.shape == (2, 6) and not np.allclose(samples, found[0]), option


def test_impute_fills_what_is_missing(where):
    out = where / "i.csv"
    assert run("impute", where / "run", "--data", where / "gaps.csv", "--samples", 3, "--steps", 3, "--out", out) == 0
    frame = pd.read_csv(out)
    assert len(frame) == 12 and set(frame.item_id) == {"series-0"}
    whole, gaps = pd.read_csv(where / "i-whole.csv", index_col=0), pd.read_csv(where / "gaps.csv", index_col=0)
    assert list(whole) == list(gaps) and whole.index.equals(gaps.index) and not whole.isna().any(axis=None)
    assert np.allclose(whole["series-0"].to_numpy()[100:112], frame["0.5"])  # medians where something was missing
    np.testing.assert_allclose(whole.where(gaps.notna()), gaps, rtol=1e-7)
    assert np.load(out.with_suffix(".npz"))["series-0"].shape == (3, HOURS)


def test_refine_takes_a_table_or_naive(where):
    base = pd.DataFrame({"series-0": np.ones(6), "series-1": np.ones(6)})
    base.index = pd.date_range(table().index[-1], periods=7, freq="h", name="timestamp")[1:]
    base.to_csv(where / "base.csv")
    for name in (where / "base.csv", "naive"):
        out = where / "r.csv"
        words = ["--samples", 3, "--iterations", 2, "--out", out, "--overwrite"]
        assert run("refine", where / "run", "--data", where / "load.csv", "--base", name, *words) == 0
        assert len(pd.read_csv(out)) == 12


def test_new_series_lie_in_a_table_like_the_data(where):
    out = where / "new.csv"
    assert run("sample", where / "run", "--num", 3, "--out", out) == 0
    frame = pd.read_csv(out)
    assert frame.shape == (30, 4) and frame.timestamp[0] == "2024-01-01 00:00:00"


def test_a_run_forecasts_without_its_data(where):
    away = where / "elsewhere"
    shutil.copytree(where / "run", away / "run")
    config = json.loads((away / "run" / "config.json").read_text())
    config["request"]["paths"] = [str(away / "gone.csv")]
    (away / "run" / "config.json").write_text(json.dumps(config))
    out = away / "f.csv"
    assert run("forecast", away / "run", "--data", where / "load.csv", "--samples", 2, "--steps", 2, "--out", out) == 0
    assert run("sample", away / "run", "--num", 2, "--steps", 2, "--out", away / "new.csv") == 0


@pytest.mark.filterwarnings("always")
def test_tables_that_grow_are_forecast(where, capsys):
    """Tomorrow the table that the run was trained on has more rows."""
    today = where / "today"
    shutil.copytree(where / "run", today / "run")
    config = json.loads((today / "run" / "config.json").read_text())
    config["request"]["paths"] = [str(today / "load.csv")]
    (today / "run" / "config.json").write_text(json.dumps(config))
    table(hours=HOURS + 3).to_csv(today / "load.csv")
    out = today / "f.csv"
    assert run("forecast", today / "run", "--data", today / "load.csv", "--samples", 2, "--steps", 2, "--out", out) == 0
    assert "has changed since it was trained on" in capsys.readouterr().err
    assert pd.read_csv(out, parse_dates=["timestamp"]).timestamp[0] == table().index[-1] + pd.Timedelta("4h")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forecast", "RUN"], "--data FILE"),
        (["forecast", "RUN", "--data", "gaps.csv", "--out", "x.csv"], "12 values are missing"),
        (["forecast", "RUN", "--data", "load.csv", "--horizon", "7", "--out", "x.csv"], "1 to 6 steps"),
        (["forecast", "RUN", "--data", "load.csv", "--samples", "0", "--out", "x.csv"], "at least 1"),
        (["forecast", "RUN", "--data", "load.csv", "--out", "x.txt"], "--out is a .csv"),
        (["forecast", "RUN", "--data", "load.csv", "--option", "items=a", "--out", "x.csv"], "unknown option"),
        (["forecast", "RUN", "--data", "nowhere.csv", "--out", "x.csv"], "no such file"),
        (["forecast", "RUN", "--data", "load.csv", "--batch", "0", "--out", "x.csv"], "batch, the number of sample"),
        (["impute", "RUN", "--data", "gaps.csv", "--batch", "0", "--out", "x.csv"], "batch, the number of sample"),
        (
            ["refine", "RUN", "--data", "load.csv", "--base", "naive", "--batch", "0", "--out", "x.csv"],
            "batch, the number",
        ),
        (["forecast", "RUN", "--data", "load.csv", "--guidance", "4", "--out", "x.csv"], "its strength is --scale 4"),
        (["sample", "RUN", "--guidance", "2", "--out", "x.csv"], "leave --guidance out"),
        (["impute", "RUN", "--data", "load.csv", "--out", "x.csv"], "no value is missing"),
        (["refine", "RUN", "--data", "load.csv"], "--base"),
        (["refine", "RUN", "--data", "load.csv", "--base", "load.csv", "--out", "x.csv"], "300 steps from 2024"),
        (["train", "series", "--data", "load.csv", "--freq", "H", "--out", "x"], "needs horizon (--horizon in"),
        (
            ["train", "text", "--data", "load.csv", "--freq", "H"],
            "--freq: not for text, which takes --length, --tokenizer",
        ),
        (["train", "digits", "--size", "8"], "--size: not for digits, which takes no such option"),
        (["train", "series", "--data", "load.csv", "--freq", "H", "--horizon", "6", "--out", "x"], "steps: 342 and"),
    ],
)
def test_refusals_are_one_line_and_code_2(where, capsys, monkeypatch, words, message):
    monkeypatch.chdir(where)
    assert main(["run" if word == "RUN" else word for word in words]) == 2
    assert message in capsys.readouterr().err


def test_one_window_is_enough_to_judge_by(capsys, tmp_path):
    """Its forecast has a score, and a regression on one row hasn't."""
    index = pd.date_range("2024-01-01", periods=23, freq="h", name="t")
    pd.DataFrame({"a": 5.0 + np.arange(23) % 4}, index=index).to_csv(tmp_path / "a.csv")
    words = ["--freq", "h", "--horizon", 4, "--context", 8, "--option", "lags=[1]", "--steps", 1, "--batch", 4]
    words += ["--set", "network.width=8", "--set", "network.states=4", "--set", "sampler.steps=4"]
    assert run("train", "series", "--data", tmp_path / "a.csv", *words, "--out", tmp_path / "run") == 0
    assert "held out: 1 sample (the end of each series)" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "crps" in metrics and "linear_predictive_score" not in metrics
