"""``condiff edit``: pictures as they would be under another class or prompt, by inverting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.data import Data, images
from condiff.denoiser import device_of
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import write_json
from condiff.methods.drawn import Drawing, save_grid
from condiff.methods.dual_conditional_inversion import edit, invert_dual, reconstruct
from condiff.methods.names import class_number
from condiff.methods.runs import check_device, default_device, open_run
from condiff.metrics import psnr
from condiff.process import Gaussian
from condiff.sampling import AttentionEdit, ImplicitDDIM, beside
from condiff.sampling.attention_edit import check_share
from condiff.sampling.loop import as_grid


@dataclass(frozen=True, kw_only=True)
class Request:
    """How ``condiff edit`` was asked to edit; see its help."""

    steps: int = 50
    iterations: int = 10
    rho: float = 0.0
    scale: float = 7.5
    quantile: float = 0.4
    keep_below: float = 0.4
    cross: float | None = None
    own: float | None = None
    align: str = "refine"
    threshold: float = 0.3
    blend_from: float = 0.2
    weights: dict[str, float] = field(default_factory=dict)
    batch: int | None = None
    model_weights: str = "ema"
    device: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        shares = {"--cross-attention": self.cross, "--self-attention": self.own, "--blend-threshold": self.threshold}
        for name, value in {**shares, "--blend-from": self.blend_from}.items():
            if value is not None:
                check_share(name, value)
        if not 0.0 <= self.keep_below <= 1.0:
            raise BadValue(f"--keep-below is a time from 0 to 1, got {self.keep_below:g}")
        if self.batch is not None and self.batch < 1:
            raise BadValue(f"--batch must be at least 1, got {self.batch}")

    @property
    def attends(self) -> bool:
        """Whether something was said of attention."""
        return bool(self.weights) or any(share is not None and share > 0.0 for share in (self.cross, self.own))


@dataclass(frozen=True)
class Task:
    """What a picture is, what it should become, and the words of both whose places alone change.

    Raises:
        BadValue: nothing that changes.
    """

    name: str
    source: str
    target: str
    blend: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise BadValue(f"{self.name}: source and target are both {self.source!r}: nothing would change")


Sides = tuple[Conditions, Conditions, AttentionEdit | None]


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the pictures: as they were given, edited, the PSNR of the way back (B,), and the calls of an inversion;
    on the CPU."""

    tasks: Sequence[Task]
    given: Tensor
    made: Tensor
    back: Tensor
    calls: int

    def facts(self) -> list[dict[str, float]]:
        """Of each picture."""
        changed = (self.made - self.given).flatten(1).square().mean(1).sqrt()
        return [
            {"round_trip_psnr": round(float(b), 2), "changed_rms": round(float(c), 4)}
            for b, c in zip(self.back, changed, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Editor:
    """A model with its codec, the pictures as it sees them, each with a task, and what it is told of tasks: conditions
    of both sides, a row each, and the control of attention, whose shares are ``attention``."""

    denoiser: Any
    codec: Any
    grid: Tensor
    pictures: Data
    tasks: Sequence[Task]
    told: Callable[[Sequence[Task]], Sides]
    at_once: int
    attention: Mapping[str, Any] | None = None

    def parts(self, request: Request, start: int = 0) -> Iterator[Part]:
        """The pictures from one on, as many together as fit."""
        step = self.at_once if request.batch is None else request.batch
        for first in range(start, len(self.tasks), step):
            rows = range(first, min(first + step, len(self.tasks)))
            yield self._part(self.pictures.batch(rows)["x"], [self.tasks[i] for i in rows], request)

    def _part(self, given: Tensor, tasks: Sequence[Task], request: Request) -> Part:
        x = given.to(device_of(self.denoiser))
        source, target, attention = self.told(tasks)
        with torch.no_grad():
            z = x if self.codec is None else self.codec.encode(x)
        solver = ImplicitDDIM(request.iterations)
        found = invert_dual(self.denoiser, z, source, grid=self.grid, length=request.rho, rms=True, solver=solver)
        how: dict[str, Any] = {"scale": request.scale, "quantile": request.quantile, "below": request.keep_below}
        made = edit(self.denoiser, found, source, target, attention=attention, **how)
        again = reconstruct(self.denoiser, found, source)
        with torch.no_grad():
            made, again = (v if self.codec is None else self.codec.decode(v) for v in (made, again))
        return Part(tasks, given, made.cpu(), psnr(again, x).cpu(), found.nfe)


Read = Callable[..., Data]  # the pictures, of a size
Assigned = Callable[[int], Sequence[Task]]  # tasks of so many pictures


def of_run(folder: Path, pictures: Read, tasks: Assigned, request: Request) -> Editor:
    """A run on pictures with classes.

    Raises:
        Incompatible: a run on something else; attention to words. BadValue: an unknown class.
    """
    run = open_run(folder)
    if set(run.data.kinds) != {"label"} or len(run.data.shape) != 3 or not isinstance(run.recipe.process, Gaussian):
        raise Incompatible(f"{folder} isn't a run on pictures with classes alone: there is nothing to edit them by")
    denoiser = run.model(request.model_weights, request.device)
    data = pictures(run.data.shape[1:], channels=run.data.shape[0])
    wanted, device = tasks(len(data)), device_of(denoiser)
    if request.attends or any(task.blend for task in wanted):
        raise Incompatible(f"{folder} is told classes: attention is controlled where prompts are told, word by word")
    number = lambda names: torch.tensor([class_number(name, run.data.classes) for name in names])
    label = lambda names: as_conditions({"label": number(names)}, denoiser.kinds, device)
    told = lambda some: (label([task.source for task in some]), label([task.target for task in some]), None)
    told(wanted)
    grid = _with_data(as_grid(run.recipe.sampler.grid, request.steps, denoiser.process), denoiser.process)
    return Editor(denoiser, run.recipe.build_codec(device), grid, data, wanted, told, AT_ONCE)


BEFORE_NOISE = 0.99  # where an inversion ends whose grid begins at pure noise
AT_ONCE = 16  # pictures of a run that go through the network together
OF_PIPELINE = 4  # and of a pipeline, whose networks are larger; with attention control 16 rows


def _with_data(grid: Tensor, process: Any) -> Tensor:
    """The grid, begun a little later where it begins at pure noise: nothing leads back from there."""
    if process.at(float(grid[0])).data > 0.0:
        return grid
    return torch.cat([grid.new_tensor([BEFORE_NOISE]), grid[grid < BEFORE_NOISE]])


def of_pipeline(folder: Path, pictures: Read, tasks: Assigned, request: Request) -> Editor:
    """A saved diffusers pipeline; prompts, or classes of a DiT.

    Raises:
        Incompatible: one without conditions; attention to words of another network than a UNet told prompts.
        BadValue: words that aren't in their prompts, with the pictures' names.
    """
    from condiff.interop import load_pipeline, wrap

    wrapped = wrap(load_pipeline(str(folder)).to(check_device(request.device or default_device())))
    if wrapped.codec is None:
        raise Incompatible(f"{folder} has no conditions: there is nothing to edit by")
    sides = [side * wrapped.codec.factor for side in wrapped.denoiser.shape[1:]]  # type: ignore[index]
    data = pictures((sides[0], sides[1]), channels=3, filter="bicubic")
    wanted, classes = tasks(len(data)), "label" in wrapped.denoiser.kinds
    words = lambda names: wrapped.encode([int(word) if classes and word.isdigit() else word for word in names])
    shares = shares_of(wrapped, wanted, request)
    if shares is not None:
        check_all(lambda task: control_of(wrapped, task, request, shares), wanted)

    def told(some: Sequence[Task]) -> Sides:
        control = None if shares is None else beside([control_of(wrapped, task, request, shares) for task in some])
        return words([task.source for task in some]), words([task.target for task in some]), control

    grid = _with_data(wrapped.grid(request.steps), wrapped.denoiser.process)
    return Editor(wrapped.denoiser, wrapped.codec, grid, data, wanted, told, OF_PIPELINE, shares)


def shares_of(wrapped: Any, tasks: Sequence[Task], request: Request) -> dict[str, float] | None:
    """Of attention control, the published ones where a UNet is told prompts and nothing else was said; None where
    nothing is controlled.

    Raises:
        Incompatible: control was asked for, of a network that has none.
    """
    blends = any(task.blend for task in tasks)
    if getattr(wrapped.pipeline, "unet", None) is None or "prompt" not in wrapped.denoiser.kinds:
        if request.attends or blends:
            raise Incompatible(
                f"attention is controlled in UNets that are told prompts, not in {type(wrapped.pipeline).__name__}: "
                "leave blended words, --weight, --cross-attention and --self-attention out"
            )
        return None
    given = {"cross": (request.cross, CROSS), "own": (request.own, OWN)}
    shares = {name: share if value is None else value for name, (value, share) in given.items()}
    return shares if blends or any(shares.values()) else None


def control_of(wrapped: Any, task: Task, request: Request, shares: Mapping[str, float]) -> AttentionEdit:
    """Prompt-to-Prompt for a task."""
    blend = {"blend": task.blend, "threshold": request.threshold, "start": request.blend_from}
    how = {"mode": request.align, "weights": request.weights or None}
    return wrapped.attention_edit(task.source, task.target, **shares, **how, **blend)


CROSS, OWN = 0.8, 0.6  # of Prompt-to-Prompt's editing


def check_all(make: Callable[[Task], Any], tasks: Sequence[Task]) -> None:
    """
    Raises:
        BadValue: all tasks that can't be done, by name.
    """
    wrong = []
    for task in dict.fromkeys(tasks):
        try:
            make(task)
        except BadValue as error:
            wrong.append(f"{task.name}: {error}")
    if len(wrong) == 1:
        raise BadValue(wrong[0])
    if wrong:
        raise BadValue(f"{len(wrong)} edits can't be done:" + "".join(f"\n  {line}" for line in wrong))


def opened(model: Path, pictures: Read, tasks: Assigned, request: Request) -> Editor:
    """The editor of a run or a pipeline."""
    pipeline = (model / "model_index.json").is_file()
    return (of_pipeline if pipeline else of_run)(model, pictures, tasks, request)


def run_edit(
    model: Path, pictures: Path, source: str, target: str, blend: tuple[str, str] | None, request: Request, out: Path
) -> dict[str, Any]:
    """Edit pictures and write a grid of them beside what they were, with a JSON of how.

    Raises:
        BadFile: the output is there already. BadValue: nothing that changes.
    """
    task = Task("--source, --target", source, target, blend)
    if out.suffix.lower() != ".png":
        raise BadValue(f"--out must end in .png, got {out.name!r}")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not request.overwrite:
            raise BadFile(f"{path} exists already: choose another --out, or say --overwrite")
    read = lambda size, **options: images(pictures, size, labels=None, **options)
    editor = opened(model, read, lambda count: [task] * count, request)
    parts = list(editor.parts(request))
    given, made = (torch.cat([getattr(part, name) for part in parts]) for name in ("given", "made"))
    calls = max(part.calls for part in parts)
    drawing = Drawing(
        x=made, labels=None, truth=None, names=None, nfe=calls, seconds=0.0, columns=None, cond={"given": given},
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(drawing, out)
    each = [facts for part in parts for facts in part.facts()]
    facts = {"out": str(out), "pictures": len(made), "source": source, "target": target, "calls": calls}
    facts["attention"] = editor.attention
    facts |= {name: [one[name] for one in each] for name in each[0]}
    write_json(out.with_suffix(".json"), facts)
    return facts
