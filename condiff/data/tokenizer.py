"""Tokenizers: text to ids and back; characters, or sub-words of Hugging Face tokenizers. Stored as JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condiff.config import read_json
from condiff.errors import BadFile, BadValue, require_extra

FORMAT = "condiff characters 1"
BYTES = 256  # the symbols that every byte-level vocabulary begins with


class Tokenizer(ABC):
    """Base: ``encode``, ``decode``, and the number of tokens."""

    #: what one token is, for messages
    unit: str = "tokens"

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of tokens V; ids lie in [0, V), and MASK is V."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Text -> ids.

        Raises:
            BadValue: text that it has no tokens for.
        """

    @abstractmethod
    def _text(self, ids: Sequence[int]) -> str:
        """Clean ids -> text."""

    @abstractmethod
    def to_json(self) -> str:
        """Its file's content; :func:`read_tokenizer` reads it."""

    def decode(self, ids: Sequence[int], mask: str = "_") -> str:
        """ids -> text; MASK is shown as ``mask``.

        Raises:
            BadValue: ids outside [0, V].
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 <= i <= self.size]
        if wrong:
            raise BadValue(f"ids must lie in [0, {self.size}], got {wrong[0]}")
        parts, run = [], []
        for i in ids:
            if i < self.size:
                run.append(i)
                continue
            parts += [self._text(run), mask]
            run = []
        return "".join([*parts, self._text(run)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} {self.unit})"


class Characters(Tokenizer):
    """A token a character.

    Args:
        alphabet: the characters, in the order of their ids.

    Raises:
        BadValue: fewer than two, or one twice.
    """

    unit = "characters"

    def __init__(self, alphabet: str) -> None:
        if len(alphabet) < 2 or len(set(alphabet)) < len(alphabet):
            raise BadValue(f"an alphabet is two or more characters, each once, got {alphabet[:40]!r}")
        self.alphabet = alphabet
        self._ids = {c: i for i, c in enumerate(alphabet)}

    @classmethod
    def of(cls, text: str) -> Characters:
        """Those of a text, sorted."""
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        new = sorted(set(text) - set(self._ids))
        if new:
            raise BadValue(f"the characters {''.join(new[:20])!r} are not in this alphabet of {self.size}")
        return [self._ids[c] for c in text]

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "alphabet": self.alphabet}) + "\n"


class Subwords(Tokenizer):
    """A Hugging Face tokenizer, such as GPT-2's: ``Subwords(Path("tokenizer.json").read_text())``.

    Args:
        content: what its ``tokenizer.json`` holds. Lengths that it cuts or fills texts to, as those of sentence
            encoders do, are left aside: a text is encoded whole.

    Raises:
        BadFile: content that isn't a tokenizer's.
        MissingExtra: without the package tokenizers.
    """

    unit = "sub-words"

    def __init__(self, content: str) -> None:
        package = require_extra("tokenizers", "text")
        try:
            self._own: Any = package.Tokenizer.from_str(content)
        except Exception as error:  # the package raises plain exceptions
            raise BadFile(f"this is no tokenizer of the package tokenizers: {error}") from error
        self._own.no_truncation()
        self._own.no_padding()
        self._size = 1 + max(self._own.get_vocab().values(), default=-1)  # ids may leave some out

    @classmethod
    def learn(cls, text: str, vocab: int = 1024) -> Subwords:
        """Byte-pair encoding (Sennrich 2016) over bytes, learnt from a text: any text can be encoded.

        Raises:
            BadValue: a vocabulary that doesn't exceed the 256 bytes.
        """
        if isinstance(vocab, bool) or not isinstance(vocab, int) or vocab <= BYTES:
            raise BadValue(f"a byte-level vocabulary has more than {BYTES} tokens, got vocab={vocab!r}")
        package = require_extra("tokenizers", "text")
        own = package.Tokenizer(package.models.BPE())
        own.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        own.decoder = package.decoders.ByteLevel()
        alphabet = package.pre_tokenizers.ByteLevel.alphabet()
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocab, initial_alphabet=sorted(alphabet), special_tokens=[], show_progress=False
        )
        own.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(own.to_str())

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        return self._own.encode(text, add_special_tokens=False).ids

    def _text(self, ids: Sequence[int]) -> str:
        return self._own.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._own.to_str()


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a JSON file: one of ours, or a Hugging Face ``tokenizer.json``.

    Raises:
        BadFile: a file that is missing or of another kind.
    """
    content = read_json(path)
    if isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("alphabet"), str):
        return Characters(content["alphabet"])
    if not isinstance(content, dict) or "model" not in content:
        raise BadFile(f"{path} is no tokenizer: neither characters of condiff nor a Hugging Face tokenizer.json")
    return Subwords(Path(path).read_text(encoding="utf-8"))


def make_tokenizer(kind: str, text: str, vocab: int | None = None) -> Tokenizer:
    """``"char"``, ``"bpe"`` (learnt from the text, ``vocab`` tokens), or the path of a tokenizer's JSON file.

    Raises:
        BadValue: another word; a vocabulary given for anything but ``"bpe"``.
    """
    if kind != "bpe" and vocab is not None:
        raise BadValue(f"vocab= is the size of a learnt sub-word vocabulary (tokenizer='bpe'), got it with {kind!r}")
    if kind == "char":
        return Characters.of(text)
    if kind == "bpe":
        return Subwords.learn(text, *([] if vocab is None else [vocab]))
    if not str(kind).endswith(".json"):
        raise BadValue(f"tokenizer is 'char', 'bpe' or a .json file, got {kind!r}")
    return read_tokenizer(kind)
