"""Token sequences (L,), and text: tokens with a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condiff.data import Data, Recalled, read_tokenizer
from condiff.methods import texts
from condiff.methods.drawn import Drawing
from condiff.methods.given import Given
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.methods.recipe import default_token_network, default_token_training
from condiff.process.categorical import TokenProcess

MOST = 64  # samples that a run is judged by
SHOWN = 20


class Tokens(Kind):
    """Ids of a vocabulary, judged by a bound on the likelihood of held-out ones."""

    holds = "tokens"
    default_method = "radd"
    fewest = 1

    def matches(self, data: Any) -> bool:
        return data.vocab is not None

    def network(self, facts: Any) -> Any:
        return default_token_network(facts.shape, facts.vocab, facts.count)

    def training(self, facts: Any) -> Any:
        return default_token_training(facts.shape, facts.count)

    def fits(self, process: Any) -> bool:
        return isinstance(process, TokenProcess)

    def judged(self, heldout: Data) -> int:
        return min(len(heldout), MOST)

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        return texts.scores(model, run.data, heldout, made.x)


class Text(Tokens):
    """Text: runs keep their tokenizer, and samples are read as what they say."""

    sources = ("text",)
    endings = (".png", ".txt", ".npz", ".npy")
    ending = ".txt"

    def matches(self, data: Any) -> bool:
        return isinstance(data, Data) and texts.find_tokenizer(data) is not None

    def options_like(self, options: Mapping[str, Any], data: Data) -> dict[str, Any]:
        return {**{k: v for k, v in options.items() if k != "vocab"}, "tokenizer": texts.tokenizer_of(data)}

    def kept(self, data: Data) -> dict[str, str]:
        return {texts.TOKENIZER: texts.tokenizer_of(data).to_json()}

    def kept_options(self, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return texts.kept_options(options, folder)

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        return Recalled(facts, read_tokenizer(options["tokenizer"]))

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        out = stem.with_name(f"{stem.name}.txt")
        texts.write_texts(texts.decoded(run.data, made.x[:SHOWN]), out)
        return out

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """A text file, a rule between samples, or arrays of ids."""
        if out.suffix.lower() == ".txt":
            texts.write_texts(texts.decoded(run.data, made.x), out)
        else:
            super().write(made, out, run, told)

    def said(self, made: Drawing, run: OfRun) -> dict[str, Any]:
        return {"texts": texts.decoded(run.data, made.x)}
