"""Forecasts of a table of series: TSDiff beside seasonal naive, exponential smoothing and ARIMA, as GluonTS evaluates.

    python benchmarks/forecast.py --data exchange_rate.txt.gz --start 1990-01-01

The last ``windows`` horizons of every series are forecast, one after the other, from all that lies before; nothing of
them is trained on. CRPS is GluonTS's ``mean_wQuantileLoss`` over the quantiles 0.05 ... 0.95, summed over series and
windows; ND the same of medians.
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sampling_overhead import hardware

from condiff.data import Series, Windows, WindowSpec, read_series, season_of
from condiff.methods import tsdiff
from condiff.methods.experiment import Lab
from condiff.methods.facts import Facts
from condiff.metrics import normalised_deviation, weighted_quantile_loss
from condiff.series import SelfGuidance, forecast, seasonal_naive

LEVELS = tuple(k / 20 for k in range(1, 20))
RECENT = 1000  # steps that the classical forecasters are fitted on


def pasts_of(items: list[Series], horizon: int, windows: int) -> tuple[list[Series], torch.Tensor]:
    """Histories and what followed, window by window: (windows x items) and (windows x items, horizon)."""
    cuts = [(one, len(one) - horizon * k) for k in range(windows, 0, -1) for one in items]
    truth = np.stack([one.values[end : end + horizon] for one, end in cuts])
    return [one.cut(0, end) for one, end in cuts], torch.from_numpy(truth)


def naive(pasts: list[Series], horizon: int, members: int) -> torch.Tensor:
    return torch.tensor(np.stack([seasonal_naive(one, horizon, season_of(one.freq)) for one in pasts]))[None]


def seeded(fit: object, seed: int) -> dict[str, object]:
    """The seed of a simulation, by the name that this version of statsmodels has for it."""
    names = inspect.signature(fit.simulate).parameters
    return {"rng": np.random.default_rng(seed)} if "rng" in names else {"random_state": seed}


def smoothing(pasts: list[Series], horizon: int, members: int) -> torch.Tensor:
    """Exponential smoothing of the level with a damped trend (ETS A,Ad,N), simulated."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    made = []
    for i, one in enumerate(pasts):
        fit = ETSModel(one.values[-RECENT:], error="add", trend="add", damped_trend=True).fit(disp=False)
        draws = fit.simulate(horizon, anchor="end", repetitions=members, **seeded(fit, i))
        made.append(np.asarray(draws).reshape(horizon, members).T)
    return torch.tensor(np.stack(made, axis=1))


def arima(pasts: list[Series], horizon: int, members: int) -> torch.Tensor:
    """ARIMA(1, 1, 1), simulated."""
    from statsmodels.tsa.arima.model import ARIMA

    made = []
    for i, one in enumerate(pasts):
        fit = ARIMA(one.values[-RECENT:], order=(1, 1, 1)).fit()
        draws = fit.simulate(horizon, anchor="end", repetitions=members, **seeded(fit, i))
        made.append(np.asarray(draws).reshape(horizon, members).T)
    return torch.tensor(np.stack(made, axis=1))


def diffusion(items: list[Series], pasts: list[Series], asked: argparse.Namespace, seed: int) -> torch.Tensor:
    """TSDiff trained on all before the first forecast."""
    spec = WindowSpec(freq=items[0].freq, horizon=asked.horizon, context=asked.context, lags=tuple(asked.lags))
    data = Windows([one.cut(0, len(one) - asked.horizon * asked.windows) for one in items], spec)
    made = tsdiff.recipe(Facts.of(data))
    made = replace(
        made,
        network=replace(made.network, width=asked.width, states=16),
        training=replace(made.training, lr=4e-3, warmup=50),
    )
    lab = Lab("tsdiff", "small", steps=asked.steps, data=data, batch=64)
    model = lab.train(made, seed).denoiser
    led = SelfGuidance(scale=asked.scale)
    found = forecast(model, pasts, spec, members=asked.members, guidance=led, steps=asked.solver_steps, seed=seed)
    lab.say(f"seed {seed}: {len(pasts)} forecasts")
    return torch.tensor(np.stack([one.samples for one in found], axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a wide table, .csv or .txt, also .gz")
    parser.add_argument("--start", help="timestamp of the first row, of a table without timestamps")
    parser.add_argument("--freq", default="D")
    parser.add_argument("--horizon", type=int, default=30)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--context", type=int, default=60)
    parser.add_argument("--lags", type=int, nargs="*", default=[])
    parser.add_argument("--width", type=int, default=28)
    parser.add_argument("--steps", type=int, default=700, help="of training")
    parser.add_argument("--solver-steps", type=int, default=50)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--scale", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    asked = parser.parse_args()
    items = read_series(asked.data, asked.freq, start=asked.start)
    pasts, truth = pasts_of(items, asked.horizon, asked.windows)
    print(f"{asked.data.name}: {len(items)} series of {len(items[0])} steps; {len(pasts)} forecasts of {asked.horizon}")
    print("| forecaster | CRPS | ND | seconds |\n| --- | --- | --- | --- |")
    rows: dict[str, list[tuple[float, float, float]]] = {}
    simple = {"seasonal naive": naive, "ETS(A, Ad, N)": smoothing, "ARIMA(1, 1, 1)": arima}
    tasks = [(name, lambda make=make: make(pasts, asked.horizon, 200)) for name, make in simple.items()]
    tasks += [("TSDiff-Q", lambda seed=seed: diffusion(items, pasts, asked, seed)) for seed in asked.seeds]
    for name, make in tasks:
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence
            samples = make()
        scores = weighted_quantile_loss(samples, truth, LEVELS), normalised_deviation(samples, truth)
        rows.setdefault(name, []).append((*scores, time.perf_counter() - begun))
    for name, found in rows.items():
        crps, nd, seconds = np.mean(found, axis=0)
        spread = f" +- {np.std([row[0] for row in found], ddof=1):.4f}" if len(found) > 1 else ""
        print(f"| {name} | {crps:.4f}{spread} | {nd:.4f} | {seconds:.0f} |")
    print(hardware())


if __name__ == "__main__":
    main()
