"""TSDiff: one unconditional model of series that forecasts, fills gaps, refines other forecasts and makes new series.

Reference: Kollovieh, Ansari, Bohlke-Schneider, Zschiegner, Wang & Wang, "Predict, Refine, Synthesize: Self-Guiding
Diffusion Models for Probabilistic Time Series Forecasting", NeurIPS 2023 (arXiv 2307.11494).

    x0 = window / mean |observed context|, a channel for the series and one for each lag
    x_t = alpha_t x0 + sigma_t n,   loss = |n_hat(x_t, t) - n|^2        100 levels, beta from 1e-4 to 0.1
    mean <- mean - scale std^2 grad_{x_t} sum over observed entries of rho_k(y - x0_hat(x_t))

rho_k is the quantile loss at level k = j / (S + 1) for the j-th of S sample paths, so that the paths spread over the
quantiles of what the history allows; or the square. Parts: :class:`condiff.data.Windows`, the network
:class:`condiff.networks.GatedSeries`, :class:`condiff.guidance.Energy` with :class:`condiff.guidance.Quantile`,
:func:`condiff.sampling.refine`, and :mod:`condiff.series`, which puts them together.

What differs from the paper and its code, and why: the guidance is the paper's, at x_t; that of the code, behind the
step's noise, is ``shift="state"``. The state space along the sequence is diagonal (S4D), not S4. Missing values don't
count in the training loss. Lags are masked with what they copy, in refinement too, where the code takes missing values
for observed zeros. A context of zeros is scaled by the whole series' size. The input always joins the network's output,
an option of the code that it chooses by data set. Times are embedded as elsewhere here (t N from 1 to N, cosines
first). Weights are averaged.

Claimed: forecasts as good as those of models trained for one task, from one model for all patterns of missing values;
better base forecasts after refinement. :func:`reproduce` measures it on generated hourly series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data import PATTERNS, Series, Windows, WindowSpec, hourly, missing, read_series, series
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.methods.experiment import Lab
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import sample_quantiles, weighted_quantile_loss
from condiff.networks import GatedSeriesConfig
from condiff.process import Discrete, Gaussian, Time
from condiff.sampling import DDPM, Spaced, sample, typical_time
from condiff.series import (
    Forecast,
    Imputation,
    Predictor,
    SelfGuidance,
    forecast,
    impute,
    refine_forecasts,
    seasonal_naive,
)
from condiff.series.paths import refuse_told
from condiff.training import Denoising, DiscreteTimes, TrainConfig, Trainer

LEVELS = 100
MANY = 100_000  # windows from which on training is as long as the paper's


def recipe(facts: Facts) -> Recipe:
    """The method on windows of series; on data with conditions (``told="none"``) the paper's conditional baseline.

    Raises:
        BadValue: samples that aren't series (L, C).
    """
    if len(facts.shape) != 2:
        raise BadValue(f"tsdiff models series (L, C), got samples {facts.shape}: condiff train series --data FILE")
    return Recipe(
        method="tsdiff",
        network=GatedSeriesConfig(
            shape=facts.shape, conditions=dict(facts.embeddings), time_scale=float(LEVELS), residual=True
        ),
        process=Gaussian(Discrete.ddpm(LEVELS, 1e-4, 0.1)),
        target="noise",
        objective=Denoising(times=DiscreteTimes(grid=LEVELS)),
        training=training(facts),
        sampler=Sampler(solver=DDPM(), grid=Spaced("trailing"), steps=LEVELS),
    )


def training(facts: Facts) -> TrainConfig:
    """The paper's for many windows, minutes to an hour for fewer."""
    steps = 128_000 if facts.count >= MANY else 5000
    return TrainConfig(
        steps=steps, batch=64, lr=1e-3, warmup=100, weight_decay=0.0, clip=0.5, ema=(0.995,), save_every=1000
    )


class TSDiff:
    """A trained model of windows, with what it is for.

    Args:
        denoiser: the model.
        spec: of its windows.
        at: the time of refinements; measured on the data by :meth:`fit`.

    Raises:
        BadValue: a conditional model, whose forecasts are :func:`condiff.series.forecast`'s.

    Example:
        >>> model = TSDiff.fit(frame, freq="H", horizon=24)
        >>> forecasts = model.forecast(frame, samples=100, guidance="quantile", scale=4.0)
        >>> forecasts[0].quantile(0.9)
    """

    def __init__(self, denoiser: Denoises, spec: WindowSpec, at: Time = 0.2) -> None:
        refuse_told(denoiser, "use TSDiff")
        self.denoiser, self.spec, self.at = denoiser, spec, at

    @classmethod
    def fit(
        cls,
        data: Any,
        freq: str,
        horizon: int,
        *,
        steps: int | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
        **options: Any,
    ) -> TSDiff:
        """Train on a table, DataFrame or GluonTS data set.

        Args:
            data, freq, horizon, options: as for :func:`condiff.data.series`.
            steps: of training; by the amount of data when None.
            run_dir: keeps checkpoints.
        """
        windows = series(data, freq, horizon, **options)
        if windows.told is not None:
            raise BadValue("TSDiff is trained without a condition: leave told= out")
        made = recipe(Facts.of(windows))
        config = replace(made.training, steps=steps, seed=seed) if steps else replace(made.training, seed=seed)
        trainer = Trainer(made.denoiser(seed), windows, made.objective, config, run_dir=run_dir)
        trainer.fit()
        return cls.of(trainer.averaged(), windows, seed)

    @classmethod
    def of(cls, denoiser: Any, windows: Windows, seed: int = 0) -> TSDiff:
        """A trained denoiser with the windows it was trained on, which tell the time of refinements."""
        refuse_told(denoiser, "use TSDiff")
        return cls(denoiser, windows.spec, representative(denoiser, windows, seed))

    def items(self, data: Any, gaps: bool = False, **options: Any) -> list[Series]:
        """The series of a table, or of a list of them."""
        if isinstance(data, list | tuple) and data and all(isinstance(one, Series) for one in data):
            return list(data)
        return read_series(data, self.spec.freq, gaps=gaps, **options)

    def forecast(
        self,
        data: Any,
        samples: int = 100,
        guidance: str = "quantile",
        scale: float = 4.0,
        *,
        shift: str | None = None,
        gaps: bool = False,
        **how: Any,
    ) -> list[Forecast]:
        """Sample paths behind the end of each series: see :func:`condiff.series.forecast`."""
        led = SelfGuidance(by=guidance, scale=scale, shift=shift)
        return forecast(self.denoiser, self.items(data, gaps), self.spec, members=samples, guidance=led, **how)

    def predictor(
        self,
        samples: int = 100,
        guidance: str = "quantile",
        scale: float = 4.0,
        *,
        shift: str | None = None,
        gaps: bool = True,
        **how: Any,
    ) -> Predictor:
        """The model for GluonTS's backtests: see :class:`condiff.series.Predictor`."""
        led = SelfGuidance(by=guidance, scale=scale, shift=shift)
        return Predictor(
            denoiser=self.denoiser, spec=self.spec, members=samples, gaps=gaps, how={"guidance": led, **how}
        )

    def impute(
        self, data: Any, samples: int = 100, guidance: str = "quantile", scale: float = 4.0, **how: Any
    ) -> list[Imputation]:
        """Sample paths in the gaps, which are NaN: see :func:`condiff.series.impute`."""
        led = SelfGuidance(by=guidance, scale=scale)
        return impute(self.denoiser, self.items(data, True), self.spec, members=samples, guidance=led, **how)

    def refine(
        self, forecasts: Sequence[Forecast | np.ndarray], history: Any, *, gaps: bool = False, **how: Any
    ) -> list[Forecast]:
        """Better base forecasts, (H,) or (S, H) for each series: see :func:`condiff.series.refine_forecasts`."""
        bases = [f.samples if isinstance(f, Forecast) else f for f in forecasts]
        items = self.items(history, gaps)
        return refine_forecasts(self.denoiser, items, bases, self.spec, **{"at": self.at, **how})

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """New windows, each over its context's mean size, (num, L)."""
        how = {"solver": DDPM(), "grid": Spaced("trailing"), "steps": LEVELS}
        return sample(self.denoiser, num=num, seeds=range(seed, seed + num), shape=self.spec.shape, **how)[..., 0]


def representative(denoiser: Any, windows: Windows, seed: int = 0, rows: int = 32) -> float:
    """The time of refinements: where the denoising loss is what it is on average over the levels."""
    index = torch.linspace(0, len(windows) - 1, min(rows, len(windows)), dtype=torch.float64).long()
    times = denoiser.process.schedule.at_index(torch.arange(LEVELS))
    batch: Any = windows.batch(index)
    return typical_time(denoiser, batch["x"], times, mask=batch.get("mask"), rng=seed)


# The claim


SMALL = WindowSpec(freq="h", horizon=24, context=48, lags=(24, 168))
TESTS, MEMBERS, STEPS = 16, 16, 50  # series that are forecast, paths of each, steps
HIDDEN = PATTERNS[1:]
LED = {"quantile": SelfGuidance(scale=8.0), "squares": SelfGuidance(by="squares", scale=2.0)}


def reproduce(budget: str = "small") -> Reproduction:
    """CRPS on generated hourly series: against seasonal naive, a conditional twin and itself with half the history."""
    items = hourly(60)
    tested = items[TESTS : 2 * TESTS]  # scales of guidance were chosen on those before
    lab = Lab("tsdiff", budget, steps=900, batch=64)
    data, twins = (Windows(items, SMALL, told=told).cut(0.1)[0] for told in (None, "any"))
    seen = {pattern: _histories(tested, pattern) for pattern in PATTERNS}
    truth = torch.tensor(np.stack([one.values[-SMALL.horizon :] for one in tested]))
    naive = {
        pattern: [seasonal_naive(one, SMALL.horizon, 24) for one in histories] for pattern, histories in seen.items()
    }
    figures: dict[str, list[float]] = {}

    def note(name: str, samples: Tensor) -> None:
        figures.setdefault(name, []).append(round(weighted_quantile_loss(samples, truth), 5))
        if name in ("quantile, none", "squares, none"):
            figures.setdefault(f"miss of {name}", []).append(round(miss_of_coverage(samples, truth), 4))

    for seed in lab.seeds:
        model, twin = (lab.train(small(windows), seed, windows).denoiser for windows in (data, twins))
        how = {"members": MEMBERS, "steps": STEPS, "seed": seed}
        for pattern, histories in seen.items():
            note(f"naive, {pattern}", torch.tensor(np.stack(naive[pattern]))[None])
            note(f"quantile, {pattern}", _samples(forecast(model, histories, SMALL, guidance=LED["quantile"], **how)))
            note(f"twin, {pattern}", _samples(forecast(twin, histories, SMALL, **how)))
        note("squares, none", _samples(forecast(model, seen["none"], SMALL, guidance=LED["squares"], **how)))
        at = representative(model, data, seed)
        refined = refine_forecasts(model, seen["none"], naive["none"], SMALL, at=at, members=MEMBERS, seed=seed)
        note("refined naive", _samples(refined))
        lab.say(f"seed {seed}: CRPS {figures['quantile, none'][-1]:.4f}, naive {figures['naive, none'][-1]:.4f}")
    return _outcome(lab, figures)


def small(windows: Windows) -> Recipe:
    """The method with a network of 19 thousand weights."""
    made = recipe(Facts.of(windows))
    network = replace(made.network, width=28, states=16)
    return replace(made, network=network, training=replace(made.training, lr=4e-3, warmup=50))


def _histories(items: Sequence[Series], pattern: str) -> list[Series]:
    """The series without their last horizon, and with half of the context before it hidden by the pattern."""
    out = []
    for i, one in enumerate(items):
        past = one.cut(0, len(one) - SMALL.horizon)
        gone = missing(pattern, SMALL.context, i).numpy()
        values = past.values.copy()
        values[-SMALL.context :][gone] = np.nan
        out.append(replace(past, values=values))
    return out


def _samples(forecasts: Sequence[Forecast]) -> Tensor:
    return torch.tensor(np.stack([f.samples for f in forecasts], axis=1))


def miss_of_coverage(samples: Tensor, truth: Tensor) -> float:
    """How far the share of the truth between the quantiles 0.1 and 0.9 is from what it is for as many calibrated paths.

    Between the i-th and the j-th of S draws lies another one with probability ``(j - i) / (S + 1)``, not 0.8.
    """
    low, high = sample_quantiles(samples, [0.1, 0.9])
    first, last = sample_quantiles(torch.arange(float(len(samples))), [0.1, 0.9]).tolist()
    inside = float(((low <= truth) & (truth <= high)).double().mean())
    return abs(inside - (last - first) / (len(samples) + 1))


def _outcome(lab: Lab, figures: dict[str, list[float]]) -> Reproduction:
    def against(
        name: str, base: str, ours: str, times: float = 1.0, label: str | None = None, **how: Any
    ) -> Comparison:
        scaled = tuple(times * v for v in figures[base])
        return Comparison(
            name=name, baseline_name=label or base, baseline=scaled, ours_name=ours, ours=tuple(figures[ours]), **how
        )

    comparisons = [
        against("CRPS, a fifth below seasonal naive", "naive, none", "quantile, none", margin=0.2),
        against("CRPS within 15 % of a conditional twin", "twin, none", "quantile, none", 1.15, "twin + 15 %"),
        *(against(f"CRPS, half the history hidden: {p}", f"naive, {p}", f"quantile, {p}") for p in HIDDEN),
        against("CRPS of refined seasonal naive", "naive, none", "refined naive"),
        against("CRPS of quantiles and of squares", "squares, none", "quantile, none"),
        against(
            "distance from the coverage of calibrated paths",
            "miss of squares, none",
            "miss of quantile, none",
        ),
    ]
    claim = "one unconditional model forecasts from any part of a history, and refines simple forecasts"
    notes = (
        f"{TESTS} of 60 generated hourly series, {MEMBERS} paths in {STEPS} steps, {lab.steps} training steps of batch "
        f"{lab.batch}; scales {LED['quantile'].scale:g} of quantiles and {LED['squares'].scale:g} of squares, the best "
        "of a few on the first seed and other series; CRPS as weighted quantile loss"
    )
    return lab.outcome(claim, comparisons, notes, {f"{k} by seed": v for k, v in figures.items()})
