"""Flow matching: regress the velocity of straight paths between noise and data; sample an ODE in few steps.

Reference: Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023 (arXiv 2210.02747); logit-normal times
from Esser et al. 2024 (arXiv 2403.03206).

    x_t = (1 - t) x0 + t z        velocity = z - x0        x_s = x_t + (s - t) velocity(x_t, t)

In the paper t = 1 is data; here t = 0 is, as everywhere in condiff, so the velocity has the other sign.

Claimed: at equal network, training and evaluations, the straight (conditional optimal transport) path gives better
samples than the diffusion path when few evaluations are spent. :func:`reproduce` measures it on digits.
"""

from __future__ import annotations

from dataclasses import replace

from condiff.methods import experiment
from condiff.methods.experiment import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.process import Gaussian, Process, Rectified, VPLinear
from condiff.sampling import Euler
from condiff.training import Denoising, LogitNormal, UniformTimes


def recipe(facts: Facts) -> Recipe:
    """The method on data of the given shape and conditions."""
    return Recipe(
        method="flow-matching",
        network=facts.network(),
        process=Gaussian(Rectified()),
        target="velocity",
        objective=Denoising(times=LogitNormal(), transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=Euler(), steps=25, guidance=1.5 if facts.embeddings else 1.0),
    )


def on_path(facts: Facts, process: Process) -> Recipe:
    """Velocity regression on any Gaussian path with uniform times, as the paper compares them.

    Times stay above 1e-3 on both paths: the velocity of the variance-preserving one is infinite at t = 0.
    """
    objective = Denoising(times=UniformTimes(low=1e-3), transform=facts.dropout(0.1))
    return replace(recipe(facts), process=process, objective=objective)


def reproduce(budget: str = "small") -> Reproduction:
    """Straight against diffusion paths: Fréchet distance at 6 and 12 Euler steps."""
    lab = experiment.Digits("flow-matching", budget)
    paths = {"diffusion path": Gaussian(VPLinear()), "straight path": Gaussian(Rectified())}
    scores: dict[tuple[str, int], list[float]] = {}
    for seed in lab.seeds:
        for name, process in paths.items():
            model = lab.train(on_path(lab.facts, process), seed)
            for steps in (6, 12):
                # The velocity of the variance-preserving path is infinite at t = 0: stop at 1e-3, as the paper does.
                end = 0.0 if name == "straight path" else 1e-3
                figures = lab.score(model, Sampler(solver=Euler(), grid=experiment.until(end), steps=steps), seed)
                scores.setdefault((name, steps), []).append(figures["frechet"])
    comparisons = tuple(
        Comparison(
            name=f"Fréchet distance, {steps} Euler steps",
            baseline_name="diffusion path",
            baseline=tuple(scores["diffusion path", steps]),
            ours_name="straight path",
            ours=tuple(scores["straight path", steps]),
        )
        for steps in (6, 12)
    )
    return lab.outcome("straight paths give better samples at few evaluations than diffusion paths", comparisons)
