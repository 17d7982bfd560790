"""Several kinds of data that are generated together: a picture and its class, two views of one thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff import figures
from condiff.conditions import Conditions
from condiff.data import Data, Recalled, RecalledTogether, of_together
from condiff.errors import BadValue, unknown
from condiff.files import replacing
from condiff.methods import given
from condiff.methods.drawn import Drawing, Part, Plan
from condiff.methods.given import Given
from condiff.methods.judge import judge_of
from condiff.methods.kinds.kind import FEWEST, MOST_TRAINED, Kind, OfRun
from condiff.methods.kinds.pictures import GRID, Pictures
from condiff.methods.names import class_number
from condiff.methods.recipe import default_network, default_training
from condiff.metrics import evaluate
from condiff.process import Driven
from condiff.sampling import multimodal_in, sample_modalities

LABEL = "label"


class Together(Kind):
    """Rows of several modalities, sampled jointly or given some of them (``--known``)."""

    holds = "several kinds of data together"
    default_method = "multi-task-diffusion"

    def matches(self, data: Any) -> bool:
        return isinstance(data, Data) and of_together(data) is not None

    # Learning

    def numbers(self, data: Data) -> int:
        shapes: Any = data.shape
        return sum(math.prod(shape) for shape in shapes.values())

    def std(self, x: Any) -> float:
        return float(next(iter(x.values())).double().std())

    def classes(self, data: Data) -> Mapping[str, int]:
        view = _view(data)
        return {LABEL: len(view.classes)} if LABEL in view.kinds else {}

    def network(self, facts: Any) -> Any:
        return default_network(_first(facts.shape), facts.embeddings)

    def training(self, facts: Any) -> Any:
        return default_training(_first(facts.shape), facts.count)

    def fits(self, process: Any) -> bool:
        return isinstance(process, Driven)

    # The run's folder

    def remembered(self, data: Data) -> dict[str, Any]:
        own = of_together(data)
        assert own is not None
        return {**super().remembered(data), "together": own.facts}

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        return RecalledTogether(facts)

    # Drawing

    def draw(self, plan: Plan, rows: range) -> Part:
        """The latent from noise to its first level, and what the heads decode there."""
        rng = plan.source(rows)
        told, names = plan.conditions(rows, rng), list(multimodal_in(plan.denoiser).modalities)
        x = sample_modalities(
            plan.denoiser,
            len(rows),
            known={name: told[name].value for name in names if name in told},
            cond=Conditions({name: entry for name, entry in told.items() if name not in names}),
            solver=plan.sampler.solver,
            grid=plan.times,
            hooks=plan.sampler.hooks,
            rng=rng,
            progress=plan.progress or False,
        )
        return Part({name: value.cpu() for name, value in x.items()}, len(plan.times))

    # Judging

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        """The figures of the first modality; where there are classes, by a judge, whether it shows what it is said to
        (``class_accuracy``)."""
        name, own = next(iter(made.x)), of_together(run.data)
        real = heldout.batch(range(len(heldout)))["x"][name]
        train = run.data.batch(range(min(len(run.data), MOST_TRAINED)))["x"][name]
        if min(made.num, len(real), len(train)) < FEWEST:
            return {"samples": made.num}
        judge = judge_of(run.request.source, getattr(own, "data", run.data)) if LABEL in made.x else None
        return evaluate(made.x[name], train, real, labels=made.x[LABEL] if judge else None, classifier=judge)

    # Looking

    def shown(self, data: Data) -> int:
        return GRID if figures.drawable(_first(data.shape)) else 0

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        if not figures.drawable(_first(run.data.shape)):
            return None
        return Pictures().show(_pictures(made, run.data), stem, run)

    # ``condiff sample``

    def _check_drawable(self, out: Path, ending: str) -> None:
        """Pictures are, with the class in the name; what else there is needs .npz."""

    def default_num(self, labels: Sequence[str], data: Data) -> int:
        return GRID

    def read_known(self, words: Sequence[str], run: OfRun) -> Given:
        """``NAME=VALUE``: a class by name or number, numbers, or a file, for any modalities but all."""
        view, classes, others = _view(run.data), [], []
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise BadValue(f"--known takes NAME=VALUE, such as {next(iter(view.kinds))}=..., got {word!r}")
            if name not in view.kinds:
                raise unknown("modality (--known NAME=VALUE)", name, view.kinds)
            (classes if name == LABEL else others).append(text if name == LABEL else word)
        told = given.read(others, view, run.request.options)
        known = dict(told.cond)
        if classes:
            known[LABEL] = torch.tensor([class_number(name, view.classes) for name in classes])
        if len(known) == len(view.kinds):
            raise BadValue(f"all of {', '.join(view.kinds)} are known: there is nothing to sample")
        return Given(known, told.names)

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """Pictures with their classes, or arrays of everything."""
        ending, pictures = out.suffix.lower(), _pictures(made, run.data)
        if ending in (".png", ""):
            if not figures.drawable(_first(run.data.shape)):
                raise BadValue(f"these samples aren't pictures: use --out {out.with_suffix('.npz')}")
            Pictures().write(pictures, out, run, told)
        elif ending == ".npy":
            super().write(pictures, out, run, told)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as temporary, open(temporary, "wb") as file:
                arrays: dict[str, Any] = {name: value.numpy() for name, value in made.x.items()}
                np.savez(file, **arrays)

    def stored(self, made: Drawing, run: OfRun) -> Any:
        return made.x

    def said(self, made: Drawing, run: OfRun) -> dict[str, Any]:
        return {"labels": _names(made, run.data)}


def _first(shapes: Any) -> tuple[int, ...]:
    return next(iter(shapes.values()))


def _view(data: Data) -> Recalled:
    """The data as if all of its modalities were conditions: what a given one must be like."""
    own = of_together(data)
    assert own is not None
    return Recalled(own.facts)


def _names(made: Drawing, data: Data) -> list[str] | None:
    labels, classes = made.x.get(LABEL), _view(data).classes
    return None if labels is None else [classes[i] for i in labels.tolist()]


def _pictures(made: Drawing, data: Data) -> Drawing:
    """The first modality alone, named by the class that goes with it."""
    x: Tensor = next(iter(made.x.values()))
    return replace(made, x=x, names=_names(made, data), cond={}, truth=None)
