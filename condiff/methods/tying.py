"""A trained run of pictures tied to a companion of theirs, from folders to folders (UniCon on the command line)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from condiff import figures
from condiff.aligned import Aligned
from condiff.config import read_json
from condiff.data import AsVariables, images, pairs
from condiff.denoiser import Denoiser
from condiff.errors import BadFile, BadValue, Incompatible, unknown
from condiff.files import check_replaced, replacing
from condiff.methods import names
from condiff.methods.runs import check_device, check_folder, default_device, open_run
from condiff.methods.unicon import UniCon, join, objective
from condiff.training import Status, TrainConfig, Trainer

PICTURE, PAIR = "image", "pair"
AT_ONCE = 64  # pairs a network call when sampling


def _base(folder: Path) -> tuple[Denoiser, tuple[int, ...]]:
    """The model of a run of pictures, and their shape.

    Raises:
        Incompatible: a run of something else, or in latents.
    """
    run = open_run(folder)
    base = run.model(device="cpu")
    if not isinstance(base, Denoiser) or run.recipe.codec is not None or not figures.drawable(run.data.shape):
        raise Incompatible(f"{folder} isn't a run of pictures as they are: a companion is tied to such a one")
    return base, tuple(run.data.shape)


def tie(
    run: Path,
    paths: Sequence[str | Path],
    name: str,
    folder: Path,
    *,
    training: TrainConfig,
    rank: int = 16,
    aligned: bool = True,
    quiet: bool = False,
) -> Status:
    """Train the joint attention between a run's pictures and their companions, which are matched by name.

    Args:
        run: the trained run, which is left as it is.
        paths: folders of pictures and of companions.
        name: of the companion.
        folder: of the new run.
        rank: of the low-rank weights.
        aligned: place by place (depth, edges); else companions are natural pictures of the same subject.

    Raises:
        BadFile: the folder exists.
        BadValue: other than two folders, pictures without a partner, the name of the picture itself.
        Incompatible: a run whose network can't be paired.
    """
    if len(paths) != 2:
        raise BadValue(f"say --data PICTURES --data COMPANIONS, got {len(paths)} --data")
    if name == PICTURE:
        raise BadValue(f"{PICTURE!r} is the picture itself: give the companion another --name")
    check_folder(folder)
    base, shape = _base(run)
    data = pairs(paths[1], paths[0], (shape[1], shape[2]), condition=name, channels=shape[0])
    model = join(base, (PICTURE, name), rank=rank, post="fuse" if aligned else "shared", own=aligned)
    about = {"tie": {"run": str(run.resolve()), "name": name}}
    rows = AsVariables(data, **{PICTURE: "x", name: name})
    trainer = Trainer(model, rows, objective(model), training, folder, extra=about, quiet=quiet)
    status = trainer.fit()
    if not status.stopped:
        UniCon(cast(Aligned, trainer.averaged())).save(folder / PAIR)
    return status


def open_tied(folder: Path, device: Any = None) -> tuple[UniCon, tuple[int, ...]]:
    """The model of such a run, and the shape of its pictures.

    Raises:
        BadFile: no such run, one that isn't finished, or its base is gone.
    """
    about = read_json(folder / "config.json").get("tie")
    if about is None:
        raise BadFile(f"{folder} is no run of `condiff tie`")
    if not (folder / PAIR).is_dir():
        raise BadFile(f"{folder} was stopped before its end: tie it again")
    if not Path(about["run"]).is_dir():
        raise BadFile(f"the run that {folder} was tied to isn't there any more: {about['run']}")
    base, shape = _base(Path(about["run"]))
    pair = UniCon.load(base, folder / PAIR, (PICTURE, about["name"]))
    pair.model.to(check_device(device or default_device()))
    return pair, shape


def draw(
    folder: Path,
    out: Path,
    *,
    known: Sequence[str] = (),
    hold: Sequence[str] = (),
    num: int | None = None,
    steps: int = 50,
    solver: str | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pictures and companions, those that are known and those that are made; returns where and how.

    Args:
        known: ``NAME=PATH``, a picture or a folder of them; everything else is made.
        hold: ``NAME=R`` of known ones that are followed coarsely only, 0 < R <= 1.

    Raises:
        BadValue: unknown names, sizes or counts that differ, everything known.
        BadFile: files that aren't there, an output that is.
    """
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")
    pair, shape = open_tied(folder, device)
    check_replaced(out, pair.model.variables.__contains__)
    given, stems = _known(known, pair.model.variables, shape)
    rows = next((len(x) for x in given.values()), num or 8)
    if num is not None and given and num != rows:
        raise BadValue(f"{rows} pictures are known: leave --num out")
    options: dict[str, Any] = {"hold": _levels(hold, given), "steps": steps}
    options["solver"] = None if solver is None else names.solver(solver)
    started, parts = time.perf_counter(), []
    for first in range(0, rows, AT_ONCE):
        some = {name: x[first : first + AT_ONCE] for name, x in given.items()}
        seeds = range(seed + first, seed + min(first + AT_ONCE, rows))
        parts.append(pair.sample(given=some, num=len(seeds), seeds=seeds, **options))
    made = {name: torch.cat([part[name].cpu() for part in parts]) for name in pair.model.variables}
    seconds = time.perf_counter() - started
    _write({**made, **given}, out, stems or [f"{i:05d}" for i in range(rows)])
    return {"out": str(out), "num": rows, "steps": steps, "known": list(given), "seconds": round(seconds, 3)}


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
    given, stems = {}, []
    for name, path in _words(words, variables, "--known").items():
        rows = images(path, (shape[1], shape[2]), labels=None, channels=shape[0])
        given[name] = rows.batch(range(len(rows)))["x"]
        stems = [Path(item.name).stem for item in rows.views["x"]]
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
