"""ControlNets beside the network of a pipeline: Stable Diffusion 1, 2, XL and 3, and FLUX.

Each is a network of its own, whose residuals are added inside the pipeline's one: ``scale`` times those of each
ControlNet, where the time lies in its interval. A row whose control is absent gets none of its residuals.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condiff.codecs import Codec
from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible
from condiff.interop.backbones.base import Family, class_of, need
from condiff.interop.backbones.flux import Flux, packed, places
from condiff.interop.backbones.inpainting import mask_kinds
from condiff.interop.backbones.stable_diffusion import StableDiffusion
from condiff.interop.backbones.stable_diffusion_3 import StableDiffusion3
from condiff.interop.backbones.stable_diffusion_xl import StableDiffusionXL
from condiff.interop.pictures import pictures
from condiff.interop.schedulers import process_of
from condiff.process.table import table_size
from condiff.random import Source

_ROUND_OFF = 1e-6  # of times in float32


class Controlled(nn.Module):
    """Base: a backbone with ControlNets beside it.

    Conditions, beside those of the backbone: ``control`` (B, C, H, W), as the ControlNet takes it, ``control_scale``
    (B,) and ``control_interval`` (B, 2), times low and high; of further ControlNets ``control_2``, ``control_2_scale``
    and so on. Without a scale it is 1, without an interval all times.

    Attributes:
        kind: the class of its ControlNets.

    Args:
        base: the pipeline's network.
        nets: the ControlNets.
        levels: of the table whose index the network is told; None for one that is told t.
    """

    kind: ClassVar[str] = "ControlNetModel"

    def __init__(self, base: Any, nets: Sequence[Any], levels: int | None) -> None:
        super().__init__()
        self.base, self.nets, self.levels = base, nn.ModuleList(nets), levels
        kinds = {}
        for name in control_names(len(nets)):
            kinds |= {name: "map", f"{name}_scale": "scalar", f"{name}_interval": "vector"}
        self.condition_kinds = {**base.condition_kinds, **kinds}

    @property
    def net(self) -> Any:
        """The pipeline's network."""
        return self.base.net

    def forward(self, x: Tensor, time: Tensor, cond: Conditions, **options: Any) -> Any:
        """``options`` go to all networks as they are."""
        times, told = self.base.times(time, x), {**self.base.told(cond, x), **options}
        parts = []
        for name, net in zip(control_names(len(self.nets)), self.nets, strict=True):
            weight = self.weight(name, time, need(cond, name, "a picture that it is controlled by"), cond)
            if bool((weight != 0.0).any()):
                said = self.ask(net, x, times * self.base.time_scale, told, cond[name].value)
                parts.append([[one * _along(weight, one) for one in group] for group in said])
        if not parts:
            return self.base.said(x, times, told)
        groups = [[torch.stack(ones).sum(0) for ones in zip(*group, strict=True)] for group in zip(*parts, strict=True)]
        return self.base.said(x, times, {**told, **self.given(groups)})

    def weight(self, name: str, time: Tensor, entry: Condition, cond: Conditions) -> Tensor:
        """What the residuals of a ControlNet are multiplied with, (B,)."""
        out = entry.kept().to(time)
        if f"{name}_scale" in cond:
            out = out * cond[f"{name}_scale"].value.to(time)
        if f"{name}_interval" in cond:
            low, high = cond[f"{name}_interval"].value.to(time).unbind(1)
            t = time if self.levels is None else (time + 1.0) / self.levels
            out = out * ((low - _ROUND_OFF <= t) & (t <= high + _ROUND_OFF))
        return out

    @classmethod
    def controls(cls, images: Tensor, net: Any, codec: Codec | None, rng: Any) -> Tensor:
        """Pictures in [-1, 1] as a ControlNet takes them: in [0, 1]."""
        return 0.5 * (images + 1.0)

    @abstractmethod
    def ask(self, net: Any, x: Tensor, time: Tensor, told: dict[str, Any], control: Tensor) -> list[list[Tensor]]:
        """The residuals of one ControlNet, in groups."""

    @abstractmethod
    def given(self, residuals: list[list[Tensor]]) -> dict[str, Any]:
        """How the pipeline's network takes them."""


def control_names(count: int) -> list[str]:
    """``control``, ``control_2``, ..."""
    return ["control" if i == 0 else f"control_{i + 1}" for i in range(count)]


def _along(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


def control_interval(grid: Tensor, start: float = 0.0, end: float = 1.0) -> tuple[float, float]:
    """The interval of times for ``control_guidance_start`` and ``control_guidance_end`` of pipelines, which count
    steps: of those on the grid, step i of N with ``start <= i / N`` and ``(i + 1) / N <= end``.

    Raises:
        BadValue: no such step.
    """
    count = len(grid) - 1
    inside = [i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    if not inside:
        raise BadValue(f"none of {count} steps lies between {start} and {end}")
    return float(grid[inside[-1]]), float(grid[inside[0]])


class ControlledUNet(Controlled):
    """With ``ControlNetModel`` of Stable Diffusion 1, 2 and XL: controls are pictures in [0, 1]."""

    def ask(self, net: Any, x: Tensor, time: Tensor, told: dict[str, Any], control: Tensor) -> list[list[Tensor]]:
        dtype = self.base.dtype
        told = {name: value for name, value in told.items() if name != "beside"}
        down, middle = net(x.to(dtype), time, controlnet_cond=control.to(dtype), return_dict=False, **told)
        return [list(down), [middle]]

    def given(self, residuals: list[list[Tensor]]) -> dict[str, Any]:
        down, middle = residuals
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle[0]}


class ControlledSD3(Controlled):
    """With ``SD3ControlNetModel``: controls are latents of pictures."""

    kind = "SD3ControlNetModel"

    @classmethod
    def controls(cls, images: Tensor, net: Any, codec: Codec | None, rng: Any) -> Tensor:
        z, shift = latents_of(images, codec, rng)
        return z + shift if net.config.force_zeros_for_pooled_projection else z  # those are trained without the shift

    def ask(self, net: Any, x: Tensor, time: Tensor, told: dict[str, Any], control: Tensor) -> list[list[Tensor]]:
        told, dtype = dict(told), self.base.dtype
        if net.config.force_zeros_for_pooled_projection:
            told["pooled_projections"] = torch.zeros_like(told["pooled_projections"])
        if net.config.joint_attention_dim is None:
            told["encoder_hidden_states"] = None
        said = net(x.to(dtype), timestep=time, controlnet_cond=control.to(dtype), return_dict=False, **told)
        return [list(said[0])]

    def given(self, residuals: list[list[Tensor]]) -> dict[str, Any]:
        return {"block_controlnet_hidden_states": residuals[0]}


class ControlledFlux(Controlled):
    """With ``FluxControlNetModel``: controls are latents of pictures, packed as the state is."""

    kind = "FluxControlNetModel"

    @classmethod
    def controls(cls, images: Tensor, net: Any, codec: Codec | None, rng: Any) -> Tensor:
        return latents_of(images, codec, rng)[0]

    def ask(self, net: Any, x: Tensor, time: Tensor, told: dict[str, Any], control: Tensor) -> list[list[Tensor]]:
        dtype = self.base.dtype
        told = {k: v for k, v in told.items() if k != "guidance" or net.config.guidance_embeds}
        where = places(x.shape[-2], x.shape[-1], x)
        given = (packed(part).to(dtype) for part in (x, control))
        said = net(*given, timestep=time, img_ids=where, return_dict=False, **told)
        return [list(part or ()) for part in said]

    def given(self, residuals: list[list[Tensor]]) -> dict[str, Any]:
        blocks, single = residuals
        return {"controlnet_block_samples": blocks or None, "controlnet_single_block_samples": single or None}


def latents_of(images: Tensor, codec: Any, rng: Any) -> tuple[Tensor, Tensor]:
    """Pictures as scaled latents, means or draws where a source is given; and the codec's shift, scaled.

    Raises:
        Incompatible: no autoencoder.
    """
    if codec is None:
        raise Incompatible("the pipeline was loaded without the autoencoder that its control pictures go through")
    z = codec.encode(images) if rng is None else codec.draw(images, rng)
    return z, codec.shift / codec.scale


class ControlNets(Family):
    """A pipeline of another family with ControlNets beside its network: ``StableDiffusionControlNetPipeline``,
    ``StableDiffusionXLControlNetPipeline``, ``StableDiffusion3ControlNetPipeline``, ``FluxControlNetPipeline``.
    """

    kinds: ClassVar[dict[type[Family], type[Controlled]]] = {
        StableDiffusionXL: ControlledUNet,
        StableDiffusion: ControlledUNet,
        StableDiffusion3: ControlledSD3,
        Flux: ControlledFlux,
    }

    def __init__(self, pipe: Any, net: Any, size: Any = None, frames: Any = None, length: Any = None) -> None:
        self.pipe, self.net = pipe, net
        inner, self.kind = next((f, kind) for f, kind in self.kinds.items() if f.takes(pipe, net))
        self.check()
        self.inner = inner(pipe, net, size, frames, length)
        self.codec, self.shape, self.size = self.inner.codec, self.inner.shape, self.inner.size
        self.frames, self.length, self.scale = self.inner.frames, self.inner.length, self.inner.scale
        self.backbone = self.make_backbone()

    @classmethod
    def takes(cls, pipe: Any, net: Any) -> bool:
        return getattr(pipe, "controlnet", None) is not None and any(f.takes(pipe, net) for f in cls.kinds)

    @property
    def nets(self) -> list[Any]:
        """The ControlNets of the pipeline."""
        several = getattr(self.pipe.controlnet, "nets", None)
        return [self.pipe.controlnet] if several is None else list(several)

    def check(self) -> None:
        if self.kind is ControlledUNet and mask_kinds(self.net):
            raise Incompatible("an inpainting network with ControlNets beside it isn't known here")
        for net in self.nets:
            if class_of(net) != self.kind.kind:
                raise Incompatible(f"beside this network {self.kind.kind} is known, got {class_of(net)}")
            if net.config.get("global_pool_conditions") or net.config.get("extra_conditioning_channels"):
                raise Incompatible("a ControlNet that pools its picture, or sees a mask beside it, isn't known here")
            if net.config.get("num_mode") is not None or getattr(net, "input_hint_block", None) is not None:
                raise Incompatible(
                    "a ControlNet that is told its mode, or sees pixels beside latents, isn't known here"
                )

    def make_backbone(self) -> nn.Module:
        nets = [net.eval() for net in self.nets]
        return self.kind(self.inner.backbone, nets, table_size(process_of(self.pipe.scheduler)[0]))

    def encode(
        self,
        entries: Sequence[Any],
        control: Any = None,
        scale: Any = 1.0,
        interval: Any = (0.0, 1.0),
        rng: int | torch.Generator | Source | None = None,
    ) -> Conditions:
        """Prompts.

        Args:
            control: pictures (PIL, or tensors (B, 3, H, W) in [-1, 1]), one for all samples or one each; a list of
                them for several ControlNets.
            scale: of the residuals; a list for several ControlNets.
            interval: times (low, high) at which they are added; a list for several. See :func:`control_interval`.
            rng: draws the latents of pictures, for ControlNets that see latents; their means when None.

        Raises:
            BadValue: no pictures, another number of them than there are ControlNets, another size.
        """
        told = self.inner.encode(entries)
        count = len(self.nets)
        if control is None:
            raise BadValue(f"this pipeline has {count} ControlNets: give control=, a picture for each")
        images = list(control) if count > 1 else [control]
        scales = scale if isinstance(scale, list | tuple) else [scale] * count
        intervals = interval if isinstance(interval[0], list | tuple) else [interval] * count
        for name, given in (("control", images), ("scale", scales), ("interval", intervals)):
            if len(given) != count:
                raise BadValue(f"this pipeline has {count} ControlNets, got {len(given)} entries in {name}=")
        for name, net, *one in zip(control_names(count), self.nets, images, scales, intervals, strict=True):
            told = told.replace(**self.told(name, net, len(entries), rng, *one))
        return told

    @property
    def pictures(self) -> dict[str, int]:
        return dict.fromkeys(control_names(len(self.nets)), 3)

    def told_pictures(self, pictures: Mapping[str, Tensor]) -> dict[str, Any]:
        given = list(pictures.values())
        return {"control": given if len(given) > 1 else given[0]}

    @torch.no_grad()
    def told(
        self, name: str, net: Any, count: int, rng: Any, image: Any, scale: float, interval: tuple[float, float]
    ) -> dict[str, Condition]:
        """The conditions of one ControlNet."""
        images = pictures(image, self.size, self.inner.device, count=count)
        low, high = interval
        if not 0.0 <= low <= high <= 1.0:
            raise BadValue(f"an interval of times is (low, high) with 0 <= low <= high <= 1, got {interval}")
        ones = torch.ones(count, device=images.device)
        return {
            name: Condition(self.kind.controls(images, net, self.codec, rng), "map"),
            f"{name}_scale": Condition(scale * ones, "scalar"),
            f"{name}_interval": Condition(torch.stack([low * ones, high * ones], dim=1), "vector"),
        }

    # As the pipeline without ControlNets

    def words(self, entries: Sequence[Any]) -> Conditions:
        return self.inner.words(entries)

    def guided(self, denoiser: Any, scale: Any, negative: Any, **options: Any) -> Denoises:
        return self.inner.guided(denoiser, scale, negative, **options)

    def grid(self, steps: int, **options: Any) -> Tensor:
        return self.inner.grid(steps, **options)
