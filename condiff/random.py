"""Where every random number comes from.

Functions that draw take an ``rng``: a :class:`Source`, or anything :func:`as_source` accepts
(``None``, a seed, a ``torch.Generator``, one seed per sample). Nothing in condiff seeds or
reads the global generator, but for :func:`seeded_weights`, which puts it back. The first
dimension of what is drawn is always the batch.

* :class:`Stream` draws the whole batch from one generator.
* :class:`PerSample` draws row i from its own generator: a sample depends on its own seed only.
* :class:`Shard` draws a global batch and keeps a slice of its rows, so that a sharded run sees
  the same numbers as an unsharded one.
* :class:`Tape` plays back given draws: with an affine denoiser a sampler is then an affine map.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue

Shape = Sequence[int]


class Source(ABC):
    """Base of the random sources. Subclasses implement :meth:`_draw`."""

    @abstractmethod
    def _draw(self, kind: str, shape: Shape, dtype: torch.dtype, device: Any, param: float) -> Tensor:
        """Draws of one kind ("normal", "uniform", "gamma")."""

    def place(self, rows: int) -> tuple[int, int]:
        """Where a batch of ``rows`` rows lies in the batch that is drawn: ``(first row, total rows)``."""
        return 0, rows

    def normal(self, shape: Shape, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """Standard normal draws of the given shape."""
        return self._draw("normal", shape, dtype, device, 0.0)

    def uniform(self, shape: Shape, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
        """Uniform draws on [0, 1)."""
        return self._draw("uniform", shape, dtype, device, 0.0)

    def gamma(self, concentration: float, shape: Shape, dtype: torch.dtype = torch.float64, device: Any = "cpu"):
        """Gamma(concentration, 1) draws; ``2 * gamma(D / 2)`` is chi-square with D degrees."""
        return self._draw("gamma", shape, dtype, device, float(concentration))

    def gumbel(self, shape: Shape, device: Any = "cpu") -> Tensor:
        """Standard Gumbel draws in float64 (lower precisions truncate the tail and bias argmax)."""
        u = self.uniform(shape, torch.float64, device)
        return -torch.log(-torch.log(u.clamp_min(torch.finfo(torch.float64).tiny)))

    def integers(self, high: int, shape: Shape, device: Any = "cpu") -> Tensor:
        """Integers uniform on {0, ..., high - 1}."""
        return (self.uniform(shape, torch.float64, device) * high).long().clamp_(max=high - 1)

    def common(self) -> float:
        """One uniform number on [0, 1) for the whole batch, the same for all of its shards."""
        return float(self.uniform((1,)))

    def bernoulli(self, p: float | Tensor, shape: Shape, device: Any = "cpu") -> Tensor:
        """Booleans, true with probability ``p``."""
        return self.uniform(shape, torch.float64, device) < p


def _from_generator(generator, kind, shape, dtype, device, param) -> Tensor:
    where = generator.device
    if kind == "normal":
        out = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=where)
    elif kind == "uniform":
        out = torch.rand(tuple(shape), generator=generator, dtype=dtype, device=where)
    else:
        out = torch._standard_gamma(torch.full(tuple(shape), param, dtype=dtype, device=where), generator=generator)
    return out if out.device == torch.device(device) else out.to(device)


class Stream(Source):
    """All rows from one generator, drawn on the generator's device and moved."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def _draw(self, kind, shape, dtype, device, param):
        return _from_generator(self.generator, kind, shape, dtype, device, param)


def _whole(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise BadType(f"a seed is an integer, got {seed!r}")
    return int(seed)


class PerSample(Source):
    """Row i from a CPU generator seeded with ``seeds[i]``.

    A row's numbers depend on its own seed and on what was drawn for it before, not on the
    batch it sits in nor on the device.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.seeds = [_whole(s) for s in seeds]
        self.generators = [torch.Generator().manual_seed(s) for s in self.seeds]

    def rows(self, index: Sequence[int]) -> PerSample:
        """The source of a subset of rows; it shares their generators."""
        out = PerSample(())
        out.seeds = [self.seeds[i] for i in index]
        out.generators = [self.generators[i] for i in index]
        return out

    def common(self) -> float:
        raise BadType(
            "a number for the whole batch needs one seed: with a seed per sample there is none that all share"
        )

    def _draw(self, kind, shape, dtype, device, param):
        if len(shape) == 0 or shape[0] != len(self.generators):
            raise BadValue(
                f"a source with {len(self.generators)} per-sample seeds was asked for a draw of shape "
                f"{tuple(shape)}: its first dimension must be {len(self.generators)}"
            )
        rest = tuple(shape[1:])
        rows = [_from_generator(g, kind, rest, dtype, "cpu", param) for g in self.generators]
        out = torch.stack(rows) if rows else torch.empty(tuple(shape), dtype=dtype)
        return out.to(device)


class Shard(Source):
    """Rows ``start:stop`` of a global batch of ``total`` rows drawn from one source."""

    def __init__(self, source: Source, start: int, stop: int, total: int) -> None:
        if not 0 <= start <= stop <= total:
            raise BadValue(f"shard rows {start}:{stop} do not lie in a batch of {total}")
        self.source, self.start, self.stop, self.total = source, start, stop, total

    def place(self, rows: int) -> tuple[int, int]:
        if rows != self.stop - self.start:
            raise BadValue(f"a shard of {self.stop - self.start} rows was asked where {rows} rows lie")
        return self.start, self.total

    def common(self) -> float:
        return self.source.common()

    def _draw(self, kind, shape, dtype, device, param):
        if len(shape) == 0 or shape[0] != self.stop - self.start:
            raise BadValue(f"a shard of {self.stop - self.start} rows was asked for a draw of shape {tuple(shape)}")
        whole = (self.total, *shape[1:])
        return self.source._draw(kind, whole, dtype, device, param)[self.start : self.stop]


class Tape(Source):
    """Plays back given tensors, in order, whatever kind of draw is asked for."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = iter(draws)

    def _draw(self, kind, shape, dtype, device, param):
        try:
            out = next(self.draws)
        except StopIteration:
            raise BadValue("the tape of given draws has run out: give one tensor per draw") from None
        if tuple(out.shape) != tuple(shape):
            raise BadValue(f"the tape holds a draw of shape {tuple(out.shape)} where {tuple(shape)} is needed")
        return out.to(device=device, dtype=dtype)


def derive_seed(seed: int, *keys: int | str) -> int:
    """A seed that is a pure function of ``seed`` and ``keys``, and unrelated for different keys."""
    text = "/".join(str(k) for k in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def as_source(rng: int | torch.Generator | Sequence[int] | Source | None) -> Source:
    """``None`` (fresh entropy), a seed, a generator, per-sample seeds or a source -> a source.

    Raises:
        BadType: for anything else.
    """
    if isinstance(rng, Source):
        return rng
    if rng is None:
        generator = torch.Generator()
        generator.seed()
        return Stream(generator)
    if isinstance(rng, bool):
        raise BadType("rng must be a seed, a torch.Generator, a list of seeds or a Source, got a bool")
    if isinstance(rng, int):
        return Stream(torch.Generator().manual_seed(rng))
    if isinstance(rng, torch.Generator):
        return Stream(rng)
    if isinstance(rng, Tensor):
        rng = rng.tolist()
    if isinstance(rng, Sequence | range) and not isinstance(rng, str):
        return PerSample(rng)
    raise BadType(f"rng must be a seed, a torch.Generator, a list of seeds or a Source, got {type(rng).__name__}")


@contextmanager
def seeded_weights(seed: int | None) -> Iterator[None]:
    """Modules that are built inside, on the CPU, are a function of the seed; no generator is changed by it afterwards,
    those of GPUs included. None leaves torch's generator as it is.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds all devices, and they aren't forked
        yield
