"""What a checkpoint is: pipelines, their parts, adapters and single files, told from names, shapes and small files.

Nothing is loaded: configurations are JSON, and of weights only the headers are read. Weights that are pickles are
named and not opened, because a pickle can run code when it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from condiff.errors import BadFile, Incompatible, require_extra
from condiff.interop.repository import Header, HubRepository, LocalFolder
from condiff.interop.schedulers import is_continuous, process_of

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".th", ".pyt")
WHY = "a pickle can run code when it is opened: convert it to .safetensors first"

# Single files: a tensor's name that only this family has, and what it is called.
FAMILIES = (
    ("double_blocks.0.img_attn.qkv.weight", "FLUX, as its authors name it"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3, as its authors name it"),
    ("conditioner.embedders.1.model.ln_final.weight", "Stable Diffusion XL, as its authors name it"),
    ("cond_stage_model.model.ln_final.weight", "Stable Diffusion 2, as its authors name it"),
    ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "Stable Diffusion 1, as its authors name it"),
    ("decoder.conv_in.weight", "an autoencoder"),
)
WITHIN = "model.diffusion_model."  # before the names of a network in a file of several parts
LORA = re.compile(r"(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.|$)")


def describe_folder(place: LocalFolder | HubRepository) -> dict[str, Any]:
    """Facts about a folder or a repository of a diffusers pipeline, a part of one, or an adapter.

    Raises:
        BadFile: something else, or nothing but pickles.
    """
    files = place.files()
    kinds = (
        ("model_index.json", _pipeline),
        ("adapter_config.json", _adapter),
        ("config.json", _part),
        ("scheduler_config.json", _scheduler),
    )
    for name, read in kinds:
        if name in files:
            return {"place": str(place), **read(place, files), **_weights(files)}
    loose = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if loose:
        return {"place": str(place), **describe_header(place.header(loose[0])), **_weights(files)}
    pickles = _pickles(files)
    if pickles:
        raise BadFile(f"{place} holds {pickles[0]} and no .safetensors: {WHY}")
    raise BadFile(f"{place} is neither a run, nor a diffusers pipeline, nor an adapter: no configuration, no weights")


def describe_header(header: Header) -> dict[str, Any]:
    """Facts about one safetensors file."""
    facts: dict[str, Any] = {
        "tensors": len(header.shapes),
        "parameters": header.parameters,
        "dtypes": list(header.dtypes),
    }
    if _lora_names(header.shapes):
        facts = {"kind": "LoRA", **_lora(header), **facts}
    elif "denoiser" in header.metadata:
        facts = {"kind": "weights of a condiff model", **facts}
    else:
        inside = {name.removeprefix(WITHIN) for name in header.shapes}
        found = next((family for name, family in FAMILIES if name in inside), None)
        facts = {"kind": found or "weights", "parts": _parts(header.shapes), **facts}
    return {**facts, "metadata": header.metadata}


def _pipeline(place: LocalFolder | HubRepository, files: Mapping[str, int]) -> dict[str, Any]:
    index = _object(place, "model_index.json")
    parts = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
    facts = {
        "kind": "diffusers pipeline",
        "pipeline": index.get("_class_name"),
        "parts": {name: _size_of(name, said[1], files) for name, said in parts.items()},
    }
    if "scheduler/scheduler_config.json" in files:
        facts["model"] = _law(_object(place, "scheduler/scheduler_config.json"))
    return facts


def _object(place: LocalFolder | HubRepository, name: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        BadFile: it holds something else.
    """
    found = place.json(name)
    if not isinstance(found, dict):
        raise BadFile(f"{name} of {place} describes nothing: it holds a {type(found).__name__}")
    return found


def _size_of(name: str, kind: str, files: Mapping[str, int]) -> str:
    size = sum(n for file, n in files.items() if file.startswith(f"{name}/") and file.endswith(".safetensors"))
    return f"{kind}, {size / 2**20:,.1f} MiB" if size else kind


def _law(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the network predicts and on which process, as its scheduler's configuration says."""
    name = config.get("_class_name")
    try:
        diffusers = require_extra("diffusers", "hf")
        kind = getattr(diffusers, str(name), None)
        if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
            raise Incompatible(f"diffusers {diffusers.__version__} has no scheduler {name!r}")
        scheduler = kind.from_config(config)
        process, target = process_of(scheduler)
        target = "v" if is_continuous(scheduler) else target  # which the sampler reads as x0
    except Exception as error:  # a configuration from anywhere may be wrong in any way
        return {"scheduler": name, "process": f"not known: {str(error).strip()[:200]}"}
    return {"scheduler": name, "process": str(process), "predicts": target}


def _scheduler(place: LocalFolder | HubRepository, files: Mapping[str, int]) -> dict[str, Any]:
    config = _object(place, "scheduler_config.json")
    return {
        "kind": "a scheduler",
        **_law(config),
        "config": {k: v for k, v in config.items() if not k.startswith("_")},
    }


def _adapter(place: LocalFolder | HubRepository, files: Mapping[str, int]) -> dict[str, Any]:
    config = _object(place, "adapter_config.json")
    wanted = {"peft_type": "type", "base_model_name_or_path": "base", "r": "rank", "lora_alpha": "alpha"}
    facts = {word: config[key] for key, word in wanted.items() if config.get(key) is not None}
    modules = config.get("target_modules")
    return {"kind": "adapter (peft)", **facts, "modules": sorted(modules) if isinstance(modules, list) else modules}


def _part(place: LocalFolder | HubRepository, files: Mapping[str, int]) -> dict[str, Any]:
    config = _object(place, "config.json")
    name = config.get("_class_name") or ", ".join(config.get("architectures") or ()) or config.get("model_type")
    if name is None:
        raise BadFile(f"config.json of {place} says neither a class nor an architecture")
    weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    facts = {"kind": "a part of a pipeline" if "_class_name" in config else "a transformers model", "class": name}
    if weights:
        headers = [place.header(file) for file in weights]
        facts["parameters"] = sum(header.parameters for header in headers)
        facts["dtypes"] = sorted({dtype for header in headers for dtype in header.dtypes})
    return {**facts, "config": {k: v for k, v in config.items() if not k.startswith("_")}}


def _weights(files: Mapping[str, int]) -> dict[str, Any]:
    """How much of it is safetensors, and which pickles are left alone."""
    safe = {name: size for name, size in files.items() if name.endswith(".safetensors")}
    facts: dict[str, Any] = {"safetensors": f"{len(safe)} files, {sum(safe.values()) / 2**20:,.1f} MiB"}
    pickles = _pickles(files)
    if pickles:
        facts["refused"] = f"{', '.join(pickles[:4])}{', ...' if len(pickles) > 4 else ''}: {WHY}"
    return facts


def _pickles(files: Iterable[str]) -> list[str]:
    return [name for name in files if name.endswith(PICKLES)]


def _lora_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if LORA.search(name)]


def _lora(header: Header) -> dict[str, Any]:
    """Ranks and what is adapted: the down projection of rank r is (r, in) or, for convolutions, (r, in, k, k)."""
    downs = [n for n in header.shapes if re.search(r"(lora_A|lora_down|lora\.down)(\.|$)", n)]
    ranks = sorted({header.shapes[name][0] for name in downs})
    modules = sorted({_module(name) for name in downs})
    return {"ranks": ranks, "layers": len(downs), "modules": modules, "parts": _parts(header.shapes)}


def _module(name: str) -> str:
    """What a layer of an adapter is called in its block; kohya's scripts write whole paths with underscores."""
    layer = re.split(r"[._]lora", name)[0].rsplit(".", 1)[-1]
    return re.sub(r".*_\d+_", "", layer) if layer.startswith("lora_") else layer


def _parts(names: Iterable[str]) -> dict[str, int]:
    """Numbers of tensors by the first word of their names, ``lora_unet`` of ``lora_unet_mid_block_...``."""
    counts: dict[str, int] = {}
    for name in names:
        word = name.split(".")[0]
        word = "_".join(word.split("_")[:2]) if word.startswith("lora_") else word
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:8])
