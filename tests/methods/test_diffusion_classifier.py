"""Diffusion Classifier: published settings, shared against independent noise, image-text pairs, likelihoods.

The exact checks of its parts (closed forms, stages, invariances, measures) are those of the room scoring.
"""

import math

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.methods import diffusion_classifier as method
from condiff.metrics import denoising_log_prob, text_score
from condiff.process import Discrete, Gaussian, Rectified
from condiff.process.oracles import mixture
from condiff.scoring import DiffusionClassifier, Error, candidate_errors, level_indices, stage_indices

PUBLISHED = {
    "CIFAR-10": ((50, 5), (500, 1)),
    "Pets": ((25, 5), (250, 1)),
    "Flowers": ((20, 20), (50, 10), (100, 5), (500, 1)),
    "STL-10": ((100, 5), (500, 1)),
    "ImageNet": ((50, 500), (100, 50), (500, 10), (1000, 1)),
    "ObjectNet": ((50, 25), (100, 10), (500, 5), (1000, 1)),
}
D = 16


def oracle(classes=10, process=None):
    means = 0.5 * torch.randn(classes, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    process = process or Gaussian(Discrete.ddpm())
    return mixture(process, means, stds=math.sqrt(0.3), labels=range(classes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_accepted(name):
    stages = PUBLISHED[name]
    model = oracle(max(stages[0][1], 2))
    clf = DiffusionClassifier(
        denoiser=model,
        candidates={"label": torch.arange(len(model.log_weights))},
        stages=stages,
        measure=Error(loss="l1"),
    )
    assert clf.stages == stages
    assert len({i for s in stage_indices(1000, [n for n, _ in stages]) for i in s}) <= 1000


def test_the_levels_of_the_class_conditional_program():
    """250 of 1000: 2, 6, ..., 998."""
    assert level_indices(1000, 250) == list(range(2, 1000, 4))


def test_shared_noise_classifies_better_with_few_draws():
    """On average over seeds: differences of errors have less spread."""
    model = oracle()
    x, y = model.sample_labelled(60, 0, dtype=torch.float64)
    shared, apart = [], []
    for seed in range(4):
        shared.append((method.classifier(model, ((5, 1),), seed).predict(x) == y).double().mean())
        apart.append((method.on_independent_noise(model, x, 5, seed) == y).double().mean())
    assert torch.stack(shared).mean() > torch.stack(apart).mean() + 0.05


def test_with_enough_levels_it_is_the_bayes_classifier_nearly_always():
    model = oracle()
    x, _ = model.sample_labelled(100, 0, dtype=torch.float64)
    bayes = model.class_log_prob(x, 0.0).argmax(1)
    agree = (method.classifier(model, ((50, 1),), 0).predict(x) == bayes).double().mean()
    assert agree > 0.9


def test_pairs_of_images_and_captions():
    """Two images and two captions at all levels: the score of Winoground."""
    model = oracle(2)
    x, y = model.sample_labelled(40, 3, dtype=torch.float64)
    first, second = x[y == 0][:10], x[y == 1][:10]
    images = torch.stack([first, second], 1).flatten(0, 1)
    captions = Conditions({"label": Condition(torch.arange(2), "label")})
    times = (torch.tensor(level_indices(1000, 100), dtype=torch.float64) + 1) / 1000
    noise = torch.randn(100, D, dtype=torch.float64)
    errors = candidate_errors(model, images, captions, times, noise, [Error()], batch=4096)[0].mean(-1)
    distance2 = (images[:, None] - model.components.means).square().sum(-1)
    assert text_score(errors.reshape(10, 2, 2)) == pytest.approx(text_score(distance2.reshape(10, 2, 2)), abs=0.21)


def test_the_error_of_a_flow_is_measured_on_its_velocity():
    model = oracle(4, Gaussian(Rectified()))
    x, _ = model.sample_labelled(50, 0, dtype=torch.float64)
    clf = DiffusionClassifier(
        denoiser=model, candidates={"label": torch.arange(4)}, stages=((50, 1),), measure=Error(target="velocity")
    )
    agree = (clf.predict(x) == model.class_log_prob(x, 0.0).argmax(1)).double().mean()
    assert agree > 0.85


def test_drawn_errors_estimate_the_likelihood():
    """-log p from errors on shared noise, against the exact density: within a few standard errors."""
    model = oracle(2)
    x, _ = model.sample_labelled(1, 0, dtype=torch.float64)
    log_snr = torch.linspace(-9, 12, 300, dtype=torch.float64)
    process = Gaussian(Rectified())
    smooth = oracle(2, process)
    times = process.time(log_snr)
    noise = torch.randn(40 * 300, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = Conditions({"label": Condition(torch.arange(2), "label")})
    errors = candidate_errors(smooth, x, labels, times.repeat(40), noise, [Error()], batch=4096)[0, 0]
    mean = D * errors.double().reshape(2, 40, 300)
    estimates = denoising_log_prob(log_snr, mean, D)  # (2, 40)
    for c in range(2):
        exact = float(smooth.log_prob(x, 0.0, {"label": torch.tensor([c])}))
        spread = float(estimates[c].std()) / math.sqrt(40)
        assert abs(float(estimates[c].mean()) - exact) < 4 * spread + 0.01
    difference = estimates[0] - estimates[1]
    assert float(difference.std()) < 0.8 * float(estimates[0].std())  # what is common falls out
