"""Errors of several conditions for one sample, on the same noise: the comparison that needs few draws.

What the errors of two conditions have in common, which is nearly all of it, falls out of their difference when they
share times and noise (common random numbers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import device_of
from condiff.errors import BadValue, Incompatible, NonFinite
from condiff.guidance import Guided
from condiff.process import Process
from condiff.random import PerSample, derive_seed
from condiff.typing import Float, Int


class Noises:
    """A table of noise by number: row k is a function of (seed, k) only, or of a table that is given.

    Seeds are derived, so that the noise isn't what a sample was once drawn from with the same seed.

    Args:
        process: whose law of noise it is.
        shape: of one sample.
        seed: of the table.
        table: rows (N, *shape) in place of draws.

    Raises:
        BadValue: a table of another shape, or a row beyond its end.
    """

    def __init__(self, process: Process, shape: Sequence[int], seed: int = 0, table: Tensor | None = None) -> None:
        self.law, self.shape, self.seed, self.table = process.noise_law, tuple(shape), seed, table
        if table is not None and tuple(table.shape[1:]) != self.shape:
            raise BadValue(f"a table of noise has shape (N, {self.shape}), got {tuple(table.shape)}")

    def rows(self, first: int, count: int, dtype: torch.dtype, device: Any) -> Tensor:
        """Rows ``first`` to ``first + count``: (count, *shape)."""
        if self.table is not None:
            if first + count > len(self.table):
                raise BadValue(f"{first + count} noises are needed, the table holds {len(self.table)}")
            return self.table[first : first + count].to(device, dtype)
        source = PerSample(derive_seed(self.seed, "noise", k) for k in range(first, first + count))
        return self.law.sample(source, (count, *self.shape), dtype, device)


@torch.no_grad()
def candidate_errors(
    denoiser: Any,
    x: Float[Tensor, "batch *shape"],
    candidates: Conditions,
    times: Float[Tensor, " n"],
    noise: Tensor,
    measures: Sequence[Any],
    *,
    choice: Int[Tensor, "batch few"] | None = None,
    cond: Mapping[str, Any] | Conditions | None = None,
    batch: int = 256,
) -> Float[Tensor, "measures batch few n"]:
    """What each measure says of each sample under each of its candidates, at each draw of a time and noise.

    The triples (sample, candidate, draw) are worked off in batches of any size, in one network call a batch, and the
    result doesn't depend on how they are cut.

    Args:
        candidates: conditions with a row for each candidate.
        times: the draws' noise levels, shared by all.
        noise: (n, *shape), shared by all samples and candidates, or (B, n, *shape), a sample's own.
        measures: functions ``(said, truth) -> (B,)``, such as :class:`Error`.
        choice: rows of ``candidates`` that each sample is compared with; all by default.
        cond: what else the model is told of each sample (B rows), the same for every candidate.
        batch: triples per network call.

    Raises:
        NonFinite: an error that isn't a number.
        BadValue: shapes that don't match, conditions that are also candidates.
    """
    count = candidates.batch or 0
    told = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    _check(x, told, candidates, times, noise, batch)
    if choice is None:
        choice = torch.arange(count, device=x.device).expand(len(x), count)
    few, draws = choice.shape[1], len(times)
    out = []
    for flat in torch.arange(len(x) * few * draws, device=x.device).split(batch):
        row, draw = flat // (few * draws), flat % draws
        where = (draw,) if noise.ndim == x.ndim else (row, draw)
        entries = {**candidates.rows(choice.reshape(-1)[flat // draws]), **told.rows(row)}
        mixed = Conditions(entries)
        truth = denoiser.process.forward(x[row], times[draw.cpu()], source=mixed.source, noise=noise[*where])
        said = denoiser(truth.x_t, truth.level, mixed)
        out.append(torch.stack([measure(said, truth).to(x.device) for measure in measures]))
    errors = torch.cat(out, 1).reshape(len(measures), len(x), few, draws)
    if not bool(torch.isfinite(errors).all()):
        _, row, place, draw = (~torch.isfinite(errors)).nonzero()[0].tolist()
        which = f"of sample {row} under candidate {int(choice[row, place])} at t = {float(times[draw]):g}"
        raise NonFinite(f"the error {which} is not finite")
    return errors


def _check(x: Tensor, told: Conditions, candidates: Conditions, times: Tensor, noise: Tensor, batch: int) -> None:
    if not x.dtype.is_floating_point or x.ndim < 2 or len(x) == 0:
        raise BadValue(f"samples are floats (B, ...), at least one, got {x.dtype} {tuple(x.shape)}")
    if told.batch not in (None, len(x)):
        raise BadValue(f"{len(x)} samples, but {told.batch} rows of conditions")
    both = set(told) & set(candidates)
    if both:
        raise BadValue(f"{sorted(both)} are candidates and conditions of the samples at once")
    shared = (len(times), *x.shape[1:])
    if times.ndim != 1 or noise.shape not in (shared, (len(x), *shared)):
        want = f"{shared} or {(len(x), *shared)}"
        raise BadValue(f"times {tuple(times.shape)} need noise of shape {want}, got {tuple(noise.shape)}")
    if batch < 1:
        raise BadValue(f"batch must be at least 1, got {batch}")


def check_candidates(denoiser: Any, candidates: Any) -> Conditions:
    """Candidates as conditions of the denoiser.

    Raises:
        BadValue: none, or two that are equal.
        Incompatible: an unconditional denoiser, one of tokens or joint states, or a guided one, whose errors are
            another estimate.
    """
    kinds = getattr(denoiser, "kinds", None) or {}
    if not kinds:
        raise Incompatible("the model is unconditional: there is nothing to tell candidates apart by")
    if not hasattr(denoiser.process, "noise_law"):
        raise Incompatible(f"denoising errors are of one state with noise on it, not of {denoiser.process}")
    if isinstance(denoiser, Guided):
        raise Incompatible(
            f"{type(denoiser).__name__} is a guided model, whose errors estimate no likelihood: unwrap it"
        )
    out = as_conditions(candidates, kinds, device_of(denoiser))
    if not out.batch:
        raise BadValue("there are no candidates: give conditions such as {'label': torch.arange(10)}")
    if len(set(_fingerprints(out))) < out.batch:
        raise BadValue(f"two of the {out.batch} candidates are equal: list each once")
    return out


def _fingerprints(candidates: Conditions) -> list[bytes]:
    """What tells a candidate from the others: its values, and which of them are absent."""
    digests = [hashlib.sha256() for _ in range(candidates.batch or 0)]
    for entry in candidates.values():
        value = entry.value.detach().cpu()
        rows = (value.float() if value.dtype.is_floating_point else value).numpy()
        for digest, row, keep in zip(digests, rows, entry.kept().tolist(), strict=True):
            digest.update(row.tobytes() if keep else b"absent")
    return [digest.digest() for digest in digests]
