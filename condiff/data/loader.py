"""Batches in a given order, optionally read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from condiff.data.base import Data
from condiff.errors import BadValue
from condiff.random import derive_seed


def shuffled(n: int, seed: int = 0, epoch: int = 0) -> Tensor:
    """The order of ``n`` rows in an epoch, a function of (n, seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


class _Batches(Dataset):
    """Batches by number, so that worker processes read whole batches."""

    def __init__(self, data: Data, chunks: Sequence[Tensor], epoch: int) -> None:
        self.data, self.chunks, self.epoch = data, chunks, epoch

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.data.batch(self.chunks[i], self.epoch)


def loader(
    data: Data,
    order: Sequence[int] | Tensor,
    batch: int,
    workers: int = 0,
    *,
    epoch: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> Iterator[dict[str, Any]]:
    """Batches of ``data`` in the given order; the same ones whatever the number of workers.

    Resuming in the middle of an epoch is ``order[position:]`` with the same epoch. In-memory data needs no workers.

    Args:
        order: row indices, such as ``shuffled(len(data), seed, epoch)``.
        batch: rows per batch.
        workers: processes that read and decode.
        epoch: which round of augmentations.
        drop_last: leave out a last batch that isn't full.
        pin_memory: put batches into page-locked memory for a GPU.
    """
    if batch < 1 or workers < 0:
        raise BadValue(f"a loader needs batch >= 1 and workers >= 0, got {batch} and {workers}")
    rows = order if isinstance(order, Tensor) else torch.as_tensor(list(order), dtype=torch.long)
    chunks = [c for c in rows.split(batch) if len(c) == batch or (len(c) and not drop_last)]
    dataset = _Batches(data, chunks, epoch)
    if workers == 0 and not pin_memory:
        return (dataset[i] for i in range(len(dataset)))
    # A generator of its own: torch's loader would otherwise draw from the global one.
    generator = torch.Generator().manual_seed(0)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=pin_memory, generator=generator))
