"""How a chunk of frames knows the frames before it: kept keys and values, the frames themselves, or a condition.

A context is a denoiser of chunks, so that every solver and guidance runs on the chunk alone. What it knows grows by
:meth:`Context.push`; the oldest frames go when there are more than ``max_context``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions, cat
from condiff.denoiser import Denoiser
from condiff.errors import Incompatible
from condiff.guidance.guided import Guided
from condiff.networks import FrameCache
from condiff.prefixed import Prefixed, for_rows, takes_frames
from condiff.typing import Float


class Context(Guided):
    """Base: a denoiser of chunks (B, F, ...) behind the frames that were pushed.

    Attributes:
        denoiser: the model.
        max_context: frames that are known at most.
        clean: the time that the model is told of them.
        count: frames that were ever pushed.
        nfe: network calls so far, those that write included.
    """

    denoiser: Any
    max_context: int
    clean: float
    count: int
    nfe: int

    @property
    def shape(self) -> None:
        """Chunks of any length."""
        return None

    def check(self, chunk: int) -> None:
        """Refuse a model or a length of chunks that this context isn't made for."""

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.nfe += 1
        return super().__call__(x_t, t, cond)

    @abstractmethod
    def begin(self, branches: int) -> None:
        """Forget everything; calls will come in so many copies of the batch."""

    @abstractmethod
    def push(self, frames: Float[Tensor, "batch frames *shape"], conds: Sequence[Conditions]) -> None:
        """Take in finished frames, under the conditions of each branch."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Frames that are known."""

    @property
    def nbytes(self) -> int:
        """Memory of what is kept between calls."""
        return 0


@dataclass(eq=False, repr=False)
class Cached(Context):
    """Keys and values of the frames before, written once at time ``clean`` and shared by all calls (Gao 2025).

    Raises:
        Incompatible: a network that isn't causal, or keeps nothing.
        BadValue: chunks longer than the context.
    """

    denoiser: Any
    max_context: int
    clean: float = 0.0
    count: int = field(default=0, init=False)
    nfe: int = field(default=0, init=False)
    cache: FrameCache | None = field(default=None, init=False)

    def check(self, chunk: int) -> None:
        if not isinstance(self.denoiser, Denoiser) or not takes_frames(self.denoiser):
            raise Incompatible(
                "a cache needs a Denoiser over a VideoTransformer: let the context be 'recomputed', or a 'condition'"
            )
        self.denoiser.network.new_cache(self.max_context).open(1, chunk)  # type: ignore[operator]

    def begin(self, branches: int) -> None:
        self.cache = self.denoiser.network.new_cache(self.max_context, branches)
        self.count = self.nfe = 0

    def push(self, frames: Tensor, conds: Sequence[Conditions]) -> None:
        joined = conds[0] if len(conds) == 1 else cat(list(conds))
        copies = for_rows(frames, frames.shape[0] * len(conds))
        self.denoiser.write(copies, self.clean, joined, self.cache)
        self.count, self.nfe = self.count + frames.shape[1], self.nfe + 1

    def predict(self, x_t: Any, level: Any, cond: Conditions) -> Any:
        return self.denoiser(x_t, level, cond, cache=self.cache)

    @property
    def length(self) -> int:
        return 0 if self.cache is None else self.cache.length

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes


@dataclass(eq=False, repr=False)
class Recomputed(Context):
    """The frames before the chunk, put before it in every call (a sliding window; any model with a time per frame)."""

    denoiser: Any
    max_context: int
    clean: float = 0.0
    count: int = field(default=0, init=False)
    nfe: int = field(default=0, init=False)
    _behind: Prefixed | None = field(default=None, init=False)

    def begin(self, branches: int) -> None:
        self._behind, self.count, self.nfe = None, 0, 0

    def push(self, frames: Tensor, conds: Sequence[Conditions]) -> None:
        self.count += frames.shape[1]
        window = frames if self._behind is None else torch.cat([self._behind.prefix, frames], dim=1)
        window = window[:, -self.max_context :]
        self._behind = Prefixed(self.denoiser, window, self.clean, self.count - window.shape[1])

    def predict(self, x_t: Any, level: Any, cond: Conditions) -> Any:
        assert self._behind is not None
        return self._behind(x_t, level, cond)

    @property
    def length(self) -> int:
        return 0 if self._behind is None else self._behind.prefix.shape[1]


@dataclass(eq=False, repr=False)
class AsCondition(Context):
    """The frames before the chunk as a condition of kind ``frames``, the newest last (MCVD, Voleti 2022).

    Args:
        name: of the condition.

    Frames that aren't there yet, at the beginning, are flagged as absent.
    """

    denoiser: Any
    max_context: int
    clean: float = 0.0
    name: str = "frames"
    count: int = field(default=0, init=False)
    nfe: int = field(default=0, init=False)
    _window: Tensor | None = field(default=None, init=False)

    def check(self, chunk: int) -> None:
        kinds = getattr(self.denoiser, "kinds", None) or {}
        if kinds.get(self.name) != "frames":
            raise Incompatible(f"the model has no condition {self.name!r} of kind 'frames', but {dict(kinds)}")

    def begin(self, branches: int) -> None:
        self._window, self.count, self.nfe = None, 0, 0

    def push(self, frames: Tensor, conds: Sequence[Conditions]) -> None:
        self.count += frames.shape[1]
        window = frames if self._window is None else torch.cat([self._window, frames], dim=1)
        self._window = window[:, -self.max_context :]

    def predict(self, x_t: Any, level: Any, cond: Conditions) -> Any:
        assert self._window is not None
        window, missing = for_rows(self._window, x_t.shape[0]), self.max_context - self._window.shape[1]
        blank = torch.zeros_like(window[:, :1]).expand(-1, missing, *window.shape[2:])
        there = torch.arange(self.max_context, device=x_t.device).ge(missing).expand(x_t.shape[0], -1)
        told = Condition(torch.cat([blank, window], dim=1), "frames", mask=there)
        return self.denoiser(x_t, level, cond.replace(**{self.name: told}))

    @property
    def length(self) -> int:
        return 0 if self._window is None else self._window.shape[1]


CONTEXTS: dict[str, Any] = {"cached": Cached, "recomputed": Recomputed, "condition": AsCondition}
