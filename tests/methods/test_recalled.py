"""Runs whose data isn't here any more: sampled all the same, and honest about what needs the data."""

import numpy as np
import pytest
from PIL import Image

from condiff.methods.runs import open_run
from tests.cli.terminal import TINY, run

FEW = ["--steps", "3", *TINY]


def drawn(capsys, folder, out, *words):
    run(capsys, "sample", folder, "--seed", 1, "--out", out, *words)
    return np.load(out)["x"]


def test_pictures_with_classes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / "cells" / name / f"{i}.png")
    folder = tmp_path / "run"
    run(capsys, "train", "images", "--data", tmp_path / "cells", "--size", 8, "--out", folder, *FEW)
    before = drawn(capsys, folder, tmp_path / "a.npz", "--label", "dog", "--num", 2)
    (tmp_path / "cells").rename(tmp_path / "elsewhere")
    assert (drawn(capsys, folder, tmp_path / "b.npz", "--label", "dog", "--num", 2) == before).all()
    assert "cells" in run(capsys, "evaluate", folder, code=2).err
    assert "unknown class 'cow'" in run(capsys, "sample", folder, "--label", "cow", code=2).err


def test_arrays_with_conditions_in_their_own_units(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "w.npz", x=50.0 + 20.0 * rng.random((40, 5)), height=rng.random(40))
    options = ["--option", "range=[0,100]", "--option", 'cond=["height"]']
    folder = tmp_path / "run"
    run(capsys, "train", "arrays", "--data", tmp_path / "w.npz", *options, "--out", folder, "--steps", 3)
    before = drawn(capsys, folder, tmp_path / "a.npz", "--condition", "height=0.5", "--num", 3)
    (tmp_path / "w.npz").unlink()
    assert (drawn(capsys, folder, tmp_path / "b.npz", "--condition", "height=0.5", "--num", 3) == before).all()
    assert abs(before.mean() - 50.0) < 100.0  # in the units of the file, not of the model
    said = run(capsys, "sample", folder, "--num", 3, "--out", tmp_path / "c.npz", code=2).err
    assert "isn't here: give every condition yourself" in said


def test_text(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    folder = tmp_path / "run"
    run(capsys, "train", "text", "--data", tmp_path / "corpus.txt", "--length", 12, "--out", folder, *FEW)
    words = ("--prefix", "fox", "--num", 2, "--steps", 4)
    before = drawn(capsys, folder, tmp_path / "a.npz", *words)
    (tmp_path / "corpus.txt").unlink()
    assert (drawn(capsys, folder, tmp_path / "b.npz", *words) == before).all()
    assert "fox" in run(capsys, "sample", folder, *words, "--json").out


@pytest.mark.parametrize("change", ["more", "spoilt"])
@pytest.mark.filterwarnings("always")
def test_text_that_has_changed_since(tmp_path, capsys, change):
    """Samples are those of the model; what needs the data as it was is refused."""
    file, folder = tmp_path / "corpus.txt", tmp_path / "run"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    run(capsys, "train", "text", "--data", file, "--length", 12, "--out", folder, *FEW)
    words = ("--prefix", "fox", "--num", 2, "--steps", 4)
    before = drawn(capsys, folder, tmp_path / "a.npz", *words)
    file.write_bytes(file.read_bytes() + (b"and the cat. " * 99 if change == "more" else b"\xff"))
    said = run(capsys, "sample", folder, "--seed", 1, "--out", tmp_path / "b.npz", *words)
    assert (np.load(tmp_path / "b.npz")["x"] == before).all()
    what = "has changed since" if change == "more" else "isn't text in UTF-8"
    assert said.err.startswith("warning: ") and what in said.err and "evaluation, won't work" in said.err
    assert "corpus" in run(capsys, "evaluate", folder, code=2).err
    assert what in run(capsys, "train", "--resume", folder, code=2).err


def test_scans(tmp_path, capsys):
    from condiff.data import write_phantoms

    write_phantoms(tmp_path / "scans", 10, side=8)
    folder = tmp_path / "run"
    words = ["--data", tmp_path / "scans", "--target", "t2", "--condition", "t1", "--method", "cwdm"]
    run(capsys, "train", "volumes", *words, "--out", folder, "--steps", 2, "--batch", 2, "--set", "network.width=8")
    case = sorted((tmp_path / "scans").rglob("*t1*"))[0]
    kept = tmp_path / f"new-{case.name}"
    kept.write_bytes(case.read_bytes())
    made = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.nii.gz"
        run(capsys, "sample", folder, "--condition", f"t1={kept}", "--steps", 2, "--out", out)
        import nibabel

        made.append(np.asarray(nibabel.load(out).dataobj))
        if name == "a":
            (tmp_path / "scans").rename(tmp_path / "gone")
    assert (made[0] == made[1]).all()
    with pytest.raises(OSError, match="isn't here"):
        open_run(folder).data.batch([0])
