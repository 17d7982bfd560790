"""Paired rows in diffusers' transformer blocks: see :mod:`condiff.networks.pairing`.

The pairing travels in ``cross_attention_kwargs`` or ``joint_attention_kwargs``, diffusers' own way to its attention
processors; the processors in place before still do the attention. There is one class for each way in which blocks hold
pictures and text: text apart (Stable Diffusion, DiT), beside the picture in one attention (Stable Diffusion 3, FLUX's
double blocks), before it in one sequence (FLUX's single blocks).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.errors import Incompatible
from condiff.networks.pairing import Exchange, Pairing, Site

PICTURE = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out_0": "to_out.0"}
TEXT = {name: name for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
FROM_THE_OTHER = ("to_k", "to_v")

Rotary = tuple[Tensor, Tensor]


class PairedProcessor(Site):
    """An attention processor around another: joint attention between the rows that a pairing ties.

    For attention to the picture's own tokens alone, or to text alone. In a block with a gate, as DiT's, the gate acts
    on what is heard as on the attention.

    Args:
        attention: diffusers' ``Attention`` that it will process; not kept as a submodule.
        crosses: whether that attends to text.
    """

    paths: ClassVar[Mapping[str, str]] = PICTURE

    def __init__(self, attention: Any, crosses: bool = False) -> None:
        super().__init__()
        self._attention, self._crosses = (attention,), crosses
        self.inner = attention.processor

    @property
    def crosses(self) -> bool:
        return self._crosses

    def layers(self) -> dict[str, Any]:
        return self._at(PICTURE)

    def own_layers(self) -> dict[str, Any]:
        return self._at(self.paths)

    def _at(self, paths: Mapping[str, str]) -> dict[str, Any]:
        inside = dict(self._attention[0].named_modules())
        return {name: inside[path] for name, path in paths.items() if path in inside}

    def layer_path(self, name: str) -> str:
        return self.paths[name]

    # nn.Module's own call hides the parameters, which diffusers reads
    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        pairing: Pairing | None = None,
    ) -> Tensor:
        x, context = hidden_states, encoder_hidden_states
        told = {"encoder_hidden_states": context, "attention_mask": attention_mask, "temb": temb}
        out = self.inner(self.seen(attn, pairing), x, **told)
        return out if self.crosses else self.joined(out, attn, x, pairing)

    def seen(self, attn: Any, pairing: Pairing | None) -> Any:
        """The attention with the updates of the variables that have some."""
        if pairing is None or not pairing.own:
            return attn

        def update(name: str, value: Tensor) -> Tensor:
            return pairing.update(value, lambda adapter: self.own[adapter][name])  # type: ignore[index]

        return Updated(attn, self.own_layers(), update)

    def joined(self, out: Tensor, attn: Any, x: Tensor, pairing: Pairing | None, **told: Any) -> Tensor:
        """What the attention said, and what rows hear of each other.

        Args:
            out, x: of the picture's tokens, (B, N, C).
            told: what the processor needs beside them.
        """
        if pairing is None or not pairing.pairs:
            return out
        blocks = pairing.blocks(x)

        def attend(exchange: Exchange, i: int, j: int) -> tuple[Tensor, Tensor]:
            def update(name: str, value: Tensor) -> Tensor:
                """By whose tokens go in."""
                ours, theirs = value.chunk(2)
                return torch.cat([exchange.first[name](ours), exchange.second[name](theirs)])  # type: ignore[index]

            crossed = Updated(attn, self.layers(), update, turned=FROM_THE_OTHER)
            left, right = self.attention(crossed, torch.cat([blocks[i], blocks[j]]), **told).chunk(2)
            return left, right

        return out + self.listen(x, pairing, attend)

    def attention(self, attn: Any, x: Tensor, **told: Any) -> Tensor:
        """The processor's attention among the picture's tokens alone."""
        return self.inner(attn, x, **told)


class JointProcessor(PairedProcessor):
    """Picture and text with projections of their own in one attention: Stable Diffusion 3, and FLUX's double blocks.

    Pictures hear each other's own tokens; the second's own adapter updates the projections of its text too, as it does
    where text has an attention of its own.
    """

    paths: ClassVar[Mapping[str, str]] = {**PICTURE, **TEXT}

    def own_layers(self) -> dict[str, Any]:
        """In a last block, whose words nobody hears, all but those for its words' own sake."""
        layers = super().own_layers()
        return layers if "to_add_out" in layers else {n: layer for n, layer in layers.items() if n != "add_q_proj"}

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        pairing: Pairing | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, text = hidden_states, encoder_hidden_states
        whole, part = _turns(image_rotary_emb, text.shape[1])
        masked = {"attention_mask": attention_mask}
        out, said = self.inner(self.seen(attn, pairing), x, encoder_hidden_states=text, **masked, **whole)
        return self.joined(out, attn, x, pairing, **part), said

    def attention(self, attn: Any, x: Tensor, **told: Any) -> Tensor:
        return self.inner(attn, x, encoder_hidden_states=x[:, :0], **told)[0]  # a text without tokens


class SequenceProcessor(PairedProcessor):
    """Text and picture in one sequence with the same projections: FLUX's single blocks.

    Their attention has no projection of its results: the block's last layer acts on what is heard too.
    """

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        pairing: Pairing | None = None,
    ) -> Tensor:
        x, text = hidden_states, 0 if pairing is None else pairing.before
        whole, part = _turns(image_rotary_emb, text)
        out = self.inner(self.seen(attn, pairing), x, attention_mask=attention_mask, **whole)
        if pairing is None:
            return out
        return torch.cat([out[:, :text], self.joined(out[:, text:], attn, x[:, text:], pairing, **part)], dim=1)


def _turns(rotary: Rotary | None, text: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotation of all tokens, and of the picture's, which come after the text's; nothing where there is none."""
    if rotary is None:
        return {}, {}
    return {"image_rotary_emb": rotary}, {"image_rotary_emb": tuple(part[text:] for part in rotary)}


class Updated:
    """An attention as a processor sees it, whose projections add something to what they give: ``layer(x) + update``.

    For one call; the attention itself isn't touched.

    Args:
        names: of the projections.
        update: of a projection's name and its input.
        turned: projections whose two halves of rows change places, so that each is seen by the other.
    """

    def __init__(
        self,
        attention: Any,
        names: Collection[str],
        update: Callable[[str, Tensor], Tensor],
        turned: Collection[str] = (),
    ) -> None:
        self._attention, self._names, self._update, self._turned = attention, names, update, turned

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._attention, name)
        if name == "to_out":
            return [self._layer("to_out_0", found[0]), *found[1:]]
        return self._layer(name, found) if name in self._names else found

    def _layer(self, name: str, layer: Any) -> Callable[..., Tensor]:
        def call(x: Tensor, *rest: Any) -> Tensor:
            out = layer(x, *rest) + self._update(name, x)
            return torch.cat(out.chunk(2)[::-1]) if name in self._turned else out

        return call


#: How the attentions of each kind of block are paired.
LAYOUTS: dict[str, dict[str, Callable[[Any], PairedProcessor]]] = {
    "BasicTransformerBlock": {"attn1": PairedProcessor, "attn2": partial(PairedProcessor, crosses=True)},
    "JointTransformerBlock": {"attn": JointProcessor, "attn2": PairedProcessor},
    "FluxTransformerBlock": {"attn": JointProcessor},
    "FluxSingleTransformerBlock": {"attn": SequenceProcessor},
}


def make_sites(net: Any, option: str) -> dict[str, Site]:
    """The attentions of every transformer block of a diffusers network, ready for paired rows.

    Args:
        option: of the network's call, by which its attention processors are told something.

    Raises:
        Incompatible: a network without such blocks or without that option, with blocks that attend to text only, with
            fused projections or an adapter for pictures.
    """
    blocks = {path: part for path, part in net.named_modules() if type(part).__name__ in LAYOUTS}
    if option not in inspect.signature(net.forward).parameters:
        blocks = {}
    if not blocks or any(getattr(block, "only_cross_attention", False) for block in blocks.values()):
        raise Incompatible(f"{type(net).__name__} can't be paired: its blocks aren't known here ({', '.join(LAYOUTS)})")
    sites: dict[str, Site] = {}
    for path, block in blocks.items():
        for name, processor in LAYOUTS[type(block).__name__].items():
            attention = getattr(block, name)
            if attention is None:
                continue
            if not isinstance(attention.processor, PairedProcessor):
                _check(attention, f"{path}.{name}")
                attention.set_processor(processor(attention))
            sites[f"{path}.{name}"] = attention.processor
    return sites


def _check(attention: Any, path: str) -> None:
    if getattr(attention, "fused_projections", False):
        raise Incompatible(f"{path} has fused projections, which can't be updated one by one: unfuse_qkv_projections()")
    if "ip_hidden_states" in inspect.signature(attention.processor.__call__).parameters:
        raise Incompatible(f"{path} has an adapter for pictures: unload_ip_adapter() before")
