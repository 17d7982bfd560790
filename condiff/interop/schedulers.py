"""What a diffusers scheduler says: the process of its model, the quantity it predicts, and the grid of steps."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.denoiser import EDMPrecondition, Plain, Precondition
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process import EDM, Discrete, Gaussian, Level, Rectified
from condiff.process.algebra import Weight
from condiff.process.table import zero_terminal_snr
from condiff.sampling.hooks import ClipX0, DynamicThreshold
from condiff.sampling.loop import Hook, as_grid
from condiff.sampling.spacing import resolution_shift

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
RULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
SPACED_BY_NOISE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclass(frozen=True)
class Whole(Plain):
    """The network is told the whole number below ``steps t``, divided by steps: multistep schedulers of flows keep
    their times as integers.

    Args:
        steps: numbered times.
    """

    steps: int = 1000

    def time(self, level: Level) -> Weight:
        number = self.steps * level.network_time + 1e-4  # noise levels were rounded to float32
        return (number // 1) / self.steps


@dataclass(frozen=True)
class WholeIndex(Plain):
    """The network is told a whole index of its table: multistep schedulers that space their steps by noise round what
    lies between two indices.

    Args:
        nearest: the nearest index; the one below otherwise.
        missed: an index that is told as the one before it, since round-off there takes it below; -1 for none.
    """

    nearest: bool = True
    missed: int = -1

    def time(self, level: Level) -> Weight:
        told = (level.model_time + (0.5 if self.nearest else 1e-3)) // 1  # 1e-3: noise levels were rounded to float32
        return told - 1.0 * (told == self.missed) if self.missed >= 0 else told


@dataclass(frozen=True)
class ContinuousV(EDMPrecondition):
    """EDM's scalings around a network that predicts v: the output of Karras 2022 with the other sign."""

    def weights(self, level: Level) -> tuple[Weight, Weight, Weight]:
        c_in, c_skip, c_out = super().weights(level)
        return c_in, c_skip, -1.0 * c_out


def process_of(scheduler: Any) -> tuple[Gaussian, str]:
    """``(process, target)`` of a scheduler's configuration.

    A scheduler with betas gives a table with the same levels, in float64; a flow-matching one straight paths, with
    sigma as the time (its shift is a matter of the grid, see :func:`grid_of`); one of continuous noise levels EDM's
    process, whose networks need a precondition, see :func:`precondition_of`.

    Raises:
        BadType: no scheduler.
        Incompatible: a scheduler of another family.
        BadValue: an unknown beta schedule or prediction type.
    """
    scheduler = behind(scheduler)
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "set_timesteps"):
        raise BadType(f"a diffusers scheduler is wanted, got {type(scheduler).__name__}")
    if is_flow(scheduler):
        return Gaussian(Rectified()), "velocity"
    if is_continuous(scheduler):
        return Gaussian(EDM(sigma_max=float(config["sigma_max"]))), "x0"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise Incompatible(
            f"{type(scheduler).__name__} has neither a table of betas nor flow sigmas: build the Denoiser from the "
            "network, its process and its target yourself"
        )
    target = config.get("prediction_type", "epsilon")
    if target not in PREDICTIONS:
        raise unknown("prediction type", target, PREDICTIONS)
    return Gaussian(table_of(scheduler)), PREDICTIONS[target]


def precondition_of(scheduler: Any) -> Precondition:
    """How a network that a scheduler steps is called: told the index of a table, the time of a flow, or scaled."""
    scheduler = behind(scheduler)
    if is_continuous(scheduler):
        return ContinuousV(sigma_data=1.0)
    if not is_flow(scheduler):
        return _index_of(scheduler)
    # Whole times are read off the steps, as the type of those before set_timesteps isn't theirs
    times = stepped(scheduler, 2, **shift_options(scheduler, 1)).timesteps
    steps = scheduler.config["num_train_timesteps"]
    return Plain() if times.dtype.is_floating_point else Whole(steps=steps)


def _index_of(scheduler: Any) -> Precondition:
    """How the index of a table is told, read off some steps where those lie between the indices."""
    if not spaced_by_noise(scheduler):
        return Plain(index=True)
    scheduler = stepped(scheduler, 16)
    if scheduler.timesteps.dtype.is_floating_point:
        return Plain(index=True)
    told, index = scheduler.timesteps, table_of(scheduler).model_time(_times_of(scheduler)[:-1])
    nearest = bool(((told - index)[1:].abs() < 0.51).all())
    missed = round(float(index[0])) if int(told[0]) < round(float(index[0])) else -1
    return WholeIndex(nearest=nearest, missed=missed)


def behind(scheduler: Any) -> Any:
    """The scheduler that a solver stands in for, or itself."""
    return getattr(scheduler, "like", scheduler)


def option(scheduler: Any, name: str, default: Any = None) -> Any:
    """An option of a scheduler. One that was made from another's configuration carries that one's along, unread."""
    read = name in inspect.signature(type(scheduler).__init__).parameters
    return scheduler.config.get(name, default) if read else default


def spaced_by_noise(scheduler: Any) -> bool:
    """Whether a scheduler chooses noise levels, between those of its table."""
    return any(option(scheduler, name, False) for name in SPACED_BY_NOISE)


def table_of(scheduler: Any) -> Discrete:
    """The scheduler's table of noise levels.

    Raises:
        BadValue: a rule of betas that isn't known here.
    """
    config = scheduler.config
    zero = bool(config.get("rescale_betas_zero_snr", False))
    if config.get("trained_betas") is not None:
        table = Discrete.from_betas(config["trained_betas"])
    else:
        rule = config["beta_schedule"]
        if rule not in RULES:
            raise unknown("beta schedule", rule, RULES)
        ends = (
            {} if rule == "squaredcos_cap_v2" else {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
        )
        shifted = config.get("snr_shift_scale") is not None
        table = Discrete(
            rule=RULES[rule], steps=config["num_train_timesteps"], zero_terminal_snr=zero and not shifted, **ends
        )
    if config.get("snr_shift_scale") is None:
        return table
    alphas = table.table / (config["snr_shift_scale"] + (1.0 - config["snr_shift_scale"]) * table.table)
    return Discrete.from_alphas_cumprod(zero_terminal_snr(alphas) if zero else alphas)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler runs a flow-matching model."""
    name = type(scheduler).__name__
    return name.startswith("FlowMatch") or bool(option(scheduler, "use_flow_sigmas", False))


def is_continuous(scheduler: Any) -> bool:
    """Whether a scheduler runs a model of continuous noise levels that predicts v, as Stable Video Diffusion."""
    continuous = option(scheduler, "timestep_type") == "continuous"
    return continuous and scheduler.config.get("prediction_type") == "v_prediction"


def shift_options(scheduler: Any, tokens: int) -> dict[str, float]:
    """``mu`` for a scheduler whose shift depends on the number of tokens: linear in it between the two ends."""
    scheduler = behind(scheduler)
    config = scheduler.config
    if not option(scheduler, "use_dynamic_shifting", False):
        return {}
    base = config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)
    highest = config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)
    return {"mu": math.log(resolution_shift(tokens, base=base, highest=highest))}


def stepped(scheduler: Any, steps: int | None, **options: Any) -> Any:
    """A copy of the scheduler, with its steps set."""
    scheduler = copy.deepcopy(scheduler)  # the caller's stays as it is
    scheduler.set_timesteps(steps, **options)
    return scheduler


def grid_of(scheduler: Any, steps: int, **options: Any) -> Tensor:
    """The times that the scheduler itself visits in ``steps`` steps, (N + 1,) float64, the last one included.

    Args:
        options: for the scheduler's ``set_timesteps``, such as ``mu=`` where its shift depends on the resolution.

    Raises:
        BadValue: fewer than one step.
    """
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    own = getattr(scheduler, "grid", None)
    if own is not None:  # of a solver that stands in for a scheduler
        return as_grid(own, steps, process_of(scheduler)[0])
    scheduler = stepped(behind(scheduler), steps, **options)
    if is_flow(scheduler):
        return torch.as_tensor(scheduler.sigmas, dtype=torch.float64)
    if is_continuous(scheduler) or spaced_by_noise(scheduler):
        return _times_of(scheduler)
    table = table_of(scheduler)
    indices = torch.as_tensor(scheduler.timesteps, dtype=torch.float64).unique(sorted=True).flip(0)
    return torch.cat([table.at_index(indices), last_time(scheduler).reshape(1)])


def _times_of(scheduler: Any) -> Tensor:
    """The times of a scheduler's noise levels, noise / data, float64."""
    sigmas = torch.as_tensor(scheduler.sigmas, dtype=torch.float64)
    return process_of(scheduler)[0].time(-2.0 * torch.log(sigmas))


def hooks_of(scheduler: Any) -> list[Hook]:
    """What a scheduler does to the clean sample that is predicted: clip it, or bring it into range."""
    scheduler = behind(scheduler)
    if option(scheduler, "thresholding", False):
        quantile, most = (scheduler.config[name] for name in ("dynamic_thresholding_ratio", "sample_max_value"))
        return [DynamicThreshold(quantile, most=max(float(most), 1.0))]
    if option(scheduler, "clip_sample", False):
        bound = float(option(scheduler, "clip_sample_range", 1.0))
        return [ClipX0(-bound, bound, keep_noise=type(scheduler).__name__ == "DDIMScheduler")]
    return []


def last_time(scheduler: Any) -> Tensor:
    """The time after the last evaluation: 0, or that of a table's first level."""
    if is_flow(scheduler) or is_continuous(scheduler):
        return torch.zeros((), dtype=torch.float64)
    return table_of(scheduler).at_index(_last(scheduler))


def _last(scheduler: Any) -> int:
    """The index after the last evaluation: -1 for clean."""
    sigmas = getattr(stepped(scheduler, 2), "sigmas", None)
    ends_above = option(scheduler, "set_alpha_to_one") is False if sigmas is None else float(sigmas[-1]) > 0.0
    return 0 if ends_above else -1
