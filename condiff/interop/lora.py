"""LoRA of a wrapped pipeline: trained with our trainer and objectives, loaded by plain diffusers.

>>> sd = cd.interop.wrap(StableDiffusionPipeline.from_pretrained("..."))            # doctest: +SKIP
>>> cd.interop.add_lora(sd, cd.networks.LoRA(rank=16))                              # doctest: +SKIP
>>> run = cd.train(sd.denoiser, data, cd.Denoising(), steps=1000, lr=1e-4)          # doctest: +SKIP
>>> cd.interop.save_lora(sd, "fox/", run.ema)                                       # doctest: +SKIP
>>> pipe.load_lora_weights("fox/")                                                  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from condiff.denoiser import Denoiser
from condiff.errors import BadType
from condiff.files import replacing
from condiff.interop.pipelines import Wrapped
from condiff.networks import adapters
from condiff.networks.adapters import LoRA, attach_lora, keep_trained

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it


def add_lora(wrapped: Wrapped, lora: LoRA | None = None, name: str = "default", seed: int = 0) -> list[str]:
    """Freeze a pipeline's network and give it a trainable adapter; see :func:`~condiff.networks.attach_lora`.

    Runs on ``wrapped.denoiser`` train and store the adapter alone. The network is shared with the pipeline, which has
    the adapter too.

    Returns:
        The names of the adapted layers.
    """
    layers = attach_lora(_net(wrapped.denoiser), lora, name, seed)
    keep_trained(wrapped.denoiser)
    return layers


def save_lora(wrapped: Wrapped, folder: str | Path, denoiser: Denoiser | None = None, name: str = "default") -> None:
    """Write an adapter in the form that the pipeline's own ``load_lora_weights(folder)`` reads.

    For pipelines without such a loader (DiT) the folder is peft's: ``PeftModel.from_pretrained(pipe.transformer,
    folder)``.

    Args:
        denoiser: with the weights to write, such as a run's averaged ones; the wrapped one when None.

    Raises:
        BadValue: no such adapter.
        BadFile: when writing fails.
    """
    net, pipe = _net(wrapped.denoiser if denoiser is None else denoiser), wrapped.pipeline
    state = adapters.lora_state(net, name)
    if not hasattr(pipe, "load_lora_weights"):
        adapters.save_lora(net, folder, name)
        return
    part = "transformer" if getattr(pipe, "transformer", None) is not None else "unet"
    about = {k: sorted(v) if isinstance(v, set) else v for k, v in adapters.lora_config(net, name).to_dict().items()}
    options: dict[str, Any] = {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": about}
    with replacing(Path(folder) / FILE) as temporary:
        type(pipe).save_lora_weights(temporary.parent, weight_name=temporary.name, **options)


def _net(denoiser: Any) -> Any:
    net = getattr(getattr(denoiser, "network", None), "net", None)
    if not isinstance(net, nn.Module):
        raise BadType(f"a wrapped pipeline's denoiser is wanted, got {type(denoiser).__name__}")
    return net
