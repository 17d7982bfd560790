"""A trained run as a source: conditions and samplers are chosen as by `condiff sample`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import __version__
from condiff.conditions import BELONGING
from condiff.data import Framing, Recalled
from condiff.denoiser import device_of
from condiff.errors import BadValue, unknown
from condiff.methods import given, texts
from condiff.methods.drawing import draw_samples, override
from condiff.methods.drawn import Drawing
from condiff.methods.names import SOLVERS
from condiff.methods.runs import open_run
from condiff.web import files
from condiff.web.limits import Limits
from condiff.web.settings import Settings
from condiff.web.source import File, Made, Source, check_size, solvers_for
from condiff.web.uploads import Uploads
from condiff.web.views import check_finite, viewer_of
from condiff.web.watching import Watching
from condiff.web.worker import Job

BATCH = 256  # rows a network call, as `condiff sample` has them
MOST_AT_FIRST, MOST_POINTS = 16, 64  # samples that a form begins with, and samples that are points
SEEN = 256  # held-out rows that a condition's range is read from
PICTURES = ("map", "endpoint")


class RunSource(Source):
    """A run folder.

    Args:
        weights: "ema", "raw", or the name of an averaged copy.

    Raises:
        BadFile: the folder isn't a run.
    """

    def __init__(
        self, folder: Path, uploads: Uploads, limits: Limits, *, weights: str = "ema", device: str | None = None
    ) -> None:
        self.run = open_run(folder)
        self.model = self.run.model(weights, device)
        self.data, self.weights, self.uploads, self.limits = self.run.data, weights, uploads, limits
        self.shape, self.viewer = self.data.shape, viewer_of(self.data)
        self.example = self.data.example()
        self._endings = [e for e in self.run.kind.endings if e in files.OFFERED and self._can_write(e)]
        self._drawn: bool | None = None
        self._pen = threading.Lock()  # Matplotlib draws for one thread at a time
        self.text, self.pictures = texts.find_tokenizer(self.data) is not None, len(self.shape) == 3
        self.ranges = {name: self._range(name) for name in self.example}

    # What it takes

    @property
    def takes(self) -> set[str]:
        """The settings that mean something here."""
        names = {"solver", "steps", "seed", "num"}
        names |= {"labels"} if self.data.classes else set()
        names |= {"conditions"} if set(self.example) - {"label"} else set()
        names |= {"guidance"} if any(kind not in BELONGING for kind in self.data.kinds.values()) else set()
        names |= {"temperature", "top_k", "top_p"} if self.data.vocab is not None else set()
        return names | ({"prefix", "suffix"} if self.text else set())

    def about(self) -> dict[str, Any]:
        recipe, sampler = self.run.recipe, self.run.recipe.sampler
        same = [name for name, make in SOLVERS.items() if make() == sampler.solver]
        own = {
            "solver": same[0] if same else type(sampler.solver).__name__,
            "steps": min(sampler.steps, self.limits.steps),
            "guidance": sampler.guidance,
            "num": min(self._first(), self.limits.num),
        }
        return {
            "kind": "run",
            "name": self.run.folder.resolve().name,
            "title": f"{recipe.method} on {self.data.name}",
            "facts": [*self.data.describe().splitlines()[:1], str(recipe.process), f"runs on {device_of(self.model)}"],
            "takes": sorted(self.takes),
            "classes": list(self.data.classes),
            "conditions": [self._condition(name) for name in self.example if name != "label"],
            "solvers": solvers_for(recipe.process),
            "own": own,
        }

    def _first(self) -> int:
        """How many samples a form begins with: one of each class, or enough points to see their law."""
        return MOST_POINTS if tuple(self.shape) == (2,) else min(len(self.data.classes) or 8, MOST_AT_FIRST)

    def _condition(self, name: str) -> dict[str, Any]:
        """How a page asks for a condition: a number, a list of them, a picture, or not at all."""
        value, kind = self.example[name][0], self.data.kinds[name]
        out: dict[str, Any] = {"name": name, "kind": kind, "shape": list(value.shape), "input": None}
        one_frame = kind == "frames" and value.ndim == 4 and len(value) == 1
        if one_frame or (kind in PICTURES and value.ndim == 3 and self.pictures):
            return {**out, "shape": list(value.shape[-3:]), "input": "picture"}
        if kind in ("scalar", "vector") and value.ndim < 2:
            low, high = self.ranges[name]
            return {**out, "input": "numbers", "low": low, "high": high}
        return out

    def _range(self, name: str) -> tuple[float | None, float | None]:
        """Smallest and largest value of a condition in held-out data, where those are here."""
        if isinstance(self.run.heldout, Recalled):
            return None, None
        rows = self.run.heldout.batch(range(min(len(self.run.heldout), SEEN)))["cond"][name]
        return float(rows.min()), float(rows.max())

    # Sampling

    def make(self, settings: Settings, job: Job) -> Made:
        settings.refuse_but(self.takes, "this run")
        check_size(settings.num, self.shape, self.limits)
        recipe = self.run.recipe
        sampler = override(recipe.sampler, solver=settings.solver, steps=settings.steps, guidance=settings.guidance)
        sampler = texts.filtered(sampler, settings.temperature, settings.top_k, settings.top_p)
        known = texts.given_text(self.data, settings.prefix, settings.suffix)
        told = self._told(settings.conditions)
        codec = recipe.build_codec(device_of(self.model))
        watching = Watching(job, self.viewer, settings.num, codec)
        made = draw_samples(
            self.model,
            recipe,
            self.run.heldout,
            num=settings.num,
            wanted=settings.labels,
            sampler=replace(sampler, hooks=(*sampler.hooks, watching)),
            seed=settings.seed,
            batch=BATCH,
            given=told.take(settings.num),
            known=None if known is None else known.rows(settings.num),
        )
        check_finite(made.x)
        used = replace(settings, steps=sampler.steps)
        used = replace(used, guidance=sampler.guidance) if "guidance" in self.takes else used
        return Made(made, used, self._facts(made, sampler))

    def _facts(self, made: Any, sampler: Any) -> dict[str, Any]:
        return {
            "condiff": __version__,
            "run": self.run.folder.resolve().name,
            "method": self.run.recipe.method,
            "weights": self.weights,
            "data": self.data.fingerprint(),
            "solver": repr(sampler.solver),
            "nfe": made.nfe if made.calls is None else float(made.calls.double().mean()),
            "seconds": round(made.seconds, 4),
        }

    def _told(self, conditions: Mapping[str, Any]) -> given.Given:
        """The conditions that a page gives, a row each.

        Raises:
            BadValue: an unknown condition, another shape, a picture where numbers are wanted.
            BadFile: a picture that doesn't fit.
        """
        rows: dict[str, Tensor] = {}
        for name, value in conditions.items():
            if name == "label" or name not in self.example:
                raise unknown("condition", name[:60], set(self.example) - {"label"})
            wanted = self._condition(name)["input"]
            if wanted is None or (wanted == "picture") != isinstance(value, dict):
                words = {"picture": "a picture", "numbers": "numbers", None: "taken from held-out data here"}
                raise BadValue(f"condition {name!r} is {words[wanted]}")
            example = self.example[name]
            row = self._picture(value["picture"], example) if wanted == "picture" else torch.tensor(value)[None]
            rows[name] = given.fit(name, row, example)
        return given.Given(rows)

    def _picture(self, name: str, example: Tensor) -> Tensor:
        """A picture that was sent, read as those of the run, of an example's shape."""
        options = self.run.request.options
        how = {k: options[k] for k in given.PICTURE_OPTIONS if k in options and k != "skip_bad"}
        crop = options.get("crop", "center")
        crop = "center" if crop == "random" else crop
        channels, height, width = example.shape[-3:]
        read = self.uploads.read(name, Framing(size=(height, width), channels=channels, crop=crop, **how))
        return read.reshape(1, *example.shape[1:])

    # Files

    def files(self, made: Made) -> dict[str, File]:
        """What `condiff sample` writes such samples to, and a picture of those that it doesn't draw."""
        write: dict[str, files.Write] = {e: partial(self._write, made.drawing, e) for e in self._endings}
        if ".png" not in write and self._draws(made.drawing):
            write[".png"] = partial(self._show, made.drawing)
        return {ending.removeprefix("."): partial(files.with_settings, ending, w) for ending, w in write.items()}

    def _can_write(self, ending: str) -> bool:
        try:
            self.run.kind.check_output(Path(f"samples{ending}"), overwrite=True)
        except BadValue:
            return False
        return True

    def _draws(self, drawing: Drawing) -> bool:
        """Whether a run shows such samples as a PNG; the first ones tell it of all."""
        if self._drawn is None:
            self._drawn = files.written(partial(self._show, drawing))[0] == ".png"
        return self._drawn

    def _show(self, drawing: Drawing, folder: Path) -> Path | None:
        with self._pen:
            return self.run.kind.show(drawing, folder / "samples", self.run)

    def _write(self, drawing: Drawing, ending: str, folder: Path) -> Path:
        with self._pen:
            self.run.kind.write(drawing, folder / f"samples{ending}", self.run, given.Given({}))
        return folder / f"samples{ending}"
