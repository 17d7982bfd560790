"""``condiff statistics`` and ``condiff kinetic``: what is measured on data before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condiff.cli.options import Flag, OptionalInt, OptionalPath, OptionalText, Several, Source
from condiff.cli.output import note, show_json


def _request(source: str | None, data: tuple[str, ...], size: int | None, option: tuple[str, ...]) -> Any:
    from condiff.errors import BadValue
    from condiff.methods.runs import DataRequest
    from condiff.methods.settings import parse

    if source is None:
        raise BadValue("say which data: digits, images --data FOLDER, arrays --data FILE, ...")
    options = ({"size": size} if size is not None else {}) | parse(option)
    return DataRequest(source=source, paths=data, options=options)


@dataclass(frozen=True)
class Statistics:
    """Mean and principal components of data, with which `condiff sample --teleport` skips the first steps.

    Try:
      condiff statistics digits --label 3 --out threes.safetensors
      condiff sample runs/digits --label 3 --teleport threes.safetensors --skip-sigma 8 --guidance 1 --solver heun
      condiff statistics images --data faces/ --size 64 --rank 256 --out faces.safetensors
    """

    source: Source = None
    """Kind of data, as for `condiff train`."""

    data: Several = ()
    """Folder, file or Hub name."""

    size: OptionalInt = None
    """Resize and crop images to SIZE x SIZE, as in training."""

    option: Several = ()
    """KEY=VALUE for any option of the data, as in training."""

    rank: OptionalInt = None
    """Components that are kept; all of small samples, 512 of large ones by default."""

    label: OptionalText = None
    """Of one class only, for a model that is told classes."""

    out: Path = Path("stats.safetensors")
    """The file to write."""

    overwrite: Flag = False
    """Replace the file if it is there."""

    json: Flag = False
    """Print the facts as JSON."""

    def run(self) -> int:
        from condiff.methods import statistics

        request = _request(self.source, self.data, self.size, self.option)
        law, data = statistics.fit(request, self.out, rank=self.rank, label=self.label, overwrite=self.overwrite)
        if self.json:
            show_json(statistics.facts_of(law, self.out))
            return 0
        share = float(law.variances.sum()) / (law.std**2 * law.dims)
        note(f"{data.describe()}\n")
        note(f"{law.count} samples, values {law.low:.4g} to {law.high:.4g}, deviation {law.std:.4g}")
        note(f"{law.rank} of {law.dims} components hold {share:.1%} of the variance: {self.out}")
        return 0


@dataclass(frozen=True)
class Kinetic:
    """How far noise schedules are from the one that moves your data with the least kinetic energy.

    Try:
      condiff kinetic digits
      condiff kinetic arrays --data waves.npz --out ko.json
      condiff train arrays --data waves.npz --config ko.json
      condiff train arrays --data waves.npz --method kinetic-optimal-paths
    """

    source: Source = None
    """Kind of data, as for `condiff train`."""

    data: Several = ()
    """Folder, file or Hub name."""

    size: OptionalInt = None
    """Resize and crop images to SIZE x SIZE, as in training."""

    option: Several = ()
    """KEY=VALUE for any option of the data, as in training."""

    of: Literal["population", "points"] = "population"
    """population: what a model can learn. points: memorising these samples."""

    draws: int = 1000
    """Noisy samples at each level."""

    out: OptionalPath = None
    """A .json file for the optimal schedule, which `condiff train --config` reads."""

    overwrite: Flag = False
    """Replace the file if it is there."""

    json: Flag = False
    """Print the report as JSON."""

    def run(self) -> int:
        from condiff.methods import statistics

        request = _request(self.source, self.data, self.size, self.option)
        report, data = statistics.kinetic(request, self.out, of=self.of, draws=self.draws, overwrite=self.overwrite)
        if self.json:
            show_json(report.as_dict() | {"out": None if self.out is None else str(self.out)})
            return 0
        note(f"{data.describe()}\n\n{report.table()}")
        if self.out is not None:
            note(f"\nthe optimal schedule: {self.out}\nuse it with condiff train ... --config {self.out}")
        return 0
