"""Rollout: a video made chunk by chunk, each behind the frames before it (block-autoregressive).

Settings make the methods of this family: a causal network with a cache is Ca2-VDM, with ``temporal="block"`` attention
inside a chunk goes both ways (next-frame diffusion), ``context="recomputed"`` is a sliding window over any model with
a time per frame, and ``context="condition"`` MCVD's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadType, BadValue, Incompatible, NonFinite, unknown
from condiff.guidance import Distilled, Free
from condiff.guidance.guided import Guided
from condiff.prefixed import takes_frames
from condiff.process import Prior
from condiff.process.algebra import finite
from condiff.random import Source, as_source, derive_seed
from condiff.sampling import Grid, Hook, Solver, sample
from condiff.typing import Float
from condiff.video.contexts import CONTEXTS, Context


class Rollout:
    """Chunks of frames, one after the other.

    Args:
        model: a denoiser of clips (B, F, ...), or :class:`condiff.guidance.Free` around one: both branches are one
            batched call, and both are cached.
        chunk: frames that are made together.
        max_context: frames before the chunk that are known at most; the oldest are dropped.
        context: ``"cached"``, ``"recomputed"``, ``"condition"``, or what makes a :class:`Context` of a denoiser,
            ``max_context`` and ``clean``, such as ``partial(AsCondition, name="past")``.
        solver, grid, steps, hooks: how a chunk is sampled.
        prior: law of a chunk's first state; noise of the process by default.
        overlap: the last frames of a chunk that are made again by the next one, and not handed out.
        perturb: the level of noise on frames that become context, drawn once for each frame.
        clean: the time that the model is told of them.

    Raises:
        BadValue: numbers out of their range, chunks longer than what is cached, more frames at once than the network
            has positions.
        Incompatible: a model that the context isn't made for.

    Example:
        >>> roll = Rollout(model, chunk=8, max_context=25, solver=DDIM(), steps=20)
        >>> roll.start(first_frames, seed=0)
        >>> for clip in itertools.islice(roll, 10):
        ...     show(clip)
    """

    def __init__(
        self,
        model: Denoises,
        *,
        chunk: int,
        max_context: int,
        solver: Solver,
        context: str | Callable[..., Context] = "cached",
        grid: Grid | None = None,
        steps: int | None = None,
        hooks: Sequence[Hook] = (),
        prior: Prior | None = None,
        overlap: int = 0,
        perturb: float = 0.0,
        clean: float = 0.0,
    ) -> None:
        _check_numbers(chunk=chunk, max_context=max_context, overlap=overlap, perturb=perturb)
        self.model, self.chunk, self.max_context, self.overlap = model, chunk, max_context, overlap
        self.solver, self.grid, self.steps, self.hooks, self.prior = solver, grid, steps, tuple(hooks), prior
        self.perturb = perturb
        inner = model.denoiser if isinstance(model, Free) else model
        self.context = _context(context, inner, max_context, clean)
        _check_guidance(model, self.context)
        _check_positions(inner, chunk + max_context)
        self.context.check(chunk - overlap)
        self.guided: Any = self.context
        if isinstance(model, Free):
            self.guided = dataclasses.replace(model, denoiser=self.context)
        self._started = False

    # A roll

    @torch.no_grad()
    def start(
        self,
        first_frames: Float[Tensor, "batch frames *shape"],
        cond: Mapping[str, Any] | Conditions | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        rng: Source | None = None,
    ) -> Rollout:
        """Begin behind given frames.

        Args:
            cond: conditions of all chunks, until :meth:`advance` is given others.
            seed, seeds, rng: one seed, one per row, or a source; a row depends on its own seed only.

        Raises:
            BadValue: no frames, frames of another shape than the model's.
            BadType: integers.
            NonFinite: NaN, infinity.
        """
        frame = _check_frames(first_frames, self.model)
        self._frame, self._rows, self._dtype = frame, first_frames.shape[0], first_frames.dtype
        self._device = device_of(self.model, first_frames)
        self._rng, self._seeds = rng, _seeds(seed, seeds, rng, self._rows)
        self.clips = 0
        self.cond = as_conditions(cond, getattr(self.model, "kinds", None), self._device)
        self._started = True
        self.context.begin(len(self._branches(self.cond)))
        self._push(first_frames.to(self._device), self.cond)
        return self

    @torch.no_grad()
    def advance(self, cond: Mapping[str, Any] | Conditions | None = None) -> Float[Tensor, "batch frames *shape"]:
        """The next chunk, (B, chunk - overlap, ...), under other conditions (an action) where they are given.

        Raises:
            BadValue: before :meth:`start`.
        """
        if not self._started:
            raise BadValue("the rollout has no frames yet: call start(first_frames)")
        if cond is not None:
            self.cond = as_conditions(cond, getattr(self.model, "kinds", None), self._device)
        x = sample(
            self.guided,
            solver=self.solver,
            grid=self.grid,
            steps=self.steps,
            hooks=self.hooks,
            prior=self.prior,
            cond=self.cond,
            num=self._rows,
            shape=(self.chunk, *self._frame),
            rng=self._draws("chunk"),
            dtype=self._dtype,
            device=self._device,
        )
        clip = x[:, : self.chunk - self.overlap]
        self.clips += 1
        self._push(clip, self.cond)
        return clip

    def __iter__(self) -> Iterator[Tensor]:
        """Chunks without end."""
        while True:
            yield self.advance()

    def generate(
        self,
        first_frames: Float[Tensor, "batch frames *shape"],
        n_frames: int,
        cond: Mapping[str, Any] | Conditions | None = None,
        progress: Callable[[int, int], None] | None = None,
        **draws: Any,
    ) -> Float[Tensor, "batch all_frames *shape"]:
        """The given frames and ``n_frames`` behind them; ``draws`` as in :meth:`start`.

        ``progress`` is called with (chunks that are done, all chunks) behind each.
        """
        if isinstance(n_frames, bool) or not isinstance(n_frames, int) or n_frames < 1:
            raise BadValue(f"n_frames is a number of frames, at least 1, got {n_frames!r}")
        self.start(first_frames, cond, **draws)
        made = [first_frames.to(self._device)]
        hop = self.chunk - self.overlap
        chunks = -(-n_frames // hop)
        for k in range(chunks):
            made.append(self.advance())
            if progress is not None:
                progress(k + 1, chunks)
        return torch.cat(made, dim=1)[:, : first_frames.shape[1] + n_frames]

    @property
    def nfe(self) -> int:
        """Network calls since :meth:`start`, those that write a cache included."""
        return self.context.nfe

    # Parts

    def _push(self, frames: Tensor, cond: Conditions) -> None:
        """Frames become context, in pieces no longer than it."""
        if self.perturb > 0.0:
            process = self.context.process
            frames = process.forward(frames, self.perturb, rng=self._draws("context")).x_t
        branches = self._branches(cond)
        for piece in frames.split(min(self.chunk, self.max_context), dim=1):
            self.context.push(piece, branches)

    def _branches(self, cond: Conditions) -> list[Conditions]:
        return self.model.branches(cond, self._rows) if isinstance(self.model, Free) else [cond]

    def _draws(self, what: str) -> Source:
        """The draws of a chunk: a function of the row's seed and of the chunk's number."""
        if self._rng is not None:
            return self._rng
        return as_source([derive_seed(seed, what, self.clips) for seed in self._seeds])

    def __repr__(self) -> str:
        context = self.context
        return (
            f"Rollout(chunks of {self.chunk} frames, {context.length} of at most {self.max_context} known "
            f"({type(context).__name__}, {context.nbytes / 2**20:.2f} MiB), {context.count} written)"
        )


def _context(context: Any, denoiser: Any, max_context: int, clean: float) -> Context:
    if isinstance(context, str):
        if context not in CONTEXTS:
            raise unknown("context of a rollout", context, CONTEXTS)
        context = CONTEXTS[context]
    made = context(denoiser, max_context, clean) if callable(context) else None
    if not isinstance(made, Context):
        raise BadType(f"context= takes a name ({', '.join(CONTEXTS)}) or what makes a Context, got {context!r}")
    return made


def _check_numbers(*, perturb: float, **sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadType(f"{name} must be an integer, got {value!r}")
        if value < (name != "overlap"):
            raise BadValue(f"{name} must be at least {int(name != 'overlap')}, got {value}")
    if sizes["overlap"] >= sizes["chunk"]:
        raise BadValue(f"chunks of {sizes['chunk']} frames that overlap by {sizes['overlap']} lead nowhere")
    if not 0.0 <= perturb < 1.0:
        raise BadValue(f"perturb is a time in [0, 1), got {perturb}")


def _check_guidance(model: Any, context: Context) -> None:
    """A wrapper whose branches aren't known beforehand can't be written to a cache."""
    if isinstance(model, Free):
        switching = model.interval is not None and not isinstance(model.scale, Tensor) and model.scale == 0.0
        if switching or not isinstance(model.scale, Tensor | int | float):
            raise Incompatible("a rollout guides by a fixed scale (other than 0 with an interval): give Free a number")
    elif isinstance(model, Guided) and (takes_frames(context.denoiser) or any(map(takes_frames, model.members))):
        advice = f": give the scale among the conditions, {model.name!r}" if isinstance(model, Distilled) else ""
        raise Incompatible(f"a rollout takes a denoiser or Free around one, got {model!r}{advice}")


def _check_positions(denoiser: Any, frames: int) -> None:
    config = getattr(getattr(denoiser, "network", None), "config", None)
    if not takes_frames(denoiser) or getattr(config, "positions", "none") in ("rotary", "none"):
        return
    table = config.table  # type: ignore[union-attr]
    if frames > table:
        raise BadValue(
            f"context and chunk are {frames} frames, and the network has {table} positions: let max_context be at "
            f"most {table} less the chunk, or build it with max_frames={frames} or rotary positions"
        )


def _check_frames(frames: Any, model: Any) -> tuple[int, ...]:
    """The shape of one frame."""
    if not isinstance(frames, Tensor) or not frames.dtype.is_floating_point:
        raise BadType(f"first_frames are floats (B, F, ...), got {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.ndim < 3 or 0 in frames.shape[:2]:
        raise BadValue(f"a rollout begins behind at least one frame, (B, F, ...), got {tuple(frames.shape)}")
    if not finite(frames):
        raise NonFinite("first_frames hold NaN or infinity")
    shape = model.shape
    if shape is not None and tuple(shape[1:]) != tuple(frames.shape[2:]):
        raise BadValue(f"frames of shape {tuple(frames.shape[2:])} came to a model of frames {tuple(shape[1:])}")
    return tuple(frames.shape[2:])


def _seeds(seed: int | None, seeds: Sequence[int] | None, rng: Source | None, rows: int) -> list[int]:
    if sum(v is not None for v in (seed, seeds, rng)) > 1:
        raise BadValue("give one of seed=, seeds=, rng=")
    if rng is not None:
        if not isinstance(rng, Source):
            raise BadType(f"rng= takes a source of draws, such as a Tape; a number is seed=, got {rng!r}")
        return []
    if seeds is not None:
        if len(seeds) != rows:
            raise BadValue(f"{len(seeds)} seeds came for {rows} rows")
        return list(seeds)
    if seed is None:
        seed = torch.Generator().seed() >> 1
    return [derive_seed(seed, "row", i) for i in range(rows)]
