"""Many edits by a list: ``condiff edit MODEL mapping_file.json``, in the format of PIE-Bench.

Ju, Zeng, Bian, Liu & Xu, "PnP Inversion" (2310.01506): an entry has ``image_path``, ``original_prompt`` and
``editing_prompt``, with brackets about what changes, and ``blended_word``, a word of each prompt or nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condiff import figures
from condiff.config import read_json
from condiff.data import images
from condiff.errors import BadFile, BadValue
from condiff.files import replacing, write_json
from condiff.methods.editing import Request, Task, opened

FOLDER = "annotation_images"  # of PIE-Bench, beside its list
FACTS = "edits.json"
PROMPTS = ("image_path", "original_prompt", "editing_prompt")


def read_list(path: Path) -> tuple[list[Path], list[Task]]:
    """The pictures of a list, and their tasks; names are the list's keys, or the pictures'.

    Pictures lie where the list does, or in ``annotation_images`` beside it.

    Raises:
        BadFile: no list, or pictures that aren't there, by name.
        BadValue: entries without prompts, with other than two blended words, or that change nothing.
    """
    found = read_json(path)
    listed = [(None, entry) for entry in found] if isinstance(found, list) else []
    entries = list(found.items()) if isinstance(found, Mapping) else listed
    if not entries:
        raise BadValue(f"{path} holds no edits: a list, or a dictionary, of entries with {', '.join(PROMPTS)}")
    files, tasks = zip(*(_entry(path, key, i, entry) for i, (key, entry) in enumerate(entries)), strict=True)
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFile(f"there is no picture {missing[0]}{more}: pictures lie beside {path.name} or in {FOLDER}")
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadValue(f"{path} has several edits of the name {twice[0]!r}: give them keys")
    return list(files), list(tasks)


def _entry(path: Path, key: str | None, index: int, entry: Any) -> tuple[Path, Task]:
    what = f"entry {index}" if key is None else f"entry {key!r}"
    lacking = [n for n in PROMPTS if not isinstance(entry, Mapping) or not isinstance(entry.get(n), str)]
    if lacking:
        raise BadValue(f"{path}: {what} has no {lacking[0]}")
    file = path.parent / entry["image_path"]
    if not file.is_file() and (path.parent / FOLDER / entry["image_path"]).is_file():
        file = path.parent / FOLDER / entry["image_path"]
    words = str(entry.get("blended_word") or "").split()
    if len(words) not in (0, 2):
        raise BadValue(f"{path}: blended_word of {what} is a word of each prompt, or empty, got {' '.join(words)!r}")
    name = (Path(entry["image_path"]).stem if key is None else key).replace("/", "-").replace("\\", "-")
    if not name.strip(". "):
        raise BadValue(f"{path}: {what} needs a name for its file")
    plain = lambda text: " ".join(text.replace("[", "").replace("]", "").split())
    source, target = plain(entry["original_prompt"]), plain(entry["editing_prompt"])
    return file, Task(name, source, target, (words[0], words[1]) if words else None)


def run_edits(model: Path, path: Path, request: Request, out: Path) -> dict[str, Any]:
    """Do the edits of a list: a PNG each in a folder, and ``edits.json`` with how. What is there already, made in the
    same way, stays; so a run that was stopped goes on.

    Raises:
        BadFile: a file in the folder's place, or edits made otherwise.
    """
    files, tasks = read_list(path)
    if out.suffix:
        raise BadValue(f"--out of a list is a folder, got {out.name!r}")
    how = {"model": str(model), "list": str(path), **_settings(request)}
    kept = {} if request.overwrite else _kept(out, how)
    left = [i for i, task in enumerate(tasks) if kept.get(task.name, {}).get("edit") != _said(task)]
    done = {task.name: kept[task.name] for i, task in enumerate(tasks) if i not in set(left)}
    calls = 0
    if left:
        read = lambda size, **options: images([files[i] for i in left], size, labels=None, **options)
        editor = opened(model, read, lambda count: [tasks[i] for i in left], request)
        out.mkdir(parents=True, exist_ok=True)
        for part in editor.parts(request):
            calls = max(calls, part.calls)
            for task, picture, facts in zip(part.tasks, part.made, part.facts(), strict=True):
                with replacing(out / f"{task.name}.png") as temporary:
                    figures.picture(picture, temporary)
                done[task.name] = {"edit": _said(task), **facts}
            write_json(out / FACTS, {"how": how, "edits": done})
    return {"out": str(out), "pictures": len(done), "made": len(left), "calls": calls, "edits": done}


def _said(task: Task) -> dict[str, Any]:
    return {"source": task.source, "target": task.target, "blend": list(task.blend) if task.blend else None}


def _settings(request: Request) -> dict[str, Any]:
    """What results depend on."""
    return {k: v for k, v in dataclasses.asdict(request).items() if k not in ("overwrite", "device", "batch")}


def _kept(out: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """The edits that an earlier call made in the same way, by name."""
    if out.is_file():
        raise BadFile(f"{out} is a file: --out of a list is a folder")
    if not (out / FACTS).is_file():
        return {}
    found = read_json(out / FACTS)
    if found.get("how") != how:
        raise BadFile(f"{out} holds edits that were made otherwise: choose another --out, or say --overwrite")
    return {name: facts for name, facts in found["edits"].items() if (out / f"{name}.png").is_file()}
