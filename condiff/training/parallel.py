"""Several processes: how the model is spread over them, and how tensors come together again.

Plain torch (DistributedDataParallel, ``fully_shard``), started by ``torchrun`` or ``accelerate launch`` alike: both
set the same environment. The engine isn't accelerate's ``Accelerator`` for three reasons, each checked:

* its ``save_state`` pickles the optimizer and the random states, and writes in place; checkpoints here are
  safetensors and JSON, written whole or not at all;
* asked for FSDP on CPU processes it silently trains with DDP, so that a test of sharded training without GPUs
  would test nothing; ``fully_shard`` on gloo shards;
* what remains of it (wrapping, autocast, loss scaling) is a dozen lines of torch.

A setting of ``accelerate launch`` that this can't follow is refused, not ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from condiff.errors import BadValue, Incompatible
from condiff.peers import Peers, own_device


class Parallel(Peers):
    """This process among its peers, and the model spread over them.

    Args:
        mode: "ddp" or "fsdp".
        device: where to compute; by default this process's GPU, or the CPU.

    Raises:
        Incompatible: settings of ``accelerate launch`` that contradict the configuration.
    """

    def __init__(self, mode: str = "ddp", device: Any = None, precision: str = "fp32") -> None:
        _check_accelerate(mode, precision)
        self.mode = mode
        super().__init__(own_device() if device is None else _indexed(torch.device(device)))

    @property
    def sharded(self) -> bool:
        return self.world > 1 and self.mode == "fsdp"

    # The model

    def wrap(self, module: nn.Module, blocks: list[nn.Module]) -> nn.Module:
        """The module whose call trains over all processes; ``blocks`` are sharded one by one."""
        if self.world == 1:
            return module
        if self.mode == "ddp":
            return nn.parallel.DistributedDataParallel(module)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    def syncing(self, module: nn.Module, sync: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged after the backward passes inside, or kept back for a later one."""
        if self.world == 1:
            return nullcontext()
        if self.mode == "fsdp":
            module.set_requires_gradient_sync(sync)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if sync else module.no_sync()  # type: ignore[operator]

    def same_start(self, module: nn.Module) -> None:
        """Every process takes the first one's weights."""
        if self.world > 1:
            with torch.no_grad():
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.data, 0)


def _indexed(device: torch.device) -> torch.device:
    """ "cuda" as "cuda:0", whatever the present one is."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_accelerate(mode: str, precision: str) -> None:
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise Incompatible(f"accelerate launch asks for {asked}, the configuration for precision={precision!r}")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true") and mode != "fsdp":
        raise Incompatible("accelerate launch asks for FSDP: set parallel='fsdp' in TrainConfig")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        raise Incompatible("DeepSpeed is not supported: use parallel='ddp' or 'fsdp'")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards; all processes must ask together."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def wholes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`whole` of each."""
    return {name: whole(tensor.detach()) for name, tensor in tensors.items()}


@torch.no_grad()
def fill(own: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded.

    Raises:
        BadValue: another shape.
    """
    if own.shape != value.shape:
        raise BadValue(f"a tensor of shape {tuple(value.shape)} for one of shape {tuple(own.shape)}")
    if hasattr(own, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]
    own.copy_(value)
