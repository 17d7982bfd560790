"""Two data sets that don't belong together: samples of one, and the other as the end that a process starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from condiff.data.base import Data
from condiff.data.folders import images
from condiff.data.held_out import SHARE
from condiff.data.seeded import uniform
from condiff.data.tables import arrays
from condiff.errors import BadType, BadValue

NAME = "source"  # of the condition


class Unpaired(Data):
    """Samples of ``target``, each with a random row of ``source`` as its endpoint: the independent coupling.

    Which row it is depends on (seed, epoch, index). Conditions of the target stay, those of the source are left out.

    Args:
        source: where the process starts (t = 1).
        target: what is generated (t = 0).
        seed: of the draws.
        name: what to call both.

    Raises:
        BadType: something that isn't a data set. BadValue: samples of different shapes; a target with a condition
            named ``source``.

    Example:
        >>> from condiff.data import digits
        >>> data = Unpaired(digits("train"), digits("test"))
        >>> data.batch([0, 1])["cond"]["source"].shape
        torch.Size([2, 1, 8, 8])
    """

    paired = False

    def __init__(self, source: Data, target: Data, *, seed: int = 0, name: str | None = None) -> None:
        for role, data in (("source", source), ("target", target)):
            if not isinstance(data, Data):
                raise BadType(f"{role} must be a data set, such as TensorData(x), got {type(data).__name__}")
        if source.shape != target.shape:
            raise BadValue(
                f"an interpolant needs samples of one shape: the source {source.name} has {source.shape}, the target "
                f"{target.name} {target.shape}; give size= and channels= for pictures"
            )
        if NAME in target.kinds:
            raise BadValue(f"the target {target.name} has a condition named {NAME!r} already")
        self.source, self.target, self.seed = source, target, seed
        self.name, self.shape = name or f"{source.name}-to-{target.name}", target.shape
        self.kinds = {**target.kinds, NAME: "endpoint"}
        self.refused = [*source.refused, *target.refused]
        low, high = source.value_range
        self.notes = (
            f"from {source.name}: {len(source)} samples, values {low:.4g} to {high:.4g}, drawn at random for each of "
            f"{target.name}",
            *target.notes,
        )

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]: the target's, always
        return self.target.classes

    @property
    def labels(self) -> Tensor | None:
        return self.target.labels

    def restore(self, x: Tensor) -> Tensor:
        return self.target.restore(x)

    @property
    def value_range(self) -> tuple[float, float]:
        return self.target.value_range

    def __len__(self) -> int:
        return len(self.target)

    def cut(self, held_out: float = SHARE, seed: int = 0) -> tuple[Unpaired, Unpaired]:
        """``(training, held out)`` parts, each of both sets."""
        (a, x), (b, y) = self.source.cut(held_out, seed), self.target.cut(held_out, seed)
        rest = Unpaired(a, b, seed=self.seed, name=f"{self.name}/train")
        part = Unpaired(x, y, seed=self.seed, name=f"{self.name}/held-out")
        part.chosen = f"and {len(x)} of the source, {y.chosen}"
        return rest, part

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        rows = self.target.batch(index, epoch)
        which = (uniform(self.seed, epoch, index)[:, 0] * len(self.source)).long()
        return {"x": rows["x"], "cond": {**rows["cond"], NAME: self.source.batch(which, epoch)["x"]}}

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.source.fingerprint()} {self.target.fingerprint()} {self.seed}".encode())


def unpaired(
    source: str | Path,
    target: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    labels: str | Path | None = "auto",
    x: str = "x",
    range: Any = None,
    skip_bad: bool = False,
    seed: int = 0,
    **framing: Any,
) -> Unpaired:
    """Two folders of pictures, or two NumPy files, that don't belong together row by row.

    Args:
        source, target: a folder, or a ``.npy`` or ``.npz`` file; see :class:`Unpaired`.
        size: of pictures, as in :func:`images`.
        labels: of the target's pictures, as in :func:`images`.
        x, range: of arrays, as in :func:`arrays`; both are read with the same.
        skip_bad: leave out pictures that can't be read.
        seed: of the draws.
        framing: the other fields of :class:`condiff.data.Framing`.

    Raises:
        BadFile, BadValue: as :func:`images`, :func:`arrays` and :class:`Unpaired`.
    """

    def read(path: Path, labels: str | Path | None) -> Data:
        if path.suffix in (".npy", ".npz"):
            if framing or size is not None:
                raise BadValue(f"{path.name} is an array: {', '.join(framing) or 'size'} is for pictures")
            return arrays(path, x, range=range)
        return images(path, size, labels=labels, skip_bad=skip_bad, seed=seed, **framing)

    return Unpaired(read(Path(source), None), read(Path(target), labels), seed=seed)
