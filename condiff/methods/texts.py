"""Runs on text: the tokenizer that is kept with them, given text, figures, and samples as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data import Data, Subset, TokenData, Tokenizer
from condiff.denoiser import device_of
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import replacing
from condiff.methods.recipe import Sampler
from condiff.metrics import order_bound

TOKENIZER = "tokenizer.json"
MOST_ROWS, DRAWS = 512, 32  # of the bound that a run is judged by
RULE = "\n" + "-" * 40 + "\n"  # between samples in a file


def tokens_of(data: Data) -> TokenData | None:
    """The data set as one of tokens, None where it isn't."""
    data = data.data if isinstance(data, Subset) else data
    return data if isinstance(data, TokenData) else None


def find_tokenizer(data: Data) -> Tokenizer | None:
    """The tokenizer of a data set of text, None for others."""
    return getattr(data.data if isinstance(data, Subset) else data, "tokenizer", None)


def tokenizer_of(data: Data) -> Tokenizer:
    """The tokenizer of a run's data.

    Raises:
        BadValue: data that isn't text.
    """
    own = find_tokenizer(data)
    if own is None:
        raise BadValue(f"{data.name} isn't text: this belongs to runs of `condiff train text`")
    return own


def kept_options(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a run on text, with the run's own tokenizer in place of one learnt anew.

    Raises:
        BadFile: a run without its tokenizer.
    """
    if not (folder / TOKENIZER).is_file():
        raise BadFile(f"{folder} is a run on text, and its {TOKENIZER} is missing")
    return {**{k: v for k, v in options.items() if k != "vocab"}, "tokenizer": str(folder / TOKENIZER)}


# Given text


@dataclass(frozen=True)
class Known:
    """Given tokens of every sample: ``tokens`` (L,), read where ``mask`` (L,) is true."""

    tokens: Tensor
    mask: Tensor

    def rows(self, num: int) -> tuple[Tensor, Tensor]:
        """Of ``num`` samples: both (num, L)."""
        return self.tokens.expand(num, -1), self.mask.expand(num, -1)


def given_text(data: Data, prefix: str | None, suffix: str | None, placed: Sequence[str] = ()) -> Known | None:
    """What ``--prefix``, ``--suffix`` and ``--given POSITION=TEXT`` say; None when nothing is said.

    Raises:
        BadValue: data that isn't text, text that doesn't fit, overlaps, or that the tokenizer lacks.
    """
    if prefix is None and suffix is None and not placed:
        return None
    tokenizer, (length,) = tokenizer_of(data), data.shape
    parts = [(0, tokenizer.encode(prefix))] if prefix else []
    if suffix:
        ids = tokenizer.encode(suffix)
        parts.append((length - len(ids), ids))
    parts += [_placed(one, tokenizer, length) for one in placed]
    tokens, mask = torch.zeros(length, dtype=torch.long), torch.zeros(length, dtype=torch.bool)
    if sum(len(ids) for _, ids in parts) > length:
        raise BadValue(f"the given text has {sum(len(i) for _, i in parts)} tokens, a sample of this run {length}")
    for start, ids in parts:
        end = start + len(ids)
        if start < 0 or end > length:
            raise BadValue(f"given text at {start} .. {end - 1} lies outside of the sample, 0 .. {length - 1}")
        if bool(mask[start:end].any()):
            raise BadValue(f"given text at {start} .. {end - 1} overlaps other text that is given")
        tokens[start:end], mask[start:end] = torch.tensor(ids, dtype=torch.long), True
    return Known(tokens, mask)


def _placed(said: str, tokenizer: Tokenizer, length: int) -> tuple[int, list[int]]:
    place, equals, words = said.partition("=")
    if not equals or not place.strip().lstrip("-").isdigit() or not words:
        raise BadValue(f"--given is POSITION=TEXT, such as 12=fox, got {said!r}")
    start = int(place)
    return (start if start >= 0 else start + length), tokenizer.encode(words)


def filtered(
    sampler: Sampler, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None
) -> Sampler:
    """The sampler with another temperature, top-k or top-p; itself when none is given.

    Raises:
        Incompatible: a solver that doesn't draw tokens.
    """
    changes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    changes = {k: v for k, v in changes.items() if v is not None}
    if not changes:
        return sampler
    solver: Any = sampler.solver
    if not hasattr(solver, "filter"):
        raise Incompatible(f"{', '.join(changes)} belong to solvers of tokens, not to {type(solver).__name__}")
    return replace(sampler, solver=replace(solver, filter=replace(solver.filter, **changes)))


# Figures


def bigram_nats(train: Tensor, rows: Tensor, vocab: int) -> Tensor:
    """``-log p`` of rows (N, L) under a bigram model of the ids ``train`` (M,), add-one smoothed; (N,) float64."""
    pairs = torch.bincount(train[:-1] * vocab + train[1:], minlength=vocab * vocab).reshape(vocab, vocab).double() + 1.0
    first = torch.bincount(train, minlength=vocab).double() + 1.0
    log_next, log_first = (pairs / pairs.sum(-1, keepdim=True)).log(), (first / first.sum()).log()
    return -(log_first[rows[:, 0]] + log_next[rows[:, :-1], rows[:, 1:]].sum(-1))


def unigram_entropy(rows: Tensor, vocab: int) -> float:
    """Entropy of the tokens' frequencies, in bits: far below the data's where samples repeat themselves."""
    share = torch.bincount(rows.flatten(), minlength=vocab).double() / rows.numel()
    return float(torch.special.entr(share).sum()) / math.log(2.0)


def scores(model: Any, data: Data, heldout: Data, made: Tensor) -> dict[str, Any]:
    """The likelihood bound on held-out text beside a bigram model's, and the entropy of samples beside the text's.

    Bits are for each character where there is a tokenizer, so that tokenizers can be compared, and for each token.
    """
    train, own = tokens_of(data), tokens_of(heldout)
    assert train is not None and own is not None
    index = torch.linspace(0, len(heldout) - 1, min(len(heldout), MOST_ROWS), dtype=torch.float64).long()
    rows = heldout.batch(index)["x"]
    device = device_of(model)
    bound = -float(order_bound(model, rows.to(device), DRAWS, rng=0).total.sum())
    out: dict[str, Any] = {}
    units = {"token": rows.numel()}
    if own.tokenizer is not None:
        units = {"character": sum(len(own.tokenizer.decode(row)) for row in rows.tolist()), **units}
    baselines = {"": bound}
    if train.vocab is not None and train.vocab <= 4096:  # pairs that fit into memory
        baselines["bigram_"] = float(bigram_nats(train.ids, rows, train.vocab).sum())
    for unit, count in units.items():
        out |= {f"{name}bits_per_{unit}": nats / count / math.log(2.0) for name, nats in baselines.items()}
    vocab = own.vocab or 0
    return out | {
        "perplexity": math.exp(bound / rows.numel()),
        "entropy": unigram_entropy(made, vocab),
        "entropy_floor": unigram_entropy(rows, vocab),
        "samples": len(made),
    }


# Samples


def decoded(data: Data, x: Tensor) -> list[str]:
    """Samples (N, L) as text."""
    tokenizer = tokenizer_of(data)
    return [tokenizer.decode(row) for row in x.tolist()]


def write_texts(texts: Sequence[str], out: Path) -> None:
    """A text file, a rule between samples."""
    with replacing(out) as temporary:
        temporary.write_text(RULE.join(texts) + "\n", encoding="utf-8")
