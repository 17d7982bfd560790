"""A run that is stopped, killed or cut short equals one that wasn't, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import tiny_training as tiny
import torch

from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import read_tensors
from condiff.training.log import truncate

TIMING = ("time", "images_per_s")


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def tensors(path):
    return read_tensors(path)[0]


def assert_same_runs(a, b):
    assert metrics(a) == metrics(b)
    for file in ("model.safetensors", "model-ema.safetensors", "model-ema-0.9.safetensors"):
        assert tiny.same(tensors(a / file), tensors(b / file)), file
    last = sorted((a / "checkpoints").iterdir())[-1].name
    for file in ("optimizer.safetensors", "ema-0.9.safetensors"):
        assert tiny.same(tensors(a / "checkpoints" / last / file), tensors(b / "checkpoints" / last / file)), file


class Interrupted(Exception):
    pass


def interrupt_after(work, step):
    advance = work.engine.advance

    def until(at, batches):
        if at == step:
            raise Interrupted
        return advance(at, batches)

    work.engine.advance = until


@pytest.mark.parametrize("stop", [0, 3, 5, 13, 19])
def test_resume_is_bit_exact(tmp_path, stop):
    changes = {"ema": (0.99, 0.9), "accumulate": 2, "validation": tiny.TinyData(9)}
    tiny.trainer(tmp_path / "whole", **changes).fit()
    cut = tiny.trainer(tmp_path / "cut", **changes)
    interrupt_after(cut, stop)
    with pytest.raises(Interrupted):
        cut.fit()
    again = tiny.trainer(tmp_path / "cut", seed=99, resume=True, **changes)  # its own first weights don't matter
    assert again.step == stop // 5 * 5
    torch.manual_seed(123)  # nor does what the global generator has been through, dropout notwithstanding
    again.fit()
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_resumes_to_itself(tmp_path):
    tiny.trainer(tmp_path / "run", ema=(0.99, 0.9)).fit()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert tiny.trainer(tmp_path / "run", ema=(0.99, 0.9), resume=True).fit().step == 20
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


class Nursery:
    """Forks trainings, and kills or stops them."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        self.process = subprocess.Popen(
            [sys.executable, tiny.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def heard(self):
        return json.loads(self.process.stdout.readline())

    def train(self, run, changes, delay=0.0, number=None, when=None):
        """``(exit code, step at the start or None)``; sends signal ``number`` once ``when()`` returns."""
        order = {"run": str(run), "changes": changes, "delay": delay}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        started, said = None, self.heard()
        while "exit" not in said:
            if "ready" in said:
                started = said["ready"]
            if "pid" in said:
                pid = said["pid"]
            if number is not None and ("pid" in said if number == signal.SIGKILL else "ready" in said):
                when()
                with suppress(ProcessLookupError):  # it may have come to its end first: the exit code says so
                    os.kill(pid, number)
            said = self.heard()
        return said["exit"], started


@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.process.communicate()


def wait_for_lines(path, count, seconds):
    """Until the file has grown by ``count`` lines, and a moment more."""
    lines = lambda: path.read_bytes().count(b"\n") if path.exists() else 0
    goal, deadline = lines() + count, time.monotonic() + 20.0
    while lines() < goal and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)


def test_killed_at_random_moments(tmp_path, nursery):
    # Far more steps than twelve kills let pass, also where this process wakes late and many go by.
    changes = {"steps": 600, "save_every": 4, "ema": [0.99, 0.9]}
    tiny.trainer(tmp_path / "whole", **changes).fit()
    run, chance, reached = tmp_path / "cut", random.Random(0), []
    for _ in range(12):  # in the first steps, in setting up, between steps, while files are written
        when = lambda: wait_for_lines(run / "metrics.jsonl", chance.choice([0, 1, 3, 5, 9]), chance.uniform(0.0, 0.03))
        code, started = nursery.train(run, changes, 0.002, signal.SIGKILL, when)
        assert code == -signal.SIGKILL
        reached += [started] if started is not None else []
    assert reached == sorted(reached)
    code, started = nursery.train(run, changes)
    assert code == 0
    assert 0 < started < 600
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, nursery, number):
    changes = {"steps": 4000, "save_every": 4000}
    code, _ = nursery.train(tmp_path / "run", changes, 0.01, number, lambda: time.sleep(0.2))
    assert code == 128 + number
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    done = metrics(tmp_path / "run")[-1]["step"]
    assert 0 < done < 4000
    assert last.name == f"step-{done:06d}"


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert [r["step"] for r in truncate(path, 1)] == [1]
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_an_existing_run_is_not_overwritten(tmp_path):
    tiny.trainer(tmp_path / "run", steps=1)
    with pytest.raises(BadFile, match="continue it with resume=True"):
        tiny.trainer(tmp_path / "run", steps=1)
    with pytest.raises(BadFile, match="no run to resume"):
        tiny.trainer(tmp_path / "nowhere", resume=True)
    with pytest.raises(BadValue, match="needs run_dir"):
        tiny.trainer(resume=True)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lr": 2e-2}, "another training configuration: lr is 0.01 in the file and 0.02 here"),
        ({"steps": 30}, "steps is 20 in the file and 30 here"),
        ({"data": tiny.TinyData(50, spoiled=[3])}, "other data: fingerprint is"),
        ({"objective": tiny.Denoising(antithetic=True)}, "another objective"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, changes, match):
    tiny.trainer(tmp_path / "run").fit()
    with pytest.raises(Incompatible, match=match):
        tiny.trainer(tmp_path / "run", resume=True, **changes)


def test_what_does_not_enter_the_arithmetic_may_change(tmp_path):
    tiny.trainer(tmp_path / "run").fit()
    assert tiny.trainer(tmp_path / "run", resume=True, save_every=7, keep_last=5, log_every=1).step == 20


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    tiny.trainer(steps=3).fit()
    assert torch.equal(before, torch.get_rng_state())
