"""The trainer's settings, its files, and that what it does is what a bare loop does."""

import json
import math
import os
import signal

import pytest
import tiny_training as tiny
import torch
from torch import nn

from condiff.errors import BadFile, BadType, BadValue, Incompatible, MissingExtra
from condiff.model_files import load_model
from condiff.random import derive_seed
from condiff.training import Denoising, LogitNormal, Losses, TrainConfig, Trainer, as_batch, train
from condiff.training.order import Order


def test_schedules():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, schedule="cosine", final_lr=0.1)
    assert [config.lr_at(k) for k in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert config.lr_at(10) == pytest.approx(2.0)
    assert config.lr_at(55) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert config.lr_at(100) == pytest.approx(0.2)
    linear = TrainConfig(steps=100, lr=2.0, schedule="linear")
    assert [linear.lr_at(k) for k in (0, 25, 100)] == pytest.approx([2.0, 1.5, 0.0])
    assert TrainConfig(schedule="constant", lr=0.3).lr_at(10**9) == 0.3


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"steps": 0}, BadValue, "steps must be at least 1"),
        ({"steps": 2.5}, BadType, "steps must be an integer"),
        ({"batch": True}, BadType, "batch must be an integer"),
        ({"lr": 0.0}, BadValue, "lr must be positive"),
        ({"lr": math.nan}, BadValue, "lr must be positive and finite"),
        ({"lr": "fast"}, BadType, "lr must be a number"),
        ({"clip": -1.0}, BadValue, "clip must be positive"),
        ({"schedule": "cosin"}, BadValue, "Did you mean 'cosine'"),
        ({"precision": "bf8"}, BadValue, "unknown precision"),
        ({"parallel": "pp"}, BadValue, "unknown parallel"),
        ({"ema": (0.9, 0.9)}, BadValue, "must differ"),
        ({"betas": (0.9, 1.0)}, BadValue, "betas"),
        ({"weight_decay": -1.0}, BadValue, "weight_decay"),
        ({"final_lr": 2.0}, BadValue, "final_lr"),
    ],
)
def test_bad_settings_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        TrainConfig(**changes)


def test_the_order_visits_everything_and_depends_on_seed_and_epoch_only():
    order = Order(10, 4, seed=3)
    rows = [r for step in range(5) for _, piece in order.rows(step) for r in piece.tolist()]
    assert sorted(rows[:10]) == list(range(10)) and sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert [e for e, _ in order.rows(2)] == [0, 1]
    again = Order(10, 4, seed=3)
    assert [r.tolist() for _, r in again.rows(3)] == [r.tolist() for _, r in order.rows(3)]
    shares = [torch.cat([r for _, r in order.rows(2, part, 3)]) for part in range(3)]
    assert torch.equal(torch.cat(shares), torch.cat([r for _, r in order.rows(2)]))
    assert [r for _, piece in Order(3, 8, 0).rows(0) for r in piece.tolist()].__len__() == 8


def test_one_step_is_what_a_bare_loop_does():
    """AdamW on the objective, clipped, at the draws that (seed, step) names."""
    changes = {"steps": 6, "warmup": 2, "clip": 0.5, "weight_decay": 0.1, "dropout": 0.0, "ema": ()}
    work = tiny.trainer(**changes)
    work.fit()
    model, config, data = tiny.denoiser(dropout=0.0), work.config, tiny.TinyData()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, order = torch.optim.AdamW(groups, lr=1.0), Order(len(data), 8, 0)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        ((epoch, rows),) = order.rows(step)
        losses = Denoising(times=LogitNormal())(model, data.batch(rows, epoch), derive_seed(0, "step", step))
        assert losses.loss.item() == pytest.approx(work.history[step]["loss"], rel=1e-6)
        losses.loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm.item() == pytest.approx(work.history[step]["grad_norm"], rel=1e-5)
        optimizer.step(), optimizer.zero_grad()
    torch.testing.assert_close(tiny.weights(model), tiny.weights(work.denoiser), rtol=1e-5, atol=1e-6)


def test_the_run_folder_explains_itself(tmp_path):
    run = tmp_path / "run"
    work = tiny.trainer(run, ema=(0.9, 0.5), extra={"recipe": {"name": "mine"}}, validation=tiny.TinyData(9))
    status = work.fit()
    assert (status.step, status.stopped, status.exit_code) == (20, False, 0)
    files = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    models = {"model.safetensors", "model-ema.safetensors", "model-ema-0.5.safetensors"}
    assert files == {"config.json", "metrics.jsonl", "checkpoints", *models}
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == {"name": "mine"}
    assert config["training"]["seed"] == 0
    assert config["data"] == {"name": "TinyData", "length": 50, "fingerprint": tiny.TinyData().fingerprint()}
    assert config["objective"]["times"]["part"] == "training.LogitNormal"
    assert set(config["versions"]) == {"condiff", "torch", "python"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines] == list(range(1, 21))
    assert {"loss", "lr", "grad_norm", "images_per_s", "time"} <= lines[0].keys()
    assert [r["step"] for r in lines if "validation_loss" in r] == [5, 10, 15, 20]
    net = tiny.TinyNet()
    for weights, want in [("ema", work.averaged()), ("0.5", work.averaged("0.5")), ("raw", work.denoiser)]:
        assert tiny.same(tiny.weights(load_model(run, weights, network=net)), tiny.weights(want))
    at_step = load_model(run / "checkpoints" / "step-000020", "ema", network=net)
    assert tiny.same(tiny.weights(at_step), tiny.weights(work.averaged()))


def test_the_last_and_the_best_are_kept(tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5])
    work = tiny.trainer(tmp_path / "run", validation=tiny.TinyData(9), keep_last=1)
    work.validate = lambda: next(values)
    work.fit()
    assert work.checkpoints.steps() == [10, 20]
    assert work.best == {"step": 10, "validation_loss": 1.0}


def test_validation_uses_common_random_numbers():
    work = tiny.trainer(validation=tiny.TinyData(20), steps=3)
    work.fit()
    assert work.validate() == work.validate()
    raw = tiny.trainer(validation=tiny.TinyData(20), steps=3, ema=())
    raw.fit()
    assert raw.validate() != work.validate()  # the averaged weights are judged where there are some


def test_samples_are_asked_for_with_averaged_weights(tmp_path):
    seen = []

    def sample(model, step, folder):
        assert not model.training
        seen.append((step, folder, tiny.weights(model)))
        torch.rand(3)  # drawing here doesn't change the training

    run = tmp_path / "run"
    work = tiny.trainer(run, sample=sample, sample_every=8)
    work.fit()
    assert [(s, f) for s, f, _ in seen] == [(8, run), (16, run), (20, run)]
    assert tiny.same(seen[-1][2], tiny.weights(work.averaged()))
    plain = tiny.trainer()
    plain.fit()
    assert tiny.same(tiny.weights(plain.denoiser), tiny.weights(work.denoiser))


def test_bf16_trains_near_float32():
    full, low = tiny.trainer(dropout=0.0), tiny.trainer(dropout=0.0, precision="bf16")
    full.fit(), low.fit()
    assert all(p.dtype == torch.float32 for p in low.denoiser.parameters())
    a, b = (torch.tensor([r["loss"] for r in w.history]) for w in (full, low))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_fp16_skips_overflowing_steps_and_finds_its_scale(tmp_path):
    work = tiny.trainer(tmp_path / "run", dropout=0.0, precision="fp16", lr=1e-3)
    full = tiny.trainer(dropout=0.0, lr=1e-3)
    before = tiny.weights(work.denoiser)
    work.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    work.engine.advance(0, iter([as_batch(tiny.TinyData().batch(torch.arange(8)), tiny.TinyData.kinds)]))
    assert tiny.same(before, tiny.weights(work.denoiser))
    work.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)
    work.fit(), full.fit()
    skipped = [r["step"] for r in work.history if r["grad_norm"] is None]
    assert 0 < len(skipped) < 8
    torch.testing.assert_close(work.history[-1]["loss"], full.history[-1]["loss"], rtol=0.1, atol=0.0)
    again = tiny.trainer(tmp_path / "run", dropout=0.0, precision="fp16", lr=1e-3, resume=True)
    assert again.engine.scaler.state_dict() == work.engine.scaler.state_dict()


@pytest.mark.parametrize("changes", [{"compile": "eager"}, {"checkpoint_activations": True}])
def test_compiling_and_recomputing_change_nothing(changes):
    plain, other = tiny.trainer(steps=5), tiny.trainer(steps=5, **changes)
    plain.fit(), other.fit()
    torch.testing.assert_close(tiny.weights(plain.denoiser), tiny.weights(other.denoiser))
    assert other.denoiser.network._compiled_call_impl is None
    assert "forward" not in vars(other.denoiser.network.blocks[0])


def test_recomputing_needs_blocks():
    model = tiny.denoiser()
    model.network.blocks = nn.Sequential(*model.network.blocks)
    with pytest.raises(Incompatible, match="no blocks"):
        tiny.trainer(model=model, checkpoint_activations=True)


def test_an_objective_may_have_weights_and_a_schedule(tmp_path):
    class Learned(nn.Module):
        """A loss with a learned scale, told about the step."""

        def __init__(self):
            super().__init__()
            self.log_scale, self.steps = nn.Parameter(torch.zeros(())), []

        def begin(self, step, steps):
            self.steps.append((step, steps))

        def forward(self, denoiser, batch, rng, training=True):
            losses = Denoising()(denoiser, batch, rng, training)
            scaled = losses.loss * torch.exp(-self.log_scale) + self.log_scale
            return Losses(scaled, losses.per_sample, {"plain": losses.loss.detach()}, losses.t)

    objective = Learned()
    work = tiny.trainer(tmp_path / "run", objective=objective, steps=6, save_every=3)
    work.fit()
    assert objective.steps == [(k, 6) for k in range(6)]
    assert objective.log_scale.item() != 0.0
    assert {"loss", "plain"} <= work.history[0].keys()
    again = Learned()
    tiny.trainer(tmp_path / "run", objective=again, steps=6, save_every=3, resume=True)
    assert again.log_scale.item() == objective.log_scale.item()


def test_another_optimizer(tmp_path):
    make = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    whole = tiny.trainer(tmp_path / "a", optimizer=make, steps=10)
    whole.fit()
    half = tiny.trainer(tmp_path / "b", optimizer=make, steps=10)
    half.engine.advance, advance = None, half.engine.advance

    def until(step, batches):
        if step == 7:
            raise KeyboardInterrupt
        return advance(step, batches)

    half.engine.advance = until
    with pytest.raises(KeyboardInterrupt):
        half.fit()
    again = tiny.trainer(tmp_path / "b", optimizer=make, steps=10, resume=True)
    assert again.step == 5
    again.fit()
    assert tiny.same(tiny.weights(whole.denoiser), tiny.weights(again.denoiser))


def test_workers_and_plain_rows_give_the_same_training():
    class Rows:
        def __init__(self):
            self.data = tiny.TinyData()

        def __len__(self):
            return 50

        def __getitem__(self, i):
            row = self.data.batch(torch.tensor([i]), epoch=0)
            return {"x": row["x"][0], "cond": {"label": row["cond"]["label"][0]}}

    plain = tiny.trainer(steps=4)
    plain.fit()
    for work in (tiny.trainer(steps=4, workers=1), tiny.trainer(steps=4, data=Rows())):
        work.fit()
        assert tiny.same(tiny.weights(plain.denoiser), tiny.weights(work.denoiser))


def test_tensorboard_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    tiny.trainer(tmp_path / "run", tensorboard=True, steps=2).fit()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_wandb_is_asked_for_by_name(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match="pip install wandb"):
        tiny.trainer(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def test_progress_without_a_terminal_is_plain_lines(capsys):
    config = tiny.config(steps=10, log_every=5)
    Trainer(tiny.denoiser(), tiny.TinyData(), Denoising(), config).fit()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 5/10  loss ")
    assert "samples/s" in lines[0] and lines[0].endswith("left")


def test_progress_in_a_terminal_is_a_live_line(capsys, monkeypatch):
    import sys

    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    Trainer(tiny.denoiser(), tiny.TinyData(), Denoising(), tiny.config(steps=10)).fit()
    said = capsys.readouterr().err
    assert "10/10" in said and "loss" in said and "/s" in said


def test_one_process_at_a_time(tmp_path):
    work = tiny.trainer(tmp_path / "run")
    other = tiny.trainer(tmp_path / "run", resume=True)
    advance = work.engine.advance

    def meanwhile(step, batches):
        if step == 3:
            with pytest.raises(BadFile, match="another process is training in"):
                other.fit()
        return advance(step, batches)

    work.engine.advance = meanwhile
    assert work.fit().step == 20


def test_train_is_one_call(tmp_path):
    run = train(
        tiny.denoiser(), tiny.TinyData(), steps=3, batch=8, run_dir=tmp_path / "run", quiet=True, tensorboard=False
    )
    assert run.step == 3 and not run.ema.training
    assert (tmp_path / "run" / "model-ema.safetensors").exists()
    with pytest.raises(BadValue, match="Did you mean 'steps'"):
        train(tiny.denoiser(), tiny.TinyData(), stepz=3)
    with pytest.raises(BadValue, match="either config="):
        train(tiny.denoiser(), tiny.TinyData(), config=TrainConfig(), steps=3)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(BadValue, match=r"samples of shape \(5,\), the denoiser of \(4,\)"):
        tiny.trainer(run, data=tiny.TinyData(size=5))
    with pytest.raises(BadValue, match="no rows"):
        tiny.trainer(run, data=[])
    with pytest.raises(BadType, match="must have a length"):
        tiny.trainer(run, data=iter([]))
    with pytest.raises(BadType, match="a denoiser to train is a module"):
        Trainer(lambda x, t, c: x, tiny.TinyData())
    frozen = tiny.denoiser().requires_grad_(False)
    with pytest.raises(BadValue, match="nothing to train"):
        tiny.trainer(run, model=frozen)
    assert not run.exists()


def test_one_call_does_not_go_on_after_a_signal(tmp_path):
    """What comes after the call in a script counts on a finished training, so the signal ends the script."""

    class Interrupted(Denoising):
        def begin(self, step, steps):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        train(tiny.denoiser(), tiny.TinyData(), Interrupted(), steps=50, batch=8, run_dir=tmp_path / "run", quiet=True)
    assert ended.value.code == 128 + signal.SIGTERM
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved[-1] == "step-000003"
