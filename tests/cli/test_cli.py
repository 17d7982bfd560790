"""The command line as a newcomer and as a program use it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from terminal import TINY, run

from condiff.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", "--out", str(folder), "--steps", "3", *TINY]) == 0
    return folder


def test_import_and_help_do_not_load_torch():
    program = "import sys, condiff, condiff.cli.main; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["evaluate"], ["info"], ["methods"], ["reproduce"], ["cite"]]
)
def test_help_explains(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: condiff" in text and "None" not in text


def test_a_run_explains_itself(trained):
    for name in ("config.json", "model.safetensors", "model-ema.safetensors", "metrics.json", "metrics.jsonl"):
        assert (trained / name).is_file(), name
    for picture in ("samples.png", "curves.png"):
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"class_accuracy", "frechet", "density", "coverage", "nn_ratio", "memorised_fraction"} <= set(metrics)
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 3
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page


def test_a_run_is_never_overwritten(capsys, trained):
    before = (trained / "model.safetensors").read_bytes()
    said = run(capsys, "train", "digits", "--out", trained, code=2)
    assert f"go on with it: condiff train --resume {trained}" in said.err
    assert (trained / "model.safetensors").read_bytes() == before


def test_sample_writes_arrays_with_labels(capsys, trained, tmp_path):
    out = tmp_path / "threes.npz"
    said = run(capsys, "sample", trained, "--label", "3", "--num", "5", "--steps", "2", "--out", out, "--json")
    made = json.loads(said.out)
    assert made["labels"] == ["3"] * 5 and made["nfe"] == 2
    arrays = np.load(out)
    assert arrays["x"].shape == (5, 1, 8, 8) and arrays["label"].tolist() == [3] * 5
    assert "exists already" in run(capsys, "sample", trained, "--out", out, code=2).err


@pytest.mark.parametrize("batch", [2, 5])
def test_a_sample_depends_on_its_own_seed_only(capsys, trained, tmp_path, batch):
    run(capsys, "sample", trained, "--num", "5", "--steps", "2", "--seed", "7", "--out", tmp_path / "a.npy")
    run(
        capsys,
        "sample",
        trained,
        "--num",
        "5",
        "--steps",
        "2",
        "--seed",
        "7",
        "--batch",
        batch,
        "--out",
        tmp_path / "b.npy",
    )
    run(
        capsys,
        "sample",
        trained,
        "--num",
        "3",
        "--steps",
        "2",
        "--seed",
        "9",
        "--label",
        "2",
        "--out",
        tmp_path / "c.npy",
    )
    a, b, c = (np.load(tmp_path / f"{n}.npy") for n in "abc")
    np.testing.assert_allclose(a, b, atol=1e-5)  # matrix products round differently in batches of other sizes
    np.testing.assert_allclose(a[2], c[0], atol=1e-5)  # seed 9, class 2 in both


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "RUN", "--solver", "euller"], "Did you mean 'euler'"),
        (["sample", "RUN", "--label", "ten"], "unknown class"),
        (["sample", "RUN", "--steps", "0"], "at least 1"),
        (["sample", "RUN", "--num", "0"], "at least 1"),
        (["sample", "RUN", "--out", "x.txt"], "must end in"),
        (["sample", "RUN", "--weights", "emma"], "ema"),
        (["sample", "nowhere"], "no such file"),
        (["evaluate", "nowhere"], "no such file"),
        (["info", "nowhere"], "no such file or folder"),
        (["train"], "say what to train on"),
        (["train", "digitz"], "Did you mean 'digits'"),
        (["train", "images"], "needs --data PATH"),
        (["train", "digits", "--method", "flow"], "unknown method"),
        (["train", "digits", "--set", "network.widht=3"], "Did you mean 'network.width'"),
        (["train", "digits", "--set", "width"], "KEY=VALUE"),
        (["train", "digits", "--steps", "0"], "steps must be at least 1"),
        (["train", "digits", "--config", "nowhere.yaml"], "no such file"),
        (["train", "--resume", "nowhere"], "no such file"),
        (["cite", "dddpm"], "Did you mean 'ddpm'"),
        (["reproduce", "nothing"], "unknown method"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, trained, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    said = run(capsys, *(str(trained) if a == "RUN" else a for a in argv), code=2)
    assert message in said.err and said.err.startswith("error: ") and "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_overrides_from_file_flags_and_settings_in_that_order(capsys, tmp_path):
    (tmp_path / "small.yaml").write_text("network: {width: 24, depth: 2}\ntraining.steps: 9\nsampler.guidance: 3.5\n")
    said = run(
        capsys,
        "train",
        "digits",
        "--config",
        tmp_path / "small.yaml",
        "--steps",
        "7",
        "--set",
        "network.depth=1",
        "--out",
        tmp_path / "run",
        "--dry-run",
    )
    assert "width: 24" in said.out and "depth: 1" in said.out and "steps=7" in said.out and "guidance: 3.5" in said.out
    assert "digits/train: 1438 samples" in said.out and not (tmp_path / "run").exists()


def test_json_output_is_json(capsys, trained, tmp_path):
    for argv in (["methods", "--json"], ["info", "--json"], ["info", trained, "--json"]):
        json.loads(run(capsys, *argv).out)
    said = run(capsys, "train", "digits", "--out", tmp_path / "run", "--steps", "2", *TINY, "--json")
    assert "class_accuracy" in json.loads(said.out)


def test_methods_list(capsys):
    listed = json.loads(run(capsys, "methods", "--json").out)
    assert {"ddpm", "edm", "flow-matching", "cfg"} <= {m["slug"] for m in listed}
    assert all(set(m) == {"slug", "title", "arxiv", "family", "trains", "summary", "verdict"} for m in listed)
    for method in listed:
        cited = run(capsys, "cite", method["slug"]).out
        assert cited.startswith("@") and method["arxiv"] in cited and cited.count("{") == cited.count("}")


def test_resume_continues_and_checks_the_data(capsys, tmp_path):
    rng = np.random.default_rng(0)
    file, folder = tmp_path / "waves.npz", tmp_path / "run"
    np.savez(file, x=rng.uniform(-1, 1, (64, 6)).astype(np.float32), label=np.arange(64) % 3)
    argv = ["train", "arrays", "--data", file, "--labels", "label", "--out", folder, "--steps", "4", *TINY[:4]]
    run(capsys, *argv, "--batch", "8")
    run(capsys, "train", "--resume", folder)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    np.savez(file, x=rng.uniform(-1, 1, (64, 6)).astype(np.float32), label=np.arange(64) % 3)
    assert "has changed" in run(capsys, "train", "--resume", folder, code=2).err


def test_pickles_are_refused(capsys, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    assert "pickle" in run(capsys, "info", tmp_path / "model.pt", code=2).err
