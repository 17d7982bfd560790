"""Oracles: exact denoisers of known data laws, which stand in for any trained model."""

from condiff.process.oracles.mixture import Mixture, gaussian, mixture

__all__ = ["Mixture", "gaussian", "mixture"]
