"""Streams from files or a camera to files: what ``condiff stream`` does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from condiff.data.camera import camera
from condiff.data.video_files import Footage, footage
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.interop.loading import DTYPES, check_dtype, is_pipeline, load_pipeline
from condiff.methods import streamdiffusion
from condiff.methods.drawing import choose_labels
from condiff.methods.runs import check_device, default_device, open_run
from condiff.streaming import Live, SimilarityFilter, Translator
from condiff.video.files import check_output, write_frames

AHEAD = 4  # frames of a file that are read while others are worked on
RATE = 25.0  # frames a second, where a source doesn't say


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Args:
        video: a folder of frames, an animated picture or a video file; or
        camera: the number of a camera.
        prompt, negative: of a pipeline.
        label: a class of a run.
        steps, of, guidance, scale, delta, renoise: see :mod:`condiff.methods.streamdiffusion`.
        still: similarity above which frames may be skipped; None works on every one.
        frames: that are read at most.
        size: height and width of a pipeline's pictures.
        weights: of a run.
        dtype: of a pipeline's weights.
    """

    video: Path | None = None
    camera: int | None = None
    prompt: str | None = None
    negative: str | None = None
    label: str | None = None
    steps: tuple[int, ...] = (32, 45)
    of: int = 50
    guidance: str = "self"
    scale: float = 1.2
    delta: float = 1.0
    renoise: bool = True
    still: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    rate: float | None = None
    seed: int = 0
    weights: str = "ema"
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.video is None) == (self.camera is None):
            raise BadValue("say where frames come from: --video FILE_OR_FOLDER, or --camera N, one of them")
        check_dtype(self.dtype)
        if self.frames is not None and self.frames < 1:
            raise BadValue(f"frames must be at least 1, got {self.frames}")
        if self.video is not None and not self.video.exists():
            raise BadFile(f"no such file or folder: {self.video}")

    @property
    def filter(self) -> SimilarityFilter | None:
        return None if self.still is None else SimilarityFilter(self.still, seed=self.seed)


def stream_files(target: str, request: Request, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Frames through a pipeline or a run, written as they come; returns what was made and how fast.

    A camera is read until ``request.frames`` are there, or until Ctrl-C; frames that come while the model is busy are
    dropped. Of a file every frame has its picture.

    Raises:
        BadValue, BadFile, Incompatible: whatever can't be read, written or done.
    """
    check_output(out, RATE if request.rate is None else request.rate, overwrite)
    source = None if request.video is None else footage(request.video)
    rate = request.rate or (source and source.rate) or RATE
    live = None if request.camera is None else camera(request.camera)  # before a model is loaded
    translator = translator_of(target, request)
    began = time.perf_counter()
    running = None if live is None else Live(live, translator)
    pictures = _of_file(translator, source, request.frames) if source else _of_camera(running, request.frames)
    count = write_frames(pictures, out, rate)
    seconds = time.perf_counter() - began
    facts = {"out": str(out), "frames": count, "calls": translator.stream.calls, "delay": translator.delay}
    if running is not None:
        pace = running.pace
        facts |= {"dropped": pace.dropped, "latency": pace.latency, "latency_95": pace.latency_95}
    return {**facts, "seconds": round(seconds, 3), "frames_per_second": round(count / seconds, 2)}


def translator_of(target: str, request: Request) -> Translator:
    """A pipeline's folder or name, or the folder of a run, as a translator that was told what is asked for.

    Raises:
        BadFile: none of these. BadValue, Incompatible: what it can't be told.
    """
    folder = Path(target)
    how = {"guidance": request.guidance, "scale": request.scale, "delta": request.delta, "renoise": request.renoise}
    device = check_device(request.device or default_device())
    if not is_pipeline(target, "takes frames"):
        return _of_run(folder, request, device, how)
    if request.label is not None:
        raise BadValue("a pipeline is told a prompt: leave --label out")
    pipe = load_pipeline(target).to(device)
    pipe = pipe if request.dtype is None else pipe.to(DTYPES[request.dtype])
    translator = streamdiffusion.of_pipeline(
        pipe, request.steps, request.of, negative=request.negative, size=request.size, still=request.filter, **how
    )
    return translator.start(request.prompt or "", seed=request.seed)


def _of_run(folder: Path, request: Request, device: Any, how: dict[str, Any]) -> Translator:
    for name in ("prompt", "negative", "size", "dtype"):
        if getattr(request, name) is not None:
            raise BadValue(f"a run knows no {name}: leave --{name} out")
    run = open_run(folder)
    others = set(run.data.kinds) - {"label"}
    if others:
        raise Incompatible(f"the run is told {', '.join(sorted(others))} with every sample, and a stream only a class")
    model, told = run.model(request.weights, device), {} if request.guidance in ("initialize", "full") else None
    codec = run.recipe.build_codec(device)
    translator = streamdiffusion.of_model(
        model, request.steps, request.of, codec=codec, shape=run.data.shape, negative=told, still=request.filter, **how
    )
    label = choose_labels(run.data, [] if request.label is None else [request.label], 1)
    return translator.start(None if label is None else {"label": label}, seed=request.seed)


def _of_file(translator: Translator, source: Footage, most: int | None) -> Iterator[Tensor]:
    """Decoded in one thread and worked on in this one."""
    with Live(itertools.islice(source.each(), most), lambda frame: frame, waiting=AHEAD, drop=False) as frames:
        yield from translator.clip(frames)


def _of_camera(live: Any, most: int | None) -> Iterator[Tensor]:
    try:
        yield from itertools.islice(live, most)
    except KeyboardInterrupt:
        pass
    finally:
        live.close()
