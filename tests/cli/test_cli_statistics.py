"""Statistics of data, the kinetic report, and a teleported sample, as commands."""

import json

import numpy as np
import pytest
from terminal import run

from condiff.cli.main import main
from condiff.config import from_config
from condiff.process import PrincipalLaw, Tabulated


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "waves.npz"
    rng = np.random.default_rng(0)
    np.savez(file, x=np.tanh(0.5 * rng.normal(size=(80, 4))).astype(np.float32), label=np.arange(80) % 2)
    return file


@pytest.fixture(scope="module")
def trained(waves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "waves"
    argv = ["train", "arrays", "--data", str(waves), "--method", "edm", "--steps", "3", "--out", str(folder)]
    assert main([*argv, "--set", "network.width=8", "--set", "network.depth=1", "--batch", "8"]) == 0
    return folder


def test_statistics_are_written_and_told(capsys, waves, tmp_path):
    out = tmp_path / "law.safetensors"
    said = run(capsys, "statistics", "arrays", "--data", waves, "--out", out, "--rank", "3", "--json")
    facts, law = json.loads(said.out), PrincipalLaw.load(out)
    assert facts["rank"] == law.rank == 3 and facts["shape"] == [4] and facts["count"] == law.count
    assert facts["std"] == pytest.approx(law.std)
    text = run(capsys, "statistics", "arrays", "--data", waves, "--out", out, "--overwrite").out
    assert "4 of 4 components hold 100.0% of the variance" in text


def test_statistics_of_one_class(capsys, waves, tmp_path):
    out, cond = tmp_path / "law.safetensors", 'cond=["label"]'
    run(capsys, "statistics", "arrays", "--data", waves, "--option", cond, "--label", "1", "--out", out)
    assert PrincipalLaw.load(out).count < 60
    said = run(capsys, "statistics", "arrays", "--data", waves, "--option", cond, "--label", "7", "--overwrite", code=2)
    assert "unknown class" in said.err


def test_the_kinetic_report_and_a_schedule_to_train_with(capsys, waves, tmp_path):
    out = tmp_path / "ko.json"
    said = run(capsys, "kinetic", "arrays", "--data", waves, "--draws", "50", "--out", out)
    assert "kinetic-optimal" in said.out and "rectified" in said.out
    schedule = from_config(json.loads(out.read_text())["process"]["schedule"])
    assert isinstance(schedule, Tabulated)
    said = run(capsys, "train", "arrays", "--data", waves, "--config", out, "--out", tmp_path / "r", "--dry-run")
    assert "Tabulated" in said.out and "numbers ..." in said.out and "target: v" in said.out
    report = json.loads(
        run(capsys, "kinetic", "arrays", "--data", waves, "--of", "points", "--draws", "50", "--json").out
    )
    assert report["least_energy"] <= min(report["energies"].values()) and report["measured_on"].endswith("points")


def test_teleported_samples_take_fewer_calls(capsys, waves, trained, tmp_path):
    law = tmp_path / "law.safetensors"
    run(capsys, "statistics", "arrays", "--data", waves, "--out", law)
    options = ["--num", "4", "--steps", "10", "--out", tmp_path / "x.npz", "--overwrite", "--json"]
    plain = json.loads(run(capsys, "sample", trained, *options).out)
    late = json.loads(run(capsys, "sample", trained, "--teleport", law, "--skip-sigma", "20", *options).out)
    assert plain["nfe"] == 19 and late["nfe"] < plain["nfe"] and late["teleport"] == str(law)
    assert np.isfinite(np.load(tmp_path / "x.npz")["x"]).all()


def test_a_model_told_classes_asks_for_statistics_of_the_class(capsys, tmp_path):
    run(capsys, "statistics", "digits", "--out", tmp_path / "all.safetensors")
    tiny = ["--set", "network.width=16", "--set", "network.depth=1", "--set", "network.heads=2", "--batch", "16"]
    run(capsys, "train", "digits", "--steps", "3", "--out", tmp_path / "run", *tiny)
    late = ["--teleport", tmp_path / "all.safetensors", "--guidance", "1", "--solver", "heun"]
    said = run(capsys, "sample", tmp_path / "run", *late, "--out", tmp_path / "x.png", code=2)
    assert "condiff statistics --label" in said.err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["statistics"], "say which data"),
        (["statistics", "digitz"], "Did you mean 'digits'"),
        (["statistics", "digits", "--out", "x.npz"], "must end in .safetensors"),
        (["statistics", "digits", "--rank", "0"], "rank must lie"),
        (["statistics", "digits", "--label", "ten"], "unknown class"),
        (["statistics", "images"], "needs --data PATH"),
        (["kinetic"], "say which data"),
        (["kinetic", "digits", "--out", "x.npz"], "must end in .json"),
        (["kinetic", "digits", "--draws", "0"], "draws must be at least 1, got 0"),
        (["sample", "RUN", "--skip-sigma", "3"], "give --teleport"),
        (["sample", "RUN", "--teleport", "nowhere.safetensors"], "no such file"),
        (["sample", "RUN", "--teleport", "LAW", "--guidance", "2"], "use --guidance 1"),
        (["sample", "RUN", "--teleport", "LAW", "--solver", "ddpm"], "draws noise"),
        (["sample", "RUN", "--teleport", "LAW", "--skip-sigma", "500"], "above the first level"),
        (["sample", "RUN", "--teleport", "LAW", "--skip-sigma", "-1"], "above 0, got -1"),
        (["sample", "RUN", "--teleport", "LAW", "--start", "0.5"], "leave --start"),
        (["sample", "RUN", "--teleport", "OTHER"], "don't fit"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, waves, trained, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    from condiff.data import open_data, principal_law

    principal_law(open_data("arrays", path=waves)).save(tmp_path / "law.safetensors")
    principal_law(open_data("digits"), 3).save(tmp_path / "other.safetensors")
    names = {"RUN": trained, "LAW": tmp_path / "law.safetensors", "OTHER": tmp_path / "other.safetensors"}
    said = run(capsys, *(names.get(a, a) for a in argv), code=2)
    assert message in said.err and said.err.startswith("error: ") and "Traceback" not in said.err


@pytest.mark.parametrize("command", ["statistics", "kinetic"])
def test_help_explains(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Try:" in text and "None" not in text
