"""The trial before training: of every kind of data, without a trace in the result, and with the option at fault."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from condiff.data import write_phantoms
from condiff.errors import BadFile, BadValue, Incompatible, MissingExtra, NonFinite
from condiff.files import read_tensors
from condiff.methods import trial
from condiff.methods.runs import DataRequest, Request, open_run, prepare
from condiff.training.engine import Engine
from tests.cli.terminal import TINY, run

WORDS = [*TINY, "--set", "training.batch=4"]
NET = {"network.width": 16, "network.depth": 1}
SMALL = {**NET, "network.heads": 2}
SHORT = {"training.batch": 4, "training.steps": 2, "training.validate_every": 1, "training.tensorboard": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def pictures(place, count):
        place.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(place / f"{i}.png")

    for name, count in {"cells/a": 40, "cells/b": 40, "foggy": 8, "clear": 8, "clips/1": 8, "clips/2": 8}.items():
        pictures(folder / name, count)
    write_phantoms(folder / "scans", 3, side=8)
    (folder / "t.txt").write_text("once upon a time there was a cat. " * 20)
    index = pd.date_range("2024-01-01", periods=60, freq="h", name="t")
    pd.DataFrame({"a": 5 + np.sin(np.arange(60)), "b": 9.0 + rng.random(60)}, index=index).to_csv(folder / "load.csv")
    x = rng.normal(0, 0.2, (70, 12, 2)).astype(np.float32)
    np.savez(folder / "vectors.npz", x=x[:, 0], label=np.arange(70) % 2)
    np.savez(folder / "waves.npz", x=x)
    return folder


# source, paths, options, method, settings
KINDS = {
    "digits": ("digits", (), {}, None, SMALL),
    "images": ("images", ("cells",), {}, None, SMALL),
    "pairs": ("pairs", ("foggy", "clear"), {}, "rddm", {}),
    "unpaired": ("unpaired", ("foggy", "clear"), {}, "stochastic-interpolants", {}),
    "triplets": ("triplets", ("clips",), {}, None, SMALL),
    "volumes": ("volumes", ("scans",), {"target": "t2", "condition": ["t1"]}, None, SMALL),
    "text": ("text", ("t.txt",), {"length": 16}, None, SMALL),
    "joint": ("digits", (), {"joint": ["label"]}, None, {}),
    "windows": ("series", ("load.csv",), {"freq": "h", "horizon": 6, "context": 12, "lags": [1]}, None, {}),
    "clips": ("video", ("clips",), {"given": 1, "frames": 4}, None, SMALL),
    "vectors": ("arrays", ("vectors.npz",), {"cond": ["label"]}, None, NET),
    "series": ("arrays", ("waves.npz",), {}, None, SMALL),
    "chain": ("digits", (), {}, "guided-distillation", SMALL),
}


def request(kind, data, folder):
    source, paths, options, method, settings = KINDS[kind]
    words = DataRequest(source=source, paths=tuple(str(data / p) for p in paths), options=options)
    return Request(data=words, method=method, overrides={**SHORT, **settings}, folder=folder)


def outcome(folder):
    """What a training leaves: weights, and what it logged, times apart."""
    files = sorted(folder.rglob("*.safetensors"))
    weights = {(path.relative_to(folder), k): v for path in files for k, v in read_tensors(path)[0].items()}
    logs = [path.read_text().splitlines() for path in sorted(folder.rglob("metrics.jsonl"))]
    lines = [json.loads(line) for log in logs for line in log]
    return weights, [{k: v for k, v in r.items() if k not in ("time", "images_per_s")} for r in lines]


def assert_same(one, other):
    assert one[1] == other[1]
    torch.testing.assert_close(one[0], other[0], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_one_without_it(kind, data, tmp_path):
    results = []
    for tried in (True, False):
        run = prepare(request(kind, data, tmp_path / str(tried)))
        run.whole = replace(run.whole, stages=run.whole.stages[:2])
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        if tried:
            run.rehearse()
        assert torch.equal(before, torch.random.get_rng_state())
        assert not run.folder.exists()
        run.train(quiet=True)
        results.append(outcome(run.folder))
    assert_same(*results)


def test_a_resumed_run_too(data, tmp_path):
    often = {"training.save_every": 1, "training.keep_last": 9}
    first = request("images", data, tmp_path / "whole")
    prepare(replace(first, overrides={**first.overrides, **often})).train(quiet=True)
    results = [outcome(tmp_path / "whole")]
    for tried in (True, False):
        place = tmp_path / str(tried)
        shutil.copytree(tmp_path / "whole", place)
        shutil.rmtree(place / "checkpoints" / "step-000002")
        (place / "model.safetensors").unlink()
        run = open_run(place, resume=True)
        if tried:
            run.rehearse()
        run.train(quiet=True)
        results.append(outcome(place))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_a_command_says_that_it_tried_and_need_not(tmp_path, capsys, monkeypatch):
    assert "tried: a batch" in run(capsys, "train", "digits", *WORDS, "--dry-run", "--out", tmp_path / "run").out
    monkeypatch.setattr(trial.Trial, "go", lambda *_: pytest.fail("it was told not to"))
    run(capsys, "train", "digits", *WORDS, "--steps", 1, "--no-trial", "--out", tmp_path / "run")
    run(capsys, "distill", tmp_path / "run", "--dry-run", "--no-trial", "--out", tmp_path / "fast")
    run(capsys, "train", "--resume", tmp_path / "run", "--no-trial")


def test_a_distillation_is_tried(tmp_path, capsys):
    run(capsys, "train", "digits", *WORDS, "--steps", 1, "--method", "cfg", "--no-trial", "--out", tmp_path / "run")
    words = ["distill", tmp_path / "run", "--steps", 2, "--start", 4, "--train-steps", 1, "--dry-run"]
    assert "tried: a batch" in run(capsys, *words, "--out", tmp_path / "fast").out
    assert not (tmp_path / "fast").exists()


BAD = {
    "guidance without conditions": (["waves.npz", "--guidance", 2], "sampling", "without --guidance it works"),
    "a target that can't be started from": (
        ["waves.npz", "--set", "target=noise"],
        "sampling",
        "without --set target=... it works",
    ),
    "a grid of another number of steps": (
        ["waves.npz", "--set", 'sampler.grid={"part":"distill.DistilledGrid","trained":3}'],
        "building the model",
        "without --set sampler.grid=... it works",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_the_option_at_fault_is_named(bad, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(data)
    words, phase, hint = BAD[bad]
    for more in ([], ["--dry-run"]):
        said = run(capsys, "train", "arrays", "--data", *words, *WORDS, "--out", tmp_path / "run", *more, code=2)
        assert f"before training, {phase}: " in said.err and hint in said.err
    assert not (tmp_path / "run").exists()


def opened(folder, **options):
    request = Request(data=DataRequest(source="digits"), folder=folder, overrides={"training.batch": 8, **options})
    return prepare(request, dry=True)


def test_a_judge_that_is_absent(tmp_path, monkeypatch):
    def absent(*_):
        raise MissingExtra("this needs the package 'sklearn'")

    monkeypatch.setattr("condiff.methods.kinds.kind.judge_of", absent)
    with pytest.raises(MissingExtra, match=r"before training, judging samples: .*sklearn"):
        opened(tmp_path / "run").rehearse()


def test_samples_that_cannot_be_written(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise MissingExtra("this needs the package 'PIL'")

    monkeypatch.setattr("condiff.figures.grid", absent)
    with pytest.raises(MissingExtra, match=r"before training, writing samples: .*PIL"):
        opened(tmp_path / "run").rehearse()


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(BadFile, match=r"can't be written .*--out"):
            opened(folder).rehearse()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(trial.shutil, "disk_usage", lambda _: full)
    with pytest.raises(BadFile, match=r"two checkpoints take .* MB, and 0 MB are free"):
        opened(tmp_path / "run").rehearse()
    assert not (tmp_path / "run").exists()


def test_too_little_memory_for_a_batch(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

    monkeypatch.setattr(Engine, "rehearse", full)
    with pytest.raises(Incompatible, match=r"a training step: not enough memory .*--batch \(it is 8\)"):
        opened(tmp_path / "run").rehearse()


def test_a_first_loss_that_is_not_a_number(tmp_path):
    np.savez(
        tmp_path / "huge.npz", x=np.full((20, 3), 1e30, dtype=np.float32) * np.arange(20, dtype=np.float32)[:, None]
    )
    words = DataRequest(source="arrays", paths=(str(tmp_path / "huge.npz"),), options={"range": "keep"})
    with pytest.raises(NonFinite, match=r"a training step: step 1: loss is (inf|nan).*: data row"):
        prepare(Request(data=words, folder=tmp_path / "run"), dry=True).rehearse()


def test_a_rollout_that_does_not_fit_what_was_learnt(data, tmp_path):
    """Chunks longer than the clips that there are: trained on none, and rolled out behind none."""
    asked = request("clips", data, tmp_path / "run")
    run = prepare(replace(asked, overrides={**asked.overrides, "objective.lengths.frames": 9}))
    with pytest.raises(BadValue, match=r"before training, .*frames"):
        run.rehearse()
