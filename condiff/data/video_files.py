"""Where the frames of a clip come from: a folder of pictures, an animated picture, or a video file.

Folders and animated pictures need Pillow only. Video files are decoded by PyAV (``pip install av``), or by imageio
where that is installed with a plugin that reads them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condiff.data.frames import animation, frame_files
from condiff.data.picture import decode
from condiff.errors import BadFile, MissingExtra, require_extra

ANIMATED = (".gif", ".webp", ".apng")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Footage:
    """One recording.

    Args:
        path: a folder of frames, or a file.
        count: its frames.
        rate: frames per second; None where that isn't known.
    """

    path: Path
    count: int
    rate: float | None = None

    def frames(self, indices: Iterable[int]) -> list[Any]:
        """The frames of increasing indices, as Pillow images.

        Raises:
            BadFile: one that can't be read.
        """
        wanted = list(indices)
        if self.path.is_dir():
            files = _stills(self.path)
            return [decode(files[i].read_bytes(), f"{self.path.name}/{files[i].name}") for i in wanted]
        if self.path.suffix.lower() in ANIMATED:
            images = animation(self.path)
            return [images[i] for i in wanted]
        found = {i: image for i, image in enumerate(_decoded(self.path, last=wanted[-1])) if i in set(wanted)}
        if len(found) < len(wanted):
            raise BadFile(f"{self.path.name}: it ends before frame {wanted[-1]}, and announces {self.count} frames")
        return [found[i] for i in wanted]

    def each(self) -> Iterator[Any]:
        """All frames in order, as Pillow images, decoded one by one.

        Raises:
            BadFile: one that can't be read.
        """
        if self.path.is_dir():
            for file in _stills(self.path):
                yield decode(file.read_bytes(), f"{self.path.name}/{file.name}")
        elif self.path.suffix.lower() in ANIMATED:
            yield from animation(self.path)
        else:
            yield from _decoded(self.path, last=self.count - 1)


def footage(path: Path) -> Footage:
    """A folder of frames, an animated picture or a video file, opened and counted.

    Raises:
        BadFile: a file that can't be read.
        MissingExtra: a video file, and neither PyAV nor imageio.
    """
    if path.is_dir():
        return Footage(path, len(_stills(path)))
    if path.suffix.lower() in ANIMATED:
        images = animation(path)
        return Footage(path, len(images), _animation_rate(path))
    return _counted(path)


def recordings(root: Path) -> tuple[list[Path], list[Path]]:
    """``(recordings, other files)`` below a folder: folders that hold pictures, animated pictures, video files.

    Raises:
        BadFile: no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise BadFile(f"no such folder: {root}")
    found: list[Path] = []
    others: list[Path] = []
    for folder in sorted([root, *(f for f in root.rglob("*") if f.is_dir())]):
        if any(part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
        moving = [f for f in files if f.suffix.lower() in VIDEOS or _moves(f)]
        still = _stills(folder)
        found += [folder, *moving] if still else moving
        others += [f for f in files if f not in moving and f not in still]
    if not found:
        kinds = ", ".join((*VIDEOS, *ANIMATED))
        raise BadFile(f"no clips in {root}: neither folders of pictures nor files {kinds}")
    return sorted(found), others


def _stills(folder: Path) -> list[Path]:
    return [f for f in frame_files(folder) if not _moves(f)]


def _moves(path: Path) -> bool:
    """Whether a picture is an animated one; those that can't be read are found out later."""
    if path.suffix.lower() not in ANIMATED:
        return False
    try:
        with require_extra("PIL.Image", "data").open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        return False


def _animation_rate(path: Path) -> float | None:
    with require_extra("PIL.Image", "data").open(path) as image:
        duration = image.info.get("duration")
    return 1000.0 / duration if duration else None


# Video files


def _decoded(path: Path, last: int) -> Iterator[Any]:
    """The frames up to index ``last``."""
    for i, image in enumerate(_av(path) if _there("av") else _imageio(path)):
        yield image
        if i >= last:
            return


def _counted(path: Path) -> Footage:
    if _there("av"):
        av = importlib.import_module("av")
        with _opened(av, path) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            count = stream.frames or sum(1 for _ in container.decode(stream))
        return Footage(path, count, rate)
    return Footage(path, sum(1 for _ in _imageio(path)))


def _there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _opened(av: Any, path: Path) -> Any:
    try:
        container = av.open(str(path))
    except (OSError, ValueError) as error:  # PyAV's own errors are both, by kind
        raise BadFile(f"{path.name}: not a readable video ({error})") from error
    if not container.streams.video:
        container.close()
        raise BadFile(f"{path.name}: holds no video stream")
    return container


def _av(path: Path) -> Iterator[Any]:
    av = importlib.import_module("av")
    with _opened(av, path) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                yield frame.to_image()
        except (OSError, ValueError) as error:
            raise BadFile(f"{path.name}: can't be decoded ({error})") from error


def _imageio(path: Path) -> Iterator[Any]:
    if not _there("imageio"):
        raise MissingExtra(
            f"{path.name} is a video file, and neither PyAV nor imageio is installed: pip install av, or give its "
            "frames as a folder of pictures"
        )
    reader, pillow = importlib.import_module("imageio.v3"), require_extra("PIL.Image", "data")
    try:
        for frame in reader.imiter(path):
            yield pillow.fromarray(frame)
    except (OSError, ValueError, ImportError) as error:  # a missing plugin is an ImportError
        raise BadFile(f"{path.name}: imageio can't read it ({str(error).splitlines()[0]}): pip install av") from error
