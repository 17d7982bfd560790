"""A trained run of pictures tied to a companion of theirs, from folders to folders (UniCon on the command line)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from condiff import figures
from condiff.aligned import Aligned
from condiff.config import read_json
from condiff.data import Pictures, images, pairs
from condiff.errors import BadFile, BadValue, unknown
from condiff.files import check_replaced, replacing
from condiff.methods import names
from condiff.methods.runs import check_folder
from condiff.methods.tied_bases import PICTURE, Base, Where, base_again, base_of, captions
from condiff.methods.trial import check_writable, explained, generators_kept, plain
from condiff.methods.unicon import UniCon, join, objective
from condiff.training import Status, Trainer

PAIR = "pair"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a companion is called, and how it is learned.

    Args:
        name: of the companion.
        prompts: what pictures and companions show, one for all or one for each pair; or
        captions: the folder of text files with the pictures' names.
        trigger: what the companion's prompts begin with.
        rank: of the low-rank weights; by default that of the base's kind.
        aligned: place by place (depth, edges); else companions are natural pictures of the same subject.
        training: fields of :class:`~condiff.training.TrainConfig`, over those of the base's kind.

    Raises:
        BadValue: the name of the picture itself, prompts and captions.
    """

    name: str = "companion"
    prompts: Sequence[str] = ()
    captions: Path | None = None
    trigger: str = ""
    rank: int | None = None
    aligned: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == PICTURE:
            raise BadValue(f"{PICTURE!r} is the picture itself: give the companion another --name")
        if self.captions is not None and self.prompts:
            raise BadValue("say what pictures show by --prompt, or by --captions FOLDER, one of them")


def tie(
    target: str,
    paths: Sequence[str | Path],
    request: Request,
    folder: Path,
    where: Where,
    *,
    quiet: bool = False,
    trial: bool = True,
) -> tuple[Status, dict[str, Any]]:
    """Train the joint attention between pictures and their companions, which are matched by name; returns how it ended,
    and what came of it.

    Args:
        target: a trained run, or a pipeline's folder or name; it is left as it is.
        paths: folders of pictures and of companions.
        folder: of the new run.
        trial: whether a batch, and a companion, are tried first.

    Raises:
        BadFile: the folder exists; pictures without a caption.
        BadValue: other than two folders, pictures without a partner, prompts that nobody is told.
        Incompatible: a network that can't be paired.
    """
    if len(paths) != 2:
        raise BadValue(f"say --data PICTURES --data COMPANIONS, got {len(paths)} --data")
    check_folder(folder)
    base, name = base_of(target, where), request.name
    data = pairs(paths[1], paths[0], (base.shape[1], base.shape[2]), condition=name, channels=base.shape[0])
    words = base.words(_prompts(request, data), len(data))
    rank = base.rank if request.rank is None else request.rank
    post = "fuse" if request.aligned else "shared"
    model = join(base.denoiser, (PICTURE, name), rank=rank, post=post, own=request.aligned)
    pair = UniCon(model, base.source, request.trigger)
    rows = base.rows(data, name, words, pair)
    loss = objective(model, dropped=() if words is None else base.dropped)
    about = {"tie": {**base.about(), "name": name, "trigger": request.trigger}}
    training = replace(base.training, **request.training)
    if trial:
        _try(
            pair, base, data, Trainer(model, rows, loss, plain(training), quiet=True, device=where.place), words, folder
        )
    trainer = Trainer(model, rows, loss, training, folder, extra=about, quiet=quiet, device=where.place)
    status = trainer.fit()
    if not status.stopped:
        UniCon(cast(Aligned, trainer.averaged())).save(folder / PAIR)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return status, {"out": str(folder), "step": status.step, "pairs": len(data), "parameters": trained}


def _try(pair: UniCon, base: Base, data: Pictures, trainer: Trainer, words: Sequence[str] | None, folder: Path) -> None:
    """A batch forwards and backwards, and the companion of a picture in two steps, written as they are later."""
    check_writable(folder)
    phase, told = "a training step", None if words is None else words[:1]
    with generators_kept(), tempfile.TemporaryDirectory() as place:
        try:
            trainer.rehearse()
            phase = "sampling"
            given = {PICTURE: data.batch([0])["x"].to(trainer.engine.device)}
            scale = base.scale(None, told)
            with torch.no_grad():
                made = pair.sample(told, given=given, num=1, seed=0, steps=2, scale=scale)
            phase = "writing samples"
            _write({name: x.cpu() for name, x in made.items()}, Path(place) / "made", ["0"])
        except Exception as error:
            raise explained(error, phase, "", trainer.config) from error


def _prompts(request: Request, data: Pictures) -> Sequence[str]:
    if request.captions is None:
        return request.prompts
    return captions(request.captions, [str(Path(item.name).with_suffix("")) for item in data.views["x"]])


def open_tied(folder: Path, device: Any = None) -> tuple[UniCon, Base]:
    """The model of such a run, and what it was tied to.

    Raises:
        BadFile: no such run, one that isn't finished, or its base is gone.
    """
    about = read_json(folder / "config.json").get("tie")
    if about is None:
        raise BadFile(f"{folder} is no run of `condiff tie`")
    if not (folder / PAIR).is_dir():
        raise BadFile(f"{folder} was stopped before its end: tie it again")
    base = base_again(about, folder, device)
    source = base.denoiser if base.source is None else base.source
    pair = UniCon.load(source, folder / PAIR, (PICTURE, about["name"]), about.get("trigger", ""))
    pair.model.to(base.place)
    return pair, base


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is known, and how the rest is made.

    Args:
        known: ``NAME=PATH``, a picture or a folder of them; everything else is made.
        hold: ``NAME=R`` of known ones that are followed coarsely only, 0 < R <= 1.
        num: how many, where nothing is known.
        prompts: one for all or one for each, for pipelines.
        scale: of the guidance by prompts; a pipeline's own by default.
        hearing: of guidance by what variables say to each other; see :func:`condiff.methods.unicon.guided`.
        batch: pairs a network call.
    """

    known: Sequence[str] = ()
    hold: Sequence[str] = ()
    num: int | None = None
    prompts: Sequence[str] = ()
    scale: float | None = None
    hearing: float = 0.0
    steps: int = 50
    solver: str | None = None
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("num", "batch", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadValue(f"--{name} must be at least 1, got {value}")


def draw(
    folder: Path, out: Path, request: Drawing, *, device: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Pictures and companions, those that are known and those that are made; returns where and how.

    Raises:
        BadValue: unknown names, sizes or counts that differ, everything known.
        BadFile: files that aren't there, an output that is.
    """
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")
    pair, base = open_tied(folder, device)
    check_replaced(out, pair.model.variables.__contains__)
    given, stems = _known(request.known, pair.model.variables, base.shape)
    rows = next((len(x) for x in given.values()), request.num or max(len(request.prompts), 1 if base.source else 8))
    if request.num is not None and given and request.num != rows:
        raise BadValue(f"{rows} pictures are known: leave --num out")
    words = base.words(request.prompts, rows)
    options: dict[str, Any] = {"hold": _levels(request.hold, given), "steps": request.steps}
    options |= {"scale": base.scale(request.scale, words), "hearing": request.hearing}
    options["solver"] = None if request.solver is None else names.solver(request.solver)
    started, parts, step = time.perf_counter(), [], request.batch or base.at_once
    for first in range(0, rows, step):
        some = {name: x[first : first + step] for name, x in given.items()}
        seeds = range(request.seed + first, request.seed + min(first + step, rows))
        told = None if words is None else words[first : first + step]
        parts.append(pair.sample(told, given=some, num=len(seeds), seeds=seeds, **options))
    made = {name: torch.cat([part[name].cpu() for part in parts]) for name in pair.model.variables}
    seconds = time.perf_counter() - started
    _write({**made, **given}, out, stems or [f"{i:05d}" for i in range(rows)])
    return {"out": str(out), "num": rows, "steps": request.steps, "known": list(given), "seconds": round(seconds, 3)}


def _words(words: Sequence[str], variables: Sequence[str], what: str) -> dict[str, str]:
    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadValue(f"{what} takes NAME={'PATH' if what == '--known' else 'R'}, got {word!r}")
        if name not in variables:
            raise unknown("variable", name, variables)
        out[name] = value
    return out


def _known(words: Sequence[str], variables: Sequence[str], shape: Sequence[int]) -> tuple[dict[str, Tensor], list[str]]:
    """What is known, by variable, and the names of its files.

    Raises:
        BadValue: folders whose pictures have different names.
    """
    given: dict[str, Tensor] = {}
    stems: list[str] = []
    for name, path in _words(words, variables, "--known").items():
        rows = images(path, (shape[1], shape[2]), labels=None, channels=shape[0])
        given[name], found = rows.batch(range(len(rows)))["x"], [Path(item.name).stem for item in rows.views["x"]]
        if len(found) == len(stems) > 1 and found != stems:
            odd = next(a for a, b in zip(found, stems, strict=True) if a != b)
            raise BadValue(f"{path}: pictures belong together by name, and {odd!r} has no partner of its name")
        stems = found
    return given, stems


def _levels(words: Sequence[str], given: Mapping[str, Tensor]) -> dict[str, float]:
    out = {}
    for name, text in _words(words, list(given), "--hold").items():
        try:
            out[name] = float(text)
        except ValueError as error:
            raise BadValue(f"--hold {name}={text}: a number in (0, 1] is wanted") from error
        if not 0.0 < out[name] <= 1.0:
            raise BadValue(f"--hold {name}={text}: a number in (0, 1] is wanted")
    return out


def _write(made: Mapping[str, Tensor], out: Path, stems: Sequence[str]) -> None:
    """A grid with the variables side by side, or a folder with one of each variable's pictures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png":
        x = torch.stack(list(made.values()), 1).flatten(0, 1)
        figures.grid(x, out, labels=list(made) * len(stems), columns=2 * len(made))
        return
    with replacing(out) as temporary:
        for name, x in made.items():
            (temporary / name).mkdir(parents=True)
            for stem, one in zip(stems, x, strict=True):
                figures.picture(one, temporary / name / f"{stem}.png")
