"""What ``condiff classify`` does: a run or a pipeline as a classifier of held-out data or of pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.data import Prompts, images, read_prompts
from condiff.denoiser import device_of
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import write_json
from condiff.methods.given import PICTURE_OPTIONS
from condiff.methods.runs import RunFolder, check_device, default_device, open_run
from condiff.metrics import calibration, class_accuracy, confusion, mean_class_accuracy
from condiff.scoring import DiffusionClassifier, Error


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to classify.

    Args:
        stages: ``(levels, keep)`` each.
        loss, target, weight: of the denoising error.
        num: at most that many samples.
    """

    stages: tuple[tuple[int, int], ...] = ((20, 1),)
    loss: str = "l2"
    target: str = "noise"
    weight: str = "uniform"
    num: int | None = None
    seed: int = 0
    batch: int = 256
    weights: str = "ema"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 1:
            raise BadValue(f"num must be at least 1, got {self.num}")

    def classifier(self, denoiser: Any, candidates: Any, classes: Sequence[int] | None = None) -> DiffusionClassifier:
        return DiffusionClassifier(
            denoiser=denoiser,
            candidates=candidates,
            stages=self.stages,
            measure=Error(loss=self.loss, target=self.target, weight=self.weight),
            classes=classes,
            seed=self.seed,
            batch=self.batch,
        )


def read_stages(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """``"50:5"`` -> 50 noise levels, of which the best 5 candidates stay.

    Raises:
        BadValue: another form.
    """
    out = []
    for word in words:
        levels, _, keep = word.partition(":")
        if not (levels.isdigit() and keep.isdigit()):
            raise BadValue(f"a stage is LEVELS:KEEP, such as 50:5, got {word!r}")
        out.append((int(levels), int(keep)))
    return tuple(out)


def classify_run(folder: Path, pictures: Path | None, request: Request, out: Path | None = None) -> dict[str, Any]:
    """A run with labels on its held-out data, or on pictures.

    Returns:
        JSON-ready figures; with pictures without labels the class of each. Writes ``classify.json`` and, where there
        are probabilities, ``reliability.png`` into ``out`` (the run by default).

    Raises:
        BadValue: a run without classes.
        Incompatible: pictures for a run that is told more than a label.
    """
    run = open_run(folder)
    if len(run.data.classes) < 2:
        raise BadValue(f"{folder} was trained without classes: there is nothing to choose from")
    x, y, names, cond = _run_samples(run, pictures, request)
    denoiser = run.model(request.weights, request.device)
    device = device_of(denoiser)
    clf = request.classifier(denoiser, {"label": torch.arange(len(run.data.classes), device=device)})
    told = {name: value.to(device) for name, value in cond.items()}
    facts = _facts(clf, x.to(device), y, names, run.data.classes, told)
    return _write({"model": str(folder), **facts}, folder if out is None else out, facts)


def classify_pipeline(
    folder: Path, pictures: Path, prompts: Path, request: Request, out: Path | None = None
) -> dict[str, Any]:
    """A diffusers pipeline in a local folder, zero-shot, by a table of prompts (or of classes, for a DiT).

    Pictures are resized with their shorter side to the model's size and cut in the middle. Where they lie in
    subfolders named after the classes, accuracy is told.
    """
    from condiff.interop import load_pipeline, wrap

    table = read_prompts(prompts)
    if not (folder / "model_index.json").is_file():
        raise BadFile(f"{folder} is not a saved diffusers pipeline: it has no model_index.json")
    wrapped = wrap(load_pipeline(str(folder)).to(check_device(request.device or default_device())))
    factor = 1 if wrapped.codec is None else wrapped.codec.factor
    channels, height, width = wrapped.denoiser.shape  # type: ignore[misc]
    size = (height * factor, width * factor)
    channels = channels if wrapped.codec is None else 3
    data = images(pictures, size, channels=channels, filter="bicubic")
    rows = data.batch(range(min(len(data), request.num or len(data))))
    device = device_of(wrapped.denoiser)
    x = _latents(wrapped.codec, rows["x"].to(device), request.batch)
    labels = _labels(data.classes, table, rows["cond"].get("label"))
    clf = request.classifier(wrapped.denoiser, wrapped.encode(list(_words(wrapped, table))), table.classes)
    names = [item.name for item in data.views["x"]][: len(x)]
    facts = _facts(clf, x, labels, names, table.names, {})
    return _write({"model": str(folder), **facts}, Path("classify") if out is None else out, facts)


def _words(wrapped: Any, table: Prompts) -> Sequence[Any]:
    """Prompts as the pipeline takes them: whole numbers for a model of classes."""
    if "label" in wrapped.denoiser.kinds:
        return [int(word) if word.isdigit() else word for word in table.prompts]
    return table.prompts


def _labels(folders: Sequence[str], table: Prompts, label: Tensor | None) -> Tensor | None:
    """Classes of pictures that lie in folders, by the names of the table."""
    if label is None:
        return None
    unknown = set(folders) - set(table.names)
    if unknown:
        raise BadValue(f"pictures lie in folders {sorted(unknown)[:5]} that no prompt's classname is called")
    return torch.tensor([table.names.index(name) for name in folders])[label]


@torch.no_grad()
def _latents(codec: Any, x: Tensor, batch: int) -> Tensor:
    return x if codec is None else torch.cat([codec.encode(part) for part in x.split(batch)])


def _run_samples(run: RunFolder, pictures: Path | None, request: Request):
    """Samples, their classes or None, their names or None, and what else the run is told of them."""
    if pictures is None:
        data = run.need_unseen()
        rows = data.batch(range(min(len(data), request.num or len(data))))
        cond = {name: value for name, value in rows["cond"].items() if name != "label"}
        return rows["x"], rows["cond"]["label"], None, cond
    others = [name for name in run.data.kinds if name != "label"]
    if others or len(run.data.shape) != 3:
        raise Incompatible(f"pictures alone say nothing of {others or run.data.shape}: classify the held-out data")
    options = {k: v for k, v in run.request.options.items() if k in PICTURE_OPTIONS}
    size, channels = run.data.shape[1:], run.data.shape[0]
    data = images(pictures, size, labels=None, channels=channels, crop="center", **options)
    rows = data.batch(range(min(len(data), request.num or len(data))))
    return rows["x"], None, [item.name for item in data.views["x"]][: len(rows["x"])], {}


def _facts(
    clf: DiffusionClassifier,
    x: Tensor,
    labels: Tensor | None,
    names: Sequence[str] | None,
    classes: Sequence[str],
    cond: dict[str, Tensor],
) -> dict[str, Any]:
    begin = time.perf_counter()
    scores = clf.scores(x, cond)
    best = clf.class_of(scores.best).cpu()
    p = clf.posterior(scores.errors, x[0].numel()).cpu() if len(clf.stages) == 1 else None
    facts: dict[str, Any] = {
        "samples": len(x),
        "classes": list(classes),
        "stages": [list(stage) for stage in clf.stages],
        "evaluations": scores.calls,
        "seconds": round(time.perf_counter() - begin, 3),
    }
    if names is not None:
        sure = [None] * len(x) if p is None else p.max(1).values.tolist()
        facts["predictions"] = [
            {"image": name, "class": classes[int(c)], "probability": s}
            for name, c, s in zip(names, best, sure, strict=True)
        ]
    if labels is not None:
        table = confusion(best, labels, len(classes))
        facts["accuracy"] = class_accuracy(best, labels)
        facts["mean_class_accuracy"] = mean_class_accuracy(table)
        facts["confusion"] = table.tolist()
        if p is not None:
            facts["calibration"] = calibration(p, labels)
            facts["calibration_error"] = facts["calibration"].error
    return facts


def _write(shown: dict[str, Any], out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """``classify.json``, and ``reliability.png`` where probabilities can be judged."""
    out.mkdir(parents=True, exist_ok=True)
    measured = shown.pop("calibration", None)
    if measured is not None:
        title = f"{facts['stages'][0][0]} levels"
        shown["reliability"] = str(figures.reliability({title: measured}, out / "reliability.png"))
    write_json(out / "classify.json", shown)
    return {**shown, "written": str(out / "classify.json")}
