"""Diffusion Classifier: any conditional model classifies, by the condition under which a sample is denoised best.

Reference: Li, Prabhudesai, Duggal, Brown & Pathak, "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023
(arXiv 2303.16203), and the released programs.

    E(c) = mean_j d(eps_j, eps_hat(a_j x + s_j eps_j, t_j, c))      the same (t_j, eps_j) for every candidate c
    class = argmin_c E(c),     p(c | x) = softmax_c(log prior(c) - E(c))

Levels are a fixed even grid; candidates are dropped in stages. The parts are general and live in
:mod:`condiff.scoring`: :class:`~condiff.scoring.DiffusionClassifier`, measures, and
:func:`~condiff.scoring.condition_use`, the same comparison as a test of whether a model uses a condition at all.

Paper's symbols: n_samples and to_keep are ``stages``, n_trials ``trials``; t of T is index t of the table here, time
``(t + 1) / T``. Differences from the released programs: a survivor that is alone isn't evaluated further (the answer
is the same), the schedule stays in float64, models of v, x0 or velocity are converted, tied noise and batch position
can't happen, and guided models are refused. The decoder's term, which no released decision uses, is left out. Exact
weights are added: with ``Error(weight="elbo")`` the errors sum to the likelihood (``metrics.denoising_log_prob``).

Claimed: on par with discriminative models of the same data, because noise is shared; staged elimination costs little.
:func:`reproduce` measures all three on digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.data import Data
from condiff.errors import require_extra
from condiff.methods import experiment
from condiff.methods.experiment import Digits
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import calibration, class_accuracy
from condiff.networks import MLPConfig
from condiff.process import Discrete, Gaussian
from condiff.random import derive_seed
from condiff.sampling import DDIM, Spaced
from condiff.scoring import DiffusionClassifier, Error, Noises, candidate_errors, level_indices
from condiff.training import Denoising

FEW, MOST = (5, 10), 50  # noise levels
STAGES = ((FEW[0], 3), (MOST, 1))


def reproduce(budget: str = "small") -> Reproduction:
    """Digits: shared against independent noise, against logistic regression, staged against exhaustive."""
    lab = experiment.Digits("diffusion-classifier", budget, steps=2000)
    figures: dict[str, list[float]] = {}
    x, y = _all(lab.heldout)

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(float(value))

    for seed in lab.seeds:
        model = lab.train(_recipe(lab), seed).denoiser
        for count in FEW:
            shared = classifier(model, ((count, 1),), seed).predict(x)
            note(f"accuracy: shared noise, {count} levels", class_accuracy(shared, y))
            apart = on_independent_noise(model, x, count, seed)
            note(f"accuracy: independent noise, {count} levels", class_accuracy(apart, y))
        uniform, absolute, exact = _exhaustive(model, x, seed)
        note(f"accuracy: shared noise, {MOST} levels", class_accuracy(uniform.argmin(1), y))
        note(f"accuracy: l1, {MOST} levels", class_accuracy(absolute.argmin(1), y))
        p = classifier(model, STAGES, seed).posterior(exact, x[0].numel())
        note(f"calibration error: likelihood weights, {MOST} levels", calibration(p, y).error)
        scores = classifier(model, STAGES, seed).scores(x)
        note("accuracy: staged", class_accuracy(scores.best, y))
        note("evaluations: staged", scores.calls)
        note("evaluations: exhaustive", 10 * MOST)
        note("accuracy: logistic regression", _logistic(lab, x, y))
        lab.say(f"seed {seed}: classified {len(x)} held-out digits {len(figures)} ways")
    return lab.outcome("a generative classifier on par, by shared noise", _comparisons(figures), series=figures)


def classifier(model: Any, stages: Any, seed: int, **measure: Any) -> DiffusionClassifier:
    """Ten digits as candidates."""
    return DiffusionClassifier(
        denoiser=model,
        candidates={"label": torch.arange(10)},
        stages=stages,
        measure=Error(**measure),
        seed=seed,
        batch=4096,
    )


def _recipe(lab: Digits) -> Recipe:
    facts = lab.facts
    return Recipe(
        method="diffusion-classifier",
        network=MLPConfig(shape=facts.shape, width=256, depth=3, conditions=dict(facts.embeddings)),
        process=Gaussian(Discrete.ddpm()),
        target="noise",
        objective=Denoising(transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(), grid=Spaced("trailing"), steps=50),
    )


def _exhaustive(model: Any, x: Tensor, seed: int) -> Tensor:
    """Errors (3, B, 10) of all classes at all levels, by l2, by l1 and with the likelihood's weights, in one pass."""
    times = (torch.tensor(level_indices(1000, MOST), dtype=torch.float64) + 1.0) / 1000
    noise = Noises(model.process, x.shape[1:], seed).rows(0, MOST, x.dtype, x.device)
    digits = Conditions({"label": Condition(torch.arange(10), "label")})
    measures = [Error(), Error(loss="l1"), Error(weight="elbo")]
    return candidate_errors(model, x, digits, times, noise, measures, batch=4096).double().mean(-1)


def on_independent_noise(model: Any, x: Tensor, count: int, seed: int) -> Tensor:
    """Classes by errors for which every sample and every class has draws of its own."""
    times = (torch.tensor(level_indices(1000, count), dtype=torch.float64) + 1.0) / 1000
    errors = []
    for c in range(10):
        one = Conditions({"label": Condition(torch.tensor([c]), "label")})
        table = Noises(model.process, x.shape[1:], derive_seed(seed, "class", c))
        noise = table.rows(0, len(x) * count, x.dtype, x.device).reshape(len(x), count, *x.shape[1:])
        errors.append(candidate_errors(model, x, one, times, noise, [Error()], batch=4096)[0, :, 0].mean(-1))
    return torch.stack(errors, 1).argmin(1)


def _all(data: Data) -> tuple[Tensor, Tensor]:
    rows = data.batch(range(len(data)))
    return rows["x"], rows["cond"]["label"]


def _logistic(lab: Digits, x: Tensor, y: Tensor) -> float:
    """A discriminative classifier of the same data."""
    linear = require_extra("sklearn.linear_model", "metrics").LogisticRegression(max_iter=2000)
    train = _all(lab.data)  # type: ignore[arg-type]
    linear.fit(train[0].flatten(1).numpy(), train[1].numpy())
    return class_accuracy(torch.from_numpy(linear.predict(x.flatten(1).numpy())), y)


def _comparisons(figures: dict[str, list[float]]) -> tuple[Comparison, ...]:
    def compare(name: str, base: str, ours: str, lower: bool = False, less: float = 0.0) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=base.split(": ")[1] + (f", less {less:g}" if less else ""),
            baseline=tuple(v - less for v in figures[base]),
            ours_name=ours.split(": ")[1],
            ours=tuple(figures[ours]),
            lower_is_better=lower,
        )

    few, most = f"{FEW[0]} levels", f"{MOST} levels"
    return (
        compare("accuracy with few draws", f"accuracy: independent noise, {few}", f"accuracy: shared noise, {few}"),
        compare(
            "on par: within a point", "accuracy: logistic regression", f"accuracy: shared noise, {most}", less=0.01
        ),
        compare("staged: within a point", f"accuracy: shared noise, {most}", "accuracy: staged", less=0.01),
        compare("network evaluations a digit", "evaluations: exhaustive", "evaluations: staged", lower=True),
    )
