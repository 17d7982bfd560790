"""Text: one long row of tokens, read in windows of one length."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data.base import Data, hash_tensor
from condiff.data.held_out import SHARE, held_count
from condiff.data.seeded import uniform
from condiff.data.tokenizer import Tokenizer, make_tokenizer
from condiff.errors import BadFile, BadType, BadValue


class TokenData(Data):
    """Windows of ``length`` tokens of a long sequence, as samples (length,) of integers.

    Args:
        ids: the sequence (N,), ids below ``vocab``.
        length: of a window.
        vocab: number of tokens V; MASK, id V, must not be in the data.
        tokenizer: what made the ids, to read samples as text.
        shift: window i starts anew in each epoch, at a random one of the ``length`` places from ``i * length`` on, so
            that models see all of them; a function of (seed, epoch, i).
        seed: of the shifts.
        name: what to call it.
        notes: see :class:`Data`.

    Raises:
        BadType: ids that aren't integers.
        BadValue: ids outside [0, vocab), another vocabulary than the tokenizer's, less than one window.
    """

    vocab: int  # pyright: ignore[reportIncompatibleVariableOverride]: always known here
    tokenizer: Tokenizer | None

    def __init__(
        self,
        ids: Tensor,
        length: int,
        vocab: int,
        tokenizer: Tokenizer | None = None,
        *,
        shift: bool = False,
        seed: int = 0,
        name: str = "tokens",
        notes: tuple[str, ...] = (),
    ) -> None:
        if ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise BadType(f"{name}: tokens must be integer ids, got {ids.dtype}")
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise BadValue(f"{name}: length must be an integer, at least 1, got {length!r}")
        if ids.ndim != 1:
            raise BadValue(f"{name}: tokens are one sequence (N,), got {tuple(ids.shape)}; rows are TokenData.of_rows")
        if len(ids) < length:
            raise BadValue(f"{name}: {len(ids)} tokens are less than one window of {length}")
        if tokenizer is not None and tokenizer.size != vocab:
            raise BadValue(f"{name}: the tokenizer has {tokenizer.size} tokens, the data {vocab}")
        low, high = int(ids.min()), int(ids.max())
        if not 0 <= low <= high < vocab:
            raise BadValue(f"{name}: tokens must lie in [0, {vocab}) (MASK is {vocab}), got {low} .. {high}")
        self.ids, self.length, self.vocab, self.tokenizer = ids.long(), length, vocab, tokenizer
        self.shift, self.seed, self.name, self.notes, self.shape = shift, seed, name, notes, (length,)

    @classmethod
    def of_rows(cls, rows: Tensor, vocab: int, name: str = "tokens") -> TokenData:
        """The rows (N, L) of a tensor, as they are."""
        if rows.ndim != 2:
            raise BadValue(f"rows of tokens are (N, L), got {tuple(rows.shape)}")
        return cls(rows.flatten(), rows.shape[1], vocab, name=name)

    @property
    def value_range(self) -> tuple[float, float]:
        return float(self.ids.min()), float(self.ids.max())

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        start = index * self.length
        if self.shift:
            start = start + (uniform(self.seed, epoch, index)[:, 0] * self.length).long()
            start = start.clamp(max=len(self.ids) - self.length)
        return {"x": self.ids[start[:, None] + torch.arange(self.length)], "cond": {}}

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.length} {self.vocab} {self.shift} {self.seed}".encode())
        digest.update((self.tokenizer.to_json() if self.tokenizer else "").encode())
        hash_tensor(digest, "ids", self.ids)

    def cut(self, held_out: float = SHARE, seed: int = 0) -> tuple[TokenData, TokenData]:
        """``(training, held out)``: the end of the sequence is held out, so that no window lies in both.

        Raises:
            BadValue: fewer than two windows.
        """
        windows = len(self.ids) // self.length
        count = held_count(windows, held_out, what=f"windows of {self.length} tokens (of {len(self.ids)})")
        at = (windows - count) * self.length
        rest = self._part(self.ids[:at], "train", self.shift, self.notes)
        part = self._part(self.ids[at:], "held-out", False, ())
        part.chosen = f"the end, of {windows} windows"
        return rest, part

    def _part(self, ids: Tensor, word: str, shift: bool, notes: Sequence[str]) -> TokenData:
        how: dict[str, Any] = {"shift": shift, "seed": self.seed, "name": f"{self.name}/{word}", "notes": tuple(notes)}
        return TokenData(ids, self.length, self.vocab, self.tokenizer, **how)


def text(
    path: str | Path, length: int = 64, *, tokenizer: str | Tokenizer = "char", vocab: int | None = None, seed: int = 0
) -> TokenData:
    """A text file, in UTF-8.

    Args:
        path: the file; it may be compressed (.gz).
        length: tokens of a sample.
        tokenizer: ``"char"``; ``"bpe"``, learnt from the text; a tokenizer's JSON file, such as GPT-2's; or a
            tokenizer.
        vocab: number of sub-words that ``"bpe"`` learns, 1024 by default.
        seed: of where windows start in each epoch.

    Raises:
        BadFile: no such file, an empty one, or one that isn't text.
        BadValue: a text of fewer tokens than a window, or with characters that the tokenizer lacks.
    """
    path = Path(path)
    content = read_text(path)
    maker = tokenizer if isinstance(tokenizer, Tokenizer) else make_tokenizer(tokenizer, content, vocab)
    ids = torch.tensor(maker.encode(content), dtype=torch.long)
    note = f"text of {len(content):,} characters, {len(ids):,} tokens of {maker!r}"
    name = Path(path.name.removesuffix(".gz")).stem
    return TokenData(ids, length, maker.size, maker, shift=True, seed=seed, name=name, notes=(note,))


def read_text(path: Path) -> str:
    """The content of a text file, compressed or not, with line ends as they are in memory.

    Raises:
        BadFile: no such file, an empty one, one that isn't UTF-8, or a damaged archive.
    """
    reader = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with reader(path, "rt", encoding="utf-8") as file:
            content = str(file.read())
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} isn't text in UTF-8: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise BadFile(f"{path} is empty")
    return content
