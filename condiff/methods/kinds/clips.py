"""Clips (F, C, H, W): continued from their first frames, chunk by chunk where the method does so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from condiff import figures
from condiff.conditions import Conditions
from condiff.data import Data, Recalled, read_frames
from condiff.data.clips import FIRST
from condiff.errors import BadFile, BadValue, require_extra
from condiff.methods.drawn import Drawing, Part, Plan
from condiff.methods.given import Given
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.methods.recipe import default_patch
from condiff.methods.rolling import rollout
from condiff.metrics import motion, psnr
from condiff.networks import DiTConfig
from condiff.training import PrefixDenoising, TrainConfig
from condiff.video import write_frames
from condiff.video.files import VIDEOS

MOST, SHOWN = 16, 6  # clips that a run is judged by, and that are drawn to be looked at
MOST_NUMBERS = 2**24  # of clips in one network call
SMALL = 2**15  # numbers of a small clip
RATE = 8.0  # frames a second of an animation


class Clips(Kind):
    """Clips of frames, judged against how the real ones went on, seen as strips and animations."""

    holds = "clips"
    fewest = 1
    default_method = "ca2-vdm"
    endings = (".gif", ".webp", ".png", *VIDEOS, ".npz", ".npy")
    ending = ".gif"

    def matches(self, data: Any) -> bool:
        return getattr(data, "moving", False) and len(data.shape) == 4

    # Learning

    def network(self, facts: Any) -> Any:
        patch = default_patch(facts.shape[2:])
        small = math.prod(facts.shape) <= SMALL
        width, depth, heads = (96, 3, 4) if small else (384, 8, 6)
        conditions = dict(facts.embeddings)
        return DiTConfig(
            shape=tuple(facts.shape),
            layout="video",
            width=width,
            depth=depth,
            heads=heads,
            patch=(1, patch, patch),
            conditions=conditions,
        )

    def training(self, facts: Any) -> TrainConfig:
        if math.prod(facts.shape) <= SMALL:
            return TrainConfig(steps=3000, batch=32, lr=1e-3, warmup=100, validate_every=300)
        return TrainConfig(
            steps=100_000, batch=16, lr=1e-4, warmup=1000, ema=(0.9999, 0.999), save_every=2000, validate_every=2000
        )

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        data = Recalled(facts)
        data.moving = True
        return data

    # Drawing

    def rows_at_once(self, data: Data, batch: int) -> int:
        return max(1, min(batch, MOST_NUMBERS // math.prod(data.shape)))

    def draw(self, plan: Plan, rows: range) -> Part:
        """Clips behind their first frames, in chunks where that was learnt, else at once."""
        objective = plan.recipe.objective
        if not isinstance(objective, PrefixDenoising):
            return super().draw(plan, rows)
        if FIRST not in plan.cond:
            raise BadValue("clips are continued from given frames: name a picture or a clip with --condition")
        first = plan.cond[FIRST][rows.start : rows.stop].to(plan.device)
        told = plan.conditions(rows, plan.source(rows))
        cond = Conditions({name: entry for name, entry in told.items() if name != FIRST})
        roll = rollout(plan.denoiser, plan.recipe, plan.sampler, grid=plan.times, steps=None)
        more = (plan.frames or plan.data.shape[0]) - first.shape[1]
        if more < 1:
            raise BadValue(f"{first.shape[1]} frames are given: --frames must be more, got {plan.frames}")
        x = roll.generate(first, more, cond, seeds=[plan.seed + i for i in rows], progress=plan.progress)
        return Part(x.cpu(), roll.nfe)

    # Judging and looking

    def judged(self, heldout: Data) -> int:
        return min(len(heldout), MOST)

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        out: dict[str, Any] = {"samples": made.num, "motion": float(motion(made.x).mean())}
        if made.truth is None:
            return out
        given = made.cond[FIRST].shape[1] if FIRST in made.cond else 0
        behind = slice(given, min(made.x.shape[1], made.truth.shape[1]))
        near = psnr(made.x[:, behind], made.truth[:, behind])
        return {**out, "motion_floor": float(motion(made.truth).mean()), "psnr": float(near.mean())}

    def shown(self, data: Data) -> int:
        return SHOWN if figures.drawable(data.shape[1:]) else 0

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        """A strip of frames a clip, beneath the true one."""
        if not figures.drawable(made.x.shape[2:]):
            return None
        strips = made.x if made.truth is None else torch.stack([made.truth[:, : made.x.shape[1]], made.x], 1)
        x, frames = strips[:SHOWN].flatten(0, -4), made.x.shape[1]
        names = ["made"] if made.truth is None else ["true", "made"]
        labels = [name if k == 0 else "" for _ in made.x[:SHOWN] for name in names for k in range(frames)]
        return figures.grid(x, stem.with_name(f"{stem.name}.png"), labels=labels, columns=frames, cell=32)

    # ``condiff sample``

    def _check_drawable(self, out: Path, ending: str) -> None:
        """What can't be drawn is found out when it is written, but for videos without a writer of them."""
        if ending in VIDEOS:
            require_extra("av", "video")

    def check_frames(self, frames: int, run: OfRun) -> None:
        if frames < 2:
            raise BadValue(f"--frames counts the given frames too: at least 2, got {frames}")
        if not isinstance(run.recipe.objective, PrefixDenoising) and frames != run.data.shape[0]:
            raise BadValue(f"{run.recipe.method} makes clips of {run.data.shape[0]} frames, whatever --frames says")

    def default_num(self, labels: Sequence[str], data: Data) -> int:
        return SHOWN

    def read_conditions(self, words: Sequence[str], run: OfRun) -> Given:
        """Pictures and clips, each the first frames of a clip; other words as for every kind."""
        mine = [word for word in words if Path(word.removeprefix(f"{FIRST}=")).exists()]
        rest = super().read_conditions([word for word in words if word not in mine], run)
        if not mine:
            return rest
        channels, *size = run.data.shape[1:]
        paths = [Path(word.removeprefix(f"{FIRST}=")) for word in mine]
        read = [read_frames(path, channels=channels, size=(size[0], size[1])) for path in paths]
        counts = {len(frames) for frames in read}
        least = run.data.example()[FIRST].shape[1]
        if len(counts) > 1 or min(counts) < least:
            raise BadValue(f"clips begin with one number of frames, at least {least}; {sorted(counts)} were given")
        return Given({**rest.cond, FIRST: torch.stack(read)}, tuple(path.stem for path in paths))

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """An animation of all clips side by side, a folder (of frames for one clip, else of animations), or arrays."""
        if out.suffix.lower() in (".npz", ".npy"):
            super().write(made, out, run, told)
            return
        if not figures.drawable(made.x.shape[2:]):
            raise BadValue(f"frames of {made.x.shape[2]} channels can't be drawn: use --out {out.with_suffix('.npz')}")
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix or made.num == 1:
            write_frames(side_by_side(made.x), out, RATE)
            return
        try:
            out.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise BadFile(f"{out} is a file, and a folder of animations was asked for") from error
        named = told.names if len(set(told.names)) == made.num else [f"{i:05d}" for i in range(made.num)]
        for name, clip in zip(named, made.x, strict=True):
            write_frames(clip, out / f"{name}.gif", RATE)


def side_by_side(x: Tensor) -> Tensor:
    """Clips (N, F, C, H, W) as one, in a grid with a rim between them: (F, C, rows, columns)."""
    if len(x) == 1:
        return x[0]
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    framed = F.pad(x, (1, 1, 1, 1), value=1.0)
    blank = torch.ones_like(framed[:1]).expand(rows * columns - len(x), *framed.shape[1:])
    cells = torch.cat([framed, blank]).unflatten(0, (rows, columns))
    return cells.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
