"""From files to files: a clip or two pictures in, a clip with more frames out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from condiff import figures
from condiff.data import read_frames
from condiff.errors import BadFile, BadValue, Incompatible, require_extra
from condiff.files import check_replaced, replacing
from condiff.sampling import DDIM
from condiff.video.interpolate import Interpolator, halvings

ANIMATIONS, VIDEOS = (".gif", ".png", ".webp"), (".mp4", ".mov", ".mkv")
ENDINGS = (*ANIMATIONS, *VIDEOS)
FRAME = re.compile(r"\d{6}\.png")


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
        out: a folder of numbered pictures, an animated .gif, .png or .webp, or a video (.mp4, .mov, .mkv).
        rate: frames per second of an animation or a video.

    Raises:
        BadValue, BadFile: see :class:`Interpolator`; an output that exists, or has another ending.
        Incompatible: a model that doesn't make pictures between frames.
    """
    halvings(factor)
    check_output(out, rate, overwrite)
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


def check_output(out: Path, rate: float, overwrite: bool) -> None:
    """
    Raises:
        BadValue: another ending, a rate that isn't positive.
        BadFile: an output that exists.
    """
    if out.suffix.lower() not in (*ENDINGS, ""):
        raise BadValue(f"the output is a folder or ends in {', '.join(ENDINGS)}, got {out.name!r}")
    if not rate > 0.0:
        raise BadValue(f"rate must be > 0 frames a second, got {rate}")
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise BadFile(f"{out} exists already: choose another one, or say --overwrite")
    if out.suffix == "":
        check_replaced(out, FRAME.fullmatch)


def write_frames(frames: Iterable[Tensor], out: Path, rate: float = 25.0) -> int:
    """Frames (C, H, W) in [-1, 1] as numbered pictures in a folder, as one animated picture, or as a video; how many.

    Folders and videos are written as the frames come.

    Raises:
        BadValue: no frames, a video of odd sides.
        BadFile: a folder of other things, which is replaced as a whole.
        MissingExtra: a video without PyAV.
    """
    write = _as_folder if out.suffix == "" else _as_video if out.suffix.lower() in VIDEOS else _as_animation
    if out.suffix == "":
        check_replaced(out, FRAME.fullmatch)
    with replacing(out) as temporary:
        count = write(_pictures(frames), temporary, rate)
        if not count:
            raise BadValue(f"there are no frames to write to {out}")
    return count


def _pictures(frames: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """(H, W, 3), or (H, W) of grey ones, bytes."""
    for frame in frames:
        picture = figures.to_uint8(frame[None])[0]
        yield picture[..., 0] if picture.shape[-1] == 1 else picture


def _as_folder(pictures: Iterator[np.ndarray], folder: Path, rate: float) -> int:
    pillow, count = require_extra("PIL.Image", "train"), 0
    folder.mkdir()
    for count, picture in enumerate(pictures, 1):
        pillow.fromarray(picture).save(folder / f"{count - 1:06d}.png")
    return count


def _as_animation(pictures: Iterator[np.ndarray], file: Path, rate: float) -> int:
    pillow = require_extra("PIL.Image", "train")
    images = [pillow.fromarray(picture) for picture in pictures]
    options = {"duration": 1000.0 / rate, "loop": 0, "append_images": images[1:], "save_all": True}
    if images:
        images[0].save(file, format=file.suffix.lower().lstrip(".").upper(), **options)
    return len(images)


def _as_video(pictures: Iterator[np.ndarray], file: Path, rate: float) -> int:
    """H.264 where PyAV brings it, else MPEG-4, in the usual subsampled colours."""
    av, count = require_extra("av", "video"), 0
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        for count, picture in enumerate(pictures, 1):
            height, width = picture.shape[:2]
            if height % 2 or width % 2:
                raise BadValue(f"a video has even sides, and frames are {height} x {width}: write an animation instead")
            if count == 1:
                stream.height, stream.width = height, width
            frame = av.VideoFrame.from_ndarray(picture, format="gray" if picture.ndim == 2 else "rgb24")
            container.mux(stream.encode(frame))
        if count:
            container.mux(stream.encode())
    return count
