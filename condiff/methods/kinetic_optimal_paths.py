"""Kinetic-optimal paths: the noise schedule whose flow moves your data with the least kinetic energy.

Reference: Shaul, Chen, Nickel, Le & Lipman, "On Kinetic Optimal Probability Paths for Generative Models", ICML 2023
(arXiv 2306.06626). What follows was derived from its statement, since no code was released; names may differ.

    x_t = alpha x0 + sigma z        lambda(s) = E|E[x0 | s x0 + z]|^2 / (q D),   s = alpha / sigma,  q = E|x0|^2 / D
    sqrt(q) alpha = r sin th,  sigma = r cos th,  h(th) = 1 - (1 - lambda)(1 + tan(th)^2),  phi(th) = int_0^th sqrt(h)
    energy / D = int_0^1 r'^2 + r^2 phi'^2 dt >= 1 + q - 2 sqrt(q) cos Phi,   Phi = phi(pi/2)

with equality on the straight line ``r e^{i phi} = t + (1 - t) sqrt(q) e^{i Phi}``. The paper's time runs the other way.

Where it is: :class:`condiff.process.Separation` and its three estimators, :func:`condiff.process.kinetic_optimal` (a
``Tabulated`` schedule), :func:`condiff.process.kinetic_report`, and ``condiff kinetic`` in a terminal.

What differs: the paper fits a family of separations with few parameters, unknown here; a table is measured instead, of
the population by default (that of n points is that of memorising them, and tends to the straight path as
``n / sqrt(D) -> 0``). The network predicts v: alpha has an infinite slope at t = 1, and so has the velocity's target.
Data are taken as centred: a mean moves along every path at a cost of ``|mean|^2 / D int d_alpha^2``, left out here.

Claimed: the path has the least energy, and Cond-OT is optimal as ``n / sqrt(D) -> 0``. :func:`reproduce` trains one
network on the straight and the kinetic-optimal path of four-dimensional data, and measures the energy along its own
samples and the energy distance to held-out data after few Euler steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff.data import TensorData, digits
from condiff.errors import BadValue
from condiff.methods.experiment import Facts, Lab, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import energy_distance
from condiff.networks import MLPConfig
from condiff.process import Cosine, Gaussian, Moments, Process, Rectified, kinetic_optimal, population_separation
from condiff.process.kinetic import kinetic_energy
from condiff.sampling import DDIM, Euler, KineticEnergy, Uniform, sample
from condiff.training import Denoising

EARLY = 1e-3  # before t = 1, where the velocity of a learned model on this path is large


def recipe(facts: Facts) -> Recipe:
    """The method on data of the given shape and conditions, whose separation is measured on examples of them.

    Raises:
        BadValue: facts without examples.
    """
    if facts.examples is None:
        raise BadValue("kinetic-optimal-paths measures its schedule on data: give Facts.of(data)")
    return on_path(facts, Gaussian(kinetic_optimal(population_separation(facts.examples))))


def on_path(facts: Facts, process: Process) -> Recipe:
    """v-prediction on any path, sampled without its derivatives."""
    return Recipe(
        method="kinetic-optimal-paths",
        network=facts.network(),
        process=process,
        target="v",
        objective=Denoising(transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(), steps=25, guidance=1.5 if facts.embeddings else 1.0),
    )


def principal(split: str, dims: int = 4) -> Tensor:
    """Digits as their first principal components, centred and of unit power over all."""
    every = digits("all").batch(range(1797))["x"].double().flatten(1)
    mean = every.mean(0)
    basis = torch.linalg.svd(every - mean, full_matrices=False).Vh[:dims].mT
    scale = ((every - mean) @ basis).square().mean().sqrt()
    data = digits(split)
    return ((data.batch(range(len(data)))["x"].double().flatten(1) - mean) @ basis / scale).float()


def euler(model: Trained, steps: int, seed: int, num: int = 2000) -> Tensor:
    """Euler's method on the velocity, from just before t = 1, where the state has the data's part of variance too."""
    return sample(
        model.denoiser,
        solver=Euler(),
        grid=Uniform(start=1.0 - EARLY),
        steps=steps,
        num=num,
        prior=Moments(0.0, 1.0),
        seed=10_000 + seed,
    )


def path_energy(model: Trained, seed: int) -> float:
    """Kinetic energy per dimension along the model's own samples, in 200 Euler steps."""
    energy = KineticEnergy()
    sample(
        model.denoiser,
        solver=Euler(),
        grid=Uniform(start=1.0 - EARLY),
        steps=200,
        num=1000,
        prior=Moments(0.0, 1.0),
        seed=20_000 + seed,
        hooks=[energy],
    )
    return float(energy.per_dim.mean())


def reproduce(budget: str = "small") -> Reproduction:
    """Four principal components of digits: energies and few Euler steps, straight against kinetic-optimal."""
    data = TensorData(principal("train"), range="keep")
    lab, heldout, facts = Lab("kinetic-optimal-paths", budget, steps=800, data=data), principal("test"), Facts.of(data)
    network = MLPConfig(shape=data.shape, width=128, depth=3)
    separation = population_separation(principal("train"))
    schedules = {"straight": Rectified(), "cosine": Cosine(), "kinetic-optimal": kinetic_optimal(separation)}
    predicted = {name: kinetic_energy(one, separation) for name, one in schedules.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"energy": [], "4": [], "8": [], "16": []} for name in schedules}
    for seed in lab.seeds:
        for name, schedule in schedules.items():
            model = lab.train(replace(on_path(facts, Gaussian(schedule)), network=network), seed)
            found[name]["energy"].append(path_energy(model, seed))
            for steps in (4, 8, 16):
                found[name][str(steps)].append(energy_distance(euler(model, steps, seed), heldout))
    off = [max(abs(f["energy"][i] / predicted[n] - 1.0) for n, f in found.items()) for i in range(len(lab.seeds))]
    comparisons = [
        _comparison("kinetic energy along the model's samples", "straight", "energy", found),
        _comparison("kinetic energy along the model's samples", "cosine", "energy", found),
        *(_comparison(f"energy distance, {n} Euler steps", "straight", str(n), found) for n in (4, 8, 16)),
        Comparison(
            name="energies differ from the predicted ones by",
            baseline_name="10 % allowed",
            baseline=(0.1,) * len(off),
            ours_name="largest of three paths",
            ours=tuple(off),
        ),
    ]
    return lab.outcome(
        "the kinetic-optimal path has the least energy, and needs fewer steps than the straight one in low dimension",
        comparisons,
        f"4 principal components of digits, {lab.steps} training steps; predicted energies "
        + ", ".join(f"{name} {energy:.3f}" for name, energy in predicted.items()),
        {"predicted": predicted, "measured": found, "angle_share": separation.angle / (0.5 * math.pi)},
    )


def _comparison(name: str, baseline: str, figure: str, found: dict[str, Any]) -> Comparison:
    return Comparison(
        name=name,
        baseline_name=f"{baseline} path",
        baseline=tuple(found[baseline][figure]),
        ours_name="kinetic-optimal path",
        ours=tuple(found["kinetic-optimal"][figure]),
    )
