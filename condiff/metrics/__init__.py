"""Metrics in float64, with explicit randomness."""

from condiff.metrics.digit_classifier import DigitClassifier, digit_classifier

__all__ = ["DigitClassifier", "digit_classifier"]
