"""Model folders: ``config.json`` says what the model is, safetensors beside it hold its weights.

Every weights file carries the denoiser's configuration too, so that weights of another model, or of the same
network on another process, are refused and the difference is named.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from condiff.aligned import Aligned
from condiff.codecs import Codec
from condiff.config import from_config, read_json, to_config
from condiff.denoiser import Denoiser
from condiff.errors import BadFile, BadType, BadValue, Incompatible, unknown
from condiff.files import read_metadata, read_tensors, replacing, write_json, write_tensors
from condiff.heads import Heads
from condiff.multimodal import MultiModal
from condiff.process import Process
from condiff.process.categorical import TokenProcess
from condiff.token_denoiser import TokenDenoiser

Model = Denoiser | Heads | MultiModal | TokenDenoiser

CONFIG = "config.json"
RAW = "model.safetensors"
CODEC = "codec.safetensors"
FORMAT = "condiff model 1"


def ema_file(name: str | None = None) -> str:
    """The file of averaged weights; that of the default average without a name."""
    return "model-ema.safetensors" if name is None else f"model-ema-{name}.safetensors"


def describe(part: Any) -> Any:
    """A denoiser's or another part's configuration; of one that condiff doesn't publish, a note of its type."""
    if isinstance(part, Model | Aligned):
        return part.config()
    try:
        return to_config(part)
    except BadType:
        return {"own": f"{type(part).__module__}.{type(part).__qualname__}"}


def describe_weights(denoiser: nn.Module, weights: str, **facts: Any) -> dict[str, str]:
    """What a weights file says about itself."""
    return {
        "condiff": versions()["condiff"],
        "weights": weights,
        "denoiser": json.dumps(describe(denoiser)),
        **{k: str(v) for k, v in facts.items()},
    }


def save_model(
    folder: str | Path,
    denoiser: nn.Module,
    *,
    ema: Mapping[str, Mapping[str, Tensor]] | None = None,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    **facts: Any,
) -> None:
    """Write a model folder.

    Args:
        ema: averaged weights by name; the first is what ``weights="ema"`` means.
        extra: more entries of config.json.
        tensors: the denoiser's weights, when they aren't those it holds.
        facts: noted in the weights files (``step=500``).

    Raises:
        BadFile: when writing fails; files that were there stay as they were.
    """
    folder = Path(folder)
    weights = denoiser.state_dict() if tensors is None else tensors
    write_tensors(folder / RAW, weights, describe_weights(denoiser, "raw", **facts))
    for index, (name, averaged) in enumerate((ema or {}).items()):
        file = ema_file(None if index == 0 else name)
        write_tensors(folder / file, averaged, describe_weights(denoiser, f"ema-{name}", default=index == 0, **facts))
    write_json(folder / CONFIG, {"format": FORMAT, **(extra or {}), "denoiser": describe(denoiser)})


def copy_model(source: Path, target: Path, record: Mapping[str, Any]) -> None:
    """The weights of a model folder into another one, whose ``config.json`` is the given record.

    Raises:
        BadFile: there are none, or writing fails.
    """
    files = sorted(source.glob("model*.safetensors"))
    if not files:
        raise BadFile(f"there are no weights in {source}")
    for file in files:
        with replacing(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
    write_json(target / CONFIG, record)


def load_model(
    folder: str | Path,
    weights: str = "ema",
    *,
    device: Any = "cpu",
    network: nn.Module | None = None,
    process: Process | TokenProcess | None = None,
) -> Model:
    """The denoiser of a model folder or of a checkpoint, in evaluation mode.

    Args:
        weights: "ema" (the default average), "raw", or the name of an average ("0.999").
        network, process: the parts that are one's own, not condiff's.

    Raises:
        BadFile: files that are missing, truncated or changed.
        BadValue: weights that aren't there, with those that are.
        Incompatible: weights of another model.
    """
    folder = Path(folder)
    denoiser = _build(_config(folder)["denoiser"], network, process)
    load_weights(denoiser, find_weights(folder, weights))
    return denoiser.to(device).eval()


def _build(config: Mapping[str, Any], network: nn.Module | None, process: Process | TokenProcess | None) -> Model:
    """The denoiser of a configuration, of one network or of several, of tokens where it says ``time_free``."""
    if "aligned" in config:
        raise BadValue("these are the weights of a pair alone: condiff.methods.unicon.UniCon.load(base, folder)")
    if "time_free" in config:
        return TokenDenoiser.from_config(config, network=network, process=cast("TokenProcess | None", process))
    if "modalities" in config:
        return MultiModal.from_config(config, network=network, process=cast("Process | None", process))
    if "heads" not in config:
        return Denoiser.from_config(config, network=network, process=cast("Process | None", process))
    if network is not None or process is not None:
        raise BadValue("a model of several heads has several networks: build it, then load_weights() into it")
    return Heads.from_config(config)


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BadFile(f"no such folder: {folder}")
    places = (folder / CONFIG, folder.parent.parent / CONFIG)  # a checkpoint lies two levels inside its run
    path = next((p for p in places if p.is_file()), places[0])
    config = read_json(path)
    if not isinstance(config, dict) or "denoiser" not in config:
        raise BadFile(f"{path} does not describe a model: it has no entry 'denoiser'")
    return config


def find_weights(folder: Path, weights: str) -> Path:
    """The file of the named weights in a model folder or a checkpoint."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        said = read_metadata(path)
        if "weights" in said:
            found[said["weights"].removeprefix("ema-")] = path
        if said.get("default") == "True":
            found["ema"] = path
    if weights not in found:
        if not found:
            raise BadFile(f"there are no weights in {folder}" + _newest(folder))
        raise unknown(f"weights in {folder}:", weights, found)
    return found[weights]


def _newest(folder: Path) -> str:
    steps = sorted((folder / "checkpoints").glob("step-*"))
    return f"; the run isn't finished, but there is a checkpoint: {steps[-1]}" if steps else ""


def load_weights(denoiser: Model, path: str | Path) -> dict[str, str]:
    """Load a weights file into a denoiser; returns what the file says about itself.

    Raises:
        BadFile: a file that is missing or truncated.
        Incompatible: weights of another model, naming what differs.
    """
    tensors, metadata = read_tensors(path)
    if "denoiser" in metadata:
        check_same(json.loads(metadata["denoiser"]), denoiser.config(), f"{path} holds weights of another model")
    check_tensors(denoiser.state_dict(), tensors, str(path))
    denoiser.load_state_dict(tensors)
    return metadata


def save_codec(folder: str | Path, codec: Codec) -> None:
    """Write a codec's folder: ``config.json``, and ``codec.safetensors`` with its weights and statistics.

    Raises:
        BadType: a codec without a configuration that condiff publishes.
        BadFile: when writing fails.
    """
    config = to_config(getattr(codec, "config", codec))
    write_tensors(Path(folder) / CODEC, codec.state_dict(), {"condiff": versions()["condiff"], "weights": "codec"})
    write_json(Path(folder) / CONFIG, {"format": FORMAT, "codec": config})


def load_codec(folder: str | Path, codec: Codec | None = None, *, device: Any = "cpu") -> Codec:
    """The codec of a folder, in evaluation mode.

    Args:
        codec: one's own, built, to take the weights (an autoencoder with a flow, for instance).

    Raises:
        BadFile: files that are missing or truncated, or of another kind.
        Incompatible: weights of another codec.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "codec" not in config:
        raise BadFile(f"{folder / CONFIG} does not describe a codec: it has no entry 'codec'")
    out: Codec = from_config(config["codec"]).build() if codec is None else codec
    tensors, _ = read_tensors(folder / CODEC)
    check_tensors(out.state_dict(), tensors, str(folder / CODEC))
    out.load_state_dict(tensors)
    return out.to(device).eval()


HASH = re.compile(r"\b[0-9a-f]{64}\b")  # says nothing to a reader


def check_same(stored: Any, here: Any, what: str) -> None:
    """Raises :class:`Incompatible` naming the first differences between two configurations."""
    differences = list(_differences(stored, json.loads(json.dumps(here)), ""))
    if differences:
        more = f" (and {len(differences) - 4} more)" if len(differences) > 4 else ""
        raise Incompatible(f"{what}: {'; '.join(differences[:4])}{more}")


def _differences(stored: Any, here: Any, where: str):
    if isinstance(stored, dict) and isinstance(here, dict):
        for key in sorted({*stored, *here}):
            place = f"{where}.{key}" if where else key
            if key not in stored or key not in here:
                yield f"{place} is only {'here' if key in here else 'in the file'}"
            else:
                yield from _differences(stored[key], here[key], place)
    elif stored != here and isinstance(here, str) and HASH.search(here):
        yield f"{where} differ"
    elif stored != here:
        yield f"{where} is {stored!r} in the file and {here!r} here"


def check_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raises :class:`Incompatible` naming missing, surplus and misshapen tensors."""
    problems = []
    missing, surplus = [k for k in own if k not in given], [k for k in given if k not in own]
    wrong = [k for k in own if k in given and own[k].shape != given[k].shape]
    if missing:
        problems.append(f"missing {_some(missing)}")
    if surplus:
        problems.append(f"not in the model: {_some(surplus)}")
    for k in wrong[:3]:
        problems.append(f"{k} is {tuple(given[k].shape)} in the file and {tuple(own[k].shape)} in the model")
    if problems:
        raise Incompatible(f"{what} does not fit the model: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")


def versions() -> dict[str, str]:
    """Versions that a run notes."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("condiff")
    except PackageNotFoundError:
        own = "unknown"
    return {"condiff": own, "torch": torch.__version__, "python": platform.python_version()}
