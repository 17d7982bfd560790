"""Samples of a run to a file: a grid of pictures, a folder of them, or arrays with what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condiff.errors import BadValue
from condiff.methods import settings, texts
from condiff.methods.drawing import draw_samples, for_superposing, late, override, teleported
from condiff.methods.runs import open_run


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
    kind = run.kind
    out = out or folder / f"samples-{seed}{kind.ending}"
    kind.check_output(out, overwrite)
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
    told = kind.read_conditions(conditions, run)
    if num is None:
        num = told.rows or kind.default_num(labels, run.data)
    kind.check_count(out, num)
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
    kind.write(made, out, run, told)
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
        **kind.said(made, run),
    }
