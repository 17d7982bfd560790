"""Files of pairs: the low-rank updates under peft's names, a folder each, and the post projections beside them.

``<folder>/first`` and ``second`` hold the updates for the tokens of either variable, ``own`` those of the second's own
rows where there are some: ``adapter_model.safetensors`` and ``adapter_config.json``, as peft writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condiff.config import read_json
from condiff.errors import BadFile, Incompatible
from condiff.files import read_tensors, write_json, write_tensors
from condiff.networks.adapters import CONFIG, PREFIX, WEIGHTS
from condiff.networks.pairing import Fuse, Site, add_pair, check_adapter, remove_pair, sites_of

ABOUT, POST, FORMAT = "pair.json", "post.safetensors", "condiff pair 1"


def save_pair(network: nn.Module, folder: str | Path, name: str = "pair") -> None:
    """Write the weights of a pair.

    Raises:
        BadValue: no adapter of that name.
        BadFile: when writing fails.
    """
    check_adapter(network, name)
    folder, sites = Path(folder), sites_of(network)
    exchanges: dict[str, Any] = {path: site.exchanges[name] for path, site in sites.items() if name in site.exchanges}
    first = next(iter(exchanges.values()))
    rank = next(iter(first.first.values())).lora_A.out_features
    own = any(name in site.own for site in sites.values())
    for part in ("first", "second", *(["own"] if own else [])):
        _write_updates(folder / part, _updates(sites, name, part), rank)
    write_tensors(folder / POST, {f"{path}.weight": e.post.linear.weight for path, e in exchanges.items()})
    about = {
        "format": FORMAT,
        "rank": rank,
        "post": "fuse" if isinstance(first.post, Fuse) else "shared",
        "own": own,
        "widths": {path: sites[path].width for path in exchanges},
    }
    write_json(folder / ABOUT, about)


def load_pair(network: nn.Module, folder: str | Path, name: str = "pair") -> dict[str, Any]:
    """Joint attention with the weights of a folder; returns what the folder says about itself.

    Raises:
        BadFile: files that are missing, truncated or of another kind.
        BadValue: an adapter of that name is there already.
        Incompatible: a network of another width, or with other attentions.
    """
    folder = Path(folder)
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BadFile(f"{folder / ABOUT} does not describe a pair")
    here = {path: site.width for path, site in sites_of(network).items() if not site.crosses}
    if here != about["widths"]:
        odd = next(p for p in {**here, **about["widths"]} if here.get(p) != about["widths"].get(p))
        raise Incompatible(
            f"{folder} is of another network: its attention {odd} has width {about['widths'].get(odd)}, and here it "
            f"is {here.get(odd)}"
        )
    add_pair(network, name, about["rank"], about["post"], about["own"])
    try:
        _fill(network, folder, name, about["own"])
    except (BadFile, Incompatible):
        remove_pair(network, name)
        raise
    return about


def _fill(network: nn.Module, folder: Path, name: str, own: bool) -> None:
    sites = sites_of(network)
    for part in ("first", "second", *(["own"] if own else [])):
        stored, _ = read_tensors(folder / part / WEIGHTS)
        _copy(_updates(sites, name, part), {k.removeprefix(PREFIX): v for k, v in stored.items()}, folder / part)
    posts: dict[str, Any] = {f"{p}.weight": s.exchanges[name] for p, s in sites.items() if name in s.exchanges}
    _copy({key: e.post.linear.weight for key, e in posts.items()}, read_tensors(folder / POST)[0], folder / POST)


def _updates(sites: Mapping[str, Site], name: str, part: str) -> dict[str, Tensor]:
    """The low-rank weights of one side, by peft's names: ``stack.0.attn.qkv.lora_A.weight``."""
    out: dict[str, Tensor] = {}
    for path, site in sites.items():
        parts: Any = site.own if part == "own" else site.exchanges
        if name not in parts:
            continue
        layers = parts[name] if part == "own" else getattr(parts[name], part)
        for layer, low_rank in layers.items():
            for half in ("lora_A", "lora_B"):
                out[f"{path}.{site.layer_path(layer)}.{half}.weight"] = getattr(low_rank, half).weight
    return out


def _write_updates(folder: Path, tensors: Mapping[str, Tensor], rank: int) -> None:
    write_tensors(folder / WEIGHTS, {PREFIX + key: value for key, value in tensors.items()})
    layers = sorted({key.rpartition(".lora_")[0] for key in tensors})
    write_json(folder / CONFIG, {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": layers})


def _copy(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: Path) -> None:
    wrong = [key for key in {**own, **stored} if key not in own or key not in stored]
    wrong = wrong or [key for key in own if own[key].shape != stored[key].shape]
    if wrong:
        raise Incompatible(f"{what} doesn't fit the network: {wrong[0]} is missing on one side, or of another size")
    for key, value in own.items():
        value.data.copy_(stored[key])
