"""``wrap``: a loaded diffusers pipeline as a denoiser, its conditions and its codec.

>>> pipe = StableDiffusionPipeline.from_pretrained("...")          # doctest: +SKIP
>>> sd = cd.interop.wrap(pipe)                                     # doctest: +SKIP
>>> guided = sd.guided(7.5)                                        # doctest: +SKIP
>>> z = cd.sample(guided, cond=sd.encode(["a fox"]), solver=cd.UniPC(), grid=sd.grid(12), seed=0)  # doctest: +SKIP
>>> images = sd.codec.decode(z)                                    # doctest: +SKIP
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.codecs import Codec
from condiff.conditions import Conditions
from condiff.denoiser import Denoiser, Denoises
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.interop.backbones import FAMILIES, Family
from condiff.interop.backbones.base import check_prompts, class_of
from condiff.interop.prompts import attention_edit
from condiff.interop.schedulers import hooks_of, precondition_of, process_of
from condiff.sampling import AttentionEdit, Hook


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A pipeline's parts in condiff's terms.

    denoiser: over the latents (or pixels, for a pipeline without a VAE).
    codec: between images in [-1, 1] and latents; None for pixels.
    pipeline: what was wrapped; its modules are shared, not copied.
    family: how it was read.
    """

    denoiser: Denoiser
    codec: Codec | None
    pipeline: Any
    family: Family

    def encode(self, entries: Sequence[Any], **told: Any) -> Conditions:
        """Prompts, classes or pictures, one per sample, as the network's conditions.

        Args:
            told: what else the network is told, by the names of the family: ``control=`` of a ControlNet, ``fps=``.

        Raises:
            BadType: a prompt that is no text.
            BadValue: an empty list, an unknown class, a name that the family doesn't know, a picture of another size.
            Incompatible: a pipeline without conditions or without its text encoder.
        """
        if isinstance(entries, str) or not isinstance(entries, Sequence | Tensor) or not len(entries):
            raise BadValue(f"encode takes a list, one entry per sample, got {entries!r}")
        check_prompts(self.family.backbone, entries)
        names = list(inspect.signature(self.family.encode).parameters)[1:]
        for name in told:
            if name not in names:
                raise unknown(f"condition of {type(self.pipeline).__name__}", name, names)
        return self.family.encode(entries, **told)

    def grid(self, steps: int, **options: Any) -> Tensor:
        """The times that the pipeline visits with its own scheduler; see :func:`~condiff.interop.grid_of`."""
        return self.family.grid(steps, **options)

    @property
    def hooks(self) -> list[Hook]:
        """What the pipeline's scheduler does to the predicted clean sample (``clip_sample``, ``thresholding``), for
        ``sample(..., hooks=wrapped.hooks)``; nothing for most pipelines of latents."""
        return hooks_of(self.pipeline.scheduler)

    def guided(
        self, scale: Any = None, negative: Sequence[Any] | Mapping[str, Any] | None = None, **options: Any
    ) -> Denoises:
        """Guidance as the pipeline does it: classifier-free, where the reference isn't told what the pipeline leaves
        out; the strength as a condition, for a network that is told it; and no guidance for a pipeline that has none.

        Args:
            scale: the pipeline's own unless given; one per frame (1, F) and functions of the level serve as well.
            negative: prompts that the reference is told, one for all or one per sample; or encoded ones, by name.
            options: of :class:`condiff.guidance.Free` or :class:`condiff.guidance.Distilled`.

        Raises:
            Incompatible: a scale or negative prompts for a pipeline that has no use for them.
            BadType: negative prompts that are no list.
        """
        return self.family.guided(self.denoiser, scale, negative, **options)

    def attention_edit(self, source: str, target: str | Sequence[str], **options: Any) -> AttentionEdit:
        """An edit of a prompt by attention control; see :func:`~condiff.interop.attention_edit`.

        ``with edit.on(sd.denoiser): sample(guided, cond=sd.encode([source, target]), initial=..., hooks=[edit])``.
        """
        return attention_edit(self.pipeline, source, target, **options)


def wrap(
    pipe: Any, size: tuple[int, int] | None = None, frames: int | None = None, length: int | None = None
) -> Wrapped:
    """A loaded pipeline: of pixels, ``DDPMPipeline`` and its kin; of pictures, ``StableDiffusionPipeline`` (1.5, 2.1),
    ``StableDiffusionXLPipeline``, ``StableDiffusion3Pipeline``, ``DiTPipeline``, ``FluxPipeline``; of videos,
    ``StableVideoDiffusionPipeline``, ``CogVideoXPipeline``, ``WanPipeline``. Also the ControlNet variants of those of
    pictures, and the inpainting pipelines of Stable Diffusion and XL.

    Its networks are put into evaluation mode and stay where they are, offloaded ones too.

    Args:
        size: height and width of the images in pixels; by default those that it was trained on.
        frames: of a video, in pixels; by default those that it was trained on.
        length: tokens of all prompts, for pipelines that pad them to a length; by default that of the pipeline's call.

    Raises:
        BadType: not a pipeline.
        Incompatible: a pipeline, or a backbone, that isn't known here; one that is told what isn't known here.
        BadValue: a size that the factor of the codec and the patches doesn't divide, or another one than the trained
            one for a network of one size; frames for pictures; a length of prompts that have another one.
    """
    net = _network(pipe)
    family = next((f for f in FAMILIES if f.takes(pipe, net)), None)
    if family is None:
        known = ", ".join(sorted({name for f in FAMILIES for name in f.networks}))
        raise Incompatible(f"wrap knows the backbones {known}, and {type(pipe).__name__} has {class_of(net)}")
    net.eval()
    process, target = process_of(pipe.scheduler)
    read = family(pipe, net, size, frames, length)
    denoiser = Denoiser(read.backbone, process, target, precondition_of(pipe.scheduler), shape=read.shape)
    denoiser.space = getattr(read.codec, "space", None)
    return Wrapped(denoiser.eval(), read.codec, pipe, read)


def _network(pipe: Any) -> Any:
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "components"):
        raise BadType(f"a loaded diffusers pipeline is wanted, got {type(pipe).__name__}")
    net = getattr(pipe, "transformer", None)
    net = getattr(pipe, "unet", None) if net is None else net
    if net is None:
        raise Incompatible(f"{type(pipe).__name__} has neither a unet nor a transformer")
    return net
