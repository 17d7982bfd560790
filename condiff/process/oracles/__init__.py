"""Oracles: exact denoisers of known data laws, which stand in for any trained model."""

from condiff.process.oracles.aligned import JointNormal, joint_normal
from condiff.process.oracles.finite import Empirical, empirical
from condiff.process.oracles.low_rank import LowRank, low_rank
from condiff.process.oracles.mixtures import Mixture, gaussian, mixture
from condiff.process.oracles.observation import observed
from condiff.process.oracles.pairs import Paired, paired
from condiff.process.oracles.token_chain import TokenChain, markov
from condiff.process.oracles.token_table import TokenTable, tokens

__all__ = [
    "Empirical",
    "JointNormal",
    "LowRank",
    "Mixture",
    "Paired",
    "TokenChain",
    "TokenTable",
    "empirical",
    "gaussian",
    "joint_normal",
    "low_rank",
    "markov",
    "mixture",
    "observed",
    "paired",
    "tokens",
]
