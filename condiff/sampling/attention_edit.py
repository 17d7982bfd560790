"""Prompt-to-Prompt (Hertz 2022, 2208.01626): targets are sampled beside their source and attend as it does.

The first share of the steps, of the tokens that belong to each other's, cross-attention maps are the source's; of
another share, self-attention maps are. Then what lies outside of where some words are looked at is the source's too
(local blend).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.networks.attention_control import AttentionControl, Mixing, grid_of
from condiff.sampling.loop import Hook, Run, Step
from condiff.typing import Bool, Float


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Outside of a mask, a target's state is the source's.

    The mask is where maps of some words, averaged over the steps so far, layers and heads, and grown by ``radius``
    places, exceed ``threshold`` times their largest value: in the source or in the target.

    Args:
        source: (P, L), which tokens of the source are looked at, P being the rows of a target, or 1 for all.
        targets: (K, P, L), which tokens of the targets. Rows of a target where nothing is looked at are left alone.
        threshold: between 0 (nothing but zeros is the source's) and 1 (everything is).
        start: share of the steps after which states are blended.
        radius: of the dilation, in places of the map.
        factor: of the kept maps, those are taken whose sides are nearest to the state's divided by this.
    """

    source: Bool[Tensor, "rows tokens"]
    targets: Bool[Tensor, "targets rows tokens"]
    threshold: float = 0.3
    start: float = 0.2
    radius: int = 1
    factor: int = 4

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            check_share(name, value)
        if self.radius < 0 or self.factor < 1:
            raise BadValue(f"radius must be >= 0 and factor >= 1, got {self.radius} and {self.factor}")

    def mask(self, control: AttentionControl, shape: torch.Size) -> Bool[Tensor, "rows one height width"]:
        """Where the targets' states (K num, C, H, W) are their own.

        Raises:
            Incompatible: states that aren't pictures, or no maps of their places.
        """
        if len(shape) != 4:
            raise Incompatible(f"words are looked at in pictures (B, C, H, W), the states are {tuple(shape)}")
        layouts = {n: found for n in control.sums if (found := grid_of(n, shape[2], shape[3])) is not None}
        if not layouts:
            most = f"of at most {control.largest} x {control.largest} places"
            raise Incompatible(f"no cross-attention map {most} of states {tuple(shape)} was kept: nothing to blend by")
        gap = lambda n: (abs(math.log2(layouts[n][2] / self.factor)), layouts[n][2])
        queries = min(layouts, key=gap)
        maps, num = control.maps(queries), shape[0] // (1 + control.targets)
        words = torch.cat([self.source[None], self.targets]).to(maps.device)
        words = words.expand(-1, num, -1).flatten(0, 1)
        seen = (maps @ words[..., None].to(maps)).reshape(-1, 1, *layouts[queries][:2])
        seen = F.max_pool2d(seen, 2 * self.radius + 1, 1, self.radius)
        seen = F.interpolate(seen, size=shape[2:])  # the nearest
        inside = seen > self.threshold * seen.amax((2, 3), keepdim=True)
        every = ~words.unflatten(0, (-1, num))[1:].any(-1).flatten()
        return inside[num:] | inside[:num].repeat(control.targets, 1, 1, 1) | every[:, None, None, None]


@dataclass(frozen=True, eq=False)
class AttentionEdit(Hook):
    """Attention control over a trajectory of ``(1 + K) num`` rows: those of a source, then those of K targets.

    ``with edit.on(denoiser): sample(guided, cond=[source; targets], initial=[x; x ...], hooks=[edit])``. With guidance
    in one batched call, the first evaluation, that of the conditions, is controlled.

    Args:
        alignment: (K, P, L, L), M of :mod:`condiff.conditions.alignment`; P is ``num``, or 1 for all.
        heard: (K, P, L), how much of a token is the source's.
        cross: share of the steps with control of cross-attention, or (K, P, L) of each token.
        own: share of the steps where the targets' self-attention maps are the source's.
        weights: (K, P, L), what maps of a target's tokens are multiplied with while they are controlled; 1 by default.
        blend: local blend.
        largest: see :class:`condiff.networks.AttentionControl`.
        keep: keep the maps also without a blend; ``edit.control.maps`` are then their averages.
    """

    alignment: Float[Tensor, "targets rows source_tokens tokens"]
    heard: Float[Tensor, "targets rows tokens"]
    cross: float | Tensor = 0.8
    own: float = 0.6
    weights: Tensor | None = None
    blend: LocalBlend | None = None
    largest: int = 32
    keep: bool = False
    control: AttentionControl = field(init=False, repr=False)
    _mixings: dict[Any, Mixing | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("cross", self.cross), ("own", self.own)):
            check_share(name, value)
        object.__setattr__(self, "control", AttentionControl(len(self.alignment), self.largest))

    @contextmanager
    def on(self, denoiser: Any) -> Iterator[AttentionEdit]:
        """The network's attentions under control; afterwards they are what they were, whatever happens.

        Raises:
            Incompatible: a network that can't be controlled.
        """
        inner = denoiser
        while hasattr(inner, "members"):
            inner = inner.members[0]
        network = getattr(inner, "network", inner)
        if not hasattr(network, "control_attention"):
            raise Incompatible(
                f"the attention of {type(network).__name__} can't be controlled: a UNet or DiT that attends to the "
                "tokens of a condition is wanted, or a wrapped UNet2DConditionModel"
            )
        with network.control_attention(self.control):
            yield self

    def begin(self, rows: int, last: bool = False) -> None:
        """Before the first step of a batch of ``rows`` rows.

        Raises:
            BadValue: rows that aren't those of a source and its targets, or that aren't as many as were aligned.
        """
        self.control.begin(rows, last)
        num, aligned = rows // (1 + self.control.targets), self.heard.shape[1]
        if aligned not in (1, num):
            raise BadValue(f"{aligned} rows of prompts were aligned, got {num} rows of each")

    def at(self, index: int, steps: int) -> None:
        """Control for a step."""
        c = self.control
        c.keep = self.keep or self.blend is not None
        c.tied = index < upto(self.own, steps)
        c.mixing = self.mixing(index, steps)

    def mixing(self, index: int, steps: int) -> Mixing | None:
        """How cross-attention is mixed: with a = 1 while a token is controlled, w its weight, h what is heard,

        ``heard = M diag(a w h)`` and ``own = a w (1 - h) + (1 - a)``; None where nothing is controlled.
        """
        share = self.cross if isinstance(self.cross, Tensor) else torch.full_like(self.heard, self.cross)
        controlled = index < torch.floor(share.double() * steps + ROUNDING)
        key = controlled.numpy(force=True).tobytes()
        if key not in self._mixings:  # one for each time at which tokens are let go
            self._mixings[key] = self._mixing(controlled.to(self.heard)) if bool(controlled.any()) else None
        return self._mixings[key]

    def _mixing(self, active: Tensor) -> Mixing:
        weights = active if self.weights is None else active * self.weights
        heard = self.alignment * (weights * self.heard)[..., None, :]
        return Mixing(heard, weights * (1.0 - self.heard) + (1.0 - active))

    def blended(self, x: Tensor, index: int, steps: int) -> Tensor:
        """The states at the end of a step."""
        if self.blend is None or index < upto(self.blend.start, steps):
            return x
        num = len(x) // (1 + self.control.targets)
        source = x[:num].repeat(self.control.targets, 1, 1, 1)
        return torch.cat([x[:num], torch.where(self.blend.mask(self.control, x.shape), x[num:], source)])

    def before(self, x: Tensor, run: Run) -> Tensor:
        if run.index == 0:
            self.begin(len(x))
        self.at(run.index, run.steps)
        return x

    def after(self, step: Step, run: Run) -> Tensor:
        return self.blended(step.x_s, step.index, run.steps)


ROUNDING = 1e-6  # a share of .58 of 50 steps are 29, not 28.999


def upto(share: float, steps: int) -> int:
    """The number of steps that a share is."""
    return math.floor(share * steps + ROUNDING)


def check_share(name: str, value: float | Tensor) -> None:
    """
    Raises:
        BadValue: not between 0 and 1.
    """
    inside = bool(((value >= 0.0) & (value <= 1.0)).all()) if isinstance(value, Tensor) else 0.0 <= value <= 1.0
    if not inside:
        raise BadValue(f"{name} must lie between 0 and 1, got {value}")


def beside(edits: Sequence[AttentionEdit]) -> AttentionEdit:
    """One edit of several rows: the n-th row of the source, and of each target, is edited as the n-th says.

    Raises:
        BadValue: none, other numbers of targets or tokens, or anything else than prompts in which they differ.
    """
    if not edits:
        raise BadValue("beside takes at least one edit")
    first, shapes = edits[0], {(len(e.heard), e.heard.shape[2]) for e in edits}
    blends = [e.blend for e in edits if e.blend is not None]
    settings = {(e.own, e.largest, e.keep) for e in edits}
    settings_of_blend = {(b.threshold, b.start, b.radius, b.factor) for b in blends}
    if len(shapes) > 1 or len(settings) > 1 or len(settings_of_blend) > 1:
        raise BadValue("edits beside each other have as many targets and tokens, and the same settings")
    rows = lambda values: torch.cat(list(values), dim=1)
    cross = rows(e.cross if isinstance(e.cross, Tensor) else torch.full_like(e.heard, e.cross).double() for e in edits)
    weights = rows(torch.ones_like(e.heard) if e.weights is None else e.weights for e in edits)
    blend = None
    if blends:
        none = lambda e: torch.zeros_like(e.heard, dtype=torch.bool)
        source = torch.cat([none(e)[0] if e.blend is None else e.blend.source for e in edits])
        blend = replace(
            blends[0], source=source, targets=rows(none(e) if e.blend is None else e.blend.targets for e in edits)
        )
    return AttentionEdit(
        rows(e.alignment for e in edits), rows(e.heard for e in edits), cross, first.own, weights, blend,
        first.largest, first.keep,
    )  # fmt: skip
