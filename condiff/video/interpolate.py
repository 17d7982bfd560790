"""Frame interpolation: the frame between two frames, and by halving again and again any 2^k - 1 of them.

What makes the middle frame is a denoiser over latents that is told both neighbours (the condition ``frames``). On a
process with an endpoint sampling starts at a neighbour; the two neighbours give two answers, which may be averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec, Identity, pad_to_multiple
from condiff.conditions import SIDES, Condition, Conditions, EitherEnd
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.model_files import load_codec, load_model, save_codec, save_model
from condiff.random import derive_seed
from condiff.sampling import DDIM, Grid, Hook, Solver, Strided, Uniform, sample
from condiff.typing import Float
from condiff.video.cuts import scene_cuts

Middle = Callable[[Tensor, Tensor, list[tuple[int, ...]]], Tensor]


def between(frames: Tensor, rounds: int, middle: Middle) -> Tensor:
    """Frames with ``2^rounds - 1`` new ones between each two: (F, ...) -> ((F - 1) 2^rounds + 1, ...).

    Each round puts a frame in the middle of every gap: ``middle(before, after, places)`` gives all of them,
    (G, ...), and place (pair, round, gap) names each by the given pair that it lies in, whatever else there is.
    """
    for level in range(rounds):
        gaps, each = len(frames) - 1, 2**level
        places = [(i // each, level, i % each) for i in range(gaps)]
        new = middle(frames[:-1], frames[1:], places)
        frames = torch.cat([torch.stack([frames[:-1], new], 1).flatten(0, 1), frames[-1:]])
    return frames


class Interpolator:
    """Frames between frames.

    Args:
        denoiser: over latents, told ``frames`` (B, 2, *latent), and on a process with an endpoint the side.
        codec: between frames and latents; frames as they are by default.
        solver, grid, hooks: how the middle latent is sampled. ``DDIM(eta)`` with eta in [0, 1] takes a share of the
            bridge's noise, ``DDPM()`` all of it.
        batch: gaps that are filled together.
        cut: histogram distance of two frames above which there is a warning of a scene cut; None for none.

    Raises:
        BadValue: frames of different shapes or beyond [-1, 1], fewer than two, a factor that is no power of 2, eta
            outside [0, 1], fewer than 3 steps on the default grid, an unknown side.
        BadType: frames of different dtypes, or of integers.
        Incompatible: a model that isn't told frames.

    Example:
        >>> made = Interpolator.from_pretrained("runs/street")(frame0, frame1, n=7, side="mean", seed=0)
    """

    def __init__(
        self,
        denoiser: Denoises,
        codec: Codec | None = None,
        *,
        solver: Solver | None = None,
        grid: Grid | None = None,
        hooks: Sequence[Hook] = (),
        batch: int = 16,
        cut: float | None = 0.5,
    ) -> None:
        kinds = getattr(denoiser, "kinds", {})
        if kinds and kinds.get("frames") != "frames":
            raise Incompatible(f"the model isn't told the frames on both sides, but {list(kinds)}: train on triplets")
        self.denoiser, self.codec = denoiser, Identity() if codec is None else codec
        self.solver, self.grid = solver or DDIM(eta=1.0), grid or default_grid(denoiser.process)
        if isinstance(self.solver, DDIM) and not 0.0 <= self.solver.eta <= 1.0:
            raise BadValue(f"eta, the share of the bridge's noise, lies in [0, 1], got {self.solver.eta}")
        if batch < 1:
            raise BadValue(f"batch must be at least 1, got {batch}")
        self.hooks, self.batch, self.cut = tuple(hooks), batch, cut

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        weights: str = "ema",
        *,
        codec: Codec | None = None,
        device: Any = "cpu",
        **options: Any,
    ) -> Interpolator:
        """The interpolator of a folder: a model, and its codec in the folder ``codec`` where there is one.

        Args:
            weights: of the model, as for :func:`condiff.load`.
            codec: instead of the stored one, such as a wrapped autoencoder.
        """
        folder = Path(folder)
        denoiser = load_model(folder, weights, device=device)
        if codec is None and (folder / "codec").is_dir():
            codec = load_codec(folder / "codec", device=device)
        return cls(any_size(denoiser), codec, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what :meth:`from_pretrained` reads. A codec that condiff doesn't publish has to be given again."""
        save_model(folder, self.denoiser)  # type: ignore[arg-type]
        if not isinstance(self.codec, Identity) and hasattr(self.codec, "config"):
            save_codec(Path(folder) / "codec", self.codec)

    def __call__(
        self,
        frame0: Float[Tensor, "*shape"],
        frame1: Float[Tensor, "*shape"],
        n: int = 1,
        *,
        steps: int = 50,
        side: str = "next",
        seed: int = 0,
    ) -> Float[Tensor, "n *shape"]:
        """``n`` frames evenly between two, n one of 1, 3, 7, 15, ...

        Args:
            steps: solver steps a frame.
            side: where sampling starts: ``"prev"``, ``"next"``, or ``"mean"``, the mean of both latents.
            seed: of the noise.
        """
        check_frames([frame0, frame1])
        return self.clip(torch.stack([frame0, frame1]), n + 1, steps=steps, side=side, seed=seed)[1:-1]

    def clip(
        self,
        frames: Float[Tensor, "batch *shape"],
        factor: int = 2,
        *,
        steps: int = 50,
        side: str = "next",
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """A clip at ``factor`` times its rate: (F, *shape) -> ((F - 1) factor + 1, *shape), the given frames in it.

        The noise of a frame depends on the seed and on its place only.
        """
        check_frames(frames)
        rounds = halvings(factor)
        if side not in (*SIDES, "mean"):
            raise unknown("side", side, (*SIDES, "mean"))
        self._warn(frames)
        bar = _bar(progress, (len(frames) - 1) * (factor - 1))

        def middle(before: Tensor, after: Tensor, places: list[tuple[int, ...]]) -> Tensor:
            seeds = [derive_seed(seed, *place) for place in places]
            made = []
            for first in range(0, len(before), self.batch):
                rows = slice(first, first + self.batch)
                made.append(self.middle(before[rows], after[rows], steps=steps, side=side, seeds=seeds[rows]))
                bar.update(len(made[-1]))
            return torch.cat(made)

        try:
            return between(frames, rounds, middle)
        finally:
            bar.close()  # what is said next, an error too, begins on a line of its own

    @torch.no_grad()
    def middle(
        self,
        before: Float[Tensor, "batch *shape"],
        after: Float[Tensor, "batch *shape"],
        *,
        steps: int = 50,
        side: str = "next",
        seeds: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The frames in the middle of each row's two, in [-1, 1]; sides that the codec can't take are padded."""
        both, (h, w) = _padded(torch.stack([before, after], 1), self.codec.factor)
        frames = torch.stack([self.codec.encode(frame) for frame in both.unbind(1)], 1)
        sides = tuple(SIDES) if side == "mean" else (side,)
        latents = [self._sample(frames, one, steps, seeds) for one in sides]
        x = self.codec.decode(torch.stack(latents).mean(0), ref=both)
        return (x[..., :h, :w] if x.ndim > 3 else x).clamp(-1.0, 1.0)

    def _sample(self, frames: Tensor, side: str, steps: int, seeds: Sequence[int] | None) -> Tensor:
        cond = Conditions({"frames": Condition(frames, "frames")})
        options: dict[str, Any] = {"grid": self.grid, "steps": steps, "seeds": seeds, "shape": frames.shape[2:]}
        if self.denoiser.process.has_source:
            cond = EitherEnd(sampling=side)(cond, training=False)
            options |= {"initial": cond.source, "shape": None}
        return sample(self.denoiser, solver=self.solver, cond=cond, hooks=self.hooks, dtype=frames.dtype, **options)

    def _warn(self, frames: Tensor) -> None:
        cuts = scene_cuts(frames, self.cut) if self.cut is not None else []
        if cuts:
            places = ", ".join(f"{i} and {i + 1}" for i in cuts[:8]) + (", ..." if len(cuts) > 8 else "")
            warnings.warn(
                f"a scene seems to end between the frames {places}: what is made there mixes two scenes", stacklevel=3
            )


def check_frames(frames: Any) -> None:
    """
    Raises:
        BadValue: fewer than two frames, different shapes, values beyond [-1, 1].
        BadType: different dtypes, or integers.
    """
    if len(frames) < 2:
        raise BadValue(f"interpolation needs at least two frames, got {len(frames)}")
    for i, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise BadValue(
                f"frames must have one shape, frame 0 has {tuple(frames[0].shape)}, {i} {tuple(frame.shape)}"
            )
        if frame.dtype != frames[0].dtype or not frame.dtype.is_floating_point:
            raise BadType(f"frames are floats of one dtype, frame 0 is {frames[0].dtype}, frame {i} {frame.dtype}")
        low, high = float(frame.min()), float(frame.max())
        if not (low >= -1.0 and high <= 1.0):
            raise BadValue(f"frames lie in [-1, 1], frame {i} runs from {low:g} to {high:g}")


def halvings(factor: int) -> int:
    """k of ``factor = 2^k``.

    Raises:
        BadType, BadValue: a factor that isn't a power of 2, at least 2.
    """
    if isinstance(factor, bool) or not isinstance(factor, int):
        raise BadType(f"factor must be an integer, got {factor!r}")
    if factor < 2 or factor & (factor - 1):
        raise BadValue(
            f"gaps are halved again and again, so the factor is 2, 4, 8, ... (1, 3, 7 new frames); got {factor}"
        )
    return factor.bit_length() - 1


def any_size(denoiser: Any) -> Any:
    """The denoiser, free of the size of its samples where its network takes any."""
    if getattr(denoiser.network, "any_size", False):
        denoiser.shape = None
    return denoiser


def default_grid(process: Any) -> Grid:
    """The grid of BBDM where the process has a table, else even times."""
    numbered = getattr(process, "steps", None) or getattr(getattr(process, "schedule", None), "steps", None)
    return Strided() if numbered else Uniform()


def _padded(frames: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures (B, 2, C, H, W) padded to a multiple; other samples as they are."""
    if frames.ndim != 5:
        return frames, (0, 0)
    return pad_to_multiple(frames, multiple)


def _bar(progress: bool, total: int) -> Any:
    if not progress:
        return SimpleNamespace(update=lambda count: None, close=lambda: None)
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="interpolating", unit="frame", leave=False)
