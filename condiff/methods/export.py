"""Samples of a run to a file: a grid of pictures, a folder of them, or arrays with what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from condiff import figures
from condiff.data import of_volumes
from condiff.errors import BadFile, BadValue, require_extra
from condiff.files import replacing
from condiff.methods import given, scans, settings, texts
from condiff.methods.drawing import Drawing, draw_samples, for_superposing, late, override, save_grid, teleported
from condiff.methods.runs import RunFolder, open_run

ENDINGS = (".png", ".txt", ".npz", ".npy")
DEFAULT = {"picture": ".png", "text": ".txt", "array": ".npz", "scan": ""}


def draw(
    folder: Path,
    *,
    num: int | None = None,
    labels: Sequence[str] = (),
    conditions: Sequence[str] = (),
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    start: float | None = None,
    init: Path | None = None,
    teleport: Path | None = None,
    skip_sigma: float | None = None,
    superpose: str | None = None,
    prefix: str | None = None,
    suffix: str | None = None,
    placed: Sequence[str] = (),
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    changes: Sequence[str] = (),
    seed: int = 0,
    batch: int = 256,
    weights: str = "ema",
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Draw samples from a run and write them; returns where they are and how they were made.

    Raises:
        BadValue: an unknown class, solver, setting or file ending, a number out of range, one class to superpose.
        BadFile: the folder isn't a run, or the output file exists.
    """
    run = open_run(folder)
    kind = _kind(run)
    out = out or folder / f"samples-{seed}{DEFAULT[kind]}"
    _check_output(out, kind, overwrite)
    sampler = override(run.recipe.sampler, solver=solver, steps=steps, guidance=guidance)
    if superpose is not None:
        sampler = for_superposing(sampler, solver, steps)
    if start is not None or init is not None:
        sampler = late(sampler, run.recipe.process, start, init)
    sampler = texts.filtered(settings.apply(sampler, settings.parse(changes)), temperature, top_k, top_p)
    known = texts.given_text(run.data, prefix, suffix, placed)
    model = run.model(weights, device)
    if teleport is not None:
        if start is not None or init is not None or superpose is not None:
            raise BadValue("--teleport has a start of its own: leave --start, --init and --superpose out")
        sampler = teleported(sampler, model, run.heldout, teleport, skip_sigma, labels)
    elif skip_sigma is not None:
        raise BadValue("--skip-sigma says where --teleport starts: give --teleport STATISTICS too")
    told = given.read(conditions, run.data, run.request.options)
    if num is None:
        num = told.rows or (1 if kind == "scan" else 8 * (len(labels) or len(run.data.classes) or 8))
    if kind == "scan":
        scans.check_count(out, num)
    made = draw_samples(
        model,
        run.recipe,
        run.heldout,
        num=num,
        wanted=labels,
        sampler=sampler,
        seed=seed,
        batch=batch,
        given=told.take(max(num, 1)),
        superpose=superpose,
        known=None if known is None else known.rows(max(num, 1)),
    )
    if kind != "scan" or not scans.write(made, out, run.heldout, told.places):
        _write(made, out, run, told.names)
    return {
        "out": str(out),
        "num": num,
        "seed": seed,
        "solver": repr(sampler.solver),
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "start": start,
        "init": None if init is None else str(init),
        "teleport": None if teleport is None else str(teleport),
        "superpose": superpose,
        "weights": weights,
        "nfe": made.nfe if made.calls is None else made.calls.tolist(),
        "seconds": round(made.seconds, 4),
        "labels": made.names,
        **({"texts": texts.decoded(run.data, made.x)} if kind == "text" else {}),
    }


def _kind(run: RunFolder) -> str:
    """What samples are written as: "picture", "text", "scan" or "array"."""
    own = texts.tokens_of(run.data)
    if own is not None and own.tokenizer is not None:
        return "text"
    if of_volumes(run.data) is not None:
        return "scan"
    return "picture" if figures.drawable(run.data.shape) else "array"


def _check_output(out: Path, kind: str, overwrite: bool) -> None:
    if kind == "scan":
        scans.check_output(out, overwrite)
        return
    ending, endings = out.suffix.lower(), [e for e in ENDINGS if e != ".txt" or kind == "text"]
    if ending not in (*endings, ""):
        raise BadValue(f"--out must end in {', '.join(endings)}, or be a folder, got {out.name!r}")
    if ending in ("", ".png") and kind != "picture":
        raise BadValue(f"samples that aren't images can't be drawn: use --out {out.with_suffix(DEFAULT[kind])}")
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")


def _write(made: Drawing, out: Path, run: RunFolder, names: Sequence[str]) -> None:
    """A grid, a folder of pictures, or arrays: those of ``arrays`` in the units that the data is stored in."""
    out.parent.mkdir(parents=True, exist_ok=True)
    ending = out.suffix.lower()
    if ending == ".png":
        save_grid(made, out)
    elif ending == ".txt":
        texts.write_texts(texts.decoded(run.data, made.x), out)
    elif ending == "":
        _write_pictures(made, out, names)
    else:
        x = (run.data.restore(made.x) if run.request.source in ("arrays", "unpaired") else made.x).numpy()
        with replacing(out) as temporary, open(temporary, "wb") as file:
            if ending == ".npy":
                np.save(file, x)
            else:
                arrays: dict[str, Any] = {"x": x} | {name: value.numpy() for name, value in made.cond.items()}
                np.savez(file, **arrays)


def _write_pictures(made: Drawing, out: Path, names: Sequence[str]) -> None:
    """A PNG a sample, named after the picture that was given, or by number and class."""
    image = require_extra("PIL.Image", "train")
    out.mkdir(exist_ok=True)
    repeated = len(names) < len(made.x) or len(set(names)) < len(names)
    for i, pixels in enumerate(figures.to_uint8(made.x)):
        name = f"{i:05d}" if repeated else names[i]
        name += f"-{made.names[i]}" if made.names else ""
        image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out / f"{name}.png")
