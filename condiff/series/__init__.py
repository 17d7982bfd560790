"""Series: forecasts, imputations and refinements by a model of windows, and what they are compared with."""

from condiff.series.baselines import seasonal_naive
from condiff.series.forecast import Forecast, check_forecastable, forecast
from condiff.series.impute import Imputation, impute
from condiff.series.paths import BY, SelfGuidance, paths
from condiff.series.predictor import Predictor
from condiff.series.refine import refine_forecasts

__all__ = [
    "BY",
    "Forecast",
    "Imputation",
    "Predictor",
    "SelfGuidance",
    "check_forecastable",
    "forecast",
    "impute",
    "paths",
    "refine_forecasts",
    "seasonal_naive",
]
