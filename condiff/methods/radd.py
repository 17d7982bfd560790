"""RADD: masked diffusion of tokens by a network that isn't told the time.

Reference: Ou, Nie, Xue, Zhu, Sun, Li & Li, "Your Absorbing Discrete Diffusion Secretly Models the Conditional
Distributions of Clean Data", ICLR 2025 (arXiv 2406.03736).

    mask(t) = (1 - eps) t       p_t(y) / p_t(x) = (1 - mask) / mask  p(x0^i = v | visible tokens of x)
    loss    = int_0^1 (1 / m) E sum_masked -log c_i dm
    step    : each MASK is revealed with probability 1 - mask_s / mask_t, drawn from c

where y is x with its MASK at i replaced by v. The concrete score is a known number of t times a conditional that
doesn't depend on t; so a network c(visible tokens) is enough, a sequence none of whose tokens changed needs no new
evaluation, and the loss is an autoregressive one averaged over all orders: a bound on the likelihood.

The paper's symbols: sigma-bar is ``-log(1 - mask)``, lambda is ``mask``, NFE are counted for each sequence. What differs
from the released code: MASK can't be drawn by top-p or top-k; the cache is kept per sequence and evaluates no finished
one; draws are float64; new networks have layer norms with a bias of 0 and attention with biases. :func:`released` reads
the released weights.

Claimed: a network without the time is as good as one that is told it, and at four steps a token the reuse saves three
quarters of the evaluations. :func:`reproduce` measures both against a language whose law is known, and bits per
character of English against a bigram model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from condiff.data import TokenData
from condiff.errors import Incompatible
from condiff.methods import experiment
from condiff.methods.experiment import Facts, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import order_bound
from condiff.networks import TokenTransformer, TokenTransformerConfig
from condiff.process import Absorbing, oracles
from condiff.process.keep import LogLinear
from condiff.sampling import TokenAncestral, sample, trajectory
from condiff.token_denoiser import TokenDenoiser
from condiff.training import TokenDenoising, TrainConfig


def recipe(facts: Facts) -> Recipe:
    """The method on token sequences."""
    vocab = facts.need_tokens("radd")
    return Recipe(
        method="radd",
        network=facts.network(),
        process=Absorbing(vocab),
        target="tokens",
        objective=TokenDenoising(),
        training=facts.training(),
        sampler=Sampler(solver=TokenAncestral(), steps=4 * facts.shape[0]),
    )
