"""The order of the data: a pure function of (seed, position), so that there is no position to lose.

Epoch e visits the rows in a permutation drawn from (seed, e); step k takes rows ``k B ... (k + 1) B`` of the
endless sequence of epochs. A process takes its part of those rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.random import derive_seed


class Order:
    """Which rows each step takes.

    Args:
        length: rows of the data.
        batch: rows per step.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch: int, seed: int) -> None:
        if length < 1:
            raise BadValue("there is nothing to train on: the data has no rows")
        self.length, self.batch, self.seed = length, batch, seed
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def permutation(self, epoch: int) -> Tensor:
        """The rows in the order of an epoch, (length,)."""
        if self._cached[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._cached = (epoch, torch.randperm(self.length, generator=generator))
        return self._cached[1]

    def rows(self, step: int, part: int = 0, parts: int = 1) -> list[tuple[int, Tensor]]:
        """``(epoch, indices)`` pieces of a step's rows; of one of ``parts`` shares of them."""
        first, last = share(self.batch, part, parts)
        start, stop = step * self.batch + first, step * self.batch + last
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.length)
            end = min(stop - start + offset, self.length)
            pieces.append((epoch, self.permutation(epoch)[offset:end]))
            start += end - offset
        return pieces


def share(rows: int, part: int, parts: int) -> tuple[int, int]:
    """Rows ``first:last`` of the ``part``-th of ``parts`` nearly equal shares."""
    return rows * part // parts, rows * (part + 1) // parts


class Loader:
    """The batches of one process, by position.

    Args:
        data: has ``len`` and either ``batch(indices[, epoch]) -> mapping`` or ``[i] -> mapping``.
        order: which rows each step takes.
        parts: shares of a step's rows over all processes and accumulated parts.
        mine: the shares that this process works through, in order.
    """

    def __init__(self, data: Any, order: Order, parts: int, mine: list[int]) -> None:
        self.data, self.order, self.parts, self.mine = data, order, parts, mine
        self.fetch = fetcher(data)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        step, index = divmod(position, len(self.mine))
        pieces = self.order.rows(step, self.mine[index], self.parts)
        return join([self.fetch(rows, epoch) for epoch, rows in pieces])

    def iterate(self, start: int, stop: int, workers: int, pin: bool) -> Iterator[Mapping[str, Any]]:
        """The batches of steps ``start:stop``, one per accumulated part."""
        positions = range(start * len(self.mine), stop * len(self.mine))
        if workers == 0 and not pin:
            return map(self.__getitem__, positions)
        loader = torch.utils.data.DataLoader(
            self,  # type: ignore[arg-type]
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            pin_memory=pin,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        return iter(loader)


def fetcher(data: Any) -> Any:
    """``fetch(indices, epoch) -> mapping`` of anything that data may be.

    Raises:
        BadType: for what has no rows.
    """
    if not hasattr(data, "__len__") or not (hasattr(data, "batch") or hasattr(data, "__getitem__")):
        raise BadType(f"data must have a length and rows (batch(indices) or data[i]), got {type(data).__name__}")
    if not hasattr(data, "batch"):
        return lambda rows, epoch: torch.utils.data.default_collate([data[int(i)] for i in rows])
    if "epoch" in inspect.signature(data.batch).parameters:
        return lambda rows, epoch: data.batch(rows, epoch=epoch)
    return lambda rows, epoch: data.batch(rows)


def join(batches: list[Any]) -> Any:
    """Batches one after the other."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Mapping):
        return {k: join([b[k] for b in batches]) for k in first}
    return None if first is None else torch.cat([torch.as_tensor(b) for b in batches])
