"""What a companion can be tied to: a trained run of pictures, or a pretrained diffusers pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff import figures
from condiff.conditions import GUIDANCE
from condiff.data import AsVariables, Data, latents
from condiff.denoiser import Denoiser
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.interop.loading import DTYPES, check_dtype, is_pipeline, load_pipeline
from condiff.interop.pipelines import Wrapped, wrap
from condiff.methods.companions import UniCon
from condiff.methods.runs import check_device, default_device, open_run
from condiff.training import TrainConfig

PICTURE = "image"


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and how a base is loaded.

    Args:
        device: by default a GPU if there is one.
        size: height and width of a pipeline's pictures; by default those that it was trained on.
        dtype: of a pipeline's weights.

    Raises:
        BadValue: an unknown dtype.
    """

    device: str | None = None
    size: tuple[int, int] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def place(self) -> torch.device:
        """The device.

        Raises:
            BadValue: there is no such device.
        """
        return check_device(self.device or default_device())


class Base(ABC):
    """Base: a denoiser of pictures, and what it is told.

    Attributes:
        denoiser: of the pictures, or of their latents.
        shape: of the pictures (C, H, W).
        place: where it computes.
        source: the wrapped pipeline, if it is one.
        dropped: conditions of either variable that are left out at times in training.
        rank, training: of the weights that tie, unless told.
        at_once: pairs a network call when sampling, unless told.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    source: Wrapped | None = None
    dropped: tuple[str, ...] = ()
    rank: ClassVar[int]
    training: ClassVar[TrainConfig]
    at_once: ClassVar[int]

    def __init__(self, where: Where) -> None:
        self.place = where.place

    def scale(self, asked: float | None, words: Sequence[str] | None) -> float:
        """Of the guidance by words.

        Raises:
            BadValue: one for a model that has none, or where there are no words.
        """
        own = None if words is None else self.own_scale
        if own is None and asked is not None:
            raise BadValue("nothing is told here that could be guided by: leave --scale out")
        return (1.0 if own is None else own) if asked is None else asked

    @property
    def own_scale(self) -> float | None:
        """Its own; None where it has none."""
        return None

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """How it is found again, for a run's config.json."""

    @abstractmethod
    def rows(self, data: Data, name: str, words: Sequence[str] | None, pair: UniCon) -> Any:
        """Pictures and companions as the variables of a pair, with what they are told."""

    @abstractmethod
    def words(self, prompts: Sequence[str], rows: int) -> list[str] | None:
        """The prompts, or classes, of the rows of a pair; None where nothing is told.

        Raises:
            BadValue: prompts for what isn't told any, or another number of them than one or that of the rows.
        """


class RunBase(Base):
    """A run of pictures.

    Raises:
        Incompatible: a run of something else, or in latents. BadValue: a size or a dtype.
    """

    rank = 16
    training = TrainConfig(steps=2000, batch=64, lr=1e-3)
    at_once = 64

    def __init__(self, folder: Path, where: Where) -> None:
        if where.size is not None or where.dtype is not None:
            raise BadValue(f"{folder} is a run, which has one size and dtype: leave --size and --dtype out")
        super().__init__(where)
        run = open_run(folder)
        base = run.model(device=self.place)
        if not isinstance(base, Denoiser) or run.recipe.codec is not None or not figures.drawable(run.data.shape):
            raise Incompatible(f"{folder} isn't a run of pictures as they are: a companion is tied to such a one")
        self.folder, self.denoiser, self.shape = folder, base, tuple(run.data.shape)

    def about(self) -> dict[str, Any]:
        return {"run": str(self.folder.resolve())}

    def rows(self, data: Data, name: str, words: Sequence[str] | None, pair: UniCon) -> AsVariables:
        return AsVariables(data, **{PICTURE: "x", name: name})

    def words(self, prompts: Sequence[str], rows: int) -> None:
        if prompts:
            raise BadValue(f"{self.folder} is a run, which is told no prompts here: leave --prompt and --captions out")


class PipelineBase(Base):
    """A pretrained pipeline of pictures: Stable Diffusion, XL, 3, FLUX with prompts, DiT with classes.

    Raises:
        BadFile: it can't be loaded. Incompatible: it isn't known, or has no autoencoder.
    """

    source: Wrapped
    rank = 64
    training = TrainConfig(steps=2000, batch=16, lr=1e-4, weight_decay=1e-2, warmup=100, schedule="constant")
    at_once = 4

    def __init__(self, name: str, where: Where) -> None:
        super().__init__(where)
        pipe = load_pipeline(name).to(self.place)
        wrapped = wrap(pipe if where.dtype is None else pipe.to(DTYPES[where.dtype]), size=where.size)
        if wrapped.codec is None or len(wrapped.denoiser.shape or ()) != 3:
            raise Incompatible(f"{name} isn't a pipeline of pictures in latents: a companion is tied to such a one")
        self.name, self.dtype, self.source, self.denoiser = name, where.dtype, wrapped, wrapped.denoiser
        self.codec = wrapped.codec.to(self.place)
        self.dropped = tuple(n for n in wrapped.family.reference if n in self.denoiser.kinds)
        self.shape = (3, *wrapped.family.size)

    @property
    def own_scale(self) -> float | None:
        return self.source.family.scale if self.dropped or GUIDANCE in self.denoiser.kinds else None

    def about(self) -> dict[str, Any]:
        name = str(Path(self.name).resolve()) if Path(self.name).exists() else self.name
        return {"pipeline": name, "size": list(self.shape[1:]), "dtype": self.dtype}

    def rows(self, data: Data, name: str, words: Sequence[str] | None, pair: UniCon) -> ToldPairs:
        z = latents(data, self.codec, batch=self.at_once, device=self.place)
        scale = {GUIDANCE: float(self.source.family.scale)} if GUIDANCE in self.denoiser.kinds else {}
        return ToldPairs(AsVariables(z, **{PICTURE: "x", name: name}), words, pair, scale)

    def words(self, prompts: Sequence[str], rows: int) -> list[str] | None:
        if not prompts:
            return [""] * rows if "prompt" in self.denoiser.kinds else None
        if len(prompts) not in (1, rows):
            raise BadValue(f"give one --prompt for all, or one each: got {len(prompts)} for {rows} pictures")
        return list(prompts) * (rows if len(prompts) == 1 else 1)


@dataclass(eq=False)
class ToldPairs:
    """Rows of a pair of variables, with what a pipeline is told of each, encoded when it is read.

    Args:
        rows: of latents.
        words: prompts or classes, one a row; None tells nothing.
        pair: which encodes them.
        scales: further conditions, of one value for all rows.
    """

    rows: AsVariables
    words: Sequence[str] | None
    pair: UniCon
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.shape, self.kinds = self.rows.name, self.rows.shape, {}
        self._encoded = lru_cache(maxsize=1)(self._encode)  # of one prompt for all, once

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Any, epoch: int = 0) -> dict[str, Any]:
        x = self.rows.batch(indices, epoch)["x"]
        told = {name: torch.full((len(x[PICTURE]),), scale) for name, scale in self.scales.items()}
        if self.words is None:
            return {"x": x, "cond": told}
        some = [self.words[int(i)] for i in torch.as_tensor(indices)]
        once = sorted(set(some))
        index = {word: i for i, word in enumerate(once)}
        encoded = self._encoded(tuple(once))
        return {"x": x, "cond": {**told, **{n: v[[index[word] for word in some]] for n, v in encoded.items()}}}

    @torch.no_grad()
    def _encode(self, words: tuple[str, ...]) -> dict[str, Tensor]:
        """What the picture and its companion are told, each under its name."""
        told = self.pair.told(list(words)).to("cpu")
        return {name if "." in name else f"{PICTURE}.{name}": entry.value for name, entry in told.items()}

    def fingerprint(self) -> str:
        """That of the rows, and their words."""
        return f"{self.rows.fingerprint()} {self.words}"


def base_of(target: str, where: Where) -> Base:
    """A run's folder, a pipeline's folder, or a pipeline's name on the Hub.

    Raises:
        BadFile: none of these.
    """
    return PipelineBase(target, where) if is_pipeline(target, "has companions") else RunBase(Path(target), where)


def base_again(about: Mapping[str, Any], folder: Path, device: str | None) -> Base:
    """What a run was tied to.

    Raises:
        BadFile: it is gone.
    """
    if "pipeline" in about:
        size = (about["size"][0], about["size"][1])
        return PipelineBase(about["pipeline"], Where(device=device, size=size, dtype=about["dtype"]))
    if not Path(about["run"]).is_dir():
        raise BadFile(f"the run that {folder} was tied to isn't there any more: {about['run']}")
    return RunBase(Path(about["run"]), Where(device=device))


def captions(folder: Path, stems: Sequence[str]) -> list[str]:
    """What the text files of a folder say of pictures: ``a/3.txt`` of ``a/3.png``.

    Raises:
        BadFile: pictures without one, named.
    """
    files = [folder / f"{stem}.txt" for stem in stems]
    alone = [str(path) for path in files if not path.is_file()]
    if alone:
        raise BadFile(f"{len(alone)} of {len(files)} pictures have no caption: {', '.join(alone[:5])}")
    return [path.read_text(encoding="utf-8").strip() for path in files]
