"""Attention control in diffusers' UNets: see :mod:`condiff.networks.attention_control`.

The processors in place before still do what isn't controlled, and come back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from condiff.errors import BadType, Incompatible
from condiff.networks.attention_control import AttentionControl
from condiff.sampling.attention_edit import AttentionEdit

KNOWN = ("AttnProcessor", "AttnProcessor2_0")  # whose computation is the one below


class ControlledProcessor:
    """An attention processor around another: what a control acts on is computed here, the rest by the other.

    Args:
        inner: the processor in whose place it stands.
        control: shared by all attentions of the network.
    """

    def __init__(self, inner: Any, control: AttentionControl) -> None:
        self.inner, self.control = inner, control

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **told: Any,
    ) -> Tensor:
        """(R, N, C) -> (R, N, C).

        Raises:
            Incompatible: a mask of text or places.
        """
        x, context = hidden_states, encoder_hidden_states
        if not self.control.acts(x.shape[1], context is not None):
            return self.inner(attn, x, context, attention_mask, temb, **told)
        if attention_mask is not None:
            raise Incompatible("attention control knows no attention masks: leave encoder_attention_mask= out")
        tokens = x if context is None else attn.norm_encoder_hidden_states(context) if attn.norm_cross else context
        heads = lambda v: v.unflatten(-1, (attn.heads, -1))
        q, k, v = heads(attn.to_q(x)), heads(attn.to_k(tokens)), heads(attn.to_v(tokens))
        out = self.control.attend(q, k, v, None, attend, context is not None)
        return attn.to_out[1](attn.to_out[0](out))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's fused kernel for (R, N, heads, d) -> (R, N, heads d)."""
    out = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v)), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


@contextmanager
def control_attention(net: Any, control: AttentionControl) -> Iterator[None]:
    """The attentions of a ``UNet2DConditionModel`` under control; afterwards, also after an error, each has the
    processor that it had.

    Raises:
        Incompatible: another network, processors that compute something else (IP-Adapter, slices, joint attention of
            pairs, another control), attentions with normalised queries.
    """
    blocks = [part for part in net.modules() if type(part).__name__ == "BasicTransformerBlock"]
    if type(net).__name__ != "UNet2DConditionModel" or not blocks:
        raise Incompatible(f"attention control knows UNet2DConditionModel with text, not {type(net).__name__}")
    found = [part for block in blocks for part in (block.attn1, block.attn2) if part is not None]
    for part in found:
        name = type(part.processor).__name__
        if name not in KNOWN or part.norm_q is not None:
            raise Incompatible(
                f"attention control knows the processors {' and '.join(KNOWN)}, this network has {name}: take away "
                "adapters and slicing first (unet.set_default_attn_processor())"
            )
    before = [part.processor for part in found]
    with control.over(len(found)):
        try:
            for part in found:
                part.processor = ControlledProcessor(part.processor, control)
            yield
        finally:
            for part, processor in zip(found, before, strict=True):
                part.processor = processor


@contextmanager
def edit_in(pipe: Any, edit: AttentionEdit, steps: int, rows: int | None = None) -> Iterator[Callable[..., Any]]:
    """An edit in a diffusers pipeline's own loop: what it calls at the end of each step.

    ``with edit_in(pipe, edit, 50) as callback: pipe([source, target], latents=..., num_inference_steps=50,
    callback_on_step_end=callback)``, the same latents for all rows.

    Args:
        steps: those of the pipeline's call.
        rows: prompts of the call; one for the source and each target by default.

    Raises:
        BadType: not a pipeline with a unet. Incompatible: see :func:`control_attention`.
    """
    if not hasattr(pipe, "unet"):
        raise BadType(f"a loaded diffusers pipeline with a unet is wanted, got {type(pipe).__name__}")

    def callback(_pipe: Any, index: int, _time: Any, told: dict[str, Any]) -> dict[str, Any]:
        out = edit.blended(told["latents"], index, steps)
        edit.at(index + 1, steps)
        return {"latents": out}

    with control_attention(pipe.unet, edit.control):
        edit.begin(1 + edit.control.targets if rows is None else rows, last=True)
        edit.at(0, steps)
        yield callback
