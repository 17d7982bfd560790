"""Generated scans: ellipsoids of three tissues, seen in several contrasts. For demonstrations, tests and reproductions.

A case is a head with an outer shell, an inner part and a few lesions, and a smooth field g that says how the tissue
varies. A contrast sees tissue k at g as ``mean_k + swing_k sin(rate_k g + phase_k)``, plus noise: no contrast is a
linear function of the others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from condiff.data.base import TensorData
from condiff.data.nifti import Volume, write_volume
from condiff.errors import BadValue
from condiff.random import Source, as_source

CONTRASTS = ("t1", "t2", "pd", "flair")
TISSUES = 3
SPACING = 1.5  # millimetres of the written voxels
LESIONS = 3


def _ellipsoid(grid: Tensor, centre: Tensor, radii: Tensor, edge: float) -> Tensor:
    """How much of each voxel lies inside: 1 to 0 over an edge about a voxel wide."""
    distance = ((grid - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)).square().sum(0).sqrt()
    return torch.sigmoid((1.0 - distance) * float(radii.min()) / edge)


def _tissues(rng: Source, side: int) -> tuple[Tensor, Tensor]:
    """Shares of the three tissues (3, side, side, side), and the field g."""
    line = torch.linspace(-1.0, 1.0, side, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    u = rng.uniform((2 + 2 * LESIONS, 3), dtype=torch.float64)
    edge = 0.7 / side
    head = _ellipsoid(grid, 0.1 * (u[0] - 0.5), 0.65 + 0.25 * u[1], edge)
    inner = _ellipsoid(grid, 0.1 * (u[0] - 0.5), 0.7 * (0.65 + 0.25 * u[1]), edge)
    lesion = torch.zeros_like(head)
    for i in range(LESIONS):
        centre, radii = 0.7 * (u[2 + 2 * i] - 0.5), 0.12 + 0.2 * u[3 + 2 * i]
        lesion = torch.maximum(lesion, _ellipsoid(grid, centre, radii, edge))
    lesion = lesion * inner
    coarse = rng.normal((1, 1, 4, 4, 4), dtype=torch.float64)
    field = F.interpolate(coarse, size=(side, side, side), mode="trilinear", align_corners=True)[0, 0]
    return torch.stack([head * (1 - inner), inner * (1 - lesion), lesion]), field


def _curves(contrasts: int) -> Tensor:
    """Mean, swing, rate and phase of each contrast and tissue, the same for all cases: (contrasts, 4, 3)."""
    u = as_source(7).uniform((len(CONTRASTS), 4, TISSUES), dtype=torch.float64)[:contrasts]
    low, high = torch.tensor([0.25, 0.1, 1.0, -1.5]), torch.tensor([0.85, 0.3, 2.5, 1.5])
    return low.reshape(4, 1) + (high - low).reshape(4, 1) * u


def phantom(seed: int, side: int = 32, contrasts: int = 4, noise: float = 0.02) -> Tensor:
    """One case: (contrasts, side, side, side) in [-1, 1], a function of the seed; the background is -1.

    Raises:
        BadValue: a side below 8, other than 1 to 4 contrasts.
    """
    if side < 8 or not 1 <= contrasts <= len(CONTRASTS):
        raise BadValue(f"phantoms have a side of at least 8 and 1 to 4 contrasts, got {side} and {contrasts}")
    rng = as_source(seed)
    shares, field = _tissues(rng, side)
    mean, swing, rate, phase = _curves(contrasts).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1).unbind(1)
    seen = (shares * (mean + swing * torch.sin(rate * field + phase))).sum(1)
    inside = shares.sum(0) > 0.01
    grain = noise * rng.normal((contrasts, side, side, side), dtype=torch.float64)
    return (torch.where(inside, seen + grain, 0.0).clamp(0.0, 1.0) * 2.0 - 1.0).float()


def phantoms(num: int, side: int = 32, *, target: str = "flair", noise: float = 0.02, seed: int = 0) -> TensorData:
    """Cases in memory: one contrast to be made, the three others as conditions of kind ``"map"``.

    Args:
        num: how many cases; case i is a function of ``seed + i``.
        side: voxels along each axis.
        target: of ``t1``, ``t2``, ``pd``, ``flair``.
        noise: standard deviation of the grain, on intensities from 0 to 1.

    Raises:
        BadValue: an unknown contrast, fewer than one case.
    """
    if num < 1 or target not in CONTRASTS:
        raise BadValue(f"phantoms need num >= 1 and a target of {', '.join(CONTRASTS)}, got {num} and {target!r}")
    cases = torch.stack([phantom(seed + i, side, noise=noise) for i in range(num)])
    scans = {name: cases[:, i : i + 1] for i, name in enumerate(CONTRASTS)}
    x = scans.pop(target)
    return TensorData(x, scans, kinds={name: "map" for name in scans}, range="keep", name=f"{num} phantoms")


def write_phantoms(folder: str | Path, num: int, side: int = 32, *, seed: int = 0, ending: str = ".nii.gz") -> Path:
    """The same cases as files ``case-000/case-000-t1.nii.gz``, with an affine of 1.5 mm about the middle.

    Raises:
        BadFile: when writing fails.
    """
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -SPACING * (side - 1) / 2
    for i in range(num):
        case = f"case-{i:03d}"
        for name, scan in zip(CONTRASTS, phantom(seed + i, side), strict=True):
            array = (scan.numpy() + 1.0) / 2.0
            write_volume(Path(folder) / case / f"{case}-{name}{ending}", array, Volume(array, affine))
    return Path(folder)
