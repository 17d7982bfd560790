"""What is measured on data before anything is trained: mean and principal components, and the kinetic-optimal path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from condiff.config import to_config
from condiff.data import Data, principal_law
from condiff.errors import BadFile, BadValue, unknown
from condiff.files import write_json
from condiff.methods.runs import DataRequest
from condiff.process import (
    KineticReport,
    PrincipalLaw,
    Separation,
    kinetic_optimal,
    kinetic_report,
    points_separation,
    population_separation,
)

OF = {"population": population_separation, "points": points_separation}
MOST = 5000  # samples that a separation is measured on


def fit(request: DataRequest, out: Path, *, rank: int | None = None, label: str | None = None, overwrite: bool = False):
    """Write the mean and principal components of the training part of a data set; returns them.

    Raises:
        BadValue: an unknown class, a rank out of range, constant data.
        BadFile: the output exists.
    """
    _check(out, (".safetensors",), overwrite)
    data, _ = request.open()
    law = principal_law(data, rank, rows=_rows(data, label))
    law.save(out)
    return law, data


def facts_of(law: PrincipalLaw, out: Path) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "out": str(out),
        "count": law.count,
        "shape": list(law.shape),
        "rank": law.rank,
        "std": law.std,
        "low": law.low,
        "high": law.high,
        "largest": law.variances[:8].tolist(),
        "residual": law.residual,
    }


def kinetic(
    request: DataRequest, out: Path | None = None, *, of: str = "population", draws: int = 1000, overwrite: bool = False
) -> tuple[KineticReport, Data]:
    """The kinetic report of the training part of a data set; with ``out`` the optimal schedule as a file for
    ``condiff train --config``.

    Raises:
        BadValue: an unknown way of measuring, constant data.
        BadFile: the output exists.
    """
    if of not in OF:
        raise unknown("way of measuring", of, OF)
    if out is not None:
        _check(out, (".json",), overwrite)
    data, _ = request.open()
    report = kinetic_report(measured(data, of, draws))
    if out is not None:
        # v has no derivative of the schedule, and neither has DDIM: alpha's slope may be infinite at t = 1
        path = {"process": {"schedule": to_config(kinetic_optimal(report.separation))}}
        write_json(out, {"target": "v", **path, "sampler": {"solver": "ddim"}})
    return report, data


def measured(data: Data, of: str, draws: int) -> Separation:
    """The separation of a data set, of at most 5000 samples evenly spread over it."""
    rows = torch.linspace(0, len(data) - 1, min(len(data), MOST), dtype=torch.float64).long()
    return OF[of](data.batch(rows)["x"], draws=draws)


def _rows(data: Data, label: str | None) -> torch.Tensor | None:
    if label is None:
        return None
    if data.labels is None:
        raise BadValue(f"{data.name} has no classes: leave --label out")
    if label not in data.classes:
        raise unknown("class", label, data.classes)
    return torch.nonzero(data.labels == list(data.classes).index(label)).flatten()


def _check(out: Path, endings: tuple[str, ...], overwrite: bool) -> None:
    if out.suffix.lower() not in endings:
        raise BadValue(f"--out must end in {' or '.join(endings)}, got {out.name!r}")
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")
