"""Paired rows in diffusers' transformer blocks: see :mod:`condiff.networks.pairing`.

The pairing travels in ``cross_attention_kwargs``, diffusers' own way to its attention processors; the processors in
place before still do the attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condiff.errors import Incompatible
from condiff.networks.pairing import Exchange, Pairing, Site

NAMES = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out_0": "to_out.0"}


class PairedProcessor(Site):
    """An attention processor around another: joint attention between the rows that a pairing ties.

    In a block with a gate, as DiT's, the gate acts on what is heard as on the attention.

    Args:
        attention: diffusers' ``Attention`` that it will process; not kept as a submodule.
        crosses: whether that attends to text.
    """

    def __init__(self, attention: Any, crosses: bool) -> None:
        super().__init__()
        self._attention, self._crosses = (attention,), crosses
        self.inner = attention.processor

    @property
    def crosses(self) -> bool:
        return self._crosses

    def layers(self) -> dict[str, Any]:
        return {name: self._attention[0].get_submodule(path) for name, path in NAMES.items()}

    def layer_path(self, name: str) -> str:
        return NAMES[name]

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
        if pairing is None:
            return self.inner(attn, x, **told)
        seen = self._own(attn, pairing) if pairing.own else attn
        out = self.inner(seen, x, **told)
        if self.crosses or not pairing.pairs:
            return out
        heard = self.listen(x, pairing, self._attend(attn, pairing.blocks(x)))
        return out if heard is None else out + heard

    def _own(self, attn: Any, pairing: Pairing) -> Updated:
        def update(name: str, value: Tensor) -> Tensor:
            return pairing.update(value, lambda adapter: self.own[adapter][name])  # type: ignore[index]

        return Updated(attn, update)

    def _attend(self, attn: Any, blocks: list[Tensor]) -> Any:
        def attend(exchange: Exchange, i: int, j: int) -> tuple[Tensor, Tensor]:
            def update(name: str, value: Tensor) -> Tensor:
                """By whose tokens go in: queries and results are [first, second], keys and values the other way."""
                ours, theirs = value.chunk(2)
                left, right = (exchange.first, exchange.second) if name in ("to_q", "to_out_0") else _turned(exchange)
                return torch.cat([left[name](ours), right[name](theirs)])  # type: ignore[index]

            queries, tokens = torch.cat([blocks[i], blocks[j]]), torch.cat([blocks[j], blocks[i]])
            left, right = self.inner(Updated(attn, update), queries, encoder_hidden_states=tokens).chunk(2)
            return left, right

        return attend


def _turned(exchange: Exchange) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    return exchange.second, exchange.first


class Updated:
    """An attention as a processor sees it, whose projections add something to what they give: ``layer(x) + update``.

    For one call; the attention itself isn't touched.
    """

    def __init__(self, attention: Any, update: Any) -> None:
        self._attention, self._update = attention, update

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._attention, name)
        if name == "to_out":
            return [self._layer("to_out_0", found[0]), *found[1:]]
        return self._layer(name, found) if name in NAMES else found

    def _layer(self, name: str, layer: Any) -> Any:
        return lambda x, *rest: layer(x, *rest) + self._update(name, x)


def make_sites(net: Any) -> dict[str, Site]:
    """The attentions of every ``BasicTransformerBlock`` of a diffusers network, ready for paired rows.

    Raises:
        Incompatible: a network without such blocks, or with blocks that attend to text only.
    """
    blocks = {n: part for n, part in net.named_modules() if type(part).__name__ == "BasicTransformerBlock"}
    if not blocks or any(block.only_cross_attention for block in blocks.values()):
        raise Incompatible(f"{type(net).__name__} can't be paired: it has no self-attention in BasicTransformerBlocks")
    sites: dict[str, Site] = {}
    for path, block in blocks.items():
        for name in ("attn1", "attn2"):
            attention = getattr(block, name)
            if attention is None:
                continue
            if not isinstance(attention.processor, PairedProcessor):
                attention.set_processor(PairedProcessor(attention, crosses=name == "attn2"))
            sites[f"{path}.{name}"] = attention.processor
    return sites
