"""UniCon: one adapter on a trained model of pictures that draws a picture from its companion, the companion from the
picture, both together, or one that follows the other coarsely.

Reference: Li, Herrmann, Chan, Li, Sun, Ma & Yang, "A Simple Approach to Unifying Diffusion-based Conditional
Generation", ICLR 2025 (arXiv 2410.11439).

    x_t, y_s                                  picture and companion (depth, edges, pose), each at a time of its own
    z <- z + a + strength post(attention(q = h_x, k = v = h_y)), and the other way     in every block, a: what it was
    E_{t, s}  w(t) |eps_hat - eps|^2 of both,  w = min(SNR, 5) / SNR                   the base frozen
    eps = e(-) + scale (e(c) - e(-)) + hearing (e(c) - e_apart(c))                     e_apart: without joint attention

The model is :class:`condiff.Aligned`, its weights :func:`condiff.networks.add_pair`'s, the tasks are grids per variable
that :class:`condiff.sampling.Segments` writes; every solver keeps one state per variable. :func:`join` prepares a
denoiser, :func:`objective` trains it, :class:`UniCon` samples. It runs on a DiT of ours and on wrapped pipelines
(Stable Diffusion, XL, 3, FLUX, DiT).

What differs from the released code, and why: the pairing goes through the call, where it patches modules; a jump of any
variable between segments is refused, where the last one's passes; inpainting leaves a held variable as it is, where it
replaces its kept part by that of the next level; gradients are clipped, where its clip does nothing; absent text is the
empty prompt in training as in sampling, where it trains on zeros (``null=torch.zeros_like(...)`` of the backbone, for
its checkpoints); a given companion is held clean where the network knows t = 0, else noised as the last step is, as
there; the joint attention shares the frozen projections, where it copies them. In blocks with a gate (DiT) the gate
acts on the joint attention too.

Claimed: quality of single-purpose methods with 15 % more weights and one training; not measured here. :func:`reproduce`
measures on digits and their thumbnails that one model does the four tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from condiff.aligned import Aligned
from condiff.conditions import TiedDropout
from condiff.data import AsVariables, TensorData, digits
from condiff.denoiser import Denoiser
from condiff.methods.companions import UniCon, guided, tied
from condiff.methods.experiment import Lab
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.networks import DiTConfig, add_pair, keep_trained
from condiff.process import Cosine, Discrete, Gaussian
from condiff.sampling import DDIM
from condiff.training import Denoising, DiscreteTimes, JointDenoising, MinSNR, TrainConfig, Trainer, UniformTimes

__all__ = ["UniCon", "guided", "join", "objective", "reproduce"]

VARIABLES = ("image", "small")
COARSE = (0.3, 0.5, 0.7, 1.0)
HELD = 200  # held-out rows


def join(
    denoiser: Denoiser,
    variables: Sequence[str] = ("image", "companion"),
    *,
    rank: int = 64,
    post: str = "fuse",
    own: bool = True,
    seed: int = 0,
) -> Aligned:
    """Freeze a denoiser and tie two variables by new weights, which alone are trained and stored.

    Args:
        variables: names of the picture and its companion; the second is also the adapter's name.
        rank, post, own, seed: see :func:`condiff.networks.add_pair`; ``post="shared", own=False`` for companions that
            are natural pictures and not aligned.
    """
    denoiser.requires_grad_(False)
    add_pair(denoiser.network, variables[-1], rank, post, own, seed)
    return keep_trained(tied(denoiser, variables, own))


def objective(model: Aligned, gamma: float = 5.0, dropout: float = 0.1, dropped: Sequence[str] = ()) -> JointDenoising:
    """The loss: independent times and noise, the mean over the rows of all variables, min-SNR weights.

    Args:
        gamma: of the weights.
        dropout: p of the conditions named in ``dropped``, which data gives for each variable, such as
            ``"image.prompt"``: dropped for the first alone, for both, and for the second alone with probability p each.
    """
    process: Any = model.denoiser.process
    table = process.schedule if isinstance(getattr(process, "schedule", None), Discrete) else None
    times = UniformTimes() if table is None else DiscreteTimes(grid=table.steps)
    first, second = model.variables[:2]
    intervals = {f"{first}.{n}": (0.0, 2 * dropout) for n in dropped}
    intervals |= {f"{second}.{n}": (dropout, 3 * dropout) for n in dropped}
    each = Denoising(weighting=MinSNR(gamma=gamma), times=times)
    return JointDenoising(
        variables=dict.fromkeys(model.variables, each),
        weights=dict.fromkeys(model.variables, 1.0 / len(model.variables)),
        transform=TiedDropout(intervals) if intervals else None,
    )


# Reproduction: digits and their thumbnails


def thumbnail(x: Tensor) -> Tensor:
    """Pictures (B, 1, H, W) with the mean of every 2 x 2 pixels in their place."""
    return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")


def digits_and_thumbnails(split: str) -> AsVariables:
    """Digits as ``image``, their thumbnails as ``small``."""
    data = digits(split)
    x = data.batch(range(len(data)))["x"]
    name = f"digits and thumbnails/{split}"
    pairs = TensorData(x, {"small": thumbnail(x)}, kinds={"small": "map"}, range="keep", name=name)
    return AsVariables(pairs, image="x", small="small")


def base_recipe(facts: Facts) -> Recipe:
    """The pictures alone, without conditions: what is frozen then."""
    return Recipe(
        method="unicon-base",
        network=DiTConfig(shape=facts.shape, width=64, depth=3, heads=4),
        process=Gaussian(Cosine()),
        target="v",
        objective=Denoising(weighting=MinSNR(gamma=5.0)),
        training=replace(facts.training(), lr=2e-3),
        sampler=Sampler(solver=DDIM(), steps=25),
    )


def trained_pair(lab: Lab, seed: int) -> UniCon:
    """A base trained on pictures, then the tie between them and their thumbnails, with the base frozen."""
    data = digits("train")
    alone = TensorData(data.batch(range(len(data)))["x"], range="keep", name="digits without labels")
    base = cast(Denoiser, lab.train(base_recipe(Facts.of(alone)), seed, alone).denoiser)
    model = join(base, VARIABLES, rank=16, seed=seed)
    config = TrainConfig(steps=lab.steps, batch=lab.batch, lr=2e-3, seed=seed)
    trainer = Trainer(model, digits_and_thumbnails("train"), objective(model), config, quiet=True)
    status = trainer.fit()
    if status.stopped:  # a half-trained model must not be scored
        raise SystemExit(status.exit_code)
    lab.say(f"seed {seed}: tied the thumbnails, {lab.steps} steps")
    return UniCon(cast(Aligned, trainer.averaged()))


def four_tasks(pair: UniCon, held: Mapping[str, Tensor], mean: Tensor, seed: int) -> dict[str, float]:
    """Mean squared errors of one model: the thumbnails of its pictures against those that were given, its thumbnails of
    given pictures, both made together, and pictures that follow given thumbnails coarsely."""
    image, given = held["image"], held["small"]
    other = given.roll(1, 0)

    def mse(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean())

    options: dict[str, Any] = {"steps": 20, "seed": 10_000 + seed}
    both = pair.joint(num=len(image), **options)
    free, out = thumbnail(both["image"]), {}
    for r in COARSE:
        made = thumbnail(pair.sample(given={"small": given}, hold={"small": r}, **options)["image"])
        out |= {f"held at {r:g}": mse(made, given), f"held at {r:g}, another's": mse(made, other)}
    out |= {"nothing given": mse(free, given), "joint": mse(free, both["small"])}
    out |= {"joint, another's": mse(free, both["small"].roll(1, 0))}
    return out | {"found": mse(pair.estimate(image, **options), given), "mean": mse(mean.expand_as(given), given)}


def reproduce(budget: str = "small") -> Reproduction:
    """Digits and thumbnails: one model draws from thumbnails, makes them, does both at once, and follows coarsely."""
    lab = Lab("unicon", budget, steps=250, batch=128)
    held = digits_and_thumbnails("test").batch(range(HELD))["x"]
    train = digits_and_thumbnails("train")
    mean = train.batch(range(len(train)))["x"]["small"].mean(0)
    figures: dict[str, list[float]] = {}
    for seed in lab.seeds:
        pair = trained_pair(lab, seed)
        for name, value in four_tasks(pair, held, mean, seed).items():
            figures.setdefault(name, []).append(round(value, 5))
        lab.say(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.4f}" for k, v in figures.items()))
    notes = (
        f"digits and 2 x 2 means, {lab.steps} steps alone and {lab.steps} tied, batch {lab.batch}, {HELD} held-out rows"
    )
    claim = "one model, tied once to a companion, draws from it, finds it, makes both, and follows it coarsely"
    return lab.outcome(claim, comparisons(figures), notes, dict(figures))


def comparisons(figures: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """What is expected of the figures of all seeds."""

    def less(name: str, baseline: str, ours: str, margin: float = 0.0) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=baseline,
            baseline=tuple(figures[baseline]),
            ours_name=ours,
            ours=tuple(figures[ours]),
            lower_is_better=True,
            margin=margin,
        )

    found = [
        less("error of the picture's thumbnail, against another's", "held at 1, another's", "held at 1", 0.5),
        less("error of the picture's thumbnail, against none given", "nothing given", "held at 1", 0.5),
        less("error of the thumbnail of a picture", "mean", "found", 0.5),
        less("both at once: error of the picture's thumbnail", "joint, another's", "joint", 0.5),
    ]
    coarse = [(f"held at {a:g}", f"held at {b:g}") for a, b in pairwise(COARSE)]
    return [*found, *(less("the cleaner the thumbnail, the closer", a, b) for a, b in coarse)]
