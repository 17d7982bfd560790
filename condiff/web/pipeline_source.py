"""A diffusers pipeline as a source, through :func:`condiff.interop.wrap`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff import __version__, figures, interop
from condiff.data import Framing
from condiff.denoiser import device_of
from condiff.errors import BadValue, Incompatible, unknown
from condiff.methods.drawn import Drawing
from condiff.methods.names import solver as solver_of
from condiff.sampling import sample
from condiff.web import files
from condiff.web.limits import Limits
from condiff.web.settings import Settings
from condiff.web.source import File, Made, Source, check_size, solvers_for
from condiff.web.uploads import Uploads
from condiff.web.views import check_finite, clips, pictures
from condiff.web.watching import Watching
from condiff.web.worker import Job

OWN = {"solver": "unipc", "steps": 20, "num": 1}
TOLD = ("prompt", "label", "image")  # what a pipeline may be told first
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class PipelineSource(Source):
    """A loaded pipeline.

    Args:
        name: what to call it.
        size, frames: see :func:`condiff.interop.wrap`.

    Raises:
        Incompatible: a pipeline that :func:`condiff.interop.wrap` doesn't know.
        BadValue: a size that it can't have.
    """

    def __init__(
        self,
        pipe: Any,
        name: str,
        uploads: Uploads,
        limits: Limits,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
    ) -> None:
        self.wrapped, self.name = interop.wrap(pipe, size=size, frames=frames), Path(name).name or name
        self.uploads, self.limits = uploads, limits
        self.denoiser, self.family = self.wrapped.denoiser, self.wrapped.family
        channels = 3 if self.wrapped.codec is not None else self.family.shape[-3]
        picture = (channels, *self.family.size)
        count = self.family.frames
        self.shape, self.viewer = (picture, pictures) if count is None else ((count, *picture), clips)
        self.told = next((kind for kind in TOLD if kind in self.denoiser.kinds), None)
        self.classes = self._classes() if self.told == "label" else []
        self.asked = {"image": 3} if self.told == "image" else self.family.pictures  # channels of pictures, by name
        self.takes = self._takes()

    def _classes(self) -> list[str]:
        """Names of the classes by number; numbers where there are no names."""
        config = self.family.net.config
        count = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
        names = {i: name for name, i in reversed((getattr(self.wrapped.pipeline, "labels", None) or {}).items())}
        return [names.get(i, str(i)) for i in range(count)]

    def _takes(self) -> set[str]:
        words = {"prompt": {"prompt"}, "label": {"labels"}}.get(self.told or "", set())
        taken = {"solver", "steps", "seed", "num"} | words | ({"conditions"} if self.asked else set())
        taken |= {"guidance"} if _possible(lambda: self.wrapped.guided(1.0)) else set()
        negative = self.told == "prompt" and _possible(lambda: self.wrapped.guided(None, [""]))
        return taken | ({"negative"} if negative else set())

    def about(self) -> dict[str, Any]:
        pipe, process, scale = self.wrapped.pipeline, self.denoiser.process, self.family.scale
        size = " x ".join(map(str, self.family.size))
        what = f"pictures of {size} pixels" if len(self.shape) == 3 else f"clips of {self.shape[0]} x {size} pixels"
        return {
            "kind": "pipeline",
            "name": self.name,
            "title": type(pipe).__name__,
            "facts": [what, str(process), f"runs on {device_of(self.denoiser)}"],
            "takes": sorted(self.takes),
            "classes": self.classes,
            "conditions": [
                {"name": name, "kind": "picture", "shape": [n, *self.family.size], "input": "picture", "needed": True}
                for name, n in self.asked.items()
            ],
            "solvers": solvers_for(process),
            "own": {**OWN, "guidance": scale if isinstance(scale, int | float) else None},
        }

    def make(self, settings: Settings, job: Job) -> Made:
        settings.refuse_but(self.takes, "this pipeline")
        check_size(settings.num, self.shape, self.limits)
        own = self.about()["own"]
        used = replace(
            settings,
            solver=settings.solver or own["solver"],
            steps=settings.steps or own["steps"],
            guidance=own["guidance"] if settings.guidance is None and "guidance" in self.takes else settings.guidance,
        )
        began = time.perf_counter()
        names, cond = self._cond(used)
        solver, watching = solver_of(used.solver or ""), Watching(job, self.viewer, used.num, self.wrapped.codec)
        z = sample(
            self.wrapped.guided(used.guidance, [used.negative] if used.negative else None),
            num=used.num,
            cond=cond,
            solver=solver,
            grid=self.wrapped.grid(used.steps or 1),
            seeds=range(used.seed, used.seed + used.num),
            hooks=[*self.wrapped.hooks, watching],
        )
        with torch.no_grad():
            x = (z if self.wrapped.codec is None else self.wrapped.codec.decode(z)).float().cpu()
        check_finite(x)
        made = Drawing(x, None, None, names, watching.nfe, time.perf_counter() - began, None)
        unread = [
            self._unread(text, what) for text, what in ((used.prompt, "prompt"), (used.negative, "negative prompt"))
        ]
        notes = " ".join(filter(None, unread))
        return Made(made, used, self._facts(solver, made) | ({"note": notes} if notes else {}))

    def _unread(self, text: str | None, what: str) -> str | None:
        """What to say of text that is longer than all of the pipeline's text encoders read."""
        shares = []
        for tokenizer in filter(None, (getattr(self.wrapped.pipeline, name, None) for name in TOKENIZERS)):
            most = min(tokenizer.model_max_length, self.family.length or tokenizer.model_max_length)
            shares.append((most / len(tokenizer(text or "", verbose=False).input_ids), most))
        if not text or not shares or max(shares)[0] >= 1.0:
            return None
        share, most = max(shares)
        return f"Of the {what}'s {round(most / share)} tokens, the model reads the first {most}."

    def _facts(self, solver: Any, made: Drawing) -> dict[str, Any]:
        return {
            "condiff": __version__,
            "pipeline": self.name,
            "class": type(self.wrapped.pipeline).__name__,
            "solver": repr(solver),
            "nfe": made.nfe,
            "seconds": round(made.seconds, 4),
        }

    def _cond(self, settings: Settings) -> tuple[list[str] | None, Any]:
        """What each sample is called, and the conditions of all."""
        num = settings.num
        if self.told is None:
            return None, None
        given = self._pictures(settings)
        if self.told == "prompt":
            told = self.family.told_pictures(given) if given else {}
            return None, self.wrapped.encode([settings.prompt or ""] * num, **told)
        if self.told == "image":
            return None, self.wrapped.encode([*given["image"].expand(num, -1, -1, -1)], rng=settings.seed)
        wanted = [self._class(name) for name in settings.labels] or list(range(len(self.classes)))
        labels = [wanted[i % len(wanted)] for i in range(num)]
        return [self.classes[i] for i in labels], self.wrapped.encode(labels)

    def _class(self, name: str) -> int:
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal() and name.isascii() and len(name) < 9 and int(name) < len(self.classes):
            return int(name)
        raise unknown("class", name[:60], self.classes)

    def _pictures(self, settings: Settings) -> dict[str, Tensor]:
        """The pictures (1, C, H, W) that the network is told, by name."""
        chosen = {name: one["picture"] for name, one in settings.conditions.items() if isinstance(one, dict)}
        if self.asked and (set(chosen) != set(self.asked) or set(settings.conditions) != set(self.asked)):
            names = " and ".join(map(repr, self.asked))
            raise BadValue(f"this pipeline is told pictures, one for each of {names}: choose one")
        return {
            name: self.uploads.read(chosen[name], self._framing(channels)).clamp(-1.0, 1.0)
            for name, channels in self.asked.items()
        }

    def _framing(self, channels: int) -> Framing:
        """White under the transparent parts of a picture, and black under those of a mask: nothing is made there."""
        return Framing(size=self.family.size, channels=channels, background="white" if channels == 3 else "black")

    def files(self, made: Made) -> dict[str, File]:
        drawing = made.drawing
        out: dict[str, File] = {"npz": partial(files.with_settings, ".npz", partial(files.save_array, made.x))}
        if figures.drawable(self.shape):
            grid = lambda folder: figures.grid(drawing.x, folder / "samples.png", labels=drawing.names)
            out["png"] = partial(files.with_settings, ".png", grid)
        return out


def _possible(make: Callable[[], Any]) -> bool:
    try:
        make()
    except Incompatible:
        return False
    return True
