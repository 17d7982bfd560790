"""DDPM: predict the noise of a discrete variance-preserving path; sample by the reverse Markov chain.

Reference: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (arXiv 2006.11239).

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z        L_simple = E |z - noise(x_t, t)|^2          (eqs. 4, 14)
    x_s = mean of q(x_s | x_t, x0_hat) + std z                                                     (eqs. 6, 7, 11)

The table of 1000 betas is a schedule of continuous time here: index i is t = (i + 1) / 1000. The network is told t;
with ``Plain(index=True)`` it is told the index, as released checkpoints expect.

Claimed: the unweighted objective L_simple gives better samples than the variational bound, whose weights favour low
noise levels. :func:`reproduce` measures it on digits with the ancestral sampler.
"""

from __future__ import annotations

from dataclasses import replace

from condiff.methods import experiment
from condiff.methods.experiment import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.process import Discrete, Gaussian
from condiff.sampling import DDPM, Spaced
from condiff.training import ELBO, Denoising, UniformTimes


def recipe(facts: Facts) -> Recipe:
    """The method on data of the given shape and conditions."""
    return Recipe(
        method="ddpm",
        network=facts.network(),
        process=Gaussian(Discrete()),
        target="noise",
        objective=Denoising(times=UniformTimes(), transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=DDPM(), grid=Spaced("trailing"), steps=100, guidance=1.0),
    )


def reproduce(budget: str = "small") -> Reproduction:
    """L_simple against the variational bound: Fréchet distance of 100-step ancestral samples."""
    lab = experiment.Digits("ddpm", budget)
    simple = recipe(lab.facts)
    bound = replace(simple, objective=replace(simple.objective, weighting=ELBO()))
    scores: dict[str, list[float]] = {"simple": [], "bound": []}
    for seed in lab.seeds:
        for name, chosen in (("simple", simple), ("bound", bound)):
            figures = lab.score(lab.train(chosen, seed), chosen.sampler, seed)
            scores[name].append(figures["frechet"])
    comparison = Comparison(
        name="Fréchet distance, 100 ancestral steps",
        baseline_name="variational bound",
        baseline=tuple(scores["bound"]),
        ours_name="L_simple",
        ours=tuple(scores["simple"]),
    )
    return lab.outcome("the unweighted noise loss gives better samples than the variational bound", (comparison,))
