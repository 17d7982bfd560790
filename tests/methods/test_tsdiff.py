"""TSDiff: the assembly, its use from Python on every kind of data, and its refusals. Its parts have tests of their own:
guidance in tests/guidance/test_observed.py, refinement and grids in tests/sampling/test_refine.py, windows in
tests/data/test_series.py, forecasts in tests/series, the linear predictive score in tests/metrics."""

import numpy as np
import pandas as pd
import pytest
import torch

from condiff.data import Windows, hourly, series
from condiff.data.series import entries
from condiff.errors import BadValue
from condiff.methods import find
from condiff.methods.facts import Facts
from condiff.methods.kinds.windows import whole_windows
from condiff.methods.tsdiff import SMALL, TSDiff, miss_of_coverage, recipe, small
from condiff.random import derive_seed
from condiff.sampling import DDPM, Spaced, sample
from condiff.training import Denoising

ITEMS = hourly(2, 400)
FRAME = pd.DataFrame({one.item: one.values for one in ITEMS}, index=ITEMS[0].times())


@pytest.fixture(scope="module")
def model():
    windows = Windows(ITEMS, SMALL)
    return TSDiff.of(small(windows).denoiser(0).eval(), windows)


def test_the_recipe_is_the_papers():
    facts = Facts.of(Windows(ITEMS, SMALL))
    made = recipe(facts)
    betas = made.process.schedule.betas
    assert len(betas) == 100 and float(betas[0]) == pytest.approx(1e-4) and float(betas[-1]) == pytest.approx(0.1)
    assert (
        made.target == "noise" and made.network.width == 64 and made.network.depth == 3 and made.network.states == 128
    )
    assert made.training.lr == 1e-3 and made.training.clip == 0.5 and made.training.batch == 64
    assert made.network.time_scale == 100.0 and made.network.residual and made.training.weight_decay == 0.0
    assert made.objective.times.grid == made.sampler.steps == 100 and isinstance(made.sampler.solver, DDPM)
    assert facts.shape == (72, 3) and find("tsdiff").recipe(facts) == made


def test_the_conditional_twin_is_told_history_lags_and_mask():
    facts = Facts.of(Windows(ITEMS, SMALL, told="any"))
    denoiser = recipe(facts).denoiser(0)
    assert denoiser.kinds == {"features": "map"} and denoiser.shape == (72, 1)
    rows = Windows(ITEMS, SMALL, told="any").batch(range(3))
    loss = Denoising()(denoiser, rows, 0).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_data_frames_entries_and_lists_of_series_are_forecast_alike(model):
    how = {"samples": 3, "steps": 3, "seed": 1}
    found = [model.forecast(data, **how) for data in (FRAME, entries(ITEMS), ITEMS)]
    for made in found:
        assert [one.item for one in made] == ["series-0", "series-1"] and made[0].samples.shape == (3, 24)
    np.testing.assert_array_equal(found[0][1].samples, found[2][1].samples)
    np.testing.assert_allclose(found[1][1].samples, found[2][1].samples, rtol=1e-4)  # float32 entries


def test_a_model_guided_with_scale_zero_is_the_model(model):
    """Bit for bit, whatever the history, in the units of its context."""
    made = model.forecast(ITEMS, samples=2, scale=0.0, steps=5, seed=4)
    seeds = [derive_seed(4, one.item, j) for one in ITEMS for j in range(2)]
    plain = sample(model.denoiser, shape=(72, 3), solver=DDPM(), grid=Spaced(), steps=5, seeds=seeds)
    for one, own, found in zip(ITEMS, plain.unflatten(0, (2, 2)), made, strict=True):
        size = np.abs(one.values[-SMALL.context :]).mean()
        np.testing.assert_allclose(found.samples, own[:, SMALL.context :, 0].double().numpy() * size, rtol=1e-12)


def test_calibrated_paths_miss_nothing():
    """Sixteen draws of the law of the truth: their quantiles 0.1 and 0.9 hold 12 / 17 of it, not 0.8."""
    draws = torch.randn(17, 40_000, generator=torch.Generator().manual_seed(0))
    assert miss_of_coverage(draws[1:], draws[0]) < 0.01
    assert miss_of_coverage(0.5 * draws[1:], draws[0]) > 0.2


def test_gaps_refinement_and_new_series(model):
    holes = FRAME.copy()
    holes.iloc[200:210, 0] = np.nan
    filled = model.impute(holes, samples=2, steps=3)
    assert np.isfinite(filled[0].filled.values).all() and filled[0].samples.shape == (2, 400)
    base = model.forecast(ITEMS, samples=4, steps=3)
    better = model.refine(base, ITEMS, steps=2)
    assert better[0].samples.shape == (4, 24) and not np.allclose(better[0].samples, base[0].samples)
    assert model.sample(2).shape == (2, 72)
    assert 0.0 < model.at < 1.0
    elsewhere = TSDiff(model.denoiser, model.spec, at=0.9).refine(base, ITEMS, steps=2)
    np.testing.assert_array_equal(elsewhere[1].samples, model.refine(base, ITEMS, steps=2, at=0.9)[1].samples)
    assert not np.allclose(elsewhere[1].samples, better[1].samples)


def test_runs_are_judged_by_windows_in_which_nothing_is_missing():
    holes = FRAME.copy()
    holes.iloc[300:340, 0] = np.nan
    found = whole_windows(series(holes, "H", 24, context=48, lags=(24,), gaps=True), 40)
    assert found.shape[1:] == (72,) and 0 < len(found) < 40
    assert bool((found != 0.0).all()) and bool(found.isfinite().all())


def test_training_from_a_table(tmp_path):
    made = TSDiff.fit(FRAME, freq="H", horizon=6, context=24, lags=(24,), steps=2)
    assert made.spec.shape == (30, 2) and made.denoiser.shape == (30, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: recipe(Facts((1, 8, 8))), "models series"),
        (lambda model: model.forecast(FRAME.iloc[:100]), "168 more for lags"),
        (lambda model: model.forecast(FRAME.iloc[::-1]), "must increase"),
        (lambda model: model.forecast(FRAME.where(np.arange(400).repeat(2).reshape(400, 2) != 5)), "are missing"),
        (lambda model: model.forecast(FRAME, samples=-1), "at least 1"),
        (lambda model: model.forecast(FRAME, horizon=25), "1 to 24 steps"),
        (lambda model: model.forecast(FRAME, guidance="median"), "unknown guidance"),
        (lambda model: model.sample(0), "at least"),
        (
            lambda model: TSDiff.fit(FRAME, freq="H", horizon=6, context=24, lags=(24,), told="none"),
            "without a condition",
        ),
        (lambda model: TSDiff.fit(FRAME, freq="fortnight", horizon=6), "unknown frequency"),
        (lambda model: TSDiff.fit(FRAME.iloc[::2], freq="2h", horizon=6), "no customary lags"),
    ],
)
def test_refusals(model, make, message):
    with pytest.raises(BadValue, match=message):
        make(model)
