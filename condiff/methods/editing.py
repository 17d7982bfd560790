"""``condiff edit``: pictures as they would be under another class or prompt, by inverting them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.data import images
from condiff.denoiser import device_of
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import write_json
from condiff.methods.drawn import Drawing, save_grid
from condiff.methods.dual_conditional_inversion import edit, invert_dual, reconstruct
from condiff.methods.names import class_number
from condiff.methods.runs import check_device, default_device, open_run
from condiff.metrics import psnr
from condiff.process import Gaussian
from condiff.sampling import ImplicitDDIM
from condiff.sampling.loop import as_grid


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``condiff edit`` was asked for; see its help."""

    pictures: Path
    source: str
    target: str
    steps: int = 50
    iterations: int = 10
    rho: float = 0.0
    scale: float = 7.5
    quantile: float = 0.4
    keep_below: float = 0.4
    weights: str = "ema"
    device: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Editor:
    """A model with its codec, the pictures as it sees them, and the conditions of both sides, of one row each."""

    denoiser: Any
    codec: Any
    grid: Tensor
    x: Tensor
    source: Conditions
    target: Conditions

    def __call__(self, request: Request) -> tuple[Tensor, Tensor, int]:
        """The edited pictures, the PSNR of the way back (B,), and the network calls of an inversion, on the CPU."""
        made, back, calls = zip(*(self._some(x, request) for x in self.x.split(AT_ONCE)), strict=True)
        return torch.cat(made), torch.cat(back), max(calls)

    def _some(self, x: Tensor, request: Request) -> tuple[Tensor, Tensor, int]:
        x = x.to(device_of(self.denoiser))
        source, target = self.source.repeat(len(x)), self.target.repeat(len(x))
        with torch.no_grad():
            z = x if self.codec is None else self.codec.encode(x)
        solver = ImplicitDDIM(request.iterations)
        found = invert_dual(self.denoiser, z, source, grid=self.grid, length=request.rho, rms=True, solver=solver)
        how: dict[str, Any] = {"scale": request.scale, "quantile": request.quantile, "below": request.keep_below}
        made, again = edit(self.denoiser, found, source, target, **how), reconstruct(self.denoiser, found, source)
        with torch.no_grad():
            made, again = (v if self.codec is None else self.codec.decode(v) for v in (made, again))
        return made.cpu(), psnr(again, x).cpu(), found.nfe


def of_run(folder: Path, request: Request) -> Editor:
    """A run on pictures with classes.

    Raises:
        Incompatible: a run on something else. BadValue: an unknown class.
    """
    run = open_run(folder)
    if set(run.data.kinds) != {"label"} or len(run.data.shape) != 3 or not isinstance(run.recipe.process, Gaussian):
        raise Incompatible(f"{folder} isn't a run on pictures with classes alone: there is nothing to edit them by")
    denoiser = run.model(request.weights, request.device)
    data = images(request.pictures, run.data.shape[1:], labels=None, channels=run.data.shape[0])
    x, device = data.batch(range(len(data)))["x"], device_of(denoiser)
    number = lambda name: torch.tensor([class_number(name, run.data.classes)])
    label = lambda name: as_conditions({"label": number(name)}, denoiser.kinds, device)
    grid = as_grid(run.recipe.sampler.grid, request.steps, denoiser.process)
    grid = torch.cat([grid[:1].clamp(max=BEFORE_NOISE), grid[grid < min(BEFORE_NOISE, float(grid[0]))]])
    codec = run.recipe.build_codec(device)
    return Editor(denoiser, codec, grid, x, label(request.source), label(request.target))


BEFORE_NOISE = 0.99  # pure noise holds nothing to come back from: an inversion ends here
AT_ONCE = 16  # pictures that go through the network together


def of_pipeline(folder: Path, request: Request) -> Editor:
    """A saved diffusers pipeline; prompts, or classes of a DiT."""
    from condiff.interop import load_pipeline, wrap

    wrapped = wrap(load_pipeline(str(folder)).to(check_device(request.device or default_device())))
    if wrapped.codec is None:
        raise Incompatible(f"{folder} has no conditions: there is nothing to edit by")
    sides = [side * wrapped.codec.factor for side in wrapped.denoiser.shape[1:]]  # type: ignore[index]
    data = images(request.pictures, (sides[0], sides[1]), labels=None, channels=3, filter="bicubic")
    x = data.batch(range(len(data)))["x"]
    classes = "label" in wrapped.denoiser.kinds
    told = lambda word: wrapped.encode([int(word) if classes and word.isdigit() else word])
    grid = wrapped.grid(request.steps)
    return Editor(wrapped.denoiser, wrapped.codec, grid, x, told(request.source), told(request.target))


def run_edit(model: Path, request: Request, out: Path) -> dict[str, Any]:
    """Edit pictures and write a grid of them beside what they were, with a JSON of how.

    Raises:
        BadFile: the output is there already. BadValue: nothing that changes.
    """
    if request.source == request.target:
        raise BadValue(f"--source and --target are both {request.source!r}: nothing would change")
    if out.suffix.lower() != ".png":
        raise BadValue(f"--out must end in .png, got {out.name!r}")
    if not 0.0 <= request.keep_below <= 1.0:
        raise BadValue(f"--keep-below is a time from 0 to 1, got {request.keep_below:g}")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not request.overwrite:
            raise BadFile(f"{path} exists already: choose another --out, or say --overwrite")
    pipeline = (model / "model_index.json").is_file()
    editor = of_pipeline(model, request) if pipeline else of_run(model, request)
    made, back, calls = editor(request)
    drawing = Drawing(
        x=made, labels=None, truth=None, names=None, nfe=calls, seconds=0.0, columns=None,
        cond={"given": editor.x},
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(drawing, out)
    facts = {
        "out": str(out),
        "pictures": len(made),
        "source": request.source,
        "target": request.target,
        "calls": calls,
        "round_trip_psnr": [round(float(v), 2) for v in back],
        "changed_rms": [round(float(v), 4) for v in (made - editor.x).flatten(1).square().mean(1).sqrt()],
    }
    write_json(out.with_suffix(".json"), facts)
    return facts
