"""Bad data, bad disks and damaged files: named, refused, and nothing good is lost."""

import errno
import json
import resource
import signal

import pytest
import tiny_training as tiny
import torch
from torch import nn

from condiff.denoiser import Denoiser
from condiff.errors import BadFile, Incompatible, NonFinite
from condiff.process import Gaussian, Rectified
from condiff.training import Denoising, checkpoint
from condiff.training.checkpoint import read_state


def content(folder):
    """Every file's bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def no_litter(run):
    assert not [p for p in run.rglob("*") if "writing" in p.name or p.name.startswith(".tmp")]


# Losses that are not numbers


def test_nan_in_the_data_is_named(tmp_path):
    run = tmp_path / "run"
    work = tiny.trainer(run, data=tiny.TinyData(spoiled=[33]), steps=40)
    where = next(s for s in range(7) if 33 in torch.cat([rows for _, rows in work.loader.order.rows(s)]))
    said = rf"step {where + 1}: loss is nan.* 1 rows: data row 33, whose x holds NaN"
    with pytest.raises(NonFinite, match=said) as error:
        work.fit()
    assert "at t = 0." in str(error.value)
    assert "last checkpoint is untouched" in str(error.value)
    steps = work.checkpoints.steps()
    assert steps[-1] == where // 5 * 5
    read_state(work.checkpoints.path(steps[-1]))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == where  # the bad step is not among them, and all that are there are JSON
    assert all(json.loads(line)["loss"] for line in lines)


class Explodes(nn.Module):
    """The tiny network until its ``at``-th call."""

    condition_kinds = tiny.TinyNet.condition_kinds

    def __init__(self, at, how):
        super().__init__()
        self.inner, self.at, self.how, self.calls = tiny.TinyNet(), at, how, 0

    def forward(self, x, time, cond):
        self.calls += 1
        out = self.inner(x, time, cond)
        return self.how(out) if self.calls == self.at else out


def exploding(at, how):
    return Denoiser(Explodes(at, how), Gaussian(Rectified()), "velocity", shape=(4,))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_explodes_is_named_and_the_checkpoint_kept(tmp_path, accumulate):
    work = tiny.trainer(tmp_path / "run", model=exploding(7 * accumulate, lambda out: out / 0.0), accumulate=accumulate)
    with pytest.raises(NonFinite, match=r"step 7: loss is (inf|nan).*rows: data row \d+, at t = 0\.\d+"):
        work.fit()
    assert work.checkpoints.steps() == [0, 5]
    kept = content(tmp_path / "run" / "checkpoints" / "step-000005")
    resumed = tiny.trainer(tmp_path / "run", model=exploding(0, None), accumulate=accumulate, resume=True)
    assert resumed.step == 5
    assert content(tmp_path / "run" / "checkpoints" / "step-000005") == kept


def test_a_gradient_that_explodes_is_named():
    class Sharp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    work = tiny.trainer(model=exploding(3, Sharp.apply))
    with pytest.raises(NonFinite, match=r"step 3: grad_norm is (inf|nan)\. The losses are finite"):
        work.fit()


def test_a_part_that_explodes_is_named():
    class Objective(Denoising):
        def __call__(self, *args, **kwargs):
            losses = super().__call__(*args, **kwargs)
            nan = torch.tensor(float("nan"))
            return losses._replace(loss=losses.loss + nan, parts={"balance": nan})

    with pytest.raises(NonFinite, match=r"step 1: loss is nan, balance is nan.*The rows of this process are finite"):
        tiny.trainer(objective=Objective()).fit()


# Disks


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    work = tiny.trainer(run)
    put, calls = checkpoint.put_tensors, []

    def full(path, tensors, metadata=None):
        calls.append(path)
        if len(calls) == 5:  # in the middle of the second checkpoint
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        put(path, tensors, metadata)

    monkeypatch.setattr(checkpoint, "put_tensors", full)
    with pytest.raises(BadFile, match=r"step-000010: the disk is full. What was there before is untouched"):
        work.fit()
    assert work.checkpoints.steps() == [0, 5]
    no_litter(run)
    monkeypatch.undo()
    again = tiny.trainer(run, resume=True)
    assert again.step == 5
    again.fit()
    whole = tiny.trainer()
    whole.fit()
    assert tiny.same(tiny.weights(whole.denoiser), tiny.weights(again.denoiser))


def test_a_disk_that_refuses_to_grow(tmp_path):
    """The kernel's own refusal, in the middle of a write: no file may grow past some bytes."""
    run = tmp_path / "run"
    work = tiny.trainer(run)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(BadFile, match="step-000005: the disk is full"):
            work.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert work.checkpoints.steps() == [0]
    read_state(work.checkpoints.path(0))
    no_litter(run)


# Damaged and foreign files


@pytest.fixture
def finished(tmp_path):
    run = tmp_path / "run"
    tiny.trainer(run).fit()
    return run


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit(path):
    path.write_text(path.read_text().replace('"step": 20', '"step": 19'))


@pytest.mark.parametrize(
    ("file", "damage", "match"),
    [
        ("model.safetensors", truncate, "model.safetensors is truncated or was changed"),
        ("model.safetensors", flip, "model.safetensors is truncated or was changed"),
        ("optimizer.safetensors", flip, "optimizer.safetensors is truncated or was changed"),
        ("ema-0.999.safetensors", lambda p: p.unlink(), "ema-0.999.safetensors is missing"),
        ("state.json", truncate, "state.json is not valid JSON"),
        ("state.json", edit, "state.json was changed after it was written"),
        ("state.json", lambda p: p.unlink(), "no such file.*state.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(finished, file, damage, match):
    damage(finished / "checkpoints" / "step-000020" / file)
    with pytest.raises(BadFile, match=match):
        read_state(finished / "checkpoints" / "step-000020")
    with pytest.warns(UserWarning, match=rf"passed over: .*{match}.*step-000015"):
        again = tiny.trainer(finished, resume=True)
    assert again.step == 15
    again.fit()
    whole = tiny.trainer()
    whole.fit()
    assert tiny.same(tiny.weights(whole.denoiser), tiny.weights(again.denoiser))
    read_state(finished / "checkpoints" / "step-000020")  # written anew


def test_without_a_valid_checkpoint_nothing_is_resumed(finished):
    for folder in (finished / "checkpoints").iterdir():
        truncate(folder / "model.safetensors")
    with pytest.raises(BadFile, match=r"no valid checkpoint in .*step-000020/model.safetensors is truncated"):
        tiny.trainer(finished, resume=True)


def test_another_model_is_not_resumed(finished):
    with pytest.raises(Incompatible, match="does not fit the model"):
        tiny.trainer(finished, model=tiny.denoiser(width=8), resume=True)
    other = Denoiser(tiny.TinyNet(), Gaussian(Rectified(shift=3.0)), "velocity", shape=(4,))
    with pytest.raises(Incompatible, match=r"another denoiser: process.schedule.shift is 1.0 in the file and 3.0 here"):
        tiny.trainer(finished, model=other, resume=True)


def test_a_refused_resume_changes_nothing(finished):
    before = content(finished)
    with pytest.raises(Incompatible):
        tiny.trainer(finished, resume=True, lr=0.5)
    assert content(finished) == before
