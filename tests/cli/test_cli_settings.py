"""Samples of a page, drawn again by the command line from the files that the page gave."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from condiff.cli.main import main
from condiff.web import Limits, Settings, Uploads
from condiff.web.results import metadata
from condiff.web.run_source import RunSource
from condiff.web.worker import Job
from tests.web.served import SMALL, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train(tmp_path_factory.mktemp("settings") / "digits", "digits")


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("settings-waves"), np.random.default_rng(0)
    height, spectrum = rng.uniform(1, 3, 40).astype(np.float32), rng.uniform(0, 1, (40, 3)).astype(np.float32)
    np.savez(folder / "waves.npz", x=rng.normal(size=(40, 16, 2)).astype(np.float32), height=height, spectrum=spectrum)
    how = {"range": "standardise", "cond": ["height", "spectrum"]}
    return train(folder / "run", "arrays", folder / "waves.npz", settings=SMALL, **how)


def downloaded(run, folder, ending, **settings):
    """A file of the page's, and the samples in it."""
    limits = Limits()
    source = RunSource(run, Uploads(limits), limits, device="cpu")
    made = source.make(Settings(**settings), Job(Settings(**settings), lambda _: None))
    path, told = folder / f"samples.{ending}", json.dumps(metadata(made))
    path.write_bytes(told.encode() if ending == "json" else source.files(made)[ending](told))
    with np.load(io.BytesIO(source.files(made)["npz"](told))) as arrays:
        return path, arrays["x"]


def drawn(run, out, *words):
    assert main(["sample", str(run), "--device", "cpu", "--out", str(out), *map(str, words)]) == 0
    return np.load(out)["x"]


@pytest.mark.parametrize("ending", ["json", "png", "npz"])
def test_the_same_samples_again(digits, tmp_path, ending):
    settings = {"labels": ("3", "5"), "steps": 4, "guidance": 2.5, "solver": "unipc", "seed": 7, "num": 5}
    path, x = downloaded(digits, tmp_path, ending, **settings)
    np.testing.assert_array_equal(drawn(digits, tmp_path / "again.npz", "--settings", path), x)
    other = drawn(digits, tmp_path / "other.npz", "--settings", path, "--seed", 0, "--num", 2)
    assert len(other) == 2 and not np.array_equal(other, x[:2])


def test_numbers_that_were_told(waves, tmp_path):
    told = {"height": 2.5, "spectrum": [0.1, 0.2, 0.3]}
    path, x = downloaded(waves, tmp_path, "json", conditions=told, num=3, steps=3)
    np.testing.assert_array_equal(drawn(waves, tmp_path / "again.npz", "--settings", path), x)
    other = drawn(waves, tmp_path / "o.npz", "--settings", path, "--condition", "height=1.0")
    assert not np.array_equal(other, x)


def refused(capsys, *words):
    assert main(["sample", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_files_without_settings(digits, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"format": "x"}')
    (tmp_path / "broken.json").write_text("{")
    Image.new("L", (4, 4)).save(tmp_path / "plain.png")
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    for name in ("other.json", "broken.json", "plain.png", "plain.npz"):
        assert "holds no settings" in refused(capsys, digits, "--settings", tmp_path / name)
    assert "no such file" in refused(capsys, digits, "--settings", tmp_path / "none.json")


def test_what_cannot_be_drawn_from_settings_alone(digits, tmp_path, capsys):
    kept = {"format": "condiff samples 1", "settings": {"prompt": "a fox"}, "facts": {"pipeline": "sd"}}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    assert "those of the pipeline sd" in refused(capsys, digits, "--settings", tmp_path / "a.json")
    kept = {**kept, "settings": {"conditions": {"degraded": {"picture": "abc"}}}, "facts": {}}
    (tmp_path / "b.json").write_text(json.dumps(kept))
    assert "--condition degraded=FILE" in refused(capsys, digits, "--settings", tmp_path / "b.json")
