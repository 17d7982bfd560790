"""Stochastic interpolants: one training between any two sets of samples, then an ODE and a family of SDEs to sample.

Reference: Albergo, Boffi & Vanden-Eijnden, "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions",
2023 (arXiv 2303.08797).

    x_t = data(t) x0 + source(t) y + gamma(t) z,     gamma(0) = gamma(1) = 0      y ~ source data, x0 ~ target data
    velocity  b = E[dx_t / dt | x_t],   mean velocity  v = E[data' x0 + source' y | x_t],   noise  eta = E[z | x_t]
    score     s = -eta / gamma,         b = v + gamma' eta = v - gamma gamma' s
    x_s = x_t + (s - t) b + |s - t| eps s + sqrt(2 eps |s - t|) xi        for any eps(t) >= 0, in both directions

In the paper t = 1 is the target; here t = 0 is, as everywhere in condiff, so that velocities have the other sign. For
unpaired data the network isn't told which y a sample started from, and predicts v and eta, which give everything
without it and are bounded at both ends, unlike b and s (b with antithetic pairs: ``Denoising(antithetic=True)``). Of
pairs it sees y, and v is enough. The path is :class:`condiff.process.Interpolant`, or from noise a Gaussian one with a
single field (:class:`condiff.process.Rectified`, :class:`condiff.process.Cosine`); the samplers are
:class:`condiff.sampling.DDIM` and :class:`condiff.sampling.SDE` with ``scale="constant"``, likelihoods
:func:`condiff.sampling.log_likelihood` and :func:`condiff.sampling.sde_log_likelihood`, the bound on the error
:func:`condiff.metrics.kl_bound`, couplings those of :mod:`condiff.training`.

What differs from the released code: eta is E[z | x_t], which its networks predict with the other sign; the mirror path
has ``b = -gamma gamma' s``, where one of its samplers has the other sign; losses of antithetic pairs are means, not
sums; a last step returns the posterior mean, where the code stops at t = 0.01 and keeps the noise.

Claimed: with the same fields a moderate eps gives samples closer to the target than the ODE when there are steps
enough, and the ODE is better with few. :func:`reproduce` measures both from moons to a checkerboard and from noise to
it, and restoration that starts from the given picture against one that starts from noise.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Endpoint, Map
from condiff.data import Data, TensorData, Unpaired, digits
from condiff.methods.experiment import Facts, Lab, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import energy_distance
from condiff.process import Gaussian, Interpolant, Process, Rectified
from condiff.random import as_source
from condiff.sampling import DDIM, SDE, Solver, Uniform, sample
from condiff.training import Denoising, UniformTimes

START = 1.0 - 1e-3  # the score of a two-sided interpolant doesn't exist at t = 1
MARGIN = 1e-3  # times that are trained on: the velocity's target is unbounded at both ends


def recipe(facts: Facts, process: Process | None = None, noise: float = 0.5) -> Recipe:
    """The method on data of the given shape and conditions.

    With an endpoint (``condiff train unpaired``) the interpolant leads from it to the sample, and the network doesn't
    see it. Of pairs, the given picture becomes the endpoint, and the network sees it too. Without either the
    interpolant is one-sided, from noise, and one field is enough.

    Args:
        process: the path, linear by default.
        noise: eps of the sampler; ``--solver ddim`` is the ODE, in steps that are exact for constant x0, y and z.
            Euler's follow the velocity itself, which is unbounded at both ends under ``brownian`` noise.
    """
    one_sided, seen, facts = _ends(facts)
    if one_sided:
        fields, process, start = ("velocity",), process or Gaussian(Rectified()), 1.0
    else:
        process, start = process or Interpolant("linear", "brownian"), START
        # v and eta are bounded where b and s are not. With y known, v says x0, and that and the state the noise.
        fields = ("mean_velocity",) if seen else ("mean_velocity", "noise")
    return Recipe(
        method="stochastic-interpolants",
        network=dataclasses.replace(facts.network(), outputs=len(fields)),
        process=process,
        target=fields if len(fields) > 1 else fields[0],
        objective=Denoising(
            times=UniformTimes(low=0.0 if one_sided else MARGIN, high=1.0 if one_sided else 1.0 - MARGIN),
            transform=facts.dropout(0.1) if _droppable(facts) else None,
        ),
        training=facts.training(),
        sampler=Sampler(
            solver=SDE(noise, "constant"),
            grid=Uniform(start=start),
            steps=100,
            guidance=1.5 if _droppable(facts) else 1.0,
        ),
    )


def _ends(facts: Facts) -> tuple[bool, bool, Facts]:
    """Whether the base is noise, and whether the network sees the endpoint; and the facts, with that of unpaired data
    hidden from it, and that of pairs shown."""
    given = {n: dataclasses.replace(s, concat=False) for n, s in facts.embeddings.items() if isinstance(s, Endpoint)}
    if given:
        return False, False, dataclasses.replace(facts, embeddings={**facts.embeddings, **given})
    pictures = [s for s in facts.embeddings.values() if isinstance(s, Map) and s.extra_channels == facts.shape[0] + 1]
    if len(pictures) == 1:
        return False, True, facts.with_endpoint("stochastic-interpolants")
    return True, False, facts


def _droppable(facts: Facts) -> bool:
    return any(not isinstance(spec, Endpoint | Map) for spec in facts.embeddings.values())


# The reproduction


def moons(n: int, rng: Any) -> Tensor:
    """Two half circles that reach into each other, (n, 2), standardised, with a little noise."""
    rng = as_source(rng)
    angle, upper = math.pi * rng.uniform((n,)), rng.bernoulli(0.5, (n,))
    x = torch.where(upper, torch.cos(angle), 1.0 - torch.cos(angle))
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
    points = torch.stack([(x - 0.5) / 0.87, (y - 0.25) / 0.5], 1) + 0.08 * rng.normal((n, 2), torch.float64)
    return points.float()


def checkerboard(n: int, rng: Any) -> Tensor:
    """The eight black squares of a 4 x 4 board on [-2, 2]^2, (n, 2)."""
    rng = as_source(rng)
    column, row = rng.integers(4, (n,)), rng.integers(2, (n,))
    corner = torch.stack([column, 2 * row + column % 2], 1).double() - 2.0
    return (corner + rng.uniform((n, 2))).float()


def _points(x: Tensor, name: str) -> TensorData:
    return TensorData(x, range="keep", name=name)


def _low_resolution(split: str) -> tuple[TensorData, TensorData]:
    """Digits beside their 4 x 4 versions, and beside these plus a little noise, as a path can start from them."""
    data = digits(split)
    x = data.batch(range(len(data)))["x"]
    low = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    noisy = low + 0.05 * as_source(0).normal(low.shape)
    return tuple(TensorData(x, {"low": y}, kinds={"low": "map"}) for y in (low, noisy))  # type: ignore[return-value]


NOISES = (0.0, 0.1, 0.5, 2.0)
NUM = 2000  # samples


def reproduce(budget: str = "small") -> Reproduction:
    """ODE against SDE on a checkerboard, at 100 and 10 steps; restoring digits from their low resolution."""
    lab = Lab("stochastic-interpolants", budget, steps=2000)
    board, heldout = checkerboard(50_000, 1), checkerboard(5000, 2)
    bases: dict[str, Data] = {
        "moons": Unpaired(_points(moons(50_000, 0), "moons"), _points(board, "checkerboard")),
        "noise": _points(board, "checkerboard"),
    }
    energy: dict[str, list[float]] = {}
    for seed in lab.seeds:
        for base, data in bases.items():
            model = lab.train(_on_points(Facts.of(data)), seed, data)
            for steps in (100, 10):
                for noise in NOISES:
                    made = _draw(model, base, _solver(noise), steps, seed)
                    energy.setdefault(f"{base}, {steps} steps, {noise:g}", []).append(energy_distance(made, heldout))
        lab.say(f"seed {seed}: energy distances { ({k: round(v[-1], 5) for k, v in energy.items()}) }")
    restored = _restoration(lab)
    comparisons = [
        Comparison(
            name=f"energy distance to a checkerboard from {base}, {steps} steps",
            baseline_name=f"eps = {worse:g}",
            baseline=tuple(energy[f"{base}, {steps} steps, {worse:g}"]),
            ours_name=f"eps = {better:g}",
            ours=tuple(energy[f"{base}, {steps} steps, {better:g}"]),
        )
        for base in bases
        for steps, worse, better in ((100, 0.0, 0.5), (10, 0.5, 0.0))
    ]
    comparisons.append(
        Comparison(
            name="mean squared error of restored digits, 10 steps",
            baseline_name="from noise, told the low resolution",
            baseline=tuple(restored["noise"]),
            ours_name="from the low resolution",
            ours=tuple(restored["endpoint"]),
        )
    )
    claim = "a moderate eps beats the ODE with many steps and loses with few; starting from the given picture pays"
    notes = f"points: a small MLP, {lab.steps} steps of batch 128, {NUM} samples; digits: {lab.steps // 6} steps"
    return lab.outcome(claim, comparisons, notes, series={"energy": energy, "restoration": restored})


def _on_points(facts: Facts) -> Recipe:
    """With a network about as large as the paper's for points, 0.3 million weights."""
    made = recipe(facts)
    return dataclasses.replace(made, network=dataclasses.replace(made.network, width=128, depth=3))


def _solver(noise: float) -> Solver:
    return SDE(noise, "constant") if noise else DDIM()


def _draw(model: Trained, base: str, solver: Solver, steps: int, seed: int) -> Tensor:
    cond = {"source": moons(NUM, 100 + seed)} if base == "moons" else None
    grid = model.recipe.sampler.grid
    return sample(model.denoiser, solver=solver, grid=grid, steps=steps, cond=cond, num=NUM, seed=1000 + seed)


def _restoration(lab: Lab) -> dict[str, list[float]]:
    """Mean squared errors of held-out digits at ten steps of the ODE, from noise and from the low resolution."""
    (told, start), (told_test, start_test) = _low_resolution("train"), _low_resolution("test")
    out: dict[str, list[float]] = {"noise": [], "endpoint": []}
    for seed in lab.seeds:
        for name, data, test in (("noise", told, told_test), ("endpoint", start, start_test)):
            facts = Facts.of(data)
            made = recipe(facts) if name == "endpoint" else _from_noise(facts)
            model = lab.train(made, seed, data, steps=max(1, lab.steps // 6))
            rows = test.batch(range(len(test)))
            x = sample(
                model.denoiser, solver=DDIM(), grid=made.sampler.grid, steps=10, cond=rows["cond"], seed=1000 + seed
            )
            out[name].append(float((x - rows["x"]).square().mean()))
    return out


def _from_noise(facts: Facts) -> Recipe:
    """The one-sided interpolant of a picture that is only told."""
    own = recipe(Facts(facts.shape, {}, facts.std, facts.count))
    return dataclasses.replace(own, network=facts.network())
