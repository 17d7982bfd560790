"""What a family of pipelines says: how its network is called, what it is told, how large its samples are.

A further family is one module here with two classes: a :class:`Backbone`, which calls the network, and a
:class:`Family`, which reads the pipeline; its name goes into ``FAMILIES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condiff.codecs import Codec
from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Free
from condiff.interop.attention import control_attention
from condiff.interop.paired import make_sites
from condiff.interop.schedulers import grid_of, shift_options
from condiff.interop.vae import vae_codec
from condiff.networks.attention_control import AttentionControl
from condiff.networks.pairing import Pairing, Site


class Backbone(nn.Module):
    """Base: a diffusers network behind our interface, ``network(x, time, cond) -> Tensor | (Tensor, aux)``.

    It computes in its own dtype and answers like the state; weights may be offloaded. Absent conditions are what the
    pipeline itself gives for them: the empty prompt, the class after the last.

    Args:
        net: the network, not copied.
        time_scale: what the time is multiplied with; 1 for an index of a table, 1000 for flow times in [0, 1].

    Attributes:
        attention_option: of the network's call, which tells its attention processors something.
    """

    condition_kinds: ClassVar[dict[str, str]] = {}
    attention_option: ClassVar[str] = "cross_attention_kwargs"

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.time_scale = net, time_scale

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in, which weights that are stored in eight bits aren't."""
        return self.net.dtype

    def make_sites(self) -> dict[str, Site]:
        """The network's attentions, ready for paired rows; see :func:`condiff.networks.add_pair`."""
        return make_sites(self.net, self.attention_option)

    def control_attention(self, control: AttentionControl) -> AbstractContextManager[None]:
        """The network's attentions under control for a while; see :class:`condiff.sampling.AttentionEdit`."""
        return control_attention(self.net, control)

    def forward(self, x: Tensor, time: Tensor, cond: Conditions, pairing: Pairing | None = None, **options: Any) -> Any:
        """``pairing`` says which rows attend to each other; ``options`` go to the diffusers network as they are."""
        told = {**self.told(cond, x), **options}
        if pairing is not None:
            more = told.get(self.attention_option) or {}
            told[self.attention_option] = {**more, "pairing": self.placed(pairing, told)}
        return self.said(x, self.times(time, x), told)

    def placed(self, pairing: Pairing, told: dict[str, Any]) -> Pairing:
        """The pairing, with where the picture's tokens lie."""
        return pairing

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        """What the network is told of the conditions, by its own names."""
        return {}

    def said(self, x: Tensor, times: Tensor, told: dict[str, Any]) -> Any:
        """What the network says: its sample, like x, or a pair of that and a dictionary."""
        return self.call(x, times, **told)

    def times(self, time: Tensor, x: Tensor) -> Tensor:
        """The times as the network takes them, (B,).

        Raises:
            Incompatible: a time per frame or pixel.
        """
        if time.ndim != 1:
            raise Incompatible(f"{type(self.net).__name__} is told one time per sample, got {tuple(time.shape)}")
        return time

    def call(self, x: Tensor, times: Tensor, beside: Tensor | None = None, **told: Any) -> Tensor:
        """The network's sample, like x.

        Args:
            beside: what lies beside the state in its channels.
        """
        given = x.to(self.dtype)
        if beside is not None:
            given = torch.cat([given, beside.to(self.dtype)], dim=x.ndim - 3)
        return self.net(given, timestep=times * self.time_scale, return_dict=False, **told)[0].to(x)


class Family(ABC):
    """Base: a pipeline of one family, read.

    Args:
        pipe: the loaded pipeline.
        net: its network.
        size: height and width in pixels; by default those that it was trained on.
        frames: of a video, in pixels; by default those that it was trained on.
        length: tokens of all prompts, for pipelines that pad them; by default the pipeline's.

    Attributes:
        networks: the diffusers classes of its network.
        padded: the length of prompts in the pipeline's call; None where its text encoder has one length.
        longest: that it takes.
        reference: the conditions that its own guidance leaves out.
        scale: of its own guidance, where none is given.
    """

    networks: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[tuple[str, ...]] = ()
    padded: ClassVar[int | None] = None
    longest: ClassVar[int] = 512
    scale: Any = 1.0
    codec: Codec | None
    shape: tuple[int, ...]

    def __init__(
        self,
        pipe: Any,
        net: Any,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        length: int | None = None,
    ) -> None:
        self.pipe, self.net = pipe, net
        self.check()
        self.length = self.checked_length(length)
        self.codec = self.make_codec()
        self.size = self.checked_size(size)
        self.frames = self.checked_frames(frames)
        self.shape = self.latent_shape()
        self.backbone = self.make_backbone()

    @classmethod
    def takes(cls, pipe: Any, net: Any) -> bool:
        """Whether a pipeline belongs to the family."""
        return class_of(net) in cls.networks

    def check(self) -> None:
        """Refuse, with :class:`Incompatible`, a network that is told what isn't known here."""
        refuse_pictures(self.net, self.net.config.in_channels)

    @abstractmethod
    def make_backbone(self) -> nn.Module:
        """The network, with its null conditions; called when ``size`` and ``shape`` are known."""

    def encode(self, entries: Any) -> Conditions:
        """One entry per sample as the network's conditions; options by keyword."""
        return self.words(entries)

    @property
    def pictures(self) -> dict[str, int]:
        """Pictures that :meth:`encode` is told beside the entries: their channels, by name."""
        return {}

    def told_pictures(self, pictures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Such pictures, by name, as :meth:`encode` takes them."""
        return dict(pictures)

    def words(self, entries: Sequence[Any]) -> Conditions:
        """The prompts, or classes, alone: what a negative prompt replaces."""
        raise Incompatible("this pipeline is unconditional: sample it with num=")

    # Sizes

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 1 if self.codec is None else self.codec.factor

    @property
    def multiple(self) -> int:
        """What sizes in pixels are multiples of."""
        return self.factor * (self.net.config.get("patch_size") or 1)

    def make_codec(self) -> Codec | None:
        vae = getattr(self.pipe, "vae", None)
        return None if vae is None else vae_codec(vae)

    def trained_size(self) -> tuple[int, int]:
        """Height and width that the pipeline makes unless told, in pixels."""
        side = self.net.config.sample_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return height * self.factor, width * self.factor

    def checked_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """
        Raises:
            BadType: not two whole numbers.
            BadValue: no multiple of what the codec and the patches ask for.
        """
        if size is None:
            return self.trained_size()
        if not isinstance(size, Sequence) or len(size) != 2 or any(type(n) is not int for n in size):
            raise BadType(f"size is (height, width) in pixels, got {size!r}")
        if any(n < 1 or n % self.multiple for n in size):
            raise BadValue(f"size must be multiples of {self.multiple} pixels, got {size}")
        return size[0], size[1]

    def checked_frames(self, frames: int | None) -> int | None:
        if frames is not None:
            raise BadValue(f"{type(self.pipe).__name__} makes pictures: leave frames= out")
        return None

    def channels(self) -> int:
        """Of the state."""
        return self.net.config.in_channels

    def latent_shape(self) -> tuple[int, ...]:
        height, width = self.size
        return self.channels(), height // self.factor, width // self.factor

    def checked_length(self, length: int | None) -> int | None:
        if length is None:
            return self.padded
        if self.padded is None or not 1 <= length <= self.longest:
            known = "isn't padded to a length" if self.padded is None else f"has between 1 and {self.longest} tokens"
            raise BadValue(f"a prompt of {type(self.pipe).__name__} {known}, got length={length}")
        return length

    # What the pipeline does unless told

    def grid(self, steps: int, **options: Any) -> Tensor:
        """The times that the pipeline visits with its own scheduler."""
        return grid_of(self.pipe.scheduler, steps, **{**shift_options(self.pipe.scheduler, self.tokens()), **options})

    def tokens(self) -> int:
        """How many tokens the state is, for shifts that depend on that."""
        height, width = self.shape[-2:]
        patch = self.net.config.get("patch_size") or 1
        return (height // patch) * (width // patch)

    def guided(self, denoiser: Any, scale: Any, negative: Any, **options: Any) -> Denoises:
        """The pipeline's guidance; its bare denoiser where it has none."""
        if not self.reference:
            if scale is not None or negative is not None:
                raise Incompatible(f"{type(self.pipe).__name__} has no guidance: leave scale= and negative= out")
            return denoiser
        scale = self.scale if scale is None else scale
        if negative is not None:
            return Free(denoiser, scale=scale, negative=self.refused(negative), **options)
        return Free(denoiser, scale=scale, drop=self.reference, **options)

    def refused(self, negative: Any) -> Mapping[str, Any]:
        """Negative prompts as conditions, which encoded ones are already."""
        if isinstance(negative, Mapping):
            return negative
        if isinstance(negative, str) or not isinstance(negative, Sequence) or not negative:
            raise BadType(f"negative= takes a list of prompts, such as ['blurry'], or encoded ones, got {negative!r}")
        check_prompts(self.backbone, negative)
        return self.words(negative)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return getattr(self.pipe, "_execution_device", None) or self.pipe.device

    def text_encoders(self, *names: str) -> None:
        """
        Raises:
            Incompatible: a pipeline that was loaded without any of them.
        """
        if all(getattr(self.pipe, name, None) is None for name in names):
            raise Incompatible("the pipeline was loaded without its text encoder: give encoded conditions instead")


# Helpers of backbones


def class_of(net: Any) -> str:
    """The name of a network's class, of a compiled one's as well."""
    return type(getattr(net, "_orig_mod", net)).__name__


def split_variance(out: Tensor, channels: int) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """What was said, and as ``aux["variance"]`` the second half of twice as many outputs: a variance head."""
    if out.shape[1] == channels:
        return out
    said, variance = out.chunk(2, dim=1)
    return said, {"variance": variance}


def need(cond: Conditions, name: str, what: str) -> Condition:
    """The condition that a network can't do without."""
    if name not in cond:
        raise BadValue(f"this network is told {what}: give cond={{{name!r}: ...}}, got {list(cond)}")
    return cond[name]


def filled(entry: Condition, null: Tensor | None, name: str) -> Tensor:
    """The values of a condition, with ``null`` in the rows where it is absent.

    Raises:
        Incompatible: absent rows, and no null value.
        BadValue: a null value of another shape.
    """
    if entry.keep is None or bool(entry.keep.all()):
        return entry.value
    if null is None:
        raise Incompatible(f"{name!r} is absent in some rows and this network knows nothing in its place: give null=")
    null = null.to(entry.value)
    if null.shape != entry.value.shape[1:]:
        raise BadValue(f"{name!r} has rows of shape {tuple(entry.value.shape[1:])}, its null {tuple(null.shape)}")
    keep = entry.keep.reshape(-1, *(1,) * null.ndim)
    return torch.where(keep, entry.value, null)


def check_labels(labels: Tensor, last: int) -> Tensor:
    """
    Raises:
        BadValue: labels outside [0, last].
    """
    if int(labels.max()) > last or int(labels.min()) < 0:
        raise BadValue(f"labels lie in [0, {last}], got {int(labels.min())} .. {int(labels.max())}")
    return labels


# Helpers of families


def check_prompts(backbone: Any, entries: Sequence[Any]) -> None:
    """
    Raises:
        BadType: for a network that is told prompts, an entry that is no text.
    """
    if "prompt" in getattr(backbone, "condition_kinds", {}):
        for entry in entries:
            if not isinstance(entry, str):
                raise BadType(f"prompts are text, got {type(entry).__name__}; encoded ones are conditions already")


def refuse_pictures(net: Any, channels: int) -> None:
    """Twice as many channels as those of the state come out where there is a variance head.

    Raises:
        Incompatible: a network whose input isn't its output's size.
    """
    given, out = net.config.in_channels, net.config.out_channels or net.config.in_channels
    if given != channels or out not in (channels, 2 * channels):
        raise Incompatible(
            f"{type(net).__name__} takes {given} channels and gives {out}: networks that are told pictures beside "
            "the state in this way (depth, upscaling, editing) aren't known here"
        )


def encoded_labels(labels: Sequence[Any], count: int, device: torch.device) -> Conditions:
    """Classes by number.

    Raises:
        BadValue: no whole number in [0, count - 1].
    """
    wrong = [n for n in labels if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < count]
    if wrong:
        raise BadValue(f"classes are whole numbers in [0, {count - 1}], got {wrong[:5]}")
    return Conditions({"label": Condition(torch.tensor(labels, device=device), "label")})


def keep_empty(backbone: Backbone, null: tuple[Tensor, Tensor] | None) -> None:
    """Keep the empty prompt, tokens (L, D) and pooled (P,), beside the network, where its device goes."""
    tokens, pooled = null or (None, None)
    backbone.register_buffer("null", tokens, persistent=False)
    backbone.register_buffer("null_pooled", pooled, persistent=False)


def prompt_and_pooled(backbone: Any, cond: Conditions) -> tuple[Tensor, Tensor]:
    """The conditions ``prompt`` and ``pooled`` in the dtype of the network; the empty one where absent."""
    tokens = filled(need(cond, "prompt", "a prompt"), backbone.null, "prompt")
    pooled = filled(need(cond, "pooled", "a pooled prompt"), backbone.null_pooled, "pooled")
    return tokens.to(backbone.dtype), pooled.to(backbone.dtype)
