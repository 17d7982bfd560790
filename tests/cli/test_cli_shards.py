"""Samples by several processes: the same as by one, resumed after a kill, refused where the work is another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import SMALL, run

from condiff.cli.main import main
from condiff.data import read_volume, write_phantoms
from condiff.files import alone_in
from condiff.methods import shards
from condiff.methods.kinds import Kind

SHORT = [*SMALL, "--set", "network.heads=2", "--batch", "2", "--steps", "2", "--set", "sampler.steps=6"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on pictures, tokens and volumes."""
    root = tmp_path_factory.mktemp("shards")
    (root / "corpus.txt").write_text("the cat sat on the mat, and the dog sat on the log. " * 40)
    write_phantoms(root / "scans", 6, side=8)
    volumes = ["volumes", "--data", root / "scans", "--target", "t2", "--condition", "t1", "--method", "flow-matching"]
    text = ["text", "--data", root / "corpus.txt", "--length", "12"]
    for name, words in (("digits", ["digits"]), ("text", text), ("volumes", volumes)):
        assert main([str(w) for w in ["train", *words, *SHORT, "--out", root / name]]) == 0
    return root


@pytest.fixture(autouse=True)
def one_thread():
    """As each process of a launch has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arrays(path):
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def assert_same(a, b):
    """Equal bit for bit."""
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys() and "x" in a
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def environment():
    here = str(Path(__file__).parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}


def parts_of(out):
    return out.with_name(f".{out.name}.parts")


def test_two_processes_draw_what_one_draws_and_say_which_of_them_failed(runs, tmp_path):
    asked = {
        "digits": [runs / "digits", "--num", 21, "--batch", 4, "--solver", "ddpm", "--guidance", 2],
        "text": [runs / "text", "--num", 9, "--batch", 2, "--prefix", "the "],
        "volumes": [runs / "volumes", "--num", 4, "--batch", 1, "--seed", 5],
    }
    commands = [["sample", *words, "--out", tmp_path / f"two-{name}.npz"] for name, words in asked.items()]
    commands.append(["sample", *asked["volumes"], "--out", tmp_path / "scans"])
    commands.append(["sample", *asked["digits"], "--out", tmp_path / "failed.npz"])
    order = json.dumps([[str(w) for w in command] for command in commands])
    program = str(Path(__file__).with_name("sharded_commands.py"))
    ended = subprocess.run(
        [*LAUNCH, program, order], env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    for name, words in asked.items():
        assert main([str(w) for w in ["sample", *words, "--out", tmp_path / f"one-{name}.npz"]]) == 0
        assert_same(tmp_path / f"one-{name}.npz", tmp_path / f"two-{name}.npz")
        assert not parts_of(tmp_path / f"two-{name}.npz").exists()
    made = sorted((tmp_path / "scans").glob("*.nii.gz"))
    voxels = np.load(tmp_path / "one-volumes.npz")["x"]
    assert len(made) == 4 and read_volume(made[0]).array.shape == voxels.shape[2:]
    assert ended.stdout.count("two-digits.npz") == 1  # one process speaks
    assert "21 samples in 6 blocks of at most 4, 2 at a time" in ended.stderr
    assert "error (process 1 of 2): no space left on this disk" in ended.stderr and ended.returncode != 0
    assert not (tmp_path / "failed.npz").exists() and parts_of(tmp_path / "failed.npz").is_dir()
    assert main([str(w) for w in commands[-1]]) == 0  # what is missing is drawn by one process
    assert_same(tmp_path / "one-digits.npz", tmp_path / "failed.npz")


def test_killed_half_way_and_continued(runs, tmp_path, capsys):
    out, words = tmp_path / "killed.npz", ["--num", 24, "--batch", 2, "--solver", "ddpm", "--steps", 150]
    argv = [str(w) for w in ["sample", runs / "digits", *words, "--out", out]]
    launch = [*LAUNCH, "-m", "--", "condiff.cli.main", *argv]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(launch, env=environment(), **quiet) as work:
        for _ in range(2400):
            if len(blocks := list(parts_of(out).glob("samples-*"))) >= 2 or work.poll() is not None:
                break
            time.sleep(0.05)
        told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(work.pid)], capture_output=True, text=True, check=True)
        for pid in [work.pid, *map(int, told.stdout.split())]:
            os.kill(pid, signal.SIGKILL)
    assert 2 <= len(blocks) < 12 and not out.exists()
    kept = list(parts_of(out).glob("samples-*"))
    seen = run(capsys, *argv[:-2], "--seed", 1, "--out", out, code=2)
    assert "asked for otherwise: seed is 0 in the file and 1 here: repeat that command" in seen.err
    before = Kind.draw
    drawn = []
    try:
        Kind.draw = lambda self, plan, rows: drawn.append(rows) or before(self, plan, rows)
        seen = run(capsys, *argv)
    finally:
        Kind.draw = before
    assert len(drawn) == 12 - len(kept) and f"{len(kept)} are there already" in seen.err
    assert not parts_of(out).exists()
    run(capsys, *argv[:-1], tmp_path / "whole.npz")
    assert_same(out, tmp_path / "whole.npz")


@pytest.fixture
def interrupted(runs, tmp_path, monkeypatch):
    """A command that was interrupted after two of its three blocks."""
    out = tmp_path / "some.npz"
    argv = ["sample", str(runs / "digits"), "--num", "9", "--batch", "3", "--out", str(out)]
    write, count = shards.Blocks.write, []

    def stop_at_two(self, rows, part):
        write(self, rows, part)
        count.append(rows)
        if len(count) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.Blocks, "write", stop_at_two)
        assert main(argv) == 130
    assert len(list(parts_of(out).glob("samples-*"))) == 2 and not out.exists()
    return argv, out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "7"], "seed is 0 in the file and 7 here"),
        (["--batch", "4"], "batch is 3 in the file and 4 here"),
        (["--num", "10"], "num is 9 in the file and 10 here"),
        (["--steps", "7"], "steps is 6 in the file and 7 here"),
        (["--label", "3"], "cond.label differ"),
        (["--weights", "raw"], "weights differ"),
        (["--set", "solver.churn=0.5", "--solver", "heun"], "solver is"),
    ],
)
def test_work_that_was_asked_for_otherwise_is_refused(interrupted, capsys, words, message):
    argv, out = interrupted
    assert message in run(capsys, *argv, *words, code=2).err
    assert len(list(parts_of(out).glob("samples-*"))) == 2


def test_unfinished_work_is_dropped_when_asked_to(interrupted, capsys, runs, tmp_path):
    argv, out = interrupted
    run(capsys, *argv, "--seed", 7, "--overwrite")
    run(capsys, "sample", runs / "digits", "--num", 9, "--batch", 3, "--seed", 7, "--out", tmp_path / "direct.npz")
    assert_same(out, tmp_path / "direct.npz")
    assert not parts_of(out).exists()


def test_a_block_that_was_changed_is_not_used(interrupted, capsys):
    argv, out = interrupted
    first = min(parts_of(out).glob("samples-*"))
    first.write_bytes(first.read_bytes()[:-10])
    assert "not a whole safetensors file" in run(capsys, *argv, code=2).err
    assert not out.exists()


def test_two_commands_at_once_for_one_output_are_refused(interrupted, capsys):
    argv, out = interrupted
    with alone_in(parts_of(out), "drawing samples"):
        assert "another process is drawing samples in" in run(capsys, *argv, code=2).err
    run(capsys, *argv)


def test_what_an_interrupted_writer_left_is_cleared(interrupted, capsys):
    argv, out = interrupted
    (parts_of(out) / ".writing-1-samples-000000006-000000009.safetensors").write_bytes(b"half")
    run(capsys, *argv)
    assert out.exists() and not parts_of(out).exists()


def test_another_batch_changes_rounding_at_most(runs, tmp_path):
    made = {}
    for batch in (1, 5, 64):
        out = tmp_path / f"{batch}.npz"
        argv = ["sample", runs / "digits", "--num", 12, "--batch", batch, "--solver", "ddpm", "--out", out]
        assert main([str(w) for w in argv]) == 0
        made[batch] = arrays(out)["x"]
    for batch in (1, 5):
        np.testing.assert_allclose(made[batch], made[64], atol=2e-5)


def test_an_output_is_whole_or_absent(runs, tmp_path, monkeypatch, capsys):
    """A writer that stops half way leaves the blocks, and no output."""
    argv = ["sample", str(runs / "digits"), "--num", "4", "--batch", "2", "--out", str(tmp_path / "folder")]
    with monkeypatch.context() as patch:
        from PIL import Image

        count = []
        save = Image.Image.save
        patch.setattr(
            Image.Image, "save", lambda self, path: save(self, path) if count.append(0) or len(count) < 3 else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            main(argv)
    assert not (tmp_path / "folder").exists() and len(list(parts_of(tmp_path / "folder").glob("samples-*"))) == 2
    run(capsys, *argv)
    assert len(list((tmp_path / "folder").glob("*.png"))) == 4
