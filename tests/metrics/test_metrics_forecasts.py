"""Scores of forecasts over data sets: those of GluonTS's evaluator; the linear predictive score of AR data."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from condiff.errors import BadValue, Degenerate, NonFinite
from condiff.metrics import (
    linear_predictive_score,
    normalised_deviation,
    normalised_rmse,
    ridge,
    sample_quantiles,
    weighted_quantile_loss,
)

DRAWS = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(50, 4, 6, generator=DRAWS, dtype=torch.float64).exp()
Y = torch.randn(4, 6, generator=DRAWS, dtype=torch.float64).exp()


@pytest.mark.filterwarnings("ignore:Warning. converting a masked")
def test_scores_are_those_of_gluonts():
    from gluonts.evaluation import Evaluator
    from gluonts.model.forecast import SampleForecast

    start = pd.Period("2024-01-01", freq="D")
    levels = [0.1, 0.5, 0.8, 0.95]
    series = [pd.DataFrame({0: y.numpy()}, index=pd.period_range(start, periods=6, freq="D")) for y in Y]
    forecasts = [SampleForecast(samples=SAMPLES[:, i].numpy(), start_date=start) for i in range(4)]
    scores, _ = Evaluator(quantiles=levels, num_workers=None)(series, forecasts, num_series=4)
    assert weighted_quantile_loss(SAMPLES, Y, levels) == pytest.approx(scores["mean_wQuantileLoss"], rel=1e-6)
    assert normalised_deviation(SAMPLES, Y) == pytest.approx(scores["ND"], rel=1e-6)
    assert normalised_rmse(SAMPLES, Y) == pytest.approx(scores["NRMSE"], rel=1e-6)
    np.testing.assert_allclose(sample_quantiles(SAMPLES, [0.37])[0, 2], forecasts[2].quantile(0.37))


def test_a_point_forecast_scores_its_absolute_error():
    point = torch.full((1, 4, 6), 1.5, dtype=torch.float64)
    want = float((Y - 1.5).abs().sum() / Y.abs().sum())
    assert weighted_quantile_loss(point, Y) == pytest.approx(want) == normalised_deviation(point, Y)


def test_missing_truth_does_not_count():
    holes = Y.clone()
    holes[1, 2:] = torch.nan
    kept = torch.isfinite(holes)
    for score in (weighted_quantile_loss, normalised_deviation, normalised_rmse):
        assert score(SAMPLES, holes) == pytest.approx(score(SAMPLES[:, kept], Y[kept]))


def ar(num, length, phi=0.9, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num, length, generator=g, dtype=torch.float64)
    for t in range(1, length):
        x[:, t] = phi * x[:, t - 1] + math.sqrt(1.0 - phi**2) * x[:, t]
    return x


def test_lps_of_ar_data_is_close_to_the_best_linear_forecast():
    context, horizon = 16, 8
    train, test = ar(10_000, context + horizon, seed=1), ar(4000, context + horizon, seed=2)
    scaled = train / train[:, :context].abs().mean(1, keepdim=True)
    best = test[:, context - 1 : context] * 0.9 ** torch.arange(1, horizon + 1)
    optimum = float((best - test[:, context:]).abs().sum() / test[:, context:].abs().sum())
    score = linear_predictive_score(scaled, test, horizon)
    assert optimum * 0.99 < score < optimum * 1.02
    noise = torch.randn(10_000, context + horizon, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert linear_predictive_score(noise, test, horizon) > 1.1 * score


def test_ridge_is_sklearns():
    from sklearn.linear_model import Ridge

    x, y = torch.randn(60, 5, generator=DRAWS, dtype=torch.float64), torch.randn(60, 3, generator=DRAWS).double() + 4.0
    weights, bias = ridge(x, y, 2.5)
    theirs = Ridge(alpha=2.5).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weights, theirs.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(bias, theirs.intercept_, rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: weighted_quantile_loss(SAMPLES, Y[:3]), BadValue, "members"),
        (lambda: weighted_quantile_loss(SAMPLES, Y, [0.0]), BadValue, "levels lie"),
        (lambda: weighted_quantile_loss(SAMPLES * math.nan, Y), NonFinite, "NaN"),
        (lambda: normalised_deviation(SAMPLES, 0.0 * Y), Degenerate, "0 throughout"),
        (lambda: linear_predictive_score(Y, Y, 6), BadValue, "longer than the horizon"),
        (lambda: ridge(Y[:1], Y[:1]), BadValue, "n >= 2"),
        (lambda: ridge(Y * math.nan, Y), NonFinite, "NaN"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
