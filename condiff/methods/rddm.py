"""RDDM: restoration that starts from the degraded picture plus a little noise, and removes residual and noise.

Reference: Liu, Wang, Fan, Wang, Tang & Qu, "Residual Denoising Diffusion Models", CVPR 2024 (arXiv 2308.13712).

    x_t = x0 + A (y - x0) + B z,      A: 0 -> 1,   B^2: 0 -> variance,      r = y - x0 the residual, y the degraded one
    loss = |r - r_hat| + |z - z_hat|                                        two heads
    x_s = x_t - (A_t - A_s) r_hat - (B_t - B_s) z_hat                       from x_1 = y + B z, in 2 to 10 steps
    eta > 0:  B_s -> sqrt(B_s^2 - std^2),  std^2 = eta (B_t^2 - B_s^2) B_s^2 / B_t^2

The process is :class:`condiff.process.Residual` on :class:`condiff.process.Ramps`, the sampler DDIM, whose eta is the
square root of the paper's. Other objectives of the paper are other targets: ``"residual"``, ``"noise"``,
``("x0", "noise")``; :func:`condiff.training.choose_target` is its automatic selection. Separate networks with a clock
each are :class:`condiff.heads.Heads` of networks told a coefficient, and the order of removal is a
:class:`condiff.process.Clocks`. A trained DDIM is the case y = 0: ``Residual.from_ddim``.

What differs from the released code, and why: nothing is clipped (``ClipResidual(1.0, x0=1.0)`` clips as it does; its
bound of 1 distorts residuals, which reach 2); times are t = i / T, where its grid rounds indices down; each phase of
a path that removes one thing first ends by its last move, where its sampler jumps to a clipped x0; with x0 and noise
predicted the step goes to x0 + A_s (y - x0) + B_s z, where its own moves x_t, as ``ClipResidual`` has it; and the
recipe is one network with two outputs, where its default is two networks.

Claimed: with the same network and budget it beats diffusion from pure noise that sees the degraded picture beside the
state, at 2 to 10 steps. :func:`reproduce` measures that on digits, against noise and against x0 prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from condiff.data import TensorData, digits
from condiff.methods import experiment
from condiff.methods.experiment import Facts, Lab, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import psnr, ssim
from condiff.networks import UNetConfig
from condiff.process import Discrete, Gaussian, Ramps, Residual
from condiff.random import as_source
from condiff.sampling import DDIM, ClipX0, Spaced, Uniform, sample
from condiff.training import Denoising, DiscreteTimes

STEPS = (2, 5, 10, 50)
LEVELS = 1000  # T of the paper
WINDOW = 7  # of the structural similarity, on pictures of 8 pixels


def recipe(
    facts: Facts, variance: float = 0.01, target: str | tuple[str, ...] = ("residual", "noise"), steps: int = 5
) -> Recipe:
    """The method on pairs: the condition that is a picture like the sample becomes the endpoint.

    Args:
        variance: of the noise at the start, the same in training and sampling: 0.01 for restoration, 1 for generation.
        target: what the network predicts, one output each.
        steps: of the sampler.

    Raises:
        BadValue: data without such a condition.
    """
    facts = facts.with_endpoint("rddm")
    outputs = 1 if isinstance(target, str) else len(target)
    return Recipe(
        method="rddm",
        network=dataclasses.replace(facts.network(), outputs=outputs),
        process=Residual(schedule=Ramps(variance=variance, steps=LEVELS)),
        target=target,
        objective=Denoising(loss="l1", times=DiscreteTimes(grid=LEVELS)),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(), grid=Uniform(), steps=steps),
    )


def beside(facts: Facts, target: str) -> Recipe:
    """The baseline: DDPM's table, the degraded picture beside the state, DDIM from pure noise with x0 clipped."""
    return Recipe(
        method=f"concat-{target}",
        network=facts.network(),
        process=Gaussian(Discrete.ddpm()),
        target=target,
        objective=Denoising(loss="l1", times=DiscreteTimes(grid=LEVELS)),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(), grid=Spaced("trailing"), steps=5, hooks=(ClipX0(),)),
    )


def degraded_digits(split: str) -> TensorData:
    """Digits with a degraded copy each: means of 3 x 3, half the brightness, noise of 0.1 on values in [-1, 1]."""
    data = digits(split)
    x = data.batch(range(len(data)))["x"]
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = as_source(0 if split == "train" else 1).normal(x.shape)
    y = 0.5 * (blurred + 1.0) - 1.0 + 0.1 * noise
    return TensorData(x, {"degraded": y}, kinds={"degraded": "map"}, range="keep", name=f"degraded digits/{split}")


def convolutional(chosen: Recipe) -> Recipe:
    """With a small network of convolutions at full resolution, as the paper's are: what is removed is local."""
    net = chosen.network
    network = UNetConfig(
        shape=net.shape,
        width=24,
        multipliers=(1,),
        layers=1,
        middle_attention=False,
        groups=8,
        conditions=net.conditions,
        outputs=net.outputs,
    )
    return dataclasses.replace(chosen, network=network, training=dataclasses.replace(chosen.training, lr=2e-3))


def restored(model: Trained, y: Tensor, steps: int, seed: int) -> Tensor:
    """Pictures from degraded ones."""
    sampler = model.recipe.sampler
    return sample(
        model.denoiser,
        solver=sampler.solver,
        grid=sampler.grid,
        hooks=sampler.hooks,
        steps=steps,
        cond={"degraded": y},
        seed=10_000 + seed,
    )


def reproduce(budget: str = "small") -> Reproduction:
    """PSNR of restored digits: RDDM with two pairs of heads, and diffusion beside the picture with two targets."""
    lab = experiment.Lab("rddm", budget, steps=400, data=degraded_digits("train"))
    facts, rows = Facts.of(degraded_digits("train")), degraded_digits("test")
    held = rows.batch(range(len(rows)))
    recipes = {
        "RDDM": recipe(facts),
        "RDDM, x0 and noise": recipe(facts, target=("x0", "noise")),
        "beside, noise": beside(facts, "noise"),
        "beside, x0": beside(facts, "x0"),
    }
    figures: dict[tuple[str, str, int], list[float]] = {}
    for seed in lab.seeds:
        for name, chosen in recipes.items():
            model = lab.train(convolutional(chosen), seed)
            for steps in STEPS:
                made = restored(model, held["cond"]["degraded"], steps, seed)
                for metric, value in (("PSNR", psnr(made, held["x"])), ("SSIM", ssim(made, held["x"], window=WINDOW))):
                    figures.setdefault((metric, name, steps), []).append(round(float(value.mean()), 4))
    start = float(psnr(held["cond"]["degraded"], held["x"]).mean())
    series: dict[str, Any] = {f"{m} of {name}, {n} steps": v for (m, name, n), v in figures.items()}
    notes = f"degraded digits ({start:.2f} dB), {lab.steps} training steps of batch 128, 359 held-out pictures"
    claim = "from the degraded picture, few steps restore better than diffusion from noise beside it"
    return _outcome(lab, claim, figures, start, notes, series)


def _outcome(lab: Lab, claim: str, figures: dict, start: float, notes: str, series: dict[str, Any]) -> Reproduction:
    def compare(name: str, metric: str, baseline: str, steps: int, less: float = 0.0) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=f"{baseline}{f' - {less:g} dB' if less else ''}",
            baseline=tuple(v - less for v in figures[metric, baseline, steps]),
            ours_name="RDDM",
            ours=tuple(figures[metric, "RDDM", steps]),
            lower_is_better=False,
        )

    comparisons = [compare(f"PSNR in {n} steps, no worse", "PSNR", "beside, noise", n, 0.2) for n in (2, 5, 10)]
    comparisons += [
        Comparison(
            name="PSNR in 5 steps, 5 dB over the input",
            baseline_name="input + 5 dB",
            baseline=(start + 5.0,) * len(lab.seeds),
            ours_name="RDDM",
            ours=tuple(figures["PSNR", "RDDM", 5]),
            lower_is_better=False,
        ),
        compare("PSNR in 2 steps", "PSNR", "beside, noise", 2),
        compare("SSIM in 5 steps", "SSIM", "beside, noise", 5),
        compare("PSNR in 5 steps", "PSNR", "beside, x0", 5),
    ]
    return lab.outcome(claim, comparisons, notes, series)
