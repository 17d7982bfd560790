"""``wrap``: a loaded diffusers pipeline as a denoiser, its conditions and its codec.

>>> pipe = StableDiffusionPipeline.from_pretrained("...")          # doctest: +SKIP
>>> sd = cd.interop.wrap(pipe)                                     # doctest: +SKIP
>>> guided = cd.guidance.Free(sd.denoiser, scale=7.5)              # doctest: +SKIP
>>> z = cd.sample(guided, cond=sd.encode(["a fox"]), solver=cd.UniPC(), grid=sd.grid(12), seed=0)  # doctest: +SKIP
>>> images = sd.codec.decode(z)                                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoiser, Plain
from condiff.errors import BadType, BadValue, Incompatible
from condiff.interop.backbones import Backbone, Classes, Plain2D, TextAndPooled, TextAndSize, TextTokens
from condiff.interop.schedulers import grid_of, is_flow, process_of
from condiff.interop.vae import VAE


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A pipeline's parts in condiff's terms.

    denoiser: over the latents (or pixels, for a pipeline without a VAE).
    codec: between images in [-1, 1] and latents; None for pixels.
    pipeline: what was wrapped; its modules are shared, not copied.
    """

    denoiser: Denoiser
    codec: VAE | None
    pipeline: Any
    _encode: Callable[[Sequence[Any]], Conditions]

    def encode(self, conditions: Sequence[Any]) -> Conditions:
        """Prompts, or classes, one per sample, as the network's conditions.

        Raises:
            BadValue: an empty list, or an unknown class.
            Incompatible: a pipeline without conditions or without its text encoder.
        """
        if isinstance(conditions, str) or not isinstance(conditions, Sequence) or not conditions:
            raise BadValue(f"encode takes a list, one entry per sample, got {conditions!r}")
        return self._encode(conditions)

    def grid(self, steps: int, **options: Any) -> Tensor:
        """The times that the pipeline's own scheduler visits; see :func:`~condiff.interop.grid_of`."""
        return grid_of(self.pipeline.scheduler, steps, **options)


def wrap(pipe: Any, size: tuple[int, int] | None = None) -> Wrapped:
    """A loaded pipeline: ``DDPMPipeline`` and its kin, ``StableDiffusionPipeline`` (1.5, 2.1),
    ``StableDiffusionXLPipeline``, ``DiTPipeline``, ``StableDiffusion3Pipeline``.

    Its networks are put into evaluation mode and stay where they are, offloaded ones too.

    Args:
        size: height and width of the images in pixels; by default those that it was trained on.

    Raises:
        BadType: not a pipeline.
        Incompatible: a pipeline, or a backbone, that isn't known here; one that is told pictures beside the state.
        BadValue: a size that the factor of the codec and the patches doesn't divide, or another one than the trained
            one for a network of one size.
    """
    net = _network(pipe)
    kind = type(net).__name__
    if kind not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise Incompatible(f"wrap knows the backbones {known}, and {type(pipe).__name__} has {kind}")
    _check_channels(net)
    net.eval()
    codec = VAE(pipe.vae) if getattr(pipe, "vae", None) is not None else None
    factor = 1 if codec is None else codec.factor
    latent = _latent_size(net, factor, size)
    backbone, encode = BACKBONES[kind](pipe, net, (latent[0] * factor, latent[1] * factor))
    process, target = process_of(pipe.scheduler)
    shape = (net.config.in_channels, *latent)
    denoiser = Denoiser(backbone, process, target, Plain(index=not is_flow(pipe.scheduler)), shape=shape)
    denoiser.space = None if codec is None else codec.space
    return Wrapped(denoiser.eval(), codec, pipe, encode)


def _network(pipe: Any) -> Any:
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "components"):
        raise BadType(f"a loaded diffusers pipeline is wanted, got {type(pipe).__name__}")
    net = getattr(pipe, "transformer", None)
    net = getattr(pipe, "unet", None) if net is None else net
    if net is None:
        raise Incompatible(f"{type(pipe).__name__} has neither a unet nor a transformer")
    return net


def _check_channels(net: Any) -> None:
    """Twice as many channels come out where there is a variance head."""
    channels, out = net.config.in_channels, net.config.out_channels or net.config.in_channels
    if out not in (channels, 2 * channels):
        raise Incompatible(
            f"{type(net).__name__} takes {channels} channels and gives {out}: networks that are told pictures beside "
            "the state (inpainting, depth, upscaling) aren't known here"
        )


def _latent_size(net: Any, factor: int, size: tuple[int, int] | None) -> tuple[int, int]:
    side = net.config.sample_size
    trained = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if size is None:
        return trained  # type: ignore[return-value]
    multiple = factor * (net.config.get("patch_size") or 1)
    if any(n < 1 or n % multiple for n in size):
        raise BadValue(f"size must be multiples of {multiple} pixels, got {size}")
    latent = size[0] // factor, size[1] // factor
    if type(net).__name__ in ONE_SIZE and latent != trained:
        pixels = tuple(n * factor for n in trained)
        raise BadValue(f"{type(net).__name__} knows one size, {pixels} pixels, got {size}")
    return latent


# One function per backbone: (pipeline, network, size in pixels) -> (backbone, how its conditions are encoded)

Encoder = Callable[[Sequence[Any]], Conditions]


Size = tuple[int, int]


def _plain(pipe: Any, net: Any, size: Size) -> tuple[Backbone, Encoder]:
    backbone = Plain2D(net)
    if backbone.condition_kinds:
        return backbone, lambda labels: _labels(labels, net.config.num_class_embeds, pipe)
    if net.config.class_embed_type is not None:
        _refuse(f"this network is told {net.config.class_embed_type!r} embeddings, not classes by number")
    return backbone, lambda _: _refuse("this pipeline is unconditional: sample it with num=")


def _classes(pipe: Any, net: Any, size: Size) -> tuple[Backbone, Encoder]:
    names = getattr(pipe, "labels", None) or {}

    def encode(labels: Sequence[Any]) -> Conditions:
        unknown_names = [n for n in labels if isinstance(n, str) and n not in names]
        if unknown_names:
            raise BadValue(f"unknown classes {unknown_names}; this pipeline names {len(names)} classes")
        numbers = [names[n] if isinstance(n, str) else n for n in labels]
        return _labels(numbers, net.config.num_embeds_ada_norm, pipe)

    return Classes(net), encode


def _text(pipe: Any, net: Any, size: Size) -> tuple[Backbone, Encoder]:
    if net.config.addition_embed_type == "text_time" and hasattr(pipe, "text_encoder_2"):
        return _text_and_size(pipe, net, size)
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if net.config.get(name) is not None:
            _refuse(f"this network is told more than a prompt ({name} = {net.config[name]!r}): that isn't known here")

    @torch.no_grad()
    def encode(prompts: Sequence[Any]) -> Conditions:
        tokens, _ = _encoder_of(pipe)(list(prompts), _device(pipe), 1, False)
        return Conditions({"prompt": Condition(tokens, "tokens")})

    null = encode([""])["prompt"].value[0] if pipe.text_encoder is not None else None
    return TextTokens(net, null), encode


def _text_and_size(pipe: Any, net: Any, size: Size) -> tuple[Backbone, Encoder]:
    if pipe.config.get("requires_aesthetics_score"):
        _refuse("a refiner, which is told a score of its picture, isn't known here")

    @torch.no_grad()
    def encode(prompts: Sequence[Any]) -> Conditions:
        words = list(prompts)
        tokens, _, pooled, _ = _encoder_of(pipe)(words, device=_device(pipe), do_classifier_free_guidance=False)
        sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=pooled.device)  # uncropped
        told = Conditions({"prompt": Condition(tokens, "tokens"), "pooled": Condition(pooled, "vector")})
        return told.replace(size=Condition(sizes.expand(len(words), 6), "vector"))

    if pipe.text_encoder_2 is None:
        return TextAndSize(net), encode
    empty = encode([""])
    null = empty["prompt"].value[0], empty["pooled"].value[0]
    if pipe.config.get("force_zeros_for_empty_prompt"):
        null = torch.zeros_like(null[0]), torch.zeros_like(null[1])
    return TextAndSize(net, null), encode


def _text_and_pooled(pipe: Any, net: Any, size: Size) -> tuple[Backbone, Encoder]:
    @torch.no_grad()
    def encode(prompts: Sequence[Any]) -> Conditions:
        words = list(prompts)
        tokens, _, pooled, _ = _encoder_of(pipe)(
            words, words, words, device=_device(pipe), do_classifier_free_guidance=False
        )
        return Conditions({"prompt": Condition(tokens, "tokens"), "pooled": Condition(pooled, "vector")})

    empty = encode([""]) if pipe.text_encoder is not None else None
    null = None if empty is None else (empty["prompt"].value[0], empty["pooled"].value[0])
    return TextAndPooled(net, null, time_scale=float(pipe.scheduler.config.num_train_timesteps)), encode


ONE_SIZE = ("DiTTransformer2DModel",)  # whose positions aren't interpolated
BACKBONES: dict[str, Callable[[Any, Any, Size], tuple[Backbone, Encoder]]] = {
    "UNet2DModel": _plain,
    "UNet2DConditionModel": _text,
    "DiTTransformer2DModel": _classes,
    "SD3Transformer2DModel": _text_and_pooled,
}


def _labels(labels: Sequence[Any], count: int, pipe: Any) -> Conditions:
    wrong = [n for n in labels if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < count]
    if wrong:
        raise BadValue(f"classes are whole numbers in [0, {count - 1}], got {wrong[:5]}")
    return Conditions({"label": Condition(torch.tensor(labels, device=_device(pipe)), "label")})


def _encoder_of(pipe: Any) -> Any:
    if pipe.text_encoder is None and getattr(pipe, "text_encoder_2", None) is None:
        raise Incompatible("the pipeline was loaded without its text encoder: give encoded conditions instead")
    return pipe.encode_prompt


def _device(pipe: Any) -> torch.device:
    return getattr(pipe, "_execution_device", None) or pipe.device


def _refuse(why: str) -> Any:
    raise Incompatible(why)
