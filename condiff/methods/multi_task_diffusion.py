"""MT-Diffusion: an image and its label, two views of one thing, an image and its representation, from one diffusion,
jointly or any part given the others.

Reference: Chen, Ding, Sisman, Xu, Xie, Yao, Tran & Zeng, "Diffusion Models for Multi-Modal Generative Modeling",
ICLR 2024 (arXiv 2407.17571).

    z_t = sqrt(alpha_t) (z_{t-1} + w_t E(X)) + sqrt(1 - alpha_t) n,   E(X) = sum_i w^i E_i(x_i),   z_0 = 0
    z_t | X ~ N(c_t E(X), 1 - abar_t),     c_t = sqrt(alpha_t) (c_{t-1} + w_t)
    log p(X) >= -KL_T - sum_{t >= 2} (c_{t-1} - rho_t c_t)^2 / (2 v_t) |E - E_hat|^2 + sum_i log p(x_i | z_1)
    loss = |eps - eps_hat(z_t)|^2 + sum_i lambda_i loss_i(head_i(z_t), x_i)

The chain is :class:`condiff.process.Driven` (with w = (1, 0, ...), the default, it is DDPM on E), the aggregate
:class:`condiff.multimodal.Modalities`, network and heads :class:`condiff.multimodal.MultiModal`, the loss
:class:`condiff.training.MultiModalDenoising`, the bound :func:`condiff.metrics.joint_elbo`, sampling
:func:`condiff.sampling.sample_modalities`. :class:`MTDiffusion` puts them together.

What differs from the paper, whose full text and code we have not seen: names of this kind should be read as "in the
style of". Ours are the encoders (identity for pictures in channels of their own, fixed codes for labels, fixed
projections for vectors: trained ones could shrink what they say), the heads, the weights (0.1 for labels), DDPM's
table, and how known modalities condition: the network is told them, flagged, with probability 1/2 in training. Putting
them into the latent of an untold network is strongly biased (a mean of 0.75 where 1.2 is right); it is there as
``how="replaced"``.

Claimed: a second modality does not hurt, or speeds up, the quality of images at equal training. :func:`reproduce`
measures on digits and their labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from condiff import conditions
from condiff.conditions import Map
from condiff.data import TensorData, digits
from condiff.errors import BadValue
from condiff.methods.experiment import Lab
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler, default_network, default_training
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import Pixels, class_accuracy, digit_classifier, frechet
from condiff.multimodal import Image, Label, Modalities, Modality, MultiModal, MultiModalConfig, Values, Vector
from condiff.networks import MLPConfig
from condiff.process import Discrete, Driven, Process
from condiff.process.table import table_size
from condiff.random import seeded_weights
from condiff.sampling import DDPM, Uniform, sample_modalities
from condiff.sampling.multimodal import FIRST
from condiff.training import Denoising, DiscreteTimes, MultiModalDenoising, UniformTimes, train

STEPS, SAMPLED = 1000, 100  # of the chain, and those that samples take by default


def modality_of(value: Tensor, classes: int | None) -> Modality:
    """How some samples are carried: standardised by their own moments, classes by their number.

    Raises:
        BadValue: integers that aren't classes.
    """
    if classes is not None:
        return Label(classes)
    if not value.is_floating_point() or value.ndim < 2:
        raise BadValue(
            f"values of {value.dtype} and shape {tuple(value.shape[1:])} have no default modality: pictures, vectors "
            "and the class label have"
        )
    shape, mean, std = tuple(value.shape[1:]), float(value.mean()), float(value.std())
    if len(shape) == 1:
        return Vector(shape[0], mean=mean, std=std)
    return Image(*shape, mean=mean, std=std) if len(shape) == 3 else Values(shape, mean=mean, std=std)


def recipe(facts: Facts) -> Recipe:
    """The method's recipe for data that is generated together (``condiff train ... --joint label``)."""
    if not isinstance(facts.shape, Mapping):
        raise BadValue(
            "multi-task-diffusion generates what belongs to a sample beside it: name those conditions, such as "
            "condiff train digits --joint label"
        )
    kinds = {name: modality_of(value, facts.classes.get(name)) for name, value in facts.examples.items()}
    first, main = next(iter(kinds.items()))
    if isinstance(main, Vector):
        kinds[first] = replace(main, own=True)
    carried, process = Modalities(kinds), Driven(schedule=Discrete.ddpm(STEPS))
    network = default_network(carried.shape, {**facts.embeddings, **carried.conditions()})
    return Recipe(
        method="multi-task-diffusion",
        network=MultiModalConfig(network=network, modalities=kinds),
        process=process,
        target="noise",
        objective=objective(process),
        training=facts.training(),
        sampler=Sampler(solver=DDPM(), grid=Uniform(end=process.first), steps=SAMPLED),
    )


class MTDiffusion:
    """A multimodal diffusion: build, fit, sample.

    Args:
        modalities: name -> :class:`~condiff.multimodal.Modality`.
        network: configuration of the trunk, which is given the conditions of the modalities that it doesn't have; a
            default one for the latent when None.
        process: the chain; DDPM's table of 1000 steps with all of the drive at the first when None. (The capped cosine
            ends in so little signal that what the noise says of E there is mostly error.)
        told: whether the network learns every conditional law (it does by default for two modalities or more).
        weights, latent, mixed: see :class:`~condiff.multimodal.Modalities`.

    Example:
        >>> mt = MTDiffusion({"image": Image(1, 8, 8), "label": Label(10)})
        >>> mt.fit(digits(), steps=1000).sample(known={"label": 3})
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality] | Modalities,
        network: Any = None,
        process: Process | None = None,
        *,
        told: bool | None = None,
        weights: Mapping[str, float] | None = None,
        latent: tuple[int, ...] | None = None,
        mixed: bool = False,
    ) -> None:
        if isinstance(modalities, Modalities):
            carried = modalities
        else:
            carried = Modalities(modalities, weights, latent, mixed)
        told = len(carried) > 1 if told is None else told
        own = carried.conditions() if told else {}
        network = network or default_network(carried.shape, {})
        if told and len(carried) < 2:
            raise BadValue("told=True needs two modalities or more: one alone has nothing to be told")
        network = replace(network, conditions={**own, **network.conditions})
        process = process or Driven(schedule=Discrete.ddpm(STEPS))
        self.model = MultiModal(network.build(), process, carried)

    def objective(self, **options: Any) -> MultiModalDenoising:
        """The loss, at the steps of the table; ``options`` of :class:`~condiff.training.MultiModalDenoising`."""
        return objective(self.model.process, **options)

    def fit(self, data: Any, objective: MultiModalDenoising | None = None, **settings: Any) -> MTDiffusion:
        """Train on data whose rows hold all modalities; see :func:`condiff.train` for the settings.

        A data set of pictures with labels serves as it is: its samples are the first modality, the others its
        conditions. See :class:`condiff.data.AsVariables` for others.
        """
        first = {} if "steps" in settings else {"steps": default_training(self.model.shape, len(data)).steps}
        trainer = train(self.model, data, objective or self.objective(), **{**first, **settings})
        self.model = cast(MultiModal, trainer.averaged())
        return self

    def sample(self, num: int | None = None, **options: Any) -> dict[str, Tensor]:
        """All modalities, jointly or given ``known=``; see :func:`condiff.sampling.sample_modalities`."""
        return sample_modalities(self.model, num, **options)


def objective(process: Process, **options: Any) -> MultiModalDenoising:
    """The loss at the steps of a chain, uniformly."""
    size = table_size(process)
    times = UniformTimes(low=FIRST) if size is None else DiscreteTimes(grid=size)
    return MultiModalDenoising(latent=Denoising(times=times), **options)


# Reproduction: digits and their labels

CHAIN = Driven(schedule=Discrete.ddpm(200, 0.1 / 200, 20.0 / 200))
SAMPLES, SAMPLING = 600, 50  # samples of each kind, and the steps that they take
NEAR, AGREEMENT, LESS = 0.10, 0.85, 0.05  # expected: distance of images alone, agreement, below the classifier


def kinds(*names: str) -> dict[str, Modality]:
    """Some of the modalities of digits, the picture standardised by its own moments."""
    x, _ = rows("train")
    every = {"image": Image(*x.shape[1:], mean=float(x.mean()), std=float(x.std())), "label": Label(10)}
    return {name: every[name] for name in names}


def rows(split: str) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a split of the digits."""
    data = digits(split)
    batch = data.batch(range(len(data)))
    return batch["x"], batch["cond"]["label"]


def trained(lab: Lab, seed: int, *names: str) -> MTDiffusion:
    """A model of some of the modalities: trunk, training and seed are the same for all."""
    x, labels = rows("train")
    told = {"image": Map(x[0].numel()), "label": conditions.Label(10)} if len(names) > 1 else {}
    trunk = MLPConfig(shape=tuple(x.shape[1:]), width=256, depth=4, conditions=told)
    data = TensorData(x, {"label": labels} if "label" in names else {}, range="keep", name="digits")
    with seeded_weights(seed):
        mt = MTDiffusion(kinds(*names), trunk, CHAIN)
    config = {"steps": lab.steps, "batch": lab.batch, "lr": 2e-3, "warmup": 100, "ema": (0.998,), "seed": seed}
    mt.fit(data, quiet=True, **config)
    lab.say(f"seed {seed}: trained on {' and '.join(names)}, {lab.steps} steps")
    return mt


def measured(joint: MTDiffusion, alone: MTDiffusion, seed: int) -> dict[str, float]:
    """All figures of one seed."""
    judge, (held, truth), options = digit_classifier(), rows("test"), {"steps": SAMPLING, "seed": 10_000 + seed}
    wanted = torch.arange(SAMPLES) % 10

    def distance(x: Tensor) -> float:
        return frechet(Pixels().features(x), Pixels().features(held))

    def drawn(how: str) -> float:
        made = joint.sample(known={"label": wanted}, how=how, **options)
        return class_accuracy(judge.predict(made["image"]), wanted)

    def said(how: str) -> float:
        return class_accuracy(joint.sample(known={"image": held}, how=how, **options)["label"], truth)

    both = joint.sample(SAMPLES, **options)
    return {
        "distance": distance(both["image"]),
        "distance alone": distance(alone.sample(SAMPLES, **options)["image"]),
        "agreement": class_accuracy(judge.predict(both["image"]), both["label"]),
        "drawn, told": drawn("told"),
        "drawn, replaced": drawn("replaced"),
        "said, told": said("told"),
        "said, replaced": said("replaced"),
        "judge": class_accuracy(judge.predict(held), truth),
    }


def reproduce(budget: str = "small") -> Reproduction:
    """Digits and labels: quality beside images alone, agreement, and both conditional directions."""
    lab = Lab("multi-task-diffusion", budget, steps=1500, batch=128)
    figures: dict[str, list[float]] = {}
    for seed in lab.seeds:
        joint, alone = trained(lab, seed, "image", "label"), trained(lab, seed, "image")
        for name, value in measured(joint, alone, seed).items():
            figures.setdefault(name, []).append(round(value, 4))
        lab.say(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.4g}" for k, v in figures.items()))
    notes = f"digits, {lab.steps} steps of batch {lab.batch}; {SAMPLES} samples of {SAMPLING} steps; pixel distances"
    claim = "a second modality does not hurt images, and one model samples jointly and in both directions"
    return lab.outcome(claim, comparisons(figures), notes, dict(figures))


def comparisons(figures: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """What is expected of the figures of all seeds."""
    every = {name: tuple(values) for name, values in figures.items()}
    line = (AGREEMENT,) * len(every["agreement"])
    near_judge = tuple(round(value - LESS, 4) for value in every["judge"])
    near = tuple((1.0 + NEAR) * d for d in every["distance alone"])

    def more(name: str, baseline_name: str, baseline: tuple[float, ...], ours_name: str, ours: str) -> Comparison:
        return Comparison(
            name=name, baseline_name=baseline_name, baseline=baseline, ours_name=ours_name, ours=every[ours],
            lower_is_better=False,
        )  # fmt: skip

    return [
        Comparison(
            name="Fréchet distance of images",
            baseline_name=f"images alone, and {NEAR:.0%}",
            baseline=near,
            ours_name="with labels",
            ours=every["distance"],
        ),
        more("agreement of image and label, both sampled", "expected", line, "joint", "agreement"),
        more("label to image: accuracy", "expected", line, "told", "drawn, told"),
        more("label to image: accuracy", "replaced", every["drawn, replaced"], "told", "drawn, told"),
        more("image to label: accuracy", f"classifier less {LESS}", near_judge, "told", "said, told"),
        more("image to label: accuracy", "replaced", every["said, replaced"], "told", "said, told"),
    ]
