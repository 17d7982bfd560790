"""UNets that are told how strongly they are guided, as latent consistency models are: ``time_cond_proj_dim``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import GUIDANCE, Conditions, GuidanceScale, scale_features
from condiff.errors import Incompatible
from condiff.interop.backbones.base import need

_RANGE = "_guidance_scales"  # where a network of this process keeps the range that it is trained for


def scale_kinds(net: Any) -> dict[str, str]:
    """The condition of a network that is told its guidance; none of others."""
    return {GUIDANCE: "scalar"} if net.config.get("time_cond_proj_dim") else {}


def scale_told(net: Any, cond: Conditions, dtype: torch.dtype) -> dict[str, Tensor]:
    """Condition ``guidance`` (B,), a scale that is 1 for the plain conditional model, as the network is told it: the
    features of ``w = scale - 1`` that go into its time's embedding. Nothing for other networks.

    Raises:
        BadValue: no scale, or one outside the range that :func:`with_scale` was told; files of networks hold none.
    """
    if not scale_kinds(net):
        return {}
    scale = need(cond, GUIDANCE, "how strongly it is guided").value
    spec: GuidanceScale | None = getattr(net, _RANGE, None)
    if spec is not None:
        spec.check(scale)
    return {"timestep_cond": scale_features(scale, net.config.time_cond_proj_dim).to(dtype)}


def with_scale(net: Any, conditions: Mapping[str, Any]) -> Any:
    """A copy of a UNet that is told its guidance, at zero weight: it says what it said, whatever the scale. Its file is
    one of a latent consistency model.

    Raises:
        Incompatible: a network that is told it already, or further conditions of another kind.
    """
    spec = conditions.get(GUIDANCE)
    if set(conditions) != {GUIDANCE} or not isinstance(spec, GuidanceScale):
        raise Incompatible(f"a pretrained UNet can be told its {GUIDANCE} too, by a GuidanceScale, not {conditions}")
    if scale_kinds(net):
        raise Incompatible("this network is told its guidance already")
    config = {name: value for name, value in net.config.items() if not name.startswith("_")}
    new = type(net).from_config({**config, "time_cond_proj_dim": spec.features})
    weights = new.state_dict()
    own = net.state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in weights.items() if name not in own}
    new.load_state_dict({**own, **zeros})
    setattr(new, _RANGE, spec)
    new = new if new.dtype == net.dtype else new.to(net.dtype)
    return new.to(next(net.parameters()).device).train(net.training)
