"""Runs on samples that no picture file can show, fields of two channels for instance, end well and are sampled."""

import numpy as np
import pytest

from condiff.cli.main import main


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 4, 8, 8)], ids=["fields", "volumes"])
def test_samples_of_two_channels_are_trained_and_written_as_arrays(tmp_path, capsys, shape):
    file, folder = tmp_path / "winds.npz", tmp_path / "run"
    np.savez(file, x=np.tanh(np.random.default_rng(0).normal(size=(24, *shape))).astype(np.float32))
    argv = ["train", "arrays", "--data", str(file), "--out", str(folder), "--steps", "2", "--batch", "4"]
    small = ["network.width=16", "network.depth=1", "sampler.steps=2", "training.sample_every=1"]
    assert main([*argv, *(word for value in small for word in ("--set", value))]) == 0
    assert (folder / "report.html").is_file() and not (folder / "samples.png").exists()
    assert main(["sample", str(folder), "--num", "3"]) == 0
    assert np.load(folder / "samples-0.npz")["x"].shape == (3, *shape)
    assert main(["sample", str(folder), "--num", "3", "--out", str(tmp_path / "winds.png")]) == 2
    assert "use --out" in capsys.readouterr().err and not (tmp_path / "winds.png").exists()
