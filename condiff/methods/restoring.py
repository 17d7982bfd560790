"""Restoration of a user's pictures by a run that was trained on pairs: any size in, the same size out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.conditions import as_conditions
from condiff.config import from_config
from condiff.data import Tiles, find_pictures, read_picture
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadFile, BadValue
from condiff.methods.drawing import override
from condiff.methods.recipe import Recipe
from condiff.methods.runs import check_device, default_device, read_run
from condiff.model_files import load_model
from condiff.random import Stream, derive_seed
from condiff.sampling import trajectory
from condiff.sampling.loop import as_grid


@dataclass(frozen=True)
class Restorer:
    """A model of pictures given pictures, and how it is sampled.

    Args:
        denoiser: told nothing but the given picture.
        recipe: with the sampler and what happens to conditions.
        name: of the condition that is the given picture.
        tiles: how pictures are cut to the model's size.
        batch: windows a network call.
    """

    denoiser: Denoises
    recipe: Recipe
    name: str
    tiles: Tiles
    batch: int = 64

    @torch.no_grad()
    def __call__(self, picture: Tensor, seed: int = 0) -> tuple[Tensor, int]:
        """A picture (C, H, W) in [-1, 1] restored, of the same shape, and the number of network calls of a window.

        Windows start from one noise over the whole picture, so that they agree where they overlap.
        """
        sampler, process = self.recipe.sampler, self.denoiser.process
        times = as_grid(sampler.grid, sampler.steps, process)
        rng = Stream(torch.Generator().manual_seed(seed))
        given = self.tiles.pad(picture)[None]
        source = given if process.has_source else None
        start = process.prior().sample(process.levels(times[:1])[0], given.shape, rng, source=source)
        parts, nfe = [], 0
        for x, y in zip(*(self.tiles.cut(v[0]).split(self.batch) for v in (start, given)), strict=True):
            x, nfe = self._windows(x, y, times, rng)
            parts.append(x.cpu())
        return self.tiles.join(torch.cat(parts), tuple(picture.shape[1:])), nfe

    def _windows(self, x: Tensor, y: Tensor, times: Tensor, rng: Stream) -> tuple[Tensor, int]:
        guided, sampler = self.recipe.guided(self.denoiser), self.recipe.sampler
        device = device_of(self.denoiser)
        cond = as_conditions({self.name: y}, getattr(guided, "kinds", None), device)
        if self.recipe.objective.transform is not None:  # what it does outside training: a fixed corruption
            cond = self.recipe.objective.transform(cond, t=None, rng=rng, training=False)
        x, nfe = x.to(device), 0
        hooks = sampler.hooks
        for step in trajectory(guided, x, solver=sampler.solver, cond=cond, grid=times, hooks=hooks, rng=rng):
            x, nfe = step.x_s, step.nfe
        return x, nfe


def open_restorer(
    folder: Path,
    *,
    solver: str | None = None,
    steps: int | None = None,
    overlap: int | None = None,
    batch: int = 64,
    weights: str = "ema",
    device: str | None = None,
) -> tuple[Restorer, Mapping[str, Any]]:
    """The restorer of a run, and the options with which its pictures were read.

    Raises:
        BadFile: the folder isn't a run.
        BadValue: a run that isn't given one picture like its samples and nothing else.
    """
    if batch < 1:
        raise BadValue(f"batch must be at least 1, got {batch}")
    _, config = read_run(folder)
    recipe = from_config(config["recipe"])
    recipe = replace(recipe, sampler=override(recipe.sampler, solver=solver, steps=steps))
    denoiser: Any = load_model(folder, weights, device=check_device(device or default_device()))
    shape, kinds = tuple(denoiser.shape or ()), dict(denoiser.kinds)
    pictures = [name for name, kind in kinds.items() if kind in ("map", "endpoint")]
    if len(shape) != 3 or len(pictures) != 1 or len(kinds) != 1:
        raise BadValue(
            f"a run to restore with makes pictures from one given picture (condiff train pairs); {folder} makes "
            f"samples of shape {shape} from {kinds or 'no conditions'}"
        )
    size = (shape[1], shape[2])
    tiles = Tiles(size=size, overlap=min(size) // 8 if overlap is None else overlap)
    return Restorer(denoiser, recipe, pictures[0], tiles, batch), config["request"]["options"]


def restore(folder: Path, pictures: Path, out: Path, *, seed: int = 0, overwrite: bool = False, **options: Any):
    """Restore a picture, or a folder of them, by a run; returns where they are and how they were made.

    Args:
        folder: the run.
        pictures: a picture, or a folder, searched with its subfolders.
        out: a folder, which then holds a PNG for each picture, under its name; for one picture also a ``.png`` file.
        seed: of the noise.
        options: of :func:`open_restorer`.

    Raises:
        BadValue, BadFile: a run that can't, pictures that can't be read, an output that exists.
    """
    files, single = find_pictures(pictures), out.suffix.lower() == ".png"
    if single and len(files) > 1:
        raise BadValue(f"--out {out} is one picture, and {pictures} holds {len(files)}: name a folder")
    if not single and out.suffix:
        raise BadValue(f"--out must be a folder, or end in .png, got {out.name!r}")
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")
    root = pictures if pictures.is_dir() else pictures.parent
    targets = [out if single else out / f.relative_to(root).with_suffix(".png") for f in files]
    if len(set(targets)) < len(targets):
        raise BadValue(f"{pictures} holds pictures that differ in their ending alone: their results would be one file")
    restorer, read = open_restorer(folder, **options)
    assert restorer.denoiser.shape is not None
    channels, background = restorer.denoiser.shape[0], read.get("background")
    given = [read_picture(f, channels, background) for f in files]  # what can't be read is refused before any work
    started, nfe = time.perf_counter(), 0
    for i, (picture, target) in enumerate(zip(given, targets, strict=True)):
        restored, nfe = restorer(picture, derive_seed(seed, i))
        target.parent.mkdir(parents=True, exist_ok=True)
        figures.picture(restored, target)
    sampler = restorer.recipe.sampler
    return {
        "out": str(out),
        "num": len(files),
        "size": list(restorer.tiles.size),
        "overlap": restorer.tiles.overlap,
        "solver": repr(sampler.solver),
        "steps": sampler.steps,
        "seed": seed,
        "nfe": nfe,
        "seconds": round(time.perf_counter() - started, 4),
    }
