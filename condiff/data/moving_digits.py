"""Moving digits, and a ball: clips of pictures that fly about in a box and bounce off its walls.

After Moving MNIST (Srivastava 2015), and with ``bounce="random"`` its stochastic version (Denton & Fergus 2018), where
a digit leaves a wall in a direction and at a speed that nobody can know. Every clip is generated from (seed, index); a
longer clip begins with the shorter one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.data.base import Data, hash_tensor
from condiff.data.clips import FIRST
from condiff.data.digits import SPLITS, digits
from condiff.data.seeded import uniform
from condiff.errors import BadType, BadValue, unknown

GLYPH = 8  # pixels of a digit's side
BOUNCES = ("mirror", "random")


class Bouncing(Data):
    """Clips (F, 1, side, side) in [-1, 1] of pictures (N, 8, 8) in [0, 1]; made by :func:`moving_digits` and
    :func:`bouncing_ball`."""

    moving = True

    def __init__(
        self,
        glyphs: Tensor,
        count: int,
        frames: int,
        side: int,
        *,
        per_clip: int = 1,
        speed: tuple[float, float] = (1.0, 2.5),
        bounce: str = "random",
        given: int = 0,
        seed: int = 0,
        name: str = "bouncing",
    ) -> None:
        sizes = {"count": (count, 1), "frames": (frames, 1), "side": (side, GLYPH + 2), "per_clip": (per_clip, 1)}
        for what, (value, least) in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise BadType(f"{what} must be an integer, got {value!r}")
            if value < least:
                raise BadValue(f"{what} must be at least {least}, got {value}")
        low, high = speed
        if not 0.0 <= low <= high <= side - GLYPH:
            raise BadValue(f"speed is a range of pixels a frame, at most the box's {side - GLYPH}, got {speed}")
        if bounce not in BOUNCES:
            raise unknown("bounce", bounce, BOUNCES)
        if not 0 <= given < frames:
            raise BadValue(f"given frames are fewer than the clip's {frames}, got {given}")
        self.glyphs, self.count, self.per_clip, self.bounce = glyphs, count, per_clip, bounce
        self.speed, self.given, self.seed, self.name = (float(low), float(high)), given, seed, name
        self.shape = (frames, 1, side, side)
        self.kinds = {FIRST: "frames"} if given else {}

    def __len__(self) -> int:
        return self.count

    @property
    def value_range(self) -> tuple[float, float]:
        return -1.0, 1.0

    def positions(self, index: Tensor, frames: int | None = None) -> Tensor:
        """Where the digits are, in pixels from the top left: (B, F, digits, 2), rows before columns."""
        wall = float(self.shape[-1] - GLYPH)
        start = uniform(self.seed, 0, index, 5 * self.per_clip).unflatten(1, (self.per_clip, 5))
        place, velocity = wall * start[..., 1:3], self._velocity(start[..., 3:5], start[..., 1:3])
        out = [place]
        for frame in range(1, self.shape[0] if frames is None else frames):
            place = place + velocity
            low, high = place < 0.0, place > wall
            place = torch.where(low, -place, torch.where(high, 2.0 * wall - place, place))
            velocity = torch.where(low, velocity.abs(), torch.where(high, -velocity.abs(), velocity))
            if self.bounce == "random":
                velocity = self._bounced(velocity, low | high, frame, index)
            out.append(place)
        return torch.stack(out, dim=1)

    def _velocity(self, u: Tensor, side: Tensor) -> Tensor:
        """A speed along each axis from the range, its sign from the digits of another draw."""
        low, high = self.speed
        sign = torch.where((side * 4096.0).floor() % 2 < 1.0, -1.0, 1.0)
        return sign * (low + (high - low) * u)

    def _bounced(self, velocity: Tensor, hit: Tensor, frame: int, index: Tensor) -> Tensor:
        """After a wall: new speeds on both axes, back from the wall on the one that met it, any way on the other."""
        u = uniform(self.seed, frame, index, 4 * self.per_clip).unflatten(1, (self.per_clip, 4))
        fresh = self._velocity(u[..., :2], u[..., 2:])
        fresh = torch.where(hit, fresh.abs() * velocity.sign(), fresh)
        return torch.where(hit.any(-1, keepdim=True), fresh, velocity)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        which = uniform(self.seed, 0, index, 5 * self.per_clip).unflatten(1, (self.per_clip, 5))[..., 0]
        glyphs = self.glyphs[(which * len(self.glyphs)).long()]
        places = self.positions(index)
        drawn = torch.stack(
            [drawn_at(glyphs[:, d], places[:, :, d], self.shape[-1]) for d in range(self.per_clip)]
        ).amax(0)
        x = (2.0 * drawn - 1.0)[:, :, None]
        return {"x": x, "cond": {FIRST: x[:, : self.given]} if self.given else {}}

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.speed} {self.bounce} {self.given} {self.seed} {self.per_clip}".encode())
        hash_tensor(digest, "glyphs", self.glyphs)


def drawn_at(glyphs: Tensor, places: Tensor, side: int) -> Tensor:
    """Pictures (B, 8, 8) at places (B, F, 2) between pixels, bilinearly: (B, F, side, side)."""
    whole = places.floor()
    down, right = (places - whole).float()[..., None, None].unbind(2)
    patch = glyphs.new_zeros(*places.shape[:2], GLYPH + 1, GLYPH + 1)
    for dy, wy in ((0, 1.0 - down), (1, down)):
        for dx, wx in ((0, 1.0 - right), (1, right)):
            patch[:, :, dy : dy + GLYPH, dx : dx + GLYPH] += wy * wx * glyphs[:, None]
    canvas = glyphs.new_zeros(*places.shape[:2], side + 1, side + 1)
    near = torch.arange(GLYPH + 1)
    rows, columns = (whole.long()[..., axis, None] + near for axis in (0, 1))
    b, f = torch.arange(len(places))[:, None, None, None], torch.arange(places.shape[1])[None, :, None, None]
    canvas[b, f, rows[..., :, None], columns[..., None, :]] = patch
    return canvas[..., :side, :side]


def moving_digits(
    count: int = 10_000,
    frames: int = 20,
    side: int = 32,
    *,
    split: str = "train",
    **how: Any,
) -> Bouncing:
    """Clips of moving digits, generated when asked for; no download.

    Args:
        count: how many clips; clip i is a function of the seed and i.
        frames: length of a clip.
        side: pixels of the box, at least 10.
        split: whose digits, as for :func:`condiff.data.digits`.
        how: ``per_clip``, digits in the box (1), which pass through each other; ``speed``, the range of the pixels a
            frame that a digit moves along each axis; ``bounce``, ``"mirror"`` off a wall, or ``"random"``, away from
            it at new speeds; ``given``, first frames that are also a condition ``first``, which clips are continued
            from; ``seed``.

    Raises:
        BadType, BadValue: sizes, speeds or names out of range.

    Example:
        >>> moving_digits(4, frames=12, side=16).batch([0, 3])["x"].shape
        torch.Size([2, 12, 1, 16, 16])
    """
    if split not in SPLITS:
        raise unknown("split of the digits", split, SPLITS)
    pictures = digits(split).batch(range(len(digits(split))))["x"][:, 0]
    return Bouncing((pictures + 1.0) / 2.0, count, frames, side, name=f"moving digits/{split}", **how)


def bouncing_ball(count: int = 10_000, frames: int = 20, side: int = 16, **how: Any) -> Bouncing:
    """Clips of a soft ball of 5 pixels, as :func:`moving_digits`; off walls as off mirrors by default."""
    far = torch.arange(GLYPH, dtype=torch.float32) - (GLYPH - 1) / 2.0
    ball = torch.exp(-(far[:, None].square() + far.square()) / 4.0)
    return Bouncing(ball[None], count, frames, side, name="bouncing ball", **{"bounce": "mirror", **how})
