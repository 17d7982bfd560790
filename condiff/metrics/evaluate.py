"""The whole table for one set of samples, with the floors that real data reach."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from condiff.errors import BadValue
from condiff.metrics.checks import as_rows, two_sets
from condiff.metrics.discrepancy import energy_distance, kernel_distance, sliced_wasserstein
from condiff.metrics.features import Classifies, Features, Pixels
from condiff.metrics.frechet import frechet
from condiff.metrics.neighbours import memorisation, precision_recall
from condiff.random import as_source
from condiff.typing import Float, Int


def class_accuracy(predicted: Tensor, labels: Int[Tensor, " batch"]) -> float:
    """Fraction of samples whose predicted class is the one asked for.

    Args:
        predicted: classes (B,), or probabilities or logits (B, classes).
        labels: the classes asked for.

    Raises:
        BadValue: lengths that differ, no samples, labels out of range.
    """
    classes = predicted.argmax(dim=1) if predicted.ndim == 2 else predicted
    if classes.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise BadValue(f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} must be of one batch")
    if int(labels.min()) < 0 or (predicted.ndim == 2 and int(labels.max()) >= predicted.shape[1]):
        raise BadValue(f"labels from {int(labels.min())} to {int(labels.max())} are out of range for {predicted.shape}")
    return float((classes.cpu() == labels.cpu()).double().mean())


def _some(x: Tensor, count: int, rng: Any) -> Tensor:
    """``count`` rows drawn without replacement, in order; all when there are no more."""
    if len(x) <= count:
        return x
    keys = as_source(rng).uniform((len(x),))
    return x[keys.argsort()[:count].sort().values.to(x.device)]


def evaluate(
    samples: Float[Tensor, "n *shape"],
    train: Float[Tensor, "m *shape"],
    heldout: Float[Tensor, "h *shape"],
    labels: Tensor | None = None,
    classifier: Any = None,
    features: Features | None = None,
    k: int = 5,
    rng: Any = 0,
) -> dict[str, float | int | str]:
    """How good a set of samples is, JSON-ready.

    Distributions are compared with the held-out data in feature space, memorisation in sample space. Each
    ``*_floor`` is the same distance between as many training rows as there are samples and the held-out data: what a
    perfect model would score. (Fréchet distances depend on sample sizes; equal sizes make the two comparable.)

    Args:
        samples: what was generated.
        train: what the model was trained on.
        heldout: real data that it hasn't seen.
        labels: the classes that were asked for; needs ``classifier``.
        classifier: with ``predict(x) -> (B,)``; its features are used when it has some and ``features`` isn't given.
        features: with ``features(x) -> (B, D)``; by default the samples themselves.
        k: neighbours for precision and coverage.
        rng: which training rows and directions.

    Returns:
        ``class_accuracy`` (with labels), ``frechet``, ``frechet_floor``, ``kernel``, ``kernel_floor``, ``energy``,
        ``energy_floor``, ``sliced_wasserstein``, ``sliced_wasserstein_floor``, ``precision``, ``recall``,
        ``density``, ``coverage``, ``coverage_floor``, ``nn_ratio``, ``memorised_fraction``, ``memorised_level``,
        ``nearer``, ``samples``, ``features``.
    """
    two_sets(samples, train, ("samples", "train"), least=k + 1)
    two_sets(heldout, train, ("heldout", "train"), least=k + 1)
    extractor = features or (classifier if isinstance(classifier, Features) else Pixels())
    real = as_rows(extractor.features(heldout), "features of heldout")
    ours = as_rows(extractor.features(samples), "features of samples")
    floor = as_rows(extractor.features(_some(train, len(samples), rng)), "features of train")
    out: dict[str, float | int | str] = {}
    if labels is not None:
        if not isinstance(classifier, Classifies):
            raise BadValue("labels= need a classifier= with predict(x), which says what the samples show")
        out["class_accuracy"] = class_accuracy(classifier.predict(samples), labels)
    for name, distance in DISTANCES.items():
        out[name], out[f"{name}_floor"] = distance(ours, real), distance(floor, real)
    out |= precision_recall(real, ours, k)._asdict()
    out["coverage_floor"] = precision_recall(real, floor, k).coverage
    copied = memorisation(samples, train, heldout)
    out |= {"nn_ratio": copied.nn_ratio, "memorised_fraction": copied.memorised_fraction, "nearer": copied.nearer}
    return out | {
        "memorised_level": copied.level,
        "samples": len(samples),
        "features": f"{type(extractor).__name__} ({real.shape[1]})",
    }


DISTANCES = {
    "frechet": frechet,
    "kernel": kernel_distance,
    "energy": energy_distance,
    "sliced_wasserstein": sliced_wasserstein,
}
