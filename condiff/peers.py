"""Peers: the processes that ``torchrun`` (or ``accelerate launch``) started together, and this one's place among them.

What they share is what training and sampling need of each other: who is first, waiting until all are there, whether any
of them says so. Both launchers set the same environment; without one, a process is alone, and everything here is free.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from condiff.errors import CondiffError


def rank() -> int:
    """This process's number, 0 for the first and for one that is alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first, or the only one, of those that were started."""
    return rank() == 0


def own_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class Peers:
    """This process among its peers, whom it meets when this is made.

    Args:
        device: where what they exchange lies.
        patience: how long one waits for the others; torch's own default when None.
    """

    def __init__(self, device: Any = "cpu", patience: timedelta | None = None) -> None:
        self.device = torch.device(device)
        self._started = False
        if world() > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=patience)
            self._started = True
        here = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if here else (0, 1)

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the process group, if it was entered here."""
        if self._started and dist.is_initialized():
            dist.destroy_process_group()
            self._started = False

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)) > 0) if self.world > 1 else flag

    def wait(self) -> None:
        """Until all are here.

        Raises:
            CondiffError: one of them is gone.
        """
        if self.world == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:  # of gloo: the connection was closed, or nobody came in time
            why = str(error).strip().splitlines()[0]
            raise CondiffError(f"another of the {self.world} processes stopped before it was done ({why})") from error
