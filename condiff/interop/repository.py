"""Where checkpoints lie: a folder here, or a repository on the Hub, looked at without its weights.

Both answer the same three questions: which files there are, what a JSON file says, and which tensors a safetensors
file holds. Of a repository only its small files and the headers of its weights are downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from condiff.config import read_json
from condiff.errors import BadFile, BadValue, require_extra

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MOST_JSON = 2**22  # bytes of a configuration; larger ones aren't


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds: shapes by name, types, and its notes."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> dict[str, int]:
        """Sizes in bytes by name, "unet/config.json"."""
        found = (p for p in sorted(self.path.rglob("*")) if p.is_file() and not p.name.startswith("."))
        return {p.relative_to(self.path).as_posix(): p.stat().st_size for p in found}

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return read_json(self.path / name)

    def header(self, name: str) -> Header:
        """What a safetensors file holds."""
        return read_header(self.path / name)


@dataclass(frozen=True)
class HubRepository:
    """A repository of models on the Hub, such as "stabilityai/sdxl-turbo", whose files are listed once.

    Args:
        name: owner/name.
        revision: a branch, tag or commit; the main branch by default.

    Raises:
        BadValue: a name that isn't owner/name.
        MissingExtra: without huggingface_hub.
    """

    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        require_extra("huggingface_hub", "hf")

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def files(self) -> dict[str, int]:
        """Sizes in bytes by name, "unet/config.json"."""
        return dict(self._listed)

    @cached_property
    def _listed(self) -> dict[str, int]:
        with explained(self.name):  # the listing call would try again for half a minute where nothing answers
            said = hub().model_info(self.name, revision=self.revision, files_metadata=True, timeout=10)
        return {file.rfilename: file.size or 0 for file in said.siblings or ()}

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        size = self._listed.get(name, 0)
        if size > MOST_JSON:
            raise BadFile(f"{name} of {self.name} has {size} bytes, more than a configuration")
        with explained(self.name):
            return read_json(Path(hub().hf_hub_download(self.name, name, revision=self.revision)))

    def header(self, name: str) -> Header:
        """What a safetensors file holds, read from its first bytes."""
        with explained(self.name):
            said = hub().parse_safetensors_file_metadata(self.name, name, revision=self.revision)
        shapes = {key: tuple(tensor.shape) for key, tensor in said.tensors.items()}
        dtypes = tuple(sorted({tensor.dtype for tensor in said.tensors.values()}))
        return Header(shapes, dtypes, {str(k): str(v) for k, v in (said.metadata or {}).items()})


def hub() -> Any:
    """The Hub's client; its address and token come from the environment (HF_ENDPOINT, HF_TOKEN)."""
    return require_extra("huggingface_hub", "hf").HfApi()


def is_name(text: str) -> bool:
    """Whether a text can be the name of a repository."""
    return REPOSITORY.fullmatch(text) is not None


def check_name(name: str) -> None:
    """
    Raises:
        BadValue: not owner/name.
    """
    if not is_name(name):
        raise BadValue(f"a repository is called owner/name, got {name!r}")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of the Hub and of the way to it in a line that says what to do.

    Raises:
        BadFile: no such repository, file or permission, or no connection.
    """
    errors = require_extra("huggingface_hub.errors", "hf")
    try:
        yield
    except errors.GatedRepoError as error:
        raise BadFile(
            f"{name} asks for its terms to be accepted on the Hub, and for a token: `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadFile(f"no repository {name} on the Hub, or none that your token may see: `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise BadFile(f"the Hub could not be reached for {name}, and nothing of it is stored here") from error
    except errors.EntryNotFoundError as error:
        raise BadFile(f"{name} lacks a file: {_first_line(error)}") from error
    except (errors.HfHubHTTPError, OSError, getattr(errors, "HTTPError", OSError)) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"the Hub could not be asked for {name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_header(path: Path) -> Header:
    """What a safetensors file holds, without its tensors.

    Raises:
        BadFile: missing, truncated or of another kind.
    """
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = tuple(sorted({part.get_dtype() for part in slices.values()}))
            return Header(shapes, dtypes, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise BadFile(f"{path} is not a whole safetensors file: {error}") from error
