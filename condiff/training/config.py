"""TrainConfig: everything about a training that is a number or a choice."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from condiff.errors import BadType, BadValue, unknown
from condiff.training.ema import Average, as_average

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp")

#: Fields that a resumed run may change: they don't enter the arithmetic.
FREE = (
    "log_every",
    "save_every",
    "keep_last",
    "validate_every",
    "sample_every",
    "workers",
    "tensorboard",
    "wandb",
    "compile",
    "checkpoint_activations",
    "parallel",
    "accumulate",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Args:
        steps: optimizer steps.
        batch: samples per step, over all processes and accumulated parts.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        schedule: "cosine" or "linear" down to ``lr * final_lr``, or "constant".
        final_lr: fraction of lr at the end.
        betas, eps, weight_decay: of AdamW. Decay acts on tensors with two or more dimensions.
        clip: largest gradient norm; None for none.
        accumulate: parts that a process's share of a batch is worked through in; the result is the big batch's.
        precision: "fp32", or autocast to "bf16" or "fp16" (with loss scaling); weights stay as they are.
        compile: True, or the name of a ``torch.compile`` backend.
        checkpoint_activations: recompute the network's blocks in the backward pass.
        parallel: what several processes do: "ddp" copies, "fsdp" shards weights, gradients and optimizer.
        ema: decays, or :class:`Average` s, of the averaged weights; the first is the default one.
        seed: of data order, times, noise and dropout.
        workers: processes that load data; 0 loads in this one.
        log_every: steps between progress reports; on a GPU also between looks at the losses.
        save_every, keep_last: steps between checkpoints, and how many stay beside the best.
        validate_every, validation_size: steps between looks at the validation data (0: at checkpoints), and at
            how many samples.
        sample_every: steps between calls of the sample callback; 0 for never.
        tf32: allow TensorFloat-32 matrix products on GPUs.
        tensorboard, wandb: where metrics also go, when installed; TensorBoard's absence is no error.
    """

    steps: int = 1000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    schedule: str = "cosine"
    final_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool | str = False
    checkpoint_activations: bool = False
    parallel: str = "ddp"
    ema: tuple[float | Average, ...] = (0.999,)
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    save_every: int = 500
    keep_last: int = 2
    validate_every: int = 0
    validation_size: int = 1024
    sample_every: int = 0
    tf32: bool = True
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise BadType(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise BadValue(f"{name} must be at least {least}, got {value}")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("parallel", PARALLEL)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        _positive("lr", self.lr)
        _positive("eps", self.eps)
        if self.clip is not None:
            _positive("clip", self.clip)
        if not 0.0 <= self.final_lr <= 1.0:
            raise BadValue(f"final_lr is a fraction of lr in [0, 1], got {self.final_lr}")
        if not (self.weight_decay >= 0.0 and math.isfinite(self.weight_decay)):
            raise BadValue(f"weight_decay must be >= 0, got {self.weight_decay}")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise BadValue(f"betas are two numbers in [0, 1), got {self.betas}")
        if self.accumulate > self.batch:
            raise BadValue(f"accumulate={self.accumulate} parts of a batch of {self.batch}: some would be empty")
        names = [as_average(a).name for a in self.ema]
        if len(set(names)) != len(names):
            raise BadValue(f"the averages in ema must differ, got {self.ema}")

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step`` (the first is 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = 0.5 * (1.0 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done
        return self.lr * (self.final_lr + (1.0 - self.final_lr) * left)


_INTEGERS = {
    "steps": 1,
    "batch": 1,
    "warmup": 0,
    "accumulate": 1,
    "seed": 0,
    "workers": 0,
    "log_every": 1,
    "save_every": 1,
    "keep_last": 1,
    "validate_every": 0,
    "validation_size": 1,
    "sample_every": 0,
}


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadType(f"{name} must be a number, got {value!r}")
    if not 0.0 < value < math.inf:
        raise BadValue(f"{name} must be positive and finite, got {value}")


def fixed_fields() -> list[str]:
    """The fields that a resumed run must leave as they were."""
    return [f.name for f in fields(TrainConfig) if f.name not in FREE]
