"""Training on what follows: denoise a chunk of frames behind a clean prefix of drawn length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from condiff.conditions import Conditions
from condiff.errors import BadType, BadValue, Incompatible
from condiff.fields import checked
from condiff.prefixed import Prefixed, takes_frames
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import Denoising, Losses
from condiff.training.times import PerFrame


@dataclass(frozen=True, kw_only=True)
@checked
class PrefixLengths:
    """How many frames are given: uniform on ``given, given + chunk, given + 2 chunk, ... < frames``.

    Args:
        given: the least.
        chunk: how many frames follow (fewer at the end of a clip).
        frames: length of a clip.

    Example:
        >>> PrefixLengths(given=1, chunk=8, frames=33).choices
        (1, 9, 17, 25)
    """

    given: int = 1
    chunk: int = 8
    frames: int = 33

    def __post_init__(self) -> None:
        if min(self.given, self.chunk) < 1 or self.frames <= self.given:
            raise BadValue(f"needs given >= 1, chunk >= 1 and more frames than are given, got {self}")

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(range(self.given, self.frames, self.chunk))

    def draw(self, u: float) -> int:
        """The length for a uniform number on [0, 1)."""
        return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]


@dataclass(frozen=True, kw_only=True)
@checked
class PrefixDenoising:
    """``E loss([prefix | x_t])`` over the frames behind the prefix only (Gao 2025, section 3).

    One length P for the whole batch (and all its shards). Clips are cut to P + chunk frames from a random start. The
    prefix is clean, or has a little noise of its own; the network is told the time ``clean`` of it either way, and a
    time per row of what follows.

    Args:
        base: how what is said about the frames behind is compared, weighted and drawn; one time a row.
        lengths: law of P.
        perturb: the level of the prefix's noise; 0 for none.
        clean: the time that is told of the prefix.
        left_out: the condition that holds a clip's first frames, where data have one: the prefix stands for it.

    Where positions run in a circle that prefix and chunk fill, the circle begins anywhere.
    """

    base: Denoising = field(default_factory=Denoising)
    lengths: PrefixLengths = field(default_factory=PrefixLengths)
    perturb: float = 0.05
    clean: float = 0.0
    left_out: str | None = "first"

    def __post_init__(self) -> None:
        for name, t in (("perturb", self.perturb), ("clean", self.clean)):
            if not 0.0 <= t < 1.0:
                raise BadValue(f"{name} is a time in [0, 1), got {t}")
        if self.base.antithetic or self.base.coupling is not None or isinstance(self.base.times, PerFrame):
            raise Incompatible("frames behind a prefix have one time a row, and neither couplings nor antithetic pairs")

    @property
    def transform(self) -> Any:
        """What happens to the conditions."""
        return self.base.transform

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch of clips (B, F, ...).

        Raises:
            BadType: samples that aren't clips.
            BadValue: fewer frames than ``lengths`` asks for.
        """
        batch, rng = as_batch(batch, getattr(denoiser, "kinds", None)), as_source(rng)
        x, process = _clips(batch.x, self.lengths.frames), denoiser.process
        prefix = self.lengths.draw(rng.common())
        frames = min(prefix + self.lengths.chunk, self.lengths.frames)
        start = int(rng.common() * (x.shape[1] - frames + 1))
        starts = denoiser.network.position_starts(frames) if takes_frames(denoiser) else 1
        first = int(rng.common() * starts)
        where = x.device if x.device.type == "cuda" else "cpu"
        x = x[:, start : start + frames]
        t = self.base.times.sample(process, x.shape, rng, where)
        noise = process.noise_law.sample(rng, x.shape, x.dtype, x.device)
        cond = without(batch.cond, self.left_out)
        cond = cond if self.transform is None else self.transform(cond, t=t, rng=rng, training=training)
        mask = cast("Tensor | None", batch.mask)
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, start + prefix : start + frames]
        given = x[:, :prefix]
        if self.perturb > 0.0:
            given = process.forward(given, self.perturb, noise=noise[:, :prefix]).x_t
        behind = Prefixed(denoiser, given, self.clean, first)
        return self.base.at(behind, x[:, prefix:], t, noise[:, prefix:], cond, weight=batch.weight, mask=mask)


def without(cond: Conditions, name: str | None) -> Conditions:
    """The conditions but one."""
    return Conditions({other: entry for other, entry in cond.items() if other != name})


def _clips(x: Any, frames: int) -> Tensor:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.ndim < 3:
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise BadType(f"clips are floats (B, F, ...), got {what}")
    if x.shape[1] < frames:
        raise BadValue(f"clips of {x.shape[1]} frames came where {frames} are learnt from")
    return x
