"""Text: tokenizers, windows, splits."""

import gzip
import json

import pytest
import torch

from condiff.data import Characters, Subwords, TokenData, make_tokenizer, open_data, read_tokenizer, split, text
from condiff.errors import BadFile, BadType, BadValue

WORDS = "the cat sat on the mat; the dog sat on the log. Ünïcode, 漢字, tabs\tand\nlines\n" * 40


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_text_comes_back(kind, tmp_path):
    made = make_tokenizer(kind, WORDS, 300 if kind == "bpe" else None)
    ids = made.encode(WORDS)
    assert made.decode(ids) == WORDS and 0 <= min(ids) <= max(ids) < made.size
    path = tmp_path / "tokenizer.json"
    path.write_text(made.to_json(), encoding="utf-8")
    again = read_tokenizer(path)
    assert again == made and again.encode("the cat") == made.encode("the cat")
    json.loads(made.to_json())
    assert made.decode([*made.encode("the"), made.size, made.size, *made.encode("cat")]) == "the__cat"
    with pytest.raises(BadValue, match="must lie in"):
        made.decode([made.size + 1])


def test_sub_words_are_fewer_and_take_any_text():
    made = Subwords.learn(WORDS, 300)
    assert made.size <= 300 and len(made.encode(WORDS)) < 0.6 * len(WORDS)
    assert made.decode(made.encode("ζ never seen 😀")) == "ζ never seen 😀"


def test_a_hugging_face_tokenizer_is_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "words.json"))
    path = tmp_path / "ab.txt"
    path.write_text("a b b a " * 20)
    data = text(path, 4, tokenizer=str(tmp_path / "words.json"))
    assert data.vocab == 3 and data.batch([0])["x"].shape == (1, 4)


def test_lengths_that_a_tokenizer_cuts_texts_to_are_left_aside(tmp_path):
    """Tokenizers of sentence encoders come with them, and would keep the first words of a corpus alone."""
    tokenizers = pytest.importorskip("tokenizers")
    plain = Subwords.learn(WORDS, 300)
    own = tokenizers.Tokenizer.from_str(plain.to_json())
    own.enable_truncation(16)
    own.enable_padding(length=20)
    own.save(str(tmp_path / "cuts.json"))
    made = read_tokenizer(tmp_path / "cuts.json")
    assert made.encode(WORDS) == plain.encode(WORDS) and made.encode("the") == plain.encode("the")
    assert made.decode(made.encode(WORDS)) == WORDS


def test_a_tokenizers_own_ends_are_not_added():
    """A corpus is one row of text, not a sentence between [CLS] and [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[E]": 2}, unk_token="[E]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(single="[E] $A [E]", special_tokens=[("[E]", 2)])
    assert own.encode("a b").ids == [2, 0, 1, 2]
    assert Subwords(own.to_str()).encode("a b") == [0, 1]


def test_ids_that_leave_some_out(tmp_path):
    """MASK lies behind the highest id, not at the number of words."""
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 5, "?": 2}, unk_token="?"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = Subwords(own.to_str())
    assert made.size == 6 and made.encode("a b") == [0, 5]
    assert made.decode([0, 3, 6, 5], mask="#") == "a#b"
    assert TokenData(torch.tensor(made.encode("a b b a")), 2, made.size, made).vocab == 6


def test_windows_shift_from_epoch_to_epoch_and_stay_inside(file):
    data = text(file, 16)
    ids = data.ids
    starts = set()
    for epoch in range(30):
        x = data.batch(range(len(data)), epoch)["x"]
        assert x.shape == (len(data), 16) and torch.equal(x, data.batch(range(len(data)), epoch)["x"])
        where = [start for start in range(16, 33) if torch.equal(ids[start : start + 16], x[1])]
        assert where  # window 1 begins within its own stretch
        starts.update(where)
    assert len(starts) > 10
    still = TokenData(ids, 16, data.vocab, data.tokenizer)
    assert torch.equal(still.batch([2], 5)["x"][0], ids[32:48])


def test_the_end_is_held_out(file):
    data = text(file, 16)
    train, held = split(data, 0.1)
    assert torch.equal(torch.cat([train.ids, held.ids]), data.ids) and len(train.ids) % 16 == 0
    assert abs(len(held.ids) / len(data.ids) - 0.1) < 0.02 and train.shift and not held.shift
    assert train.name.endswith("/train") and train.fingerprint() != held.fingerprint()
    assert "40" not in held.describe() and "characters" in train.describe()


def test_the_fingerprint_knows_the_tokenizer(file):
    one, other = text(file, 16), text(file, 16)
    assert one.fingerprint() == other.fingerprint()
    flipped = Characters(one.tokenizer.alphabet[::-1])
    renamed = TokenData(one.ids, 16, one.vocab, flipped, shift=True)
    assert renamed.fingerprint() != one.fingerprint()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "missing.txt"}, BadFile, "can't read"),
        ({"tokenizer": "word"}, BadValue, "'char', 'bpe' or a .json file"),
        ({"tokenizer": "bpe", "vocab": 200}, BadValue, "more than 256"),
        ({"vocab": 300}, BadValue, "learnt sub-word"),
        ({"length": 0}, BadValue, "length must be"),
        ({"length": 10**6}, BadValue, "tokens are less than one window"),
        ({"lenght": 3}, BadValue, "Did you mean 'length'"),
    ],
)
def test_refusals(file, change, error, message):
    with pytest.raises(error, match=message):
        open_data("text", **{"path": str(file), **change})


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(BadFile, match="UTF-8"):
        text(tmp_path / "bytes.txt")
    with pytest.raises(BadFile, match="is empty"):
        text(tmp_path / "empty.txt")
    with pytest.raises(BadFile, match="is no tokenizer"):
        read_tokenizer(tmp_path / "other.json")
    with pytest.raises(BadFile, match="no such file"):
        read_tokenizer(tmp_path / "missing.json")


def test_compressed_text_is_text(tmp_path, file):
    (tmp_path / "corpus.txt.gz").write_bytes(gzip.compress(file.read_bytes()))
    found = text(tmp_path / "corpus.txt.gz", 16)
    assert found.name == "corpus" and torch.equal(found.ids, text(file, 16).ids)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(file.read_bytes())[:-12])
    with pytest.raises(BadFile, match=r"can't read .*cut.txt.gz"):
        text(tmp_path / "cut.txt.gz")


def test_ids_are_checked():
    with pytest.raises(BadType, match="integer ids"):
        TokenData(torch.rand(8), 4, 3)
    with pytest.raises(BadValue, match="the tokenizer has 2"):
        TokenData(torch.zeros(8, dtype=torch.long), 4, 3, Characters("ab"))
    with pytest.raises(BadValue, match="are not in this alphabet"):
        Characters("ab").encode("abc")
    with pytest.raises(BadValue, match="each once"):
        Characters("aba")
    with pytest.raises(BadValue, match=r"too few windows of 8 tokens"):
        split(TokenData(torch.zeros(8, dtype=torch.long), 8, 3), 0.1)
