"""Empirical statistics of a pretrained model along its log-SNR, which DPM-Solver-v3 steps by (Zheng 2023).

With ``y = x_t / data``, ``lam = log(data / noise)`` and ``A = noise E[z | x_t] / data`` the probability-flow ODE is
``dy / dlam = -A``. Three tables of the shape of one sample, on even nodes in lam, describe A:

* ``l``: the linear part ``A = l y + f`` that leaves f the least Jacobian;
* ``s, b``: the first-order model ``df / dlam = s f + b`` of how the rest changes along the ODE.

They belong to one model, process, range, guidance and shape: all but the first are noted, stored with the tables, and
a sampler that differs in one of them is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.config import from_config, to_config
from condiff.errors import BadFile, BadType, BadValue, Incompatible, unknown
from condiff.files import read_tensors, write_tensors
from condiff.process.gaussian import Process
from condiff.sampling.grid import Grid, Power, Uniform
from condiff.sampling.sigmas import Karras, UniformLogSNR

FORMAT = "condiff.model_statistics.1"
SPACINGS = ("log_snr", "time", "quadratic", "karras")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelStatistics:
    """Tables of l, s and b with a note of what they were measured on. Use :func:`measure_statistics`, or a file.

    Args:
        l, s, b: (N + 1, *shape) float64 at even nodes in lam from noise to data; (N + 1,) stands for all elements.
        ends: lam of the first and of the last node.
        process: of the model.
        shape: of one sample; None for any.
        guidance: what the model was guided by, as :func:`guidance_of` has it; None for nothing, a number for
            classifier-free guidance of that scale.
        samples: how many states each node was measured on, 0 for tables by formula.

    Raises:
        BadValue: tables of other shapes, fewer than two nodes, ends that don't rise, NaN or infinity.
        BadType: an endpoint process, a table that isn't of floats.
    """

    l: Tensor  # noqa: E741 - the paper's name
    s: Tensor
    b: Tensor
    ends: tuple[float, float]
    process: Process
    shape: tuple[int, ...] | None = None
    guidance: Any = None
    samples: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", _as_guidance(self.guidance))
        object.__setattr__(self, "shape", None if self.shape is None else tuple(self.shape))
        for name in ("l", "s", "b"):
            table = getattr(self, name)
            if not isinstance(table, Tensor) or not table.dtype.is_floating_point:
                raise BadType(f"the table {name} is a tensor of floats, got {type(table).__name__}")
            object.__setattr__(self, name, table.detach().double().cpu())
            self._check_table(name, getattr(self, name))
        if not isinstance(self.process, Process) or self.process.has_source:
            raise BadType(f"these statistics are of a path from noise to data, not of {self.process}")
        if not self.ends[0] < self.ends[1]:
            raise BadValue(f"the ends are lam of noise and of data, and lam rises: got {self.ends}")

    def _check_table(self, name: str, table: Tensor) -> None:
        nodes, shape = len(self.l), tuple(table.shape[1:])
        if len(table) != nodes or nodes < 2:
            raise BadValue(
                f"l, s and b have one row per node, at least two, got {len(table)} of {name} and {nodes} of l"
            )
        if shape and self.shape is not None and shape != self.shape:
            raise BadValue(f"the table {name} is for samples of shape {shape}, not {self.shape}")
        if not bool(torch.isfinite(table).all()):
            where = int((~torch.isfinite(table.flatten(1))).any(1).nonzero()[0])
            raise BadValue(f"the table {name} isn't finite at node {where}: NaN or infinity")

    @classmethod
    def constant(
        cls,
        process: Process,
        *,
        l: float = 1.0,  # noqa: E741
        s: float = 0.0,
        b: float = 0.0,
        nodes: int = 1200,
        start: float = 1.0,
        end: float = 1e-3,
    ) -> ModelStatistics:
        """Tables by formula, between two times: ``l = 1, s = 0`` is a prediction of x0, ``l = 0, s = -1`` of the noise.

        They fit every model of the process, guided or not; order 1 is then DDIM.
        """
        ends = lam_between(process, start, end)
        of_l, of_s, of_b = (torch.full((nodes + 1,), v, dtype=torch.float64) for v in (l, s, b))
        return cls(l=of_l, s=of_s, b=of_b, ends=ends, process=process, guidance="any")

    # The nodes

    @property
    def nodes(self) -> Tensor:
        """lam of the nodes, (N + 1,)."""
        return torch.linspace(self.ends[0], self.ends[1], len(self.l), dtype=torch.float64)

    @property
    def times(self) -> Tensor:
        """Their times, from noise to data, (N + 1,)."""
        return self.process.time(2.0 * self.nodes)

    @property
    def start(self) -> float:
        """The time of the first node."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """The time of the last node."""
        return float(self.times[-1])

    def grid(self, spacing: str = "log_snr") -> Grid:
        """A grid over the whole range: ``"log_snr"`` (small pictures), ``"time"`` (latents and large ones),
        ``"quadratic"`` or ``"karras"``.

        Raises:
            BadValue: another word.
        """
        sigma_max, sigma_min = (float(torch.exp(-self.nodes[i])) for i in (0, -1))
        if spacing == "log_snr":
            return UniformLogSNR(sigma_min, sigma_max, last="sigma_min")
        if spacing == "karras":
            return Karras(sigma_min, sigma_max, last="sigma_min")
        if spacing == "time":
            return Uniform(self.start, self.end)
        if spacing == "quadratic":
            return Power(2.0, self.start, self.end)
        raise unknown("spacing", spacing, SPACINGS)

    def snap(self, times: Tensor) -> Tensor:
        """Times moved to the nearest nodes, as the released code does with every grid. (The solver needs none of it.)

        Raises:
            BadValue: two times that would become one.
        """
        levels = self.process.at(times)
        index = torch.round((0.5 * levels.log_snr - self.ends[0]) / (self.nodes[1] - self.ends[0])).long()  # type: ignore[operator]
        if not bool(((index >= 0) & (index < len(self.l))).all() and (index.diff() != 0).all()):
            raise BadValue(f"these times don't lie on different nodes of {self}: fewer steps, or more nodes")
        return self.times[index]

    # What they are for

    def check(self, denoiser: Any, shape: tuple[int, ...]) -> None:
        """Refuse a model that the tables weren't measured on.

        Raises:
            Incompatible: naming what differs: shape, process or guidance.
        """
        own = self.shape or next((tuple(t.shape[1:]) for t in (self.l, self.s, self.b) if t.ndim > 1), None)
        if own is not None and own != tuple(shape):
            raise Incompatible(f"{self} is for samples of shape {own}, not {tuple(shape)}: measure them at this size")
        if not self.fits(denoiser.process):
            raise Incompatible(f"{self} was measured on {self.process}, this model follows {denoiser.process}")
        here = guidance_of(denoiser)
        if self.guidance != "any" and self.guidance != here:
            raise Incompatible(
                f"{self} was measured with {_said(self.guidance)}, this model has {_said(here)}: measure them on the "
                "guided denoiser, once for each scale"
            )

    def fits(self, process: Process) -> bool:
        """Whether a process follows the same curves over the range: the same one, or a table of the same numbers."""
        if process == self.process:
            return True
        if not isinstance(process, Process) or process.has_source or process.noise_law != self.process.noise_law:
            return False
        times = self.times
        mine, other = (torch.stack(p.curves(times)[0:3:2]) for p in (self.process, process))
        return bool(torch.allclose(mine, other, rtol=1e-4, atol=1e-6))

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, tables and note."""
        note = {
            "format": FORMAT,
            "ends": list(self.ends),
            "process": to_config(self.process),
            "shape": self.shape,
            "guidance": self.guidance,
            "samples": self.samples,
        }
        write_tensors(path, {k: getattr(self, k) for k in ("l", "s", "b")}, {"statistics": json.dumps(note)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelStatistics:
        """
        Raises:
            BadFile: a file that is missing, truncated, or not of statistics.
        """
        tensors, metadata = read_tensors(path)
        note = json.loads(metadata.get("statistics", "{}"))
        if note.get("format") != FORMAT or set(tensors) != {"l", "s", "b"}:
            raise BadFile(f"{path} holds no statistics of a model ({FORMAT})")
        return cls(
            **tensors,
            ends=tuple(note["ends"]),
            process=from_config(note["process"]),
            shape=None if note["shape"] is None else tuple(note["shape"]),
            guidance=note["guidance"],
            samples=note["samples"],
        )

    @classmethod
    def from_npz(
        cls,
        folder: str | os.PathLike[str],
        process: Process,
        *,
        start: float,
        end: float,
        guidance: Any = None,
        samples: int = 0,
    ) -> ModelStatistics:
        """Tables in the authors' layout: a folder with ``l.npz`` (l) and ``sb.npz`` (s, b), each (N + 1, *shape).

        Such files don't say what they were measured on: the caller does. ``start`` and ``end`` are the times of
        their first and last node (``1.0`` and ``1e-3`` or ``1e-4`` for ScoreSDE; for discrete tables ``1.0`` and
        ``1 / 1000``; EDM's 80 and 0.002 as times of the process).

        Raises:
            BadFile: a file that is missing or lacks an array.
        """
        found = {**_arrays(Path(folder) / "l.npz", ("l",)), **_arrays(Path(folder) / "sb.npz", ("s", "b"))}
        ends = lam_between(process, start, end)
        shape = tuple(found["l"].shape[1:])
        return cls(**found, ends=ends, process=process, shape=shape or None, guidance=guidance, samples=samples)

    def __repr__(self) -> str:
        shape = "any" if self.shape is None else "x".join(map(str, self.shape))
        return f"ModelStatistics({len(self.l) - 1} intervals, shape {shape}, t {self.start:.4g} .. {self.end:.4g})"


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [n for n in names if n not in file]
            if missing:
                raise BadFile(f"{path} lacks the arrays {', '.join(missing)}; it has {', '.join(file) or 'none'}")
            return {n: torch.from_numpy(np.asarray(file[n], dtype=np.float64)) for n in names}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadFile(f"no such file: {path}") from error
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{path} is not a file of arrays (npz): {error}") from error


def lam_between(process: Process, start: float, end: float) -> tuple[float, float]:
    """lam at two times.

    Raises:
        Incompatible: a process of tokens or of several variables.
        BadValue: where lam is infinite, or the times in another order.
    """
    if not isinstance(process, Process):
        raise Incompatible(f"statistics are of one continuous state, not of {process}")
    low, high = (0.5 * float(process.at(t).log_snr) for t in (start, end))
    if not -float("inf") < low < high < float("inf"):
        raise BadValue(
            f"statistics run from a noisy time to a cleaner one, both with data and noise: got start={start} with "
            f"lam = {low:.4g} and end={end} with lam = {high:.4g} on {process}"
        )
    return low, high


# Guidance


def guidance_of(denoiser: Any) -> Any:
    """What a denoiser is guided by, as JSON-ready data: None for a plain one.

    Conditions (prompts, also negative ones) are no part of it. Two guidances with the same description are taken to
    be the same.
    """
    if not hasattr(denoiser, "members") or not dataclasses.is_dataclass(denoiser):
        inside = getattr(denoiser, "denoiser", None)  # a wrapper of another kind
        return None if inside is None else guidance_of(inside)
    told: dict[str, Any] = {"type": type(denoiser).__name__}
    for f in dataclasses.fields(denoiser):
        value = getattr(denoiser, f.name)
        if f.init and not f.name.startswith("_") and not _is_default(f, value):
            described = _describe(value)
            if described is not None:
                told[f.name] = described
    nothing = told.get("type") == "Given" and set(told) <= {"type", "denoiser"}  # conditions bound, no more
    if nothing or {k: v for k, v in told.items() if k != "denoiser"} == {"type": "Free", "scale": 1.0}:
        return told.get("denoiser")
    return told


def _is_default(f: dataclasses.Field[Any], value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | None) and value == f.default


def _describe(value: Any) -> Any:
    if hasattr(value, "members") or hasattr(value, "process"):
        return guidance_of(value)
    if isinstance(value, Mapping):
        return None  # conditions
    if isinstance(value, list | tuple):
        return [_describe(v) for v in value]
    if isinstance(value, Tensor):
        return value.detach().double().cpu().tolist()
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float):
        return float(value)
    if dataclasses.is_dataclass(value):
        told = {f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": type(value).__name__, **{k: v for k, v in told.items() if v is not None}}
    if isinstance(value, Callable):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return type(value).__name__


def _as_guidance(value: Any) -> Any:
    """A scale stands for classifier-free guidance of that scale."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return None if value == 1.0 else {"type": "Free", "scale": float(value)}


def _said(guidance: Any) -> str:
    if guidance is None:
        return "no guidance"
    if isinstance(guidance, dict):
        inside = ", ".join(f"{k}={v}" for k, v in guidance.items() if k != "type")
        return f"the guidance {guidance.get('type')}({inside})"
    return f"the guidance {guidance}"
