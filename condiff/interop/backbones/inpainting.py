"""Networks that are told a mask and what lies outside of it, beside the state: inpainting."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue, Incompatible
from condiff.interop.backbones.base import filled, need
from condiff.interop.pictures import pictures

KINDS = {"mask": "map", "masked": "map"}


def mask_kinds(net: Any) -> dict[str, str]:
    """The conditions of a network that takes the state, a mask and a masked state side by side; none of others."""
    return KINDS if net.config.in_channels == 2 * net.config.out_channels + 1 else {}


def mask_told(net: Any, cond: Conditions) -> dict[str, Tensor]:
    """Conditions ``mask`` (B, 1, H, W), 1 where something is to be made, and ``masked`` (B, C, H, W), the latents of
    the rest: what lies beside the state. Nothing for other networks.
    """
    names = mask_kinds(net)
    parts = [filled(need(cond, name, "a mask and what lies outside of it"), None, name) for name in names]
    return {"beside": torch.cat(parts, dim=1)} if parts else {}


@torch.no_grad()
def encoded_mask(
    net: Any, codec: Any, image: Any, mask: Any, count: int, size: tuple[int, int], device: Any, rng: Any
) -> dict[str, Condition]:
    """The conditions of pictures (PIL, or (B, 3, H, W) in [-1, 1]) and of masks (PIL, or (B, 1, H, W) in [-1, 1]),
    white, above 0, where something is to be made; one for all samples or one each. Nothing for other networks.

    Raises:
        BadValue: none where they are wanted or some where they aren't, pictures of another size or number.
        Incompatible: a pipeline without its autoencoder.
    """
    if not mask_kinds(net):
        if image is not None or mask is not None:
            raise BadValue("this network isn't told pictures: start from noised latents, or hold what is known")
        return {}
    if image is None or mask is None:
        raise BadValue("this network is told a mask and what lies outside of it: give image= and mask=")
    if codec is None:
        raise Incompatible("the pipeline was loaded without its autoencoder: give encoded conditions instead")
    x = pictures(image, size, device, count=count)
    inside = (pictures(mask, size, device, channels=1, count=count) > 0.0).to(x)
    outside = x * (1.0 - inside)
    masked = codec.encode(outside) if rng is None else codec.draw(outside, rng)
    return {"mask": Condition(F.interpolate(inside, masked.shape[-2:]), "map"), "masked": Condition(masked, "map")}
