"""Gaussian painters: early sampling is a closed-form Gaussian path, so it can be predicted, and skipped.

Reference: Wang & Vastola, "Diffusion Models Generate Images Like Painters: an Analytical Theory of Outline First,
Details Later", 2023 (arXiv 2303.02490); the authors' released follow-up skips steps of EDM ("teleportation").

    V_k(t) = data_t^2 v_k + noise_t^2                     v_k, u_k: variances and directions of the data's components
    x_s = data_s mean + sum_k sqrt(V_k(s) / V_k(t)) u_k u_k . (x_t - data_t mean)          the ODE's solution, any path
    E[x0 | x_t] = mean + sum_k data_t v_k / V_k(t) u_k u_k . (x_t - data_t mean)

Three things follow: trajectories lie in the plane of their ends; component k is decided at ``data^2 v_k = noise^2``,
large ones (the outline) first; a displacement along u_k at level t ends ``sqrt(V_k(0) / V_k(t))`` times as large.

Where it is: :class:`condiff.process.PrincipalLaw` with its exact denoiser ``oracles.low_rank``,
``condiff.data.principal_law`` (a few passes over any data set), :func:`condiff.sampling.teleport`, and
:func:`condiff.sampling.analyse` for any denoiser. In a terminal: ``condiff statistics``, ``condiff sample --teleport``.

What differs: the variance beyond the kept components is spread evenly instead of dropped; a tail of the whole grid is
kept instead of a new one (the same, up to rounding, on a rho grid). The released toy code has two errors (a density's
normaliser, a variance where a deviation is expected) that don't touch its trajectories.

Claimed: the theory describes the initial phase of sampling, whose steps can be left out. :func:`reproduce` trains a
small EDM model on digits and compares with its own finely solved trajectories.
"""

from __future__ import annotations

from typing import Any

from condiff.data import class_laws, digits
from condiff.methods import edm
from condiff.methods.experiment import Digits
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import energy_distance
from condiff.sampling import Heun, Karras, sample, teleport

GRID = Karras(sigma_min=0.002, sigma_max=80.0)
STARTS = (20.0, 10.0, 5.0, 3.0, 1.0)


def reproduce(budget: str = "small") -> Reproduction:
    """Digits: error to the model's own ODE solution and distance to held-out digits, teleported at five levels.

    The model is told the class, so each class has its own mean and components.
    """
    lab, laws, num = Digits("gaussian-painters", budget), class_laws(digits("train")), 300
    heldout = lab.heldout.batch(range(len(lab.heldout)))["x"]
    cond, evaluations = {"label": lab.labels(num)}, {"18 steps": 35, "12 steps": 23, "10 steps": 19}
    rms: dict[str, list[float]] = {}
    energy: dict[str, list[float]] = {}
    for seed in lab.seeds:
        model = lab.train(edm.recipe(lab.facts), seed).denoiser
        options: dict[str, Any] = {"solver": Heun(), "grid": GRID, "cond": cond, "seed": 10_000 + seed}
        exact = sample(model, steps=72, **options)
        drawn = {f"{steps} steps": sample(model, steps=steps, **options) for steps in (18, 12, 10)}
        for sigma in STARTS:
            name = f"sigma {sigma:g}"
            drawn[name] = teleport(model, laws, steps=18, sigma=sigma, force=True, **options)
            kept = sum(float(level.noise) <= sigma for level in model.process.levels(GRID.times(model.process, 18))) - 1
            evaluations[name] = 2 * kept - 1
        for name, x in drawn.items():
            rms.setdefault(name, []).append(float((x - exact).square().mean().sqrt()))
            energy.setdefault(name, []).append(energy_distance(x, heldout))
        lab.say(f"seed {seed}: {len(drawn)} samplers")

    def against(figure: str, values: dict[str, list[float]], baseline: str, ours: str, room: float = 0.0) -> Comparison:
        return Comparison(
            name=figure,
            baseline_name=f"{baseline}, {evaluations[baseline]} evaluations" + (f", plus {room}" if room else ""),
            baseline=tuple(v + room for v in values[baseline]),
            ours_name=f"teleported to {ours}, {evaluations[ours]} evaluations",
            ours=tuple(values[ours]),
        )

    comparisons = (
        against("RMSE to the model's ODE, 23 evaluations", rms, "12 steps", "sigma 10"),
        against("RMSE to the model's ODE, 19 evaluations", rms, "10 steps", "sigma 5"),
        against("energy distance to held-out digits, no loss", energy, "18 steps", "sigma 5", room=0.01),
        against("energy distance, too late a start", energy, "sigma 1", "sigma 5"),
    )
    return lab.outcome(
        "the first steps follow the Gaussian path of the data, and can be skipped at no loss",
        comparisons,
        f"digits, RMS deviation {lab.facts.std:.2f} ({laws[0].std:.2f} within class 0), {lab.steps} training steps",
        {"rmse": rms, "energy": energy, "evaluations": evaluations},
    )
