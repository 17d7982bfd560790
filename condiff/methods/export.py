"""Samples of a run to a file: a grid of pictures, or arrays with what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from condiff import figures
from condiff.errors import BadFile, BadValue
from condiff.files import replacing
from condiff.methods.drawing import Drawing, draw_samples, override
from condiff.methods.runs import open_run

ENDINGS = (".png", ".npz", ".npy")


def draw(
    folder: Path,
    *,
    num: int | None = None,
    labels: Sequence[str] = (),
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 256,
    weights: str = "ema",
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Draw samples from a run and write them; returns where they are and how they were made.

    Raises:
        BadValue: an unknown class, solver or file ending, a number out of range.
        BadFile: the folder isn't a run, or the output file exists.
    """
    run = open_run(folder)
    picture = len(run.data.shape) == 3
    out = out or folder / f"samples-{seed}{'.png' if picture else '.npz'}"
    _check_output(out, picture, overwrite)
    sampler = override(run.recipe.sampler, solver=solver, steps=steps, guidance=guidance)
    num = num if num is not None else 8 * (len(labels) or len(run.data.classes) or 8)
    model = run.model(weights, device)
    made = draw_samples(model, run.recipe, run.heldout, num=num, wanted=labels, sampler=sampler, seed=seed, batch=batch)
    _write(made, out)
    return {
        "out": str(out),
        "num": num,
        "seed": seed,
        "solver": repr(sampler.solver),
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "weights": weights,
        "nfe": made.nfe,
        "seconds": round(made.seconds, 4),
        "labels": made.names,
    }


def _check_output(out: Path, picture: bool, overwrite: bool) -> None:
    if out.suffix.lower() not in ENDINGS:
        raise BadValue(f"--out must end in {', '.join(ENDINGS)}, got {out.name!r}")
    if out.suffix.lower() == ".png" and not picture:
        raise BadValue(f"samples that aren't images can't be drawn: use --out {out.with_suffix('.npz')}")
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")


def _write(made: Drawing, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png":
        figures.grid(made.x, out, labels=made.names, columns=made.columns)
        return
    with replacing(out) as temporary, open(temporary, "wb") as file:
        if out.suffix.lower() == ".npy":
            np.save(file, made.x.numpy())
        elif made.labels is None:
            np.savez(file, x=made.x.numpy())
        else:
            np.savez(file, x=made.x.numpy(), label=made.labels.numpy())
