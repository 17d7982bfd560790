"""Pictures (C, H, W) in [-1, 1], and fields (C, H, W) of other channels than a picture file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condiff import figures
from condiff.data import Data
from condiff.methods.drawn import Drawing, save_grid
from condiff.methods.given import Given
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.metrics import psnr, ssim

SSIM_WINDOW = 11  # pixels that structural similarity looks at together
BESIDE, GRID, MOST_CLASSES = 24, 64, 20  # pictures in a grid: beside what was given, without classes, classes at most


def nearness(made: Drawing) -> dict[str, float]:
    """How near samples are to the true ones of their conditions, where those are known."""
    if made.truth is None:
        return {}
    out = {"psnr": float(psnr(made.x, made.truth).mean())}
    if min(made.x.shape[2:]) >= SSIM_WINDOW:
        out["ssim"] = float(ssim(made.x, made.truth).mean())
    return out


class Fields(Kind):
    """(C, H, W), any channels: judged as pictures, written as arrays."""

    def matches(self, data: Any) -> bool:
        return data.vocab is None and len(data.shape) == 3

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        return {**super().score(made, model, heldout, run), **nearness(made)}


class Pictures(Fields):
    """(C, H, W) that picture files can hold."""

    ending = ".png"

    def matches(self, data: Any) -> bool:
        return super().matches(data) and figures.drawable(data.shape)

    def shown(self, data: Data) -> int:
        if {"map", "endpoint"} & set(data.kinds.values()):
            return BESIDE  # each beside what was given and what is true
        return 8 * min(len(data.classes), MOST_CLASSES) if data.classes else GRID

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        return save_grid(made, stem.with_name(f"{stem.name}.png"))

    def _check_drawable(self, out: Path, ending: str) -> None:
        """All of them are."""

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """A grid, a folder of pictures, or arrays."""
        ending = out.suffix.lower()
        if ending not in (".png", ""):
            super().write(made, out, run, told)
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".png":
            save_grid(made, out)
        else:
            _write_folder(made, out, told.names)


def _write_folder(made: Drawing, out: Path, names: tuple[str, ...]) -> None:
    """A PNG a sample, named after the picture that was given, or by number and class."""
    out.mkdir(exist_ok=True)
    repeated = len(names) < len(made.x) or len(set(names)) < len(names)
    for i, x in enumerate(made.x):
        name = f"{i:05d}" if repeated else names[i]
        name += f"-{made.names[i]}" if made.names else ""
        figures.picture(x, out / f"{name}.png")
