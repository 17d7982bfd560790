"""Samples of a run to a file: a grid of pictures, a folder of them, or arrays with what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from condiff.errors import BadValue
from condiff.files import replacing, sha256
from condiff.methods import settings, shards, texts
from condiff.methods.drawing import for_superposing, late, override, plan_samples, teleported
from condiff.methods.runs import open_run
from condiff.model_files import find_weights
from condiff.peers import is_first


def draw(
    folder: Path,
    *,
    num: int | None = None,
    labels: Sequence[str] = (),
    conditions: Sequence[str] = (),
    modalities: Sequence[str] = (),
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
    frames: int | None = None,
    changes: Sequence[str] = (),
    seed: int = 0,
    batch: int = 256,
    weights: str = "ema",
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """Draw samples from a run and write them; returns where they are and how they were made.

    Several processes that ``torchrun`` started share the work (:mod:`condiff.methods.shards`); the first one writes,
    and the others return None. ``say`` is called with lines about the work, ``progress`` with (steps that are done, all
    steps) behind each.

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
    if frames is not None:
        kind.check_frames(frames, run)
    told = kind.read_conditions(conditions, run)
    told = told.beside(kind.read_known(modalities, run))
    if num is None:
        num = told.rows or kind.default_num(labels, run.data)
    kind.check_count(out, num)
    plan = plan_samples(
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
        frames=frames,
        progress=progress if is_first() else None,
    )
    blocks = None
    if shards.needed(plan, out):
        files = {"init": init, "teleport": teleport, "weights": find_weights(run.weights, weights)}
        hashes = {name: None if path is None else sha256(path) for name, path in files.items()}
        blocks = shards.Blocks(out, shards.settings_of(plan, superpose=superpose, **hashes))
    made = shards.draw_plan(plan, blocks, anew=overwrite, say=say)
    if made is None:
        return None
    with nullcontext(out) if out.is_dir() else replacing(out) as place:  # whole or not at all
        kind.write(made, place, run, told)
    if blocks is not None:
        blocks.drop()
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
