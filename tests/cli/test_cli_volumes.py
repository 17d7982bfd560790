"""Scans on the command line: train, make the missing one, write it where it belongs, refuse what doesn't fit."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from condiff.cli.main import main
from condiff.data import read_volume, write_phantoms

TINY = ["--set", "network.width=8", "--set", "network.multipliers=[1,1]", "--set", "sampler.steps=2"]
TRAIN = ["train", "volumes", "--target", "flair", "--condition", "t1", "t2", "--method", "cwdm", "--steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    scans = write_phantoms(folder / "scans", 6, side=12)
    assert main([*TRAIN, "--data", str(scans), "--out", str(folder / "run"), *TINY, "--batch", "2"]) == 0
    return folder / "run", scans


@pytest.fixture
def case(run, tmp_path):
    """A new case without the target, on a grid and affine of its own."""
    new = write_phantoms(tmp_path / "new", 1, side=13, seed=50) / "case-000"
    (new / "case-000-flair.nii.gz").unlink()
    affine = np.array([[0, 2.0, 0, -7], [-2.0, 0, 0, 3], [0, 0, 2.0, 1], [0, 0, 0, 1]])
    for path in new.iterdir():
        array = read_volume(path).array
        nib.save(nib.Nifti1Image((array * 1000).astype(np.int16), affine), path)
    return new, affine


def test_run_explains_itself(run):
    folder, _ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"psnr", "ssim", "samples"} <= set(metrics) and (folder / "samples.png").is_file()
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["codec"] == {"part": "codecs.HaarConfig", "axes": 3, "levels": 1, "low": 3.0}
    assert config["request"]["options"]["condition"] == ["t1", "t2"]


@pytest.mark.parametrize("form", ["together", "repeated", "named", "folder"])
def test_missing_scan(run, case, tmp_path, form):
    new, affine = case
    t1, t2 = new / "case-000-t1.nii.gz", new / "case-000-t2.nii.gz"
    given = {
        "together": ["--condition", str(t2), str(t1)],
        "repeated": ["--condition", str(t1), "--condition", str(t2)],
        "named": ["--condition", f"t2={t2}", f"t1={t1}"],
        "folder": ["--condition", str(new)],
    }[form]
    out = tmp_path / "flair.nii.gz"
    assert main(["sample", str(run[0]), *given, "--out", str(out), "--seed", "3"]) == 0
    made = nib.load(out)
    assert made.shape == (13, 13, 13) and np.array_equal(made.affine, affine)
    values = np.asarray(made.dataobj)
    assert values.min() >= 0.0 and values.max() <= 1.0 and values.std() > 0.0
    background = np.logical_and(*(np.asarray(nib.load(p).dataobj) == 0 for p in (t1, t2)))
    assert background.any() and (values[background] == 0).all()
    first = tmp_path.parent / "first-flair.npy"
    if first.exists():
        assert np.array_equal(np.load(first), values)  # every form says the same
    np.save(first, values)


def test_several_samples_and_held_out_cases(run, case, tmp_path):
    assert main(["sample", str(run[0]), "--condition", str(case[0]), "--num", "2", "--out", str(tmp_path / "two")]) == 0
    names = sorted(p.name for p in (tmp_path / "two").iterdir())
    assert names == ["case-000-flair-000.nii.gz", "case-000-flair-001.nii.gz"]
    a, b = (read_volume(tmp_path / "two" / n).array for n in names)
    assert np.abs(a - b).max() > 0.0
    assert main(["sample", str(run[0]), "--out", str(tmp_path / "held")]) == 0
    (made,) = (tmp_path / "held").iterdir()
    assert made.name.startswith("case-00") and read_volume(made).array.shape == (12, 12, 12)
    assert main(["sample", str(run[0]), "--out", str(tmp_path / "x.npz"), "--num", "2"]) == 0
    assert np.load(tmp_path / "x.npz")["x"].shape == (2, 1, 16, 16, 16)


def refused(arguments, capsys):
    code = main(arguments)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("one", "t2 is missing"),
        ("target", "is what this run makes"),
        ("unknown", "which of t1, t2 is x.nii.gz"),
        ("name", "unknown modality of this run 't9'"),
        ("twice", "t1 is given twice"),
        ("absent", "no such file"),
        ("grid", "resample"),
        ("affine", "lie differently in space"),
        ("constant", "constant"),
        ("nan", "NaN"),
        ("many", "holds one volume"),
        ("ending", "--out must end in"),
    ],
)
def test_refusals(run, case, tmp_path, capsys, what, words):
    new, affine = case
    t1, t2 = new / "case-000-t1.nii.gz", new / "case-000-t2.nii.gz"
    array = read_volume(t2).array
    shutil.copy(t2, new / "x.nii.gz")
    bad = tmp_path / "t2.nii.gz"
    changed = {
        "grid": (array[:-1], affine),
        "affine": (array, affine + np.eye(4)[[3, 0, 1, 2]]),
        "constant": (np.ones_like(array), affine),
        "nan": (np.where(array > 500, np.nan, array), affine),
    }
    if what in changed:
        nib.save(nib.Nifti1Image(*changed[what]), bad)
    given = {
        "one": [t1],
        "target": [t1, t2, run[1] / "case-000" / "case-000-flair.nii.gz"],
        "unknown": [t1, new / "x.nii.gz"],
        "name": [t1, f"t9={t2}"],
        "twice": [t1, f"t1={t2}"],
        "absent": [t1, new / "none-t2.nii.gz"],
    }.get(what, [t1, bad if what in changed else t2])
    out = tmp_path / ("flair.jpg" if what == "ending" else "flair.nii.gz")
    more = ["--num", "2"] if what == "many" else []
    code, said = refused(["sample", str(run[0]), "--condition", *map(str, given), "--out", str(out), *more], capsys)
    assert code == 2 and words in said and not out.exists()


def test_a_folder_of_new_cases(run, tmp_path):
    new = write_phantoms(tmp_path / "new", 2, side=12, seed=80)
    assert main(["sample", str(run[0]), "--condition", str(new), "--out", str(tmp_path / "made")]) == 0
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == [
        "case-000-flair.nii.gz",
        "case-001-flair.nii.gz",
    ]


def test_training_refuses(tmp_path, capsys):
    scans = write_phantoms(tmp_path / "scans", 8, side=8)
    base = ["train", "volumes", "--data", str(scans), "--method", "cwdm", "--dry-run"]
    assert refused([*base], capsys)[0] == 2
    code, said = refused([*base, "--target", "flair", "--condition", "t9"], capsys)
    assert code == 2 and "no case with all of flair, t9" in said
    code, said = refused([*base, "--target", "flair", "--option", "size=[7,8,8]"], capsys)
    assert code == 2 and "multiples of 2" in said
    (scans / "case-001" / "case-001-t1.nii.gz").unlink()
    code, said = refused([*base, "--target", "flair", "--condition", "t1"], capsys)
    assert code == 2 and "case-001: lacks t1" in said
    assert main([*base, "--target", "flair", "--condition", "t1", "--skip-bad"]) == 0
    assert "case-001/case-001: lacks t1" in capsys.readouterr().out


def test_resumes(run, tmp_path, capsys):
    folder, _ = run
    assert main(["train", "--resume", str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
