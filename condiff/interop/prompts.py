"""Prompts as their tokens: where words stand, how two prompts belong together, edits of one into others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions.alignment import refined, replaced
from condiff.errors import BadValue, Incompatible, unknown
from condiff.sampling.attention_edit import AttentionEdit, LocalBlend

MODES = ("refine", "replace")
Words = str | Sequence[str]


@dataclass(frozen=True)
class Prompt:
    """A prompt as a text encoder gets it.

    Args:
        text: as it was given.
        ids: of its tokens with the special ones, without padding.
        spans: of each token, from which to which character; empty ones for special tokens.
        length: with padding.
        whole: whether nothing was cut off.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    length: int
    whole: bool = True

    def at(self, start: int, stop: int) -> list[int]:
        """The places of the tokens of some characters."""
        return [i for i, (a, b) in enumerate(self.spans) if a < stop and start < b]

    def words(self) -> list[list[int]]:
        """The places of the tokens of each word, special tokens before and after them for words of their own."""
        words = [self.at(*found.span()) for found in re.finditer(r"\S+", self.text)]
        special = [i for i, (a, b) in enumerate(self.spans) if a == b]
        inner = [i for word in words for i in word]
        first, last = (min(inner), max(inner)) if inner else (1, 0)
        before, after = ([[i] for i in special if i < first], [[i] for i in special if i > last])
        return [*before, *words, *after]

    def find(self, word: str) -> list[int]:
        """The places of the tokens of a word, or several in a row, wherever it stands; upper case or lower.

        Raises:
            BadValue: it isn't there, or was cut off.
        """
        pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)" if word.strip() else "(?!)"
        found = [self.at(*match.span()) for match in re.finditer(pattern, self.text, re.IGNORECASE)]
        places = sorted({i for places in found for i in places})
        if not places:
            cut = f", of which {self.length} tokens count" if found else ""
            raise BadValue(f"there is no word {word!r} in {self.text!r}{cut}")
        return places


def prompt_tokens(tokenizer: Any, text: str, length: int | None = None) -> Prompt:
    """A prompt by a tokenizer of Hugging Face's; by its own offsets, or, where it knows none, word for word.

    Args:
        length: to which prompts are padded, and cut off; the tokenizer's own by default.

    Raises:
        Incompatible: a tokenizer without offsets, to which a word alone isn't what it is within a sentence.
    """
    length = int(tokenizer.model_max_length if length is None else length)
    told = {"truncation": True, "max_length": length, "return_special_tokens_mask": True}
    fast = bool(getattr(tokenizer, "is_fast", False))
    said = tokenizer(text, return_offsets_mapping=True, **told) if fast else tokenizer(text, **told)
    ids, special = list(said["input_ids"]), list(said["special_tokens_mask"])
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = [tuple(span) for span in said["offset_mapping"]] if fast else _spans(tokenizer, text, special)
    spans = [(0, 0) if end else span for span, end in zip(spans, special, strict=True)]
    return Prompt(text, tuple(ids), tuple(spans), length, whole=len(inner) == len(ids) - sum(special))


def _spans(tokenizer: Any, text: str, special: Sequence[int]) -> list[tuple[int, int]]:
    """Character spans from the tokens of the text's beginnings, each a word longer."""
    encode = lambda part: list(tokenizer(part, add_special_tokens=False)["input_ids"])
    inner, spans = encode(text), []
    for found in re.finditer(r"\S+", text):
        ids = encode(text[: found.end()])
        if ids != inner[: len(ids)]:
            raise Incompatible(
                f"{type(tokenizer).__name__} doesn't say where its tokens stand, and reads {text[: found.end()]!r} "
                f"otherwise in {text!r}: take its fast version"
            )
        spans += [found.span()] * (len(ids) - len(spans))
    rest = iter(spans)
    return [(0, 0) if end else next(rest) for end in special]


def align(source: Prompt, target: Prompt, mode: str = "refine") -> tuple[Tensor, Tensor]:
    """``(M, heard)`` of :mod:`condiff.conditions.alignment`: which tokens of the source a target's belong to.

    Raises:
        BadValue: an unknown mode; a replacement by another number of words, or of prompts that were cut off.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "refine":
        return refined(source.ids, target.ids, source.length)
    cut = [prompt.text for prompt in (source, target) if not prompt.whole]
    if cut:
        raise BadValue(f"prompts are longer than {source.length} tokens and can't be replaced word for word: {cut}")
    ours, theirs = len(source.text.split()), len(target.text.split())
    if ours != theirs:
        raise BadValue(
            f"{source.text!r} has {ours} words and {target.text!r} {theirs}: mode='replace' takes as many, 'refine' any"
        )
    return replaced(source.words(), target.words(), (len(source.ids), len(target.ids)), source.length)


def along(prompt: Prompt, words: Mapping[str, float], default: float) -> Tensor:
    """A number for each token, (L,): those given for some words, the default for the others.

    Raises:
        BadValue: words that aren't there.
    """
    out = torch.full((prompt.length,), default, dtype=torch.float64)
    for word, value in words.items():
        out[prompt.find(word)] = float(value)
    return out


def looked_at(prompt: Prompt, words: Words) -> Tensor:
    """The tokens of some words, (L,) booleans.

    Raises:
        BadValue: words that aren't there.
    """
    out = torch.zeros(prompt.length, dtype=torch.bool)
    for word in [words] if isinstance(words, str) else words:
        out[prompt.find(word)] = True
    return out


def attention_edit(
    pipe: Any,
    source: str,
    target: str | Sequence[str],
    *,
    mode: str = "refine",
    cross: float | Mapping[str, float] | Sequence[float | Mapping[str, float]] = 0.8,
    own: float = 0.6,
    weights: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None = None,
    blend: tuple[Words, Any] | None = None,
    threshold: float = 0.3,
    start: float = 0.2,
    **options: Any,
) -> AttentionEdit:
    """An edit of a prompt into another, or several at once, by attention control (Prompt-to-Prompt, Hertz 2022).

    Args:
        pipe: a pipeline of Stable Diffusion or XL, or a tokenizer of Hugging Face's.
        source: the prompt of what is there.
        target: that of what it should become; with a list of them ``cross``, ``weights`` and the second of ``blend``
            are lists too, one entry for each, or one value for all.
        mode: ``"refine"`` aligns the tokens that both prompts have, ``"replace"`` word for word.
        cross: share of the steps in which cross-attention is the source's; ``{"word": share}`` for some words of the
            target, 0.8 for the others.
        own: share of the steps in which self-attention is the source's.
        weights: ``{"word": 2.0}``, how much more, or less, words of the target are attended to meanwhile.
        blend: ``("cat", "dog")``, words of source and target, or lists of words: only where they are looked at changes
            anything. ``None`` in place of a target's words leaves that target alone.
        threshold, start: of the :class:`~condiff.sampling.LocalBlend`.
        options: of :class:`~condiff.sampling.AttentionEdit`.

    Raises:
        BadValue: words that aren't in their prompts; see :func:`align` for the rest.
        Incompatible: a pipeline without a tokenizer, or with several that don't agree.
    """
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise BadValue("an edit has at least one target")
    each = lambda value, name: _each(value, len(targets), isinstance(target, str), name)
    tokenizer = _tokenizer(pipe, (source, *targets))
    ours, theirs = prompt_tokens(tokenizer, source), [prompt_tokens(tokenizer, text) for text in targets]
    aligned = [align(ours, prompt, mode) for prompt in theirs]
    numbers = lambda values, default: torch.stack(
        [along(p, {} if v is None else v, default) for p, v in zip(theirs, values, strict=True)]
    )[:, None]
    return AttentionEdit(
        alignment=torch.stack([matrix for matrix, _ in aligned])[:, None],
        heard=torch.stack([heard for _, heard in aligned])[:, None],
        cross=_shares(theirs, each(cross, "cross")),
        own=own,
        weights=None if weights is None else numbers(each(weights, "weights"), 1.0).float(),
        blend=None if blend is None else _blend(ours, theirs, blend[0], each(blend[1], "blend"), threshold, start),
        **options,
    )


CROSS = 0.8  # of words that aren't named


def _shares(targets: Sequence[Prompt], values: Sequence[Any]) -> Tensor:
    """The share of each token, (K, 1, L)."""
    told = [(v, CROSS) if isinstance(v, Mapping) else ({}, float(v)) for v in values]
    return torch.stack([along(prompt, *one) for prompt, one in zip(targets, told, strict=True)])[:, None]


def _blend(
    source: Prompt, targets: Sequence[Prompt], ours: Words, theirs: Sequence[Any], threshold: float, start: float
) -> LocalBlend:
    masks = [
        torch.zeros(prompt.length, dtype=torch.bool) if words is None else looked_at(prompt, words)
        for prompt, words in zip(targets, theirs, strict=True)
    ]
    return LocalBlend(looked_at(source, ours)[None], torch.stack(masks)[:, None], threshold, start)


def _each(value: Any, count: int, single: bool, name: str) -> list[Any]:
    """The values of all targets."""
    if single or value is None or isinstance(value, str | int | float | Mapping):
        return [value] * count
    if len(value) != count:
        raise BadValue(f"{name} has {len(value)} entries for {count} targets")
    return list(value)


def _tokenizer(pipe: Any, texts: Sequence[str]) -> Any:
    """The pipeline's tokenizer.

    Raises:
        Incompatible: none, or several that read a prompt in different ways.
    """
    if not hasattr(pipe, "components"):
        return pipe
    found = [getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    known = [tokenizer for tokenizer in found if tokenizer is not None]
    if not known:
        raise Incompatible(f"{type(pipe).__name__} has no tokenizer: give one in its place")
    for text in texts:
        if len({(read.ids, read.length) for read in (prompt_tokens(one, text) for one in known)}) > 1:
            raise Incompatible(f"the tokenizers of {type(pipe).__name__} read {text!r} in different ways")
    return known[0]
