"""What a trainer does to modules: find their blocks, recompute them in the backward pass, build an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from condiff.errors import Incompatible
from condiff.training.config import TrainConfig


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The network's repeated parts: the modules in its outermost lists.

    Raises:
        Incompatible: a network without any.
    """
    network = getattr(denoiser, "network", denoiser)
    found = list(_outermost(network))
    if not found:
        raise Incompatible(
            f"{type(network).__name__} has no blocks (an nn.ModuleList) to shard or recompute: "
            "leave checkpoint_activations off and parallel='ddp'"
        )
    return found


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _outermost(child)


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the blocks keep their inputs only, and run again in the backward pass."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def optimizer_of(
    parameters: Sequence[Tensor],
    config: TrainConfig,
    factory: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
) -> torch.optim.Optimizer:
    """AdamW, fused where there is a fused one, or what ``factory`` makes of the groups.

    Only tensors with two or more dimensions decay: biases, gains and scalars don't.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if factory is not None:
        return factory(groups)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


class Together(nn.Module):
    """Denoiser and objective as one module, so that what wraps a module (DDP, FSDP) wraps the whole computation."""

    def __init__(self, denoiser: nn.Module, objective: Any) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, batch: Any, rng: Any, training: bool = True) -> Any:
        return self.objective(self.denoiser, batch, rng, training)


@contextmanager
def compiled(denoiser: nn.Module, how: bool | str) -> Iterator[None]:
    """Inside, the network is compiled (``how`` may name a backend); its parameters keep their names."""
    if not how:
        yield
        return
    network = getattr(denoiser, "network", denoiser)
    network.compile(**({"backend": how} if isinstance(how, str) else {}))
    try:
        yield
    finally:
        network._compiled_call_impl = None
