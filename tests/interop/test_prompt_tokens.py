"""Prompts as their tokens, by tokenizers of several kinds."""

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizer

from condiff.errors import BadValue, Incompatible
from condiff.interop.prompts import align, along, looked_at, prompt_tokens
from tests.interop.tiny import t5_tokenizer, tokenizer


class Whole(PreTrainedTokenizer):
    """A tokenizer without offsets: a token a word of the list, others letter by letter, ends marked; ``glued`` words
    are read otherwise when another word follows."""

    def __init__(self, words, glued=(), **options):
        self.words, self.glued = list(words), set(glued)
        super().__init__(eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=12, **options)

    @property
    def vocab_size(self):
        return 300

    def get_vocab(self):
        return dict(self.added_tokens_encoder)

    def _tokenize(self, text, **options):
        words = text.split()
        read = lambda word, last: [word] if word in self.words and (last or word not in self.glued) else list(word)
        return [token for i, word in enumerate(words) for token in read(word, i == len(words) - 1)]

    def _convert_token_to_id(self, token):
        return self.words.index(token) + 10 if token in self.words else ord(token[0]) % 256 + 20

    def _convert_id_to_token(self, index):
        return self.words[index - 10] if 10 <= index < 10 + len(self.words) else chr(index - 20)

    def build_inputs_with_special_tokens(self, ids, pair=None):
        return [*ids, self.eos_token_id]

    def get_special_tokens_mask(self, ids, pair=None, already_has_special_tokens=False):
        return [0] * len(ids) + [1]


READERS = {
    "clip": tokenizer,
    "t5": t5_tokenizer,
    "without offsets": lambda: Whole(["a", "cat", "on"]),
}


@pytest.mark.parametrize("name", READERS)
def test_words_stand_where_their_tokens_are(name):
    """Decoding the tokens of a word gives the word, whatever the tokens are."""
    reader = READERS[name]()
    prompt = prompt_tokens(reader, "a cat on mats", length=24)
    assert [len(word) > 0 for word in prompt.words()].count(True) == len(prompt.words())
    for word in ("a", "cat", "on", "mats"):
        ids = [prompt.ids[i] for i in prompt.find(word)]
        assert "".join(reader.convert_ids_to_tokens(ids)).replace("</w>", "").replace("▁", "") == word
    inner = [i for word in prompt.words() for i in word]
    assert inner == list(range(len(prompt.ids)))  # every token belongs to one word, in order
    assert prompt.whole and prompt.length == 24


def test_words_are_found_whole_wherever_they_stand_and_phrases_too():
    prompt = prompt_tokens(tokenizer(), "Cat, a cat's cat", length=24)
    letters = [tokenizer().convert_ids_to_tokens(prompt.ids[i]) for i in prompt.find("cat")]
    assert "".join(letters) == "cat</w>" * 3
    assert len(prompt.find("a cat")) == 4
    for word in ("ca", "", "  ", "dog"):
        with pytest.raises(BadValue, match="there is no word"):
            prompt.find(word)


def test_what_is_cut_off_is_not_there():
    prompt = prompt_tokens(tokenizer(), "abcdefghijkl mno pq")  # 16 tokens, two of them special
    assert not prompt.whole and len(prompt.ids) == prompt.length == 16
    with pytest.raises(BadValue, match=r"no word 'pq' in .*of which 16 tokens count"):
        prompt.find("pq")
    with pytest.raises(BadValue, match="longer than 16 tokens"):
        align(prompt, prompt, "replace")
    matrix, heard = align(prompt, prompt)
    assert torch.equal(matrix, torch.eye(16)) and heard.all()


def test_a_replacement_goes_word_for_word():
    source, target = (prompt_tokens(tokenizer(), text) for text in ("a cat on", "a horse on"))
    matrix, heard = align(source, target, "replace")
    assert heard.all() and torch.allclose(matrix.sum(1), torch.ones(16))
    ours, theirs = source.find("cat"), target.find("horse")
    assert torch.equal(matrix[ours][:, theirs], torch.full((3, 5), 0.2))
    assert matrix[source.find("on"), target.find("on")].tolist() == [1.0, 1.0]
    assert matrix[0, 0] == 1.0 and matrix[len(source.ids) - 1, len(target.ids) - 1] == 1.0


def test_an_empty_prompt_has_only_its_ends():
    prompt = prompt_tokens(tokenizer(), "")
    assert len(prompt.ids) == 2 and prompt.words() == [[0], [1]]
    matrix, _ = align(prompt, prompt, "replace")
    assert torch.equal(matrix, torch.eye(16))


def test_numbers_and_marks_along_a_prompt():
    prompt = prompt_tokens(tokenizer(), "a cat")
    assert along(prompt, {"cat": 2.0}, 1.0).tolist() == [1, 1, 2, 2, 2, *[1] * 11]
    assert looked_at(prompt, ["a", "cat"]).nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert looked_at(prompt, "a").nonzero().flatten().tolist() == [1]


def test_a_tokenizer_that_reads_beginnings_otherwise_is_refused():
    with pytest.raises(Incompatible, match="take its fast version"):
        prompt_tokens(Whole(["cat"], glued=["cat"]), "cat on")


def test_automatic_tokenizers_are_of_this_kind(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    assert prompt_tokens(AutoTokenizer.from_pretrained(tmp_path), "a cat").find("cat") == [2, 3, 4]
