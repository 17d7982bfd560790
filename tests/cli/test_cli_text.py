"""``condiff train text``: from a file to samples, with the tokenizer kept in the run."""

import json

import numpy as np
import pytest
import torch
from terminal import SMALL, run

from condiff.cli.main import main
from condiff.data import read_tokenizer
from condiff.errors import BadValue
from condiff.methods import texts
from condiff.methods.runs import open_run
from condiff.model_files import load_model

TINY = [*SMALL, "--set", "network.heads=2"]
SHORT = ["--batch", "8", "--steps", "2", "--set", "sampler.steps=8"]
CORPUS = "the cat sat on the mat, and the dog sat on the log. " * 80


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text(CORPUS)
    for kind in ("char", "bpe"):
        words = ["--tokenizer", kind, *(["--option", "vocab=270"] if kind == "bpe" else [])]
        argv = ["train", "text", "--data", folder / "corpus.txt", "--length", 12, *words, *TINY, *SHORT]
        assert main([str(a) for a in [*argv, "--out", folder / kind]]) == 0
    return folder


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_run_keeps_what_it_needs(root, kind, capsys):
    folder = root / kind
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    model = load_model(folder)
    assert model.process.vocab == tokenizer.size and model.time_free
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(2.0 ** metrics["bits_per_token"])
    assert (metrics["bits_per_character"] < 0.9 * metrics["bits_per_token"]) == (kind == "bpe")
    assert kind == "bpe" or metrics["bits_per_character"] == metrics["bits_per_token"]
    assert metrics["nfe"] <= 8
    assert metrics["bigram_bits_per_token"] > 0.0 and metrics["samples"] > 6
    assert texts.RULE in (folder / "samples.txt").read_text() and "Samples" in (folder / "report.html").read_text()
    assert not list(folder.rglob("*.p*kl"))
    seen = json.loads(run(capsys, "evaluate", folder, "--num", 8, "--json").out)
    assert seen["bits_per_character"] == pytest.approx(metrics["bits_per_character"])


def test_samples_are_text_and_hold_what_was_given(root, capsys):
    out = root / "some.txt"
    said = run(
        capsys, "sample", root / "char", "--num", 3, "--prefix", "the", "--suffix", "g.", "--given=5=cat",
        "--top-p", 0.9, "--top-k", 5, "--out", out, "--json",
    )  # fmt: skip
    made = json.loads(said.out)
    assert len(made["texts"]) == 3 and len(made["nfe"]) == 3
    said = run(capsys, "sample", root / "char", "--num", 10, "--steps", 2, "--out", root / "ten.txt").out
    assert said.count("-" * 40) == 8 and "... and 2 more" in said and len((root / "ten.txt").read_text()) > 10 * 12
    for one in made["texts"]:
        assert len(one) == 12 and one.startswith("the") and one.endswith("g.") and one[5:8] == "cat"
    assert max(made["nfe"]) <= 4  # as many as there are free places
    assert out.read_text() == texts.RULE.join(made["texts"]) + "\n"
    plain = run(capsys, "sample", root / "char", "--num", 2, "--seed", 5)
    assert "2 samples" in plain.out and (root / "char" / "samples-5.txt").exists()


def test_a_sample_depends_on_its_own_seed(root, capsys):
    def draw(*words):
        return json.loads(run(capsys, "sample", root / "char", "--json", "--overwrite", *words).out)["texts"]

    assert draw("--num", 4, "--batch", 3)[1:3] == draw("--num", 2, "--seed", 1)
    arrays = root / "ids.npz"
    texts_of = draw("--num", 2, "--out", arrays)
    tokenizer = read_tokenizer(root / "char" / "tokenizer.json")
    assert [tokenizer.decode(row) for row in np.load(arrays)["x"]] == texts_of
    hot = draw("--num", 2, "--temperature", 0, "--solver", "left-to-right", "--steps", 12)
    assert hot == draw("--num", 2, "--temperature", 0, "--solver", "left-to-right", "--steps", 12, "--seed", 9)


def test_the_stored_tokenizer_is_the_one_that_is_used(root):
    opened = open_run(root / "bpe")
    assert opened.data.tokenizer == read_tokenizer(root / "bpe" / "tokenizer.json")
    known = texts.given_text(opened.data, "the cat", None)
    assert known is not None
    assert opened.data.tokenizer.decode(known.tokens[known.mask].tolist()) == "the cat"


def test_given_text_stands_where_it_is_said(root):
    data = open_run(root / "char").data
    known = texts.given_text(data, None, None, ["4=at", "-3=the"])
    assert known.mask.nonzero()[:, 0].tolist() == [4, 5, 9, 10, 11]
    assert data.tokenizer.decode(known.tokens[known.mask].tolist()) == "atthe"
    with pytest.raises(BadValue, match=r"-1 .. -1 lies outside of the sample, 0 .. 11"):
        texts.given_text(data, None, None, ["-13=t"])


def test_other_text_is_scored_with_the_runs_alphabet(root, capsys):
    (root / "other.txt").write_text("the log sat on the cat. " * 20)
    (root / "foreign.txt").write_text("Q" * 200)
    got = json.loads(run(capsys, "evaluate", root / "char", "--against", root / "other.txt", "--num", 8, "--json").out)
    assert got["bits_per_character"] > 0
    for words in (["--weights", "nothing"], ["--device", "nowhere"]):
        error = run(capsys, "evaluate", root / "char", *words, code=2).err
        assert words[1] in error
    error = run(capsys, "evaluate", root / "char", "--against", root / "foreign.txt", code=2).err
    assert "not in this alphabet" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prefix", "the cat", "--suffix", "the dog"], "has 14 tokens, a sample of this run 12"),
        (["--prefix", "the", "--given=1=cat"], "overlaps other text"),
        (["--given", "cat"], "POSITION=TEXT"),
        (["--prefix", "Q"], "not in this alphabet"),
        (["--top-p", "1.5"], "top_p must lie in (0, 1]"),
        (["--top-k", "500"], "exceeds the vocabulary"),
        (["--solver", "heun"], "Heun"),
        (["--steps", "0"], "steps"),
        (["--out", "x.png"], "can't be drawn"),
    ],
)
def test_bad_requests_are_a_line_and_code_2(root, capsys, words, message):
    error = run(capsys, "sample", root / "char", "--num", 1, "--overwrite", *words, code=2).err
    assert message in error and "Traceback" not in error


def test_methods_and_data_fit_each_other(root, capsys):
    corpus = ["text", "--data", root / "corpus.txt", "--dry-run"]
    assert "--method radd" in run(capsys, "train", *corpus, "--method", "edm", code=2).err
    assert "condiff train text" in run(capsys, "train", "digits", "--method", "radd", "--dry-run", code=2).err
    assert "can't read" in run(capsys, "train", "text", "--data", root / "none.txt", "--dry-run", code=2).err


def test_bits_of_a_bigram_model():
    train = torch.tensor([0, 1, 0, 1, 1, 1])
    got = texts.bigram_nats(train, torch.tensor([[0, 1, 0]]), 2)
    expected = -torch.tensor([3 / 8, 3 / 4, 2 / 5]).double().log().sum()
    torch.testing.assert_close(got[0], expected)
    assert texts.unigram_entropy(torch.tensor([[0, 1], [1, 0]]), 4) == pytest.approx(1.0)
