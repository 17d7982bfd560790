"""What a diffusers scheduler says: the process of its model, the quantity it predicts, and the grid of steps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process import Discrete, Gaussian, Rectified

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
RULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}


def process_of(scheduler: Any) -> tuple[Gaussian, str]:
    """``(process, target)`` of a scheduler's configuration.

    A scheduler with betas gives a table with the same levels, in float64; a flow-matching one straight paths, with
    sigma as the time (its shift is a matter of the grid, see :func:`grid_of`).

    Raises:
        BadType: no scheduler.
        Incompatible: a scheduler of another family, such as EDM's.
        BadValue: an unknown beta schedule or prediction type.
    """
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "set_timesteps"):
        raise BadType(f"a diffusers scheduler is wanted, got {type(scheduler).__name__}")
    if is_flow(scheduler):
        return Gaussian(Rectified()), "velocity"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise Incompatible(
            f"{type(scheduler).__name__} has neither a table of betas nor flow sigmas: build the Denoiser from the "
            "network, its process and its target yourself"
        )
    target = config.get("prediction_type", "epsilon")
    if target not in PREDICTIONS:
        raise unknown("prediction type", target, PREDICTIONS)
    return Gaussian(table_of(scheduler)), PREDICTIONS[target]


def table_of(scheduler: Any) -> Discrete:
    """The scheduler's table of noise levels.

    Raises:
        BadValue: a rule of betas that isn't known here.
    """
    config = scheduler.config
    if config.get("trained_betas") is not None:
        return Discrete.from_betas(config["trained_betas"])
    rule = config["beta_schedule"]
    if rule not in RULES:
        raise unknown("beta schedule", rule, RULES)
    ends = {} if rule == "squaredcos_cap_v2" else {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
    zero = bool(config.get("rescale_betas_zero_snr", False))
    return Discrete(rule=RULES[rule], steps=config["num_train_timesteps"], zero_terminal_snr=zero, **ends)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler runs a flow-matching model."""
    name = type(scheduler).__name__
    return name.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas", False))


def grid_of(scheduler: Any, steps: int, **options: Any) -> Tensor:
    """The times that the scheduler itself visits in ``steps`` steps, (N + 1,) float64, the last one included.

    Args:
        options: for the scheduler's ``set_timesteps``, such as ``mu=`` where its shift depends on the resolution.

    Raises:
        BadValue: fewer than one step.
    """
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    scheduler = copy.deepcopy(scheduler)  # the caller's stays as it is
    scheduler.set_timesteps(steps, **options)
    if is_flow(scheduler):
        return torch.as_tensor(scheduler.sigmas, dtype=torch.float64)
    table = table_of(scheduler)
    indices = torch.as_tensor(scheduler.timesteps, dtype=torch.float64).unique(sorted=True).flip(0)
    return torch.cat([table.at_index(indices), table.at_index(_last(scheduler)).reshape(1)])


def _last(scheduler: Any) -> int:
    """The index after the last evaluation: -1 for clean."""
    config = scheduler.config
    if "final_sigmas_type" in config:  # a multistep scheduler, which may carry DDIM's option along unread
        return 0 if config["final_sigmas_type"] == "sigma_min" else -1
    return 0 if config.get("set_alpha_to_one") is False else -1
