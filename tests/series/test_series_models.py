"""Forecasts, imputations and refinements with an exact model of AR(1) windows."""

import numpy as np
import pandas as pd
import pytest
import torch

from condiff.conditions import Condition
from condiff.data import Series, WindowSpec, hourly
from condiff.data.windows import features, gather
from condiff.errors import BadValue, NonFinite
from condiff.guidance import Quantile, SquaredError, quantile_levels
from condiff.process import Discrete, Gaussian, Prediction, oracles
from condiff.random import derive_seed
from condiff.sampling import DDIM, Descent, Langevin, refine
from condiff.series import SelfGuidance, forecast, impute, paths, refine_forecasts, seasonal_naive

SPEC = WindowSpec(freq="h", horizon=4, context=8)
LAGGED = WindowSpec(freq="h", horizon=4, context=8, lags=(2,))
PROCESS = Gaussian(Discrete.ddpm(100, 1e-4, 0.1))
LAG = (torch.arange(12)[:, None] - torch.arange(12)).abs().double()
ORACLE = oracles.gaussian(PROCESS, torch.ones(12, 1), 0.25 * 0.9**LAG)  # windows over their size: around 1


def lagged_oracle():
    """The same of a series and its copy two steps earlier, whose law is that of 14 steps."""
    lag = (torch.arange(14)[:, None] - torch.arange(14)).abs().double()
    steps = torch.stack([torch.arange(2, 14), torch.arange(0, 12)], dim=1).flatten()
    return oracles.gaussian(PROCESS, torch.ones(12, 2), 0.25 * (0.9**lag)[steps][:, steps])


def item(values, name="a"):
    return Series(name, pd.Timestamp("2024-01-01"), "h", np.asarray(values, dtype=np.float64))


def noisy(n=12, seed=0, size=10.0, name="a"):
    rng = np.random.default_rng(seed)
    x, out = rng.normal(), []
    for _ in range(n):
        x = 0.9 * x + np.sqrt(1 - 0.81) * rng.normal()
        out.append(size * (1.0 + 0.5 * x))
    return item(out, name)


HOW = {"members": 6, "steps": 20, "seed": 3}


def test_forecasts_say_when_and_are_near_what_the_history_allows():
    one = noisy(20)
    (made,) = forecast(ORACLE, [one], SPEC, members=64, guidance=SelfGuidance(by="squares"))
    assert made.samples.shape == (64, 4) and str(made.times[0]) == "2024-01-01 20:00:00" and len(made.times) == 4
    scale = np.abs(one.values[-8:]).mean()
    seen = one.values[-8:] / scale
    cov = 0.25 * 0.9 ** LAG.numpy()
    want = scale * (1.0 + cov[8:, :8] @ np.linalg.solve(cov[:8, :8], seen - 1.0))
    spread = scale * np.sqrt(np.diag(cov[8:, 8:] - cov[8:, :8] @ np.linalg.solve(cov[:8, :8], cov[:8, 8:])))
    assert (np.abs(made.mean - want) < spread).all() and (made.mean - scale > 1.3 * spread).all()
    assert (made.samples.std(axis=0) < 1.5 * spread).all() and (made.samples.std(axis=0) > 0.7 * spread).all()
    np.testing.assert_array_equal(made.quantile(0.5), np.sort(made.samples, axis=0)[round(63 * 0.5)])


def test_progress_counts_the_steps_of_all_network_calls():
    seen = []
    items = [noisy(name="a"), noisy(seed=1, name="b")]
    forecast(ORACLE, items, SPEC, members=2, steps=2, batch=3, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]  # four paths, three a call


class Ramp:
    """Every window is 1, 2, 3, ..., whatever is seen."""

    process, shape, kinds = PROCESS, (12, 1), {}

    def __call__(self, x_t, t, cond=None):
        return Prediction(x_t, self.process.at(t), {"x0": torch.arange(1.0, 13.0)[:, None].expand_as(x_t) + 0.0 * x_t})


def test_a_forecast_is_the_end_of_its_window():
    one = noisy(20)
    (made,) = forecast(Ramp(), [one], SPEC, members=2, steps=2, horizon=3)
    scale = np.abs(one.values[12:]).mean()
    np.testing.assert_allclose(made.samples, [scale * np.arange(9.0, 12.0)] * 2, rtol=1e-5)
    one.values[[5, 9]] = np.nan  # a window from step 2 on, over the size of its first eight steps
    (filled,) = impute(Ramp(), [one], SPEC, members=2, steps=2)
    np.testing.assert_allclose(filled.samples[0, [5, 9]], np.nanmean(np.abs(one.values[2:10])) * np.array([4.0, 8.0]))


@pytest.mark.parametrize("led", [SelfGuidance(), SelfGuidance(by="squares", scale=1.0)], ids=["quantile", "squares"])
def test_a_series_times_a_number_has_forecasts_times_it(led):
    """Equivariance: up to round-off, since the model sees the same window."""
    one = noisy()
    base, large = (forecast(ORACLE, [o], SPEC, guidance=led, **HOW)[0] for o in (one, item(4096.0 * one.values)))
    np.testing.assert_allclose(large.samples, 4096.0 * base.samples, rtol=1e-6)
    other = forecast(ORACLE, [item(37.7 * one.values)], SPEC, guidance=led, **HOW)[0]
    np.testing.assert_allclose(other.samples, 37.7 * base.samples, rtol=1e-3)


def test_a_forecast_does_not_depend_on_its_neighbours():
    one, two = noisy(), noisy(seed=1, size=300.0, name="b")
    both = forecast(ORACLE, [one, two], SPEC, batch=5, **HOW)
    alone = forecast(ORACLE, [two], SPEC, **HOW)[0]
    np.testing.assert_allclose(both[1].samples, alone.samples, rtol=1e-4)
    assert not np.allclose(both[0].samples, alone.samples)


def test_a_shorter_horizon_is_the_beginning_of_the_longer_one():
    whole, part = (forecast(ORACLE, [noisy()], SPEC, horizon=h, **HOW)[0] for h in (4, 2))
    np.testing.assert_array_equal(part.samples, whole.samples[:, :2])


def test_lags_and_gaps_in_the_context():
    one = noisy(16)
    one.values[[9, 12]] = np.nan
    (made,) = forecast(lagged_oracle(), [one], LAGGED, **HOW)
    assert np.isfinite(made.samples).all()
    whole = forecast(lagged_oracle(), [noisy(16)], LAGGED, **HOW)[0]
    assert not np.allclose(made.samples, whole.samples)


def test_zeros_are_forecast_over_the_size_of_the_whole_series():
    one = noisy(30)
    one.values[-8:] = 0.0
    (made,) = forecast(ORACLE, [one], SPEC, **HOW)
    assert np.isfinite(made.samples).all() and made.samples.std() > 0.01 * np.abs(one.values).mean()
    (flat,) = forecast(ORACLE, [item(np.zeros(12))], SPEC, **HOW)
    assert np.isfinite(flat.samples).all()


def test_forecasts_are_gluonts_forecasts():
    (made,) = forecast(ORACLE, [noisy()], SPEC, **HOW)
    theirs = made.to_gluonts()
    assert theirs.item_id == "a" and theirs.start_date == pd.Period("2024-01-01 12:00", freq="h")
    np.testing.assert_array_equal(theirs.samples, made.samples)
    np.testing.assert_allclose(theirs.quantile(0.8), made.quantile(0.8))


def test_forecasts_of_months_are_gluonts_forecasts():
    one = Series("a", pd.Timestamp("2024-01-01"), "MS", noisy().values)
    (made,) = forecast(ORACLE, [one], WindowSpec(freq="MS", horizon=4, context=8), **HOW)
    assert made.to_gluonts().start_date == pd.Period("2025-01", freq="M") and len(made.times) == 4


def test_ddim_is_guided_in_the_score():
    (made,) = forecast(ORACLE, [noisy()], SPEC, solver=DDIM(), guidance=SelfGuidance(scale=0.5), **HOW)
    assert np.isfinite(made.samples).all()
    assert SelfGuidance().around(ORACLE, DDIM(), torch.ones(1) / 2).shift == "score"


class Told:
    """A conditional model that repeats what it is told of the history, to see that it is."""

    process, shape, kinds = PROCESS, (12, 1), {"features": "map"}

    def __call__(self, x_t, t, cond=None):
        told = cond["features"].value[..., -2:-1]
        level = told.sum(1, keepdim=True) / cond["features"].value[..., -1:].sum(1, keepdim=True)
        return Prediction(x_t, self.process.at(t), {"x0": level.expand_as(x_t)})


def test_a_conditional_model_is_told_the_history():
    one = noisy()
    one.values[6] = np.nan
    (made,) = forecast(Told(), [one], SPEC, members=2, steps=5)
    np.testing.assert_allclose(made.samples, np.nanmean(one.values[-8:]), rtol=1e-5)
    with pytest.raises(BadValue, match="unconditional"):
        impute(Told(), [one], SPEC)
    with pytest.raises(BadValue, match="this one is told of it"):
        forecast(Told(), [one], SPEC, guidance=SelfGuidance())
    with pytest.raises(BadValue, match="refine with an unconditional"):
        refine_forecasts(Told(), [one], [np.ones(4)], SPEC, at=0.2)


# Imputation


def test_gaps_are_filled_and_nothing_else_is_touched():
    one = noisy(60)
    truth = one.values.copy()
    one.values[[3, 20, 21, 22, 40]] = np.nan
    one.values[50:] = np.nan  # longer than what is left of a window behind it
    (made,) = impute(ORACLE, [one], SPEC, **HOW)
    there = np.isfinite(one.values)
    assert np.isfinite(made.samples).all()
    np.testing.assert_array_equal(made.samples[:, there], np.broadcast_to(truth[there], (6, there.sum())))
    assert made.samples[:, ~there].std(axis=0).min() > 0.0
    np.testing.assert_allclose(made.filled.values[20], np.median(made.samples[:, 20]))
    whole = impute(ORACLE, [noisy(60)], SPEC, **HOW)[0]
    np.testing.assert_array_equal(whole.samples[2], truth)


class Counted:
    """An oracle that counts its calls."""

    process, shape, kinds = PROCESS, (12, 2), {}

    def __init__(self):
        self.oracle, self.calls = lagged_oracle(), 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.oracle(x_t, t, cond)


def test_series_are_filled_together_and_each_as_if_alone():
    """One call a step for all series that still have a gap, whatever their number and lengths."""
    items = [noisy(30, 0, 10.0, "a"), noisy(41, 1, 300.0, "b"), noisy(26, 2, 5.0, "c"), noisy(20, 3, 5.0, "whole")]
    for one in items[:3]:
        one.values[[1, 9, 10]] = np.nan
    items[1].values[25:33] = np.nan
    how = {"members": 3, "steps": 4, "seed": 5, "guidance": SelfGuidance(by="squares", scale=1.0)}
    both = Counted()
    made = impute(both, items, LAGGED, **how)
    for one, found in zip(items, made, strict=True):
        (alone,) = impute(lagged_oracle(), [one], LAGGED, **how)
        np.testing.assert_allclose(found.samples, alone.samples, rtol=1e-4)
    one = Counted()
    impute(one, items[1:2], LAGGED, **how)  # the one with most gaps
    assert both.calls == one.calls
    parts = impute(lagged_oracle(), items, LAGGED, **{**how, "batch": 4})
    np.testing.assert_allclose(parts[2].samples, made[2].samples, rtol=1e-4)


def test_paths_that_diverge_are_refused():
    """A gap would otherwise stay one, window after window."""

    class Broken:
        process, shape, kinds = PROCESS, (12, 1), {}

        def __call__(self, x_t, t, cond=None):
            return Prediction(x_t, self.process.at(t), {"x0": x_t / 0.0})

    one = noisy(12)
    one.values[4] = np.nan
    with pytest.raises(NonFinite, match="diverged"):
        impute(Broken(), [one], SPEC, members=2, steps=2, guidance=SelfGuidance(scale=0.0))


def test_a_gap_is_filled_from_both_sides():
    one = noisy(12)
    one.values[:] = 10.0
    one.values[4:6], one.values[6:] = np.nan, 16.0
    (made,) = impute(ORACLE, [one], SPEC, members=64, steps=50)
    assert 11.0 < made.samples[:, 4:6].mean() < 15.0


# Refinement


def test_refining_moves_a_bad_forecast_towards_the_law_of_windows():
    one = noisy(20)
    bad = np.full(4, 5.0 * np.abs(one.values[-8:]).mean())
    for by in ("quantile", "squares"):
        (made,) = refine_forecasts(
            ORACLE, [one], [bad], SPEC, at=0.3, by=by, members=8, rule=Descent(0.05), steps=30, weight=0.1
        )
        assert made.samples.shape == (8, 4) and str(made.times[0]) == "2024-01-01 20:00:00"
        assert np.abs(made.mean).max() < 0.6 * bad[0]


def test_refined_samples_keep_their_number_and_are_equivariant():
    one, base = noisy(), np.random.default_rng(0).normal(10.0, 1.0, (5, 4))
    how = {"at": 0.2, "rule": Langevin(0.05), "seed": 2}
    made = refine_forecasts(ORACLE, [one], [base], SPEC, **how)[0]
    large = refine_forecasts(ORACLE, [item(4096.0 * one.values)], [4096.0 * base], SPEC, **how)[0]
    assert made.samples.shape == (5, 4)
    np.testing.assert_allclose(large.samples, 4096.0 * made.samples, rtol=1e-5)


@pytest.mark.parametrize("by", ["squares", "quantile"])
def test_what_a_refinement_is_held_to(by):
    """By squares what was observed, lags by lags; by quantiles the base forecast too. A gap is held by neither."""
    one, base = noisy(20), np.arange(36.0, 44.0).reshape(2, 4)
    one.values[14] = np.nan
    size = np.nanmean(one.values[12:])
    steps = np.concatenate([np.stack([one.values[10:]] * 2), base], axis=1)  # from step 10 on, where lags begin
    values = torch.from_numpy(np.stack([steps[:, 2:], steps[:, :-2]], axis=-1) / size)
    mask = values.isfinite()
    if by == "squares":
        mask[:, 8:, 0] = mask[:, 10:, 1] = False
    start = values.nan_to_num().float()
    how = {"at": 0.2, "rule": Descent(0.02), "steps": 5, "weight": 3.0}
    near = Quantile(quantile_levels(2)) if by == "quantile" else SquaredError()
    seeds = [derive_seed(4, "a", j) for j in range(2)]
    cond = {"y": Condition(start, "observation", mask=mask)}
    want = refine(lagged_oracle(), start, near=near, cond=cond, rng=seeds, **how)[:, 8:, 0].double() * size
    made = refine_forecasts(lagged_oracle(), [one], [base[::-1]], LAGGED, by=by, seed=4, **how)[0]
    np.testing.assert_allclose(made.samples, want, rtol=1e-5)


def test_refinements_of_many_series_go_through_in_parts():
    items = [noisy(20), noisy(26, 1, 300.0, "b"), noisy(23, 2, 5.0, "c")]
    bases = [np.full(4, 12.0), 300.0 + np.arange(12.0).reshape(3, 4), np.full(4, 4.0)]
    how = {"at": 0.2, "members": 4, "steps": 3, "seed": 1}
    parts = refine_forecasts(lagged_oracle(), items, bases, LAGGED, batch=3, **how)
    assert [len(one.samples) for one in parts] == [4, 3, 4]
    for one, base, part in zip(items, bases, parts, strict=True):
        (alone,) = refine_forecasts(lagged_oracle(), [one], [base], LAGGED, **how)
        np.testing.assert_allclose(part.samples, alone.samples, rtol=1e-4)


def test_lags_of_the_horizon_hold_the_base_forecast():
    one = noisy(16)
    made = refine_forecasts(lagged_oracle(), [one], [np.full(4, np.nan)], LAGGED, at=0.2, members=3)[0]
    assert np.isfinite(made.samples).all()  # filled by seasonal naive


def test_seasonal_naive():
    one = item([9.0, 1.0, 2.0, 3.0, np.nan, 5.0, 6.0])
    assert seasonal_naive(one, 5, 3).tolist() == [1.0, 5.0, 6.0, 1.0, 5.0]
    assert seasonal_naive(one, 2, 1).tolist() == [6.0, 6.0]
    with pytest.raises(BadValue, match="season lies"):
        seasonal_naive(one, 2, 8)


def test_generated_series_have_days_weeks_and_levels():
    made = hourly(4, 24 * 7 * 20, seed=1)
    assert [len(one) for one in made] == [3360] * 4 and all((one.values >= 0.0).all() for one in made)
    for one in made:
        x = np.log(one.values + 1e-9)
        by_hour = x[: 24 * 140].reshape(-1, 24).mean(0)
        assert np.ptp(by_hour) > 0.2
    again = hourly(4, 24 * 7 * 20, seed=1)
    np.testing.assert_array_equal(made[2].values, again[2].values)


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: forecast(ORACLE, [noisy(7)], SPEC), "a has 7 steps"),
        (lambda: forecast(lagged_oracle(), [noisy(9)], LAGGED), "2 more for lags"),
        (lambda: forecast(ORACLE, [], SPEC), "no series"),
        (lambda: forecast(ORACLE, [noisy()], SPEC, horizon=5), "1 to 4 steps"),
        (lambda: forecast(ORACLE, [noisy()], SPEC, horizon=0), "1 to 4 steps"),
        (lambda: forecast(ORACLE, [noisy()], SPEC, members=0), "at least 1"),
        (lambda: forecast(ORACLE, [noisy(16)], LAGGED), "12 steps and 2 channels"),
        (lambda: forecast(ORACLE, [item([1.0] * 6 + [np.nan] * 8)], SPEC), "nothing is observed in the context"),
        (lambda: SelfGuidance(by="median"), "unknown guidance"),
        (lambda: SelfGuidance(shift="drift"), "unknown shift"),
        (lambda: SelfGuidance(scale=-1.0), "at least 0"),
        (lambda: impute(ORACLE, [noisy(11)], SPEC), "a has 11 steps"),
        (
            lambda: impute(ORACLE, [item([1.0] * 6 + [np.nan] * 20)], SPEC, members=2, steps=2),
            "nothing is observed in 12",
        ),
        (lambda: impute(ORACLE, [noisy()], SPEC, members=0), "at least 1"),
        (lambda: impute(ORACLE, [noisy(), item([np.nan] * 12, "b")], SPEC, members=2), "b: nothing is observed in 12"),
        (lambda: refine_forecasts(ORACLE, [noisy(16)], [np.ones(4)], LAGGED, at=0.2), "12 steps and 2 channels"),
        (lambda: refine_forecasts(ORACLE, [noisy()], [], SPEC, at=0.2), "0 forecasts came for 1"),
        (lambda: refine_forecasts(ORACLE, [noisy()], [np.ones(3)], SPEC, at=0.2), "a base forecast is"),
        (lambda: refine_forecasts(ORACLE, [noisy()], [np.ones(4) / 0.0], SPEC, at=0.2), "infinity"),
        (lambda: refine_forecasts(ORACLE, [noisy()], [np.ones(4)], SPEC, at=0.2, by="median"), "unknown refinement"),
    ],
)
def test_refusals(make, message):
    with np.errstate(divide="ignore"), pytest.raises(BadValue, match=message):
        make()


def test_windows_for_paths_say_what_is_known():
    values = torch.from_numpy(noisy(14).values)[None]
    window = gather(values, torch.tensor([2]), LAGGED)
    told = features(window, window.mask)
    assert told.shape == (1, 12, 3) and bool((told[..., -1] == 1.0).all())
    made = paths(lagged_oracle(), window, ["a"], members=3, steps=10)
    assert made.shape == (3, 1, 12)
