"""diffusers networks behind the interface of condiff's: ``network(x, time, cond) -> Tensor | (Tensor, aux)``.

Each computes in its own dtype and answers like the state; weights may be offloaded. Absent conditions are what the
pipeline itself gives for them: the empty prompt, the class after the last.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue, Incompatible


class Backbone(nn.Module):
    """Base: a diffusers network, called in its own dtype.

    Args:
        net: the network, not copied.
        time_scale: what the time is multiplied with; 1 for an index of a table, 1000 for flow times in [0, 1].
    """

    condition_kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.time_scale = net, time_scale

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def call(self, x: Tensor, time: Tensor, **told: Any) -> Tensor:
        """The network's sample, like x."""
        out = self.net(x.to(self.dtype), timestep=time * self.time_scale, return_dict=False, **told)[0]
        return out.to(x)


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


class Plain2D(Backbone):
    """``UNet2DModel``: unconditional, or with class labels that are always given; see :func:`split_variance`."""

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__(net, time_scale)
        classes = net.config.num_class_embeds
        self.condition_kinds = {"label": "label"} if classes else {}  # type: ignore[misc]

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        told = {}
        if self.condition_kinds:
            labels = filled(need(cond, "label", "a class"), None, "label")
            told["class_labels"] = check_labels(labels, self.net.config.num_class_embeds - 1)
        return split_variance(self.call(x, time, **told), x.shape[1])


class TextTokens(Backbone):
    """``UNet2DConditionModel`` of Stable Diffusion 1 and 2: condition ``prompt``, tokens (B, L, D).

    Args:
        null: (L, D), the empty prompt, for rows without one.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens"}

    def __init__(self, net: Any, null: Tensor | None = None) -> None:
        super().__init__(net)
        self.register_buffer("null", null, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        return self.call(x, time, encoder_hidden_states=tokens.to(self.dtype))


class TextAndSize(Backbone):
    """``UNet2DConditionModel`` of Stable Diffusion XL: conditions ``prompt`` (B, L, D), ``pooled`` (B, P) and ``size``
    (B, 6): height and width of the original, top and left of the crop, height and width of the sample, in pixels.

    Rows without a prompt are told their size all the same, as in the pipeline.

    Args:
        null: (L, D) and (P,), for rows without a prompt.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens", "pooled": "vector", "size": "vector"}

    def __init__(self, net: Any, null: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(net)
        tokens, pooled = null or (None, None)
        self.register_buffer("null", tokens, persistent=False)
        self.register_buffer("null_pooled", pooled, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        pooled = filled(need(cond, "pooled", "a pooled prompt"), self.null_pooled, "pooled")  # type: ignore[arg-type]
        size = need(cond, "size", "the size of the picture").value
        added = {"text_embeds": pooled.to(self.dtype), "time_ids": size.to(self.dtype)}
        return self.call(x, time, encoder_hidden_states=tokens.to(self.dtype), added_cond_kwargs=added)


class TextAndPooled(Backbone):
    """``SD3Transformer2DModel``: conditions ``prompt`` (B, L, D) and ``pooled`` (B, P); told 1000 t.

    Args:
        null: (L, D) and (P,), the empty prompt.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens", "pooled": "vector"}

    def __init__(self, net: Any, null: tuple[Tensor, Tensor] | None = None, time_scale: float = 1000.0) -> None:
        super().__init__(net, time_scale)
        tokens, pooled = null or (None, None)
        self.register_buffer("null", tokens, persistent=False)
        self.register_buffer("null_pooled", pooled, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        pooled = filled(need(cond, "pooled", "a pooled prompt"), self.null_pooled, "pooled")  # type: ignore[arg-type]
        return self.call(x, time, encoder_hidden_states=tokens.to(self.dtype), pooled_projections=pooled.to(self.dtype))


class Classes(Backbone):
    """``DiTTransformer2DModel``: condition ``label``; the class after the last means none.

    See :func:`split_variance`.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"label": "label"}

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        null = self.net.config.num_embeds_ada_norm
        entry = cond.get("label")
        labels = torch.full(x.shape[:1], null, device=x.device) if entry is None else _or(entry, null)
        return split_variance(self.call(x, time, class_labels=check_labels(labels, null)), x.shape[1])


def _or(entry: Condition, null: int) -> Tensor:
    return entry.value if entry.keep is None else torch.where(entry.keep, entry.value, null)
