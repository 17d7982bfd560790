"""From files to files: a clip or two pictures in, a clip with more frames out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from condiff import figures
from condiff.data import read_frames
from condiff.errors import BadFile, BadValue, Incompatible, require_extra
from condiff.files import replacing
from condiff.sampling import DDIM
from condiff.video.interpolate import Interpolator, halvings

ENDINGS = (".gif", ".png", ".webp")


def interpolate_files(
    paths: Sequence[Path],
    model: Path,
    out: Path,
    *,
    factor: int = 2,
    steps: int = 50,
    side: str = "next",
    eta: float = 1.0,
    seed: int = 0,
    rate: float = 25.0,
    weights: str = "ema",
    device: Any = "cpu",
    batch: int = 16,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Put frames between those of a clip and write all of them; returns where they are and how they were made.

    Args:
        paths: two pictures or more, or one folder of frames, animated picture or video file.
        model: the folder of the model (see :meth:`Interpolator.from_pretrained`).
        out: a folder of numbered pictures, or an animated .gif, .png or .webp.
        rate: frames per second of an animation.

    Raises:
        BadValue, BadFile: see :class:`Interpolator`; an output that exists, or has another ending.
        Incompatible: a model that doesn't make pictures between frames.
    """
    halvings(factor)
    _check_output(out, rate, overwrite)
    maker = Interpolator.from_pretrained(model, weights, solver=DDIM(eta=eta), batch=batch, device=device)
    given = read_frames(paths[0] if len(paths) == 1 else paths, channels=_channels(maker))
    made = maker.clip(given.to(device), factor, steps=steps, side=side, seed=seed, progress=progress).cpu()
    write_frames(made, out, rate)
    return {"out": str(out), "frames": len(made), "given": len(given), "factor": factor, "side": side, "seed": seed}


def _channels(maker: Interpolator) -> int:
    """Of the pictures that the model works on."""
    denoiser: Any = maker.denoiser
    config = getattr(maker.codec, "config", None)
    shape = getattr(config, "shape", None) or denoiser.network.config.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise Incompatible(f"the model makes samples of shape {tuple(shape)}, not pictures")
    return shape[0]


def _check_output(out: Path, rate: float, overwrite: bool) -> None:
    if out.suffix.lower() not in (*ENDINGS, ""):
        raise BadValue(f"the output is a folder or ends in {', '.join(ENDINGS)}, got {out.name!r}")
    if not rate > 0.0:
        raise BadValue(f"rate must be > 0 frames a second, got {rate}")
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise BadFile(f"{out} exists already: choose another one, or say --overwrite")


def write_frames(frames: Tensor, out: Path, rate: float = 25.0) -> None:
    """Frames (F, C, H, W) in [-1, 1] as numbered pictures in a folder, or as one animated picture."""
    pillow = require_extra("PIL.Image", "train")
    pictures = [pillow.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in figures.to_uint8(frames)]
    with replacing(out) as temporary:
        if out.suffix == "":
            temporary.mkdir()
            for i, picture in enumerate(pictures):
                picture.save(temporary / f"{i:06d}.png")
        else:
            kind = out.suffix.lower().lstrip(".")
            options = {"duration": 1000.0 / rate, "loop": 0, "append_images": pictures[1:], "save_all": True}
            pictures[0].save(temporary, format=kind.upper(), **options)
