"""The model behind GluonTS's own backtest: its data sets in, its evaluator's scores out."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_series_models import LAGGED, ORACLE, SPEC, lagged_oracle, noisy

from condiff.data import Series
from condiff.data.series import entries
from condiff.errors import BadValue
from condiff.metrics import normalised_deviation, weighted_quantile_loss
from condiff.series import Predictor, SelfGuidance, forecast

pytestmark = pytest.mark.filterwarnings("ignore:Warning. converting a masked")
HOW = {"guidance": SelfGuidance(by="squares", scale=1.0), "steps": 10, "seed": 3}


def predictor(**options):
    return Predictor(**{"denoiser": lagged_oracle(), "spec": LAGGED, "how": HOW, **options})


@pytest.fixture
def dataset(tmp_path):
    """A data set in files, as GluonTS keeps it: series of different lengths, one with a gap."""
    from gluonts.dataset.common import FileDataset

    items = [noisy(24 + i, i, 10.0 * 3**i, f"s{i}") for i in range(5)]
    with open(tmp_path / "data.json", "w") as file:
        for one in items:
            target = [float(v) for v in one.values]
            target = [*target[:-7], "NaN", *target[-6:]] if one.item == "s2" else target
            file.write(json.dumps({"item_id": one.item, "start": str(one.start), "target": target}) + "\n")
    return FileDataset(tmp_path, freq="h")


def test_a_backtest_of_gluonts_scores_what_ours_scores(dataset):
    from gluonts.evaluation import Evaluator, make_evaluation_predictions

    forecasts, truth = make_evaluation_predictions(dataset, predictor(at_once=2), num_samples=12)
    forecasts, truth = list(forecasts), list(truth)
    assert [f.item_id for f in forecasts] == ["s0", "s1", "s2", "s3", "s4"]
    assert all(
        f.start_date == y.index[-4] and f.samples.shape == (12, 4) for f, y in zip(forecasts, truth, strict=True)
    )
    levels = [0.1, 0.5, 0.9]
    scores, by_series = Evaluator(quantiles=levels, num_workers=None)(truth, forecasts)
    samples = torch.from_numpy(np.stack([f.samples for f in forecasts], axis=1))
    y = torch.from_numpy(np.stack([one.to_numpy()[-4:, 0] for one in truth])).double()
    assert scores["mean_wQuantileLoss"] == pytest.approx(weighted_quantile_loss(samples, y, levels), rel=1e-5)
    assert scores["ND"] == pytest.approx(normalised_deviation(samples, y), rel=1e-5) and len(by_series) == 5
    items = [Series(e["item_id"], e["start"].to_timestamp(), "h", e["target"][:-4].astype(float)) for e in dataset]
    ours = forecast(lagged_oracle(), items, LAGGED, members=12, **HOW)
    for one, other in zip(forecasts, ours, strict=True):
        np.testing.assert_allclose(one.samples, other.samples, rtol=1e-4)


def test_rolling_windows_of_one_series_and_entries_without_a_name():
    one = noisy(30)
    rolled = [{**entries([one.cut(0, 30 - k)])[0]} for k in (8, 4, 0)]
    made = list(predictor(denoiser=ORACLE, spec=SPEC, members=3).predict(rolled))
    assert [str(f.start_date) for f in made] == [f"2024-01-0{d} {h:02d}:00" for d, h in ((1, 22), (2, 2), (2, 6))]
    for entry in rolled:
        del entry["item_id"]
    unnamed = list(predictor(denoiser=ORACLE, spec=SPEC, members=3, at_once=2).predict(rolled))
    assert [f.item_id for f in unnamed] == ["0", "1", "2"]  # whatever the part they come in
    assert not np.allclose(unnamed[0].samples, unnamed[2].samples)


def test_data_sets_are_read_as_they_go():
    def endless():
        while True:
            yield entries([noisy(20)])[0]

    found = predictor(denoiser=ORACLE, spec=SPEC, members=2, at_once=2).predict(endless())
    assert [next(found).samples.shape for _ in range(3)] == [(2, 4)] * 3


def test_business_days(dataset):
    one = Series("a", pd.Timestamp("2024-01-01"), "B", noisy().values)
    spec = type(SPEC)(freq="B", horizon=4, context=8)
    (made,) = predictor(denoiser=ORACLE, spec=spec, members=2).predict(entries([one]))
    assert str(made.start_date) == "2024-01-17" and made.start_date.freqstr == "B"


def test_what_a_predictor_refuses(dataset):
    with pytest.raises(BadValue, match="2 more for lags"):
        list(predictor().predict(entries([noisy(9)])))
    with pytest.raises(BadValue, match="values are missing"):
        list(predictor(gaps=False).predict(dataset))
    with pytest.raises(BadValue, match="at least 1"):
        predictor(members=0)
    with pytest.raises(BadValue, match="number of series"):
        predictor(at_once=0)
    with pytest.raises(BadValue, match="at least 1"):
        list(predictor().predict(dataset, num_samples=0))
