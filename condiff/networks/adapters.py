"""LoRA through peft: low-rank updates of linear layers, on our networks and on diffusers'.

``W x + (alpha / rank) B A x`` with W frozen, A drawn and B = 0 (Hu 2021, arXiv 2106.09685): nothing changes until B is
trained. Files are peft's, a folder with ``adapter_model.safetensors`` and ``adapter_config.json``, so that adapters go
in both directions. Several adapters in one forward, each for some of its rows, are :mod:`condiff.networks.pairing`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from condiff.config import read_json
from condiff.errors import BadFile, BadType, BadValue, Incompatible, require_extra, unknown
from condiff.fields import checked
from condiff.files import read_tensors, write_json, write_tensors
from condiff.random import seeded_weights

WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."

#: Projections of attention, as our networks and diffusers' call them.
ATTENTION = ("qkv", "q", "kv", "out", "to_q", "to_k", "to_v", "to_out.0")

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
@checked
class LoRA:
    """What is adapted, and how much it may change.

    Args:
        rank: of the update.
        alpha: its scale is ``alpha / rank``; the rank itself when None.
        targets: ends of the names of linear layers; all of them when empty.
        dropout: of the update's input, in training.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ATTENTION
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        check_rank(self.rank)
        if self.alpha is not None and not self.alpha > 0.0:
            raise BadValue(f"alpha must be > 0, got {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise BadValue(f"dropout must lie in [0, 1), got {self.dropout}")

    def layers(self, net: nn.Module) -> list[str]:
        """The names of the linear layers that it adapts.

        Raises:
            BadValue: none.
        """
        linear = _linear(net)
        chosen = [n for n in linear if not self.targets or any(f".{n}".endswith(f".{t}") for t in self.targets)]
        if not chosen:
            raise BadValue(f"no linear layer of {type(net).__name__} has a name that ends with one of {self.targets}")
        return chosen


def check_rank(rank: Any) -> None:
    """
    Raises:
        BadType, BadValue: not a whole number of at least 1.
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise BadType(f"a rank is a whole number, got {rank!r}")
    if rank < 1:
        raise BadValue(f"a rank must be at least 1, got {rank}")


def attach_lora(net: nn.Module, lora: LoRA | None = None, name: str = "default", seed: int = 0) -> list[str]:
    """Freeze a network (or a denoiser), and give its linear layers a trainable update.

    Args:
        net: changed in place; only the new weights require gradients afterwards. Those of a network in half precision
            are in single.
        name: of the adapter, where there are several.
        seed: of A.

    Returns:
        The names of the layers.

    Raises:
        BadValue: no such layers, or an adapter of that name.

    Example:
        >>> attach_lora(denoiser, LoRA(rank=16))
        >>> keep_trained(denoiser)
        >>> run = train(denoiser, data, Denoising(), steps=1000, run_dir="runs/lora")
        >>> save_lora(denoiser, "runs/lora/adapter")
    """
    peft: Any = require_extra("peft", "adapters")
    if name in lora_names(net):
        raise BadValue(f"there is an adapter {name!r} already: detach_lora it, or take another name")
    lora = LoRA() if lora is None else lora
    layers = lora.layers(net)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
        target_modules=layers,
        lora_dropout=lora.dropout,
        init_lora_weights="gaussian",
    )
    net.requires_grad_(False)
    with seeded_weights(seed), _beside_others(net, name):
        peft.inject_adapter_in_model(config, net, name)
    _in_single(net, name)
    return layers


def detach_lora(net: nn.Module, merge: bool = False) -> None:
    """Take all adapters off again, or with ``merge`` into the weights.

    Raises:
        BadValue: there are none.
    """
    _need(net, None)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if _is_adapted(child):
                if merge:
                    child.merge()  # type: ignore[operator]
                setattr(parent, name, child.get_base_layer())  # type: ignore[operator]
    if hasattr(net, "peft_config"):
        del net.peft_config


def scale_lora(net: nn.Module, scale: float, name: str = "default") -> None:
    """Multiply an adapter's update: 0 is the network without it, 1 as it was trained."""
    _need(net, name)
    for layer in _adapted(net):
        layer.set_scale(name, scale)  # type: ignore[operator]


def lora_names(net: nn.Module) -> list[str]:
    """The names of the adapters of a network."""
    return list(dict.fromkeys(name for layer in _adapted(net) for name in layer.lora_A))  # type: ignore[union-attr]


def lora_state(net: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights under peft's names, which don't hold the adapter's: ``stack.0.attn.qkv.lora_A.weight``."""
    _need(net, name)
    peft: Any = require_extra("peft", "adapters")
    return peft.get_peft_model_state_dict(net, adapter_name=name)


def lora_config(net: nn.Module, name: str = "default") -> Any:
    """peft's configuration of an adapter."""
    _need(net, name)
    return net.peft_config[name]  # type: ignore[index]


def save_lora(net: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Write an adapter as peft does, for ``PeftModel.from_pretrained(net, folder)`` and :func:`load_lora`.

    Raises:
        BadFile: when writing fails.
    """
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, {PREFIX + key: v for key, v in lora_state(net, name).items()})
    settings = lora_config(net, name).to_dict()
    write_json(folder / CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()})


def load_lora(net: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Attach an adapter with the weights of a folder that :func:`save_lora` or peft wrote; it can be trained further.

    Raises:
        BadFile: files that are missing or truncated, or of another method than LoRA.
        Incompatible: layers that the network doesn't have, or of other sizes.
    """
    peft: Any = require_extra("peft", "adapters")
    folder = Path(folder)
    settings, (tensors, _) = {**read_json(folder / CONFIG), "inference_mode": False}, read_tensors(folder / WEIGHTS)
    if settings.get("peft_type") != "LORA":
        raise BadFile(f"{folder / CONFIG} is of {settings.get('peft_type')!r}, not of LoRA")
    if name in lora_names(net):
        raise BadValue(f"there is an adapter {name!r} already: detach_lora it, or take another name")
    tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    _check_fits(net, tensors, folder)
    net.requires_grad_(False)
    with _beside_others(net, name):
        peft.inject_adapter_in_model(peft.LoraConfig.from_peft_type(**settings), net, name)
    _in_single(net, name)
    own = lora_state(net, name)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))[:3]
        raise Incompatible(f"{folder} holds other layers than its configuration says: {', '.join(odd)}")
    peft.set_peft_model_state_dict(net, tensors, name)


@contextmanager
def _beside_others(net: nn.Module, name: str) -> Iterator[None]:
    """Adapters that act already go on acting beside the one that is added here, which alone is trained."""
    acting = {layer: list(layer.active_adapters) for layer in _adapted(net)}  # type: ignore[call-overload]
    with warnings.catch_warnings():  # several adapters are meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield
    for layer in _adapted(net):
        part: Any = layer
        before = acting.get(layer, [])
        part.set_adapter([*before, *([name] if name in part.lora_A else [])])
        for weights in (part.lora_A, part.lora_B):
            for other in before:
                weights[other].requires_grad_(False)


def _in_single(net: nn.Module, name: str) -> None:
    """An adapter's weights in float32 where the network's are halves, which are too coarse for steps of training."""
    for layer in _adapted(net):
        for halves in (layer.lora_A, layer.lora_B):
            if name in halves:  # type: ignore[operator]
                part: Any = halves[name]  # type: ignore[index]
                part.to(torch.promote_types(part.weight.dtype, torch.float32))


def _check_fits(net: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuse an adapter of another network before anything is changed."""
    linear = _linear(net)
    for key, value in tensors.items():
        layer, _, which = key.rpartition(".lora_")
        if layer not in linear:
            raise Incompatible(f"{folder} adapts {layer or key!r}, which {type(net).__name__} has not")
        width: Any = linear[layer].in_features if which.startswith("A") else linear[layer].out_features
        if value.shape[1 if which.startswith("A") else 0] != width:
            raise Incompatible(f"{folder}: {key} is {tuple(value.shape)}, and the layer's width is {width}")


def _linear(net: nn.Module) -> dict[str, Any]:
    """The linear layers by name, adapted ones too, without what adapters consist of."""
    parts = dict(net.named_modules())
    adapted = [f"{name}." for name, part in parts.items() if _is_adapted(part)]
    kinds = {name: part for name, part in parts.items() if not any(name.startswith(inside) for inside in adapted)}
    return {
        name: part
        for name, part in kinds.items()
        if isinstance(getattr(part, "base_layer", part) if _is_adapted(part) else part, nn.Linear)
    }


def _is_adapted(part: nn.Module) -> bool:
    return hasattr(part, "base_layer") and hasattr(part, "lora_A")


def _adapted(net: nn.Module) -> Iterator[nn.Module]:
    return (part for part in net.modules() if _is_adapted(part))


def _need(net: nn.Module, name: str | None) -> None:
    names = lora_names(net)
    if not names:
        raise BadValue(f"{type(net).__name__} has no adapter: attach_lora first")
    if name is not None and name not in names:
        raise unknown("adapter", name, names)


# What is stored of a network that is frozen in part


def keep_trained(module: Module) -> Module:
    """From now on ``module.state_dict()`` holds the weights that require gradients, and nothing else.

    Checkpoints, averages and weight files of a run are then as small as the adapter. Loading such a file leaves the
    frozen weights as they are.

    Raises:
        BadValue: nothing requires a gradient.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise BadValue("nothing of this module is trained: attach an adapter first")
    module.register_state_dict_post_hook(_only_trained)
    module.register_load_state_dict_post_hook(_none_missing)
    return module


def _only_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    trained = {prefix + name for name, p in module.named_parameters() if p.requires_grad}
    for name in [n for n in state if n.startswith(prefix) and n not in trained]:
        del state[name]


def _none_missing(module: nn.Module, keys: Any) -> None:
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
