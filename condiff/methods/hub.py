"""Runs to and from the Hub: what is shared of a run, its card, and back into a folder that can be sampled.

A shared run holds its model, its configuration, its figures and pictures; no checkpoints, no data, and no paths of the
machine that trained it. Everything that comes back is safetensors, JSON, text and pictures; nothing that could run.
"""

from __future__ import annotations

import glob
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from condiff.config import read_json
from condiff.errors import BadFile
from condiff.files import replacing, write_json
from condiff.interop.repository import HubRepository, check_name, explained, hub
from condiff.methods.catalogue import ENTRIES

ALWAYS = ("config.json", "model.safetensors")
MODELS = ("*.safetensors", "tokenizer.json")
LOOKS = ("metrics.json", "samples.png", "samples.txt", "curves.png")
CARD = "README.md"


def push(run: Path, repository: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a finished run; returns its address.

    Args:
        overwrite: take the place of a run that is there, whose files go; other files stay.

    Raises:
        BadFile: not a finished run, or one that needs another; a repository that holds something already, no
            permission, no connection.
        BadValue: a repository that isn't called owner/name.
    """
    check_name(repository)
    config = _config_of(run)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_shared(run, folder, config, repository)
        with explained(repository):
            return _upload(folder, repository, private, overwrite)


def _upload(folder: Path, repository: str, private: bool, overwrite: bool) -> str:
    hub().create_repo(repository, private=private, exist_ok=True)
    holds = [name for name in HubRepository(repository).files() if not name.startswith(".")]
    if holds and not overwrite:
        raise BadFile(f"{repository} holds {holds[0]} already: choose another name, or say --overwrite")
    stale = [name for name in of_a_run(holds) if not (folder / name).is_file()]
    told = {"commit_message": "A run of condiff", "delete_patterns": [glob.escape(name) for name in stale]}
    return str(hub().upload_folder(repo_id=repository, folder_path=folder, **told))


def pull(repository: str, out: Path, revision: str | None = None) -> Path:
    """Download a run into a new folder; returns the folder.

    Raises:
        BadFile: the folder exists, the repository holds no run of condiff, no permission, no connection.
        BadValue: a repository that isn't called owner/name.
    """
    place = HubRepository(repository, revision)
    if out.exists():
        raise BadFile(f"{out} exists already: choose another --out")
    files = place.files()
    missing = [name for name in ALWAYS if name not in files]
    config = place.json("config.json") if not missing else {}
    if missing or not isinstance(config, dict) or "format" not in config or "denoiser" not in config:
        why = f"it has no {missing[0]}" if missing else "its config.json describes none"
        raise BadFile(f"{place} is not a run of condiff: {why}. `condiff info {place}` says what it is")
    with replacing(out) as temporary, explained(repository):
        temporary.mkdir()
        wanted = [glob.escape(name) for name in of_a_run(files)]
        hub().snapshot_download(repository, revision=revision, local_dir=temporary, allow_patterns=wanted)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own notes
    return out


def of_a_run(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that a shared run may have; none of them lies in a folder."""
    patterns = (*MODELS, *LOOKS, "config.json", CARD)
    return [name for name in names if "/" not in name and any(fnmatchcase(name, p) for p in patterns)]


def write_shared(run: Path, folder: Path, config: Mapping[str, Any], repository: str) -> None:
    """What is shared of a run, into an empty folder."""
    for pattern in (*MODELS, *LOOKS):
        for path in sorted(run.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "config.json", without_paths(config))
    (folder / CARD).write_text(card(config, folder, repository), encoding="utf-8")


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with the last parts of paths only; names of the Hub's data sets stay."""
    out = {k: v if k == "remembered" else _named(v) for k, v in config.items()}  # that has names of classes, no paths
    if "request" in config:
        request = out["request"]
        paths, options = request.get("paths", []), request.get("options", {})
        out["request"] = {
            **request,
            "paths": paths if request["source"] == "hub" else [_last(path) for path in paths],
            "options": {k: _last(v) if _is_relative(v) else v for k, v in options.items()},
        }
    return out


def _is_relative(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("./", "../", ".\\", "..\\", "~"))


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _named(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_named(v) for v in value]
    whole = isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())
    return _last(value) if whole else value


def _last(path: str) -> str:
    return PureWindowsPath(path).name or path


def _config_of(run: Path) -> dict[str, Any]:
    missing = [name for name in ALWAYS if not (run / name).is_file()]
    if missing:
        raise BadFile(f"{run} is not a finished run: it has no {missing[0]}")
    config = read_json(run / "config.json")
    if not isinstance(config, dict) or "denoiser" not in config:
        raise BadFile(f"{run / 'config.json'} describes no model")
    if "tie" in config:
        raise BadFile(f"{run} is tied to another run, and is nothing without it: share that one, and the folder pair/")
    return config


def card(config: Mapping[str, Any], folder: Path, repository: str) -> str:
    """The README of a shared run: what it is, its figures, how to use it, whom to cite."""
    method, data = config.get("recipe", {}).get("method"), config.get("data", {}).get("name", "data of one's own")
    entry = ENTRIES.get(str(method))
    what = f"{method} on {data}" if method else f"A diffusion model of {data}"
    tags = ["diffusion", *([str(method)] if method else [])]
    head = ["---", "library_name: condiff", "tags:", *(f"- {tag}" for tag in tags), "---", "", f"# {what}", ""]
    lines = [*head, "Trained with condiff." + (f" {entry.title} (arXiv {entry.arxiv})." if entry else ""), ""]
    if (folder / "samples.png").is_file():
        lines += ["![Samples](samples.png)", ""]
    if (folder / "metrics.json").is_file():
        rows = [(k, v) for k, v in read_json(folder / "metrics.json").items() if isinstance(v, int | float)]
        lines += ["| metric | value |", "| --- | --- |", *(f"| {k} | {v:.4g} |" for k, v in rows), ""]
    name = repository.split("/")[1]
    lines += ["```console", f"$ condiff pull {repository}", f"$ condiff sample runs/{name}", "```", ""]
    if entry:
        lines += ["```bibtex", entry.bibtex.strip(), "```", ""]
    training = json.dumps(config.get("training", {}), indent=1)
    return "\n".join([*lines, "## Training", "", "```json", training, "```", ""])
