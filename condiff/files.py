"""Files that are either whole or absent.

Everything is written under a temporary name, flushed to the disk, and then renamed: a power cut, a full disk or a
``kill -9`` leaves the old content or the new one, never half of one. Tensors are safetensors, the rest is JSON;
nothing is pickled, so that reading a file can't run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from condiff.config import read_json
from condiff.errors import BadFile

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".writing-"
LOCK = ".lock"


def _sync(path: Path) -> None:
    """Push a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")


def _explain(path: Path, error: OSError) -> BadFile:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "the disk is full" if full else error.strerror or str(error)
    return BadFile(f"could not write {path}: {why}. What was there before is untouched.")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name for a file or a folder; on success it takes the place of ``path``, on failure it is removed.

    A folder that is already there is replaced as a whole.

    Raises:
        BadFile: when writing fails (a full disk, no permission).
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _settle(temporary)
        if path.is_dir():
            _swap_folders(temporary, path)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise error if isinstance(error, BadFile) else _explain(path, error) from error
    finally:
        remove(temporary)


def _settle(path: Path) -> None:
    for entry in sorted(path.rglob("*")) if path.is_dir() else []:
        _sync(entry)
    _sync(path)


def _swap_folders(new: Path, old: Path) -> None:
    # A folder can't be renamed onto one that holds files; for a moment the old one has another name.
    aside = old.with_name(f"{_TEMPORARY}{os.getpid()}-old-{old.name}")
    os.replace(old, aside)
    os.replace(new, old)
    remove(aside)


def check_replaced(folder: Path, known: Callable[[str], Any]) -> None:
    """Before an output folder is replaced as a whole: whether it holds an earlier output only.

    Args:
        known: whether a name is one of an output's.

    Raises:
        BadFile: it holds something else, which would be lost.
    """
    other = [path.name for path in sorted(folder.iterdir()) if not known(path.name)] if folder.is_dir() else []
    if other:
        raise BadFile(f"{folder} holds {other[0]}, which is no output of this and would be lost: choose another --out")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove what an interrupted process left half written in ``folder``."""
    for path in Path(folder).glob(f"{_TEMPORARY}*"):
        remove(path)


@contextmanager
def alone_in(folder: Path | None, doing: str) -> Iterator[None]:
    """No other process works in the folder meanwhile; what an earlier one left half written is removed.

    Args:
        folder: it must be there; nothing happens for None.
        doing: what the other process is said to be doing.

    Raises:
        BadFile: another process does.
    """
    if folder is None or fcntl is None:
        yield
        return
    with open(folder / LOCK, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the process ends
        except OSError as error:
            raise BadFile(f"another process is {doing} in {folder}: wait for it, or stop it") from error
        clear_temporaries(folder)
        yield


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """``data`` as readable JSON, atomically; NaN and infinity are refused."""
    text = _json(data)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Tensors as a safetensors file, atomically."""
    with replacing(path) as temporary:
        put_tensors(temporary, tensors, metadata)


def put_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as a safetensors file inside a folder that is being :func:`replacing` d as a whole."""
    tensors = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    try:
        save_file(_unshared(tensors), path, {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        codes = [c for c in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if f"os error {c})" in str(error)]
        raise OSError(codes[0] if codes else errno.EIO, str(error)) from error
    os.chmod(path, 0o644)


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied weights are written once per name, as safetensors wants them."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    return out


def read_tensors(path: str | os.PathLike[str], device: Any = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """``(tensors, metadata)`` of a safetensors file.

    Raises:
        BadFile: when it is missing, truncated or of another kind.
    """
    if not Path(path).is_file():
        raise BadFile(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is not a whole safetensors file: {error}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says about itself."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is not a whole safetensors file: {error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """The hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_hash(record: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write ``record`` as the JSON ``name`` in a folder that is being replaced, with all hashes, its own included."""
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != name}
    record = json.loads(json.dumps({**record, "files": files}, allow_nan=False))
    (folder / name).write_text(_json({**record, "sha256": _own_hash(record)}), encoding="utf-8")


def unseal(folder: Path, name: str) -> dict[str, Any]:
    """The record of a sealed folder, after checking every hash.

    Raises:
        BadFile: naming the first file that is missing, truncated or changed.
    """
    record = read_json(folder / name)
    if not isinstance(record, dict) or record.get("sha256") != _own_hash(record):
        raise BadFile(f"{folder / name} was changed after it was written: its hash does not match its content")
    for file, want in record["files"].items():
        path = folder / file
        if not path.is_file():
            raise BadFile(f"{path} is missing")
        if sha256(path) != want:
            raise BadFile(f"{path} is truncated or was changed: its sha256 differs from the one in {name}")
    return record
