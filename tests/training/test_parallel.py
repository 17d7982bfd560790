"""Several processes, and several parts of a batch, train the same model as one."""

import json
import shutil

import pytest
import tiny_training as tiny
import torch
import two_processes
from two_processes import close

from condiff.errors import BadValue, Incompatible
from condiff.model_files import load_weights
from condiff.training import EMA, Denoising, Exponential, LogitNormal, Stratified

CHANGES = {"steps": 8, "dropout": 0.0, "ema": (0.9,), "save_every": 4}


PROGRAM = (
    "import sys, json, pathlib, tiny_training as tiny; order = json.loads(sys.argv[1]);"
    "run = pathlib.Path(order['run']);"
    "work = tiny.trainer(run, validation=tiny.TinyData(order['validation']), **order['changes']); work.fit()"
)


def run_two(run, changes, validation=10):
    two_processes.run_two(PROGRAM, json.dumps({"run": str(run), "changes": changes, "validation": validation}))


VALIDATION = tiny.TinyData(10)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    tiny.trainer(run, validation=VALIDATION, **CHANGES).fit()
    return run


def assert_close_runs(a, b):
    two_processes.assert_close_runs(a, b)
    load_weights(tiny.denoiser(), b / "model-ema.safetensors")


def cut_back(run):
    """Forget everything after the checkpoint of step 4."""
    shutil.rmtree(run / "checkpoints" / "step-000008")


def test_two_processes_train_as_one(tmp_path, alone):
    run_two(tmp_path / "run", {**CHANGES, "accumulate": 2})
    assert_close_runs(alone, tmp_path / "run")


def test_sharded_processes_train_as_one_and_resume_either_way(tmp_path, alone):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    cut_back(run)  # its first half by one process, its second half sharded
    run_two(run, {**CHANGES, "accumulate": 2, "parallel": "fsdp", "resume": True})
    assert_close_runs(alone, run)
    shutil.rmtree(run / "checkpoints" / "step-000004")  # what is left was written sharded
    assert tiny.trainer(run, validation=VALIDATION, resume=True, **CHANGES).fit().step == 8
    assert_close_runs(alone, run)


@pytest.mark.parametrize(("rows", "parallel"), [(1, "fsdp"), (9, "ddp")])
def test_few_validation_rows_are_seen_by_two_processes_as_by_one(tmp_path, rows, parallel):
    """Fewer than processes, and a last batch (of 8) with fewer."""
    changes = {**CHANGES, "steps": 2, "save_every": 1}
    tiny.trainer(tmp_path / "one", validation=tiny.TinyData(rows), **changes).fit()
    run_two(tmp_path / "two", {**changes, "parallel": parallel}, validation=rows)
    assert_close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("accumulate", [2, 3, 8])
@pytest.mark.parametrize("times", [LogitNormal(), Stratified(base=LogitNormal())])
def test_accumulated_parts_equal_the_big_batch(accumulate, times):
    objective = Denoising(times=times)
    whole = tiny.trainer(objective=objective, **CHANGES)
    parts = tiny.trainer(objective=objective, **{**CHANGES, "accumulate": accumulate})
    whole.fit(), parts.fit()
    close(whole.history, parts.history)
    torch.testing.assert_close(tiny.weights(whole.denoiser), tiny.weights(parts.denoiser), rtol=1e-4, atol=1e-5)


def test_a_batch_smaller_than_its_parts_is_refused():
    with pytest.raises(BadValue, match="accumulate=9 parts of a batch of 8"):
        tiny.trainer(accumulate=9)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "asks for bf16"),
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
    ],
)
def test_what_accelerate_launch_asks_for_is_not_ignored(monkeypatch, name, value, match):
    monkeypatch.setenv(name, value)
    with pytest.raises(Incompatible, match=match):
        tiny.trainer()


def test_averages_of_a_moved_module_follow_it():
    model = tiny.denoiser()
    ema = EMA(model, (Exponential(0.5, warm_up=False),))
    before = tiny.weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data + 1.0
    ema.update(1)
    got = ema.tensors("0.5")
    torch.testing.assert_close(got, {k: before[k] + 0.5 for k in before})
