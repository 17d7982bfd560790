"""Steps that wait to be looked at: their metrics in one transfer, and an explanation when one is not a number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from condiff.errors import NonFinite
from condiff.training.batch import as_batch, each, leaves
from condiff.training.objective import Losses


class Watch:
    """Collects the losses of steps on the device, so that a GPU isn't waited for at each of them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.pending: list[tuple[int, list[Losses], Tensor]] = []

    def add(self, step: int, losses: list[Losses], norm: Tensor) -> None:
        """The parts of step ``step``'s batch (losses already weighted by their share), and the gradient's norm."""
        self.pending.append((step, losses, norm))

    def flush(self) -> list[dict[str, Any]]:
        """One record per step since the last flush.

        Raises:
            NonFinite: naming the first step whose loss or gradient isn't finite, and what is known of it.
        """
        names = [["loss", *sorted(losses[0].parts)] for _, losses, _ in self.pending]
        sums: list[Any] = [  # tensors, though sum() of none would be 0
            sum(part.loss if n == "loss" else part.parts[n] for part in losses)
            for keys, (_, losses, _) in zip(names, self.pending, strict=True)
            for n in keys
        ]
        norms = [norm for _, _, norm in self.pending]
        summed = self.trainer.parallel.total(torch.stack([s.double() for s in sums]))
        values = iter(summed.tolist())
        norms = torch.stack(norms).double().tolist()
        pending, self.pending = self.pending, []
        records = []
        for keys, (step, losses, _), norm in zip(names, pending, norms, strict=True):
            record = {"step": step, **{n: next(values) for n in keys}}
            record |= {"lr": self.trainer.config.lr_at(step - 1), "grad_norm": norm}
            self._check(record, losses)
            records.append(record)
        return records

    def _check(self, record: dict[str, Any], losses: list[Losses]) -> None:
        # Under fp16 an overflowing gradient is an everyday event: the scaler skips that step.
        watched = [k for k in record if k not in ("step", "lr", "grad_norm")]
        if self.trainer.config.precision != "fp16":
            watched.append("grad_norm")
        elif not math.isfinite(record["grad_norm"]):
            record["grad_norm"] = None
        bad = [k for k in watched if not math.isfinite(record[k])]
        if bad:
            raise NonFinite(self._message(record, bad, losses))

    def _message(self, record: dict[str, Any], bad: list[str], losses: list[Losses]) -> str:
        step = record["step"]
        said = ", ".join(f"{name} is {record[name]}" for name in bad)
        rows = [text for index, part in enumerate(losses) for text in self._rows(step, index, part)]
        where = f" {len(rows)} rows: {'; '.join(rows[:3])}{'; ...' if len(rows) > 3 else ''}." if rows else ""
        if not rows and "loss" in bad:
            where = " The rows of this process are finite: look at an auxiliary loss, or at another process."
        if not rows and bad == ["grad_norm"]:
            where = " The losses are finite: the backward pass overflowed. Lower lr, or clip."
        return f"step {step}: {said}.{where} The last checkpoint is untouched."

    def _rows(self, step: int, index: int, losses: Losses) -> list[str]:
        """What is known of the rows whose loss isn't finite: which data, at which time, and whether they hold NaN."""
        wrong = torch.nonzero(~torch.isfinite(losses.per_sample)).flatten().tolist()
        if not wrong:
            return []
        loader = self.trainer.loader
        numbers = torch.cat([rows for _, rows in loader.order.rows(step - 1, loader.mine[index], loader.parts)])
        batch = as_batch(loader[(step - 1) * len(loader.mine) + index], self.trainer.kinds)
        out = []
        for row in wrong:
            t = None if losses.t is None else each(lambda t, row=row: (t[row] if t.ndim else t).tolist(), losses.t)
            finite = all(torch.isfinite(x[row]).all() for x in leaves(batch.x))
            out.append(f"data row {int(numbers[row])}{'' if finite else ', whose x holds NaN or infinity'}, at t = {t}")
        return out
