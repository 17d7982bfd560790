"""``condiff distill`` and runs in stages: trained, stopped, resumed, sampled."""

import json
import shutil

import pytest
import torch
from terminal import SMALL, TINY, run

from condiff.cli.main import main
from condiff.files import read_tensors, write_tensors
from condiff.model_files import load_model

FEW = ["--train-steps", "2", "--batch", "8", "--start", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "digits"
    words = ["train", "digits", "--method", "cfg", "--out", str(folder), "--steps", "3", "--guidance", "2", *TINY]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def fast(trained):
    folder = trained.parent / "fast"
    assert main(["distill", str(trained), "--steps", "4", "2", "--scale", "1", "3", *FEW, "--out", str(folder)]) == 0
    return folder


def test_the_run_is_a_chain_that_says_so(trained, fast):
    told = json.loads((fast / "config.json").read_text())
    assert [s["name"] for s in told["stages"]] == ["teacher", "guided", "steps-4", "steps-2"]
    assert (fast / "report.html").is_file() and json.loads((fast / "metrics.json").read_text())["nfe"] == 2
    teacher = load_model(fast / "stages/teacher").state_dict()
    assert all(bool((teacher[k] == v).all()) for k, v in load_model(trained).state_dict().items())
    assert not (fast / "stages/teacher/metrics.jsonl").exists()  # taken over, not trained again


def sampled(capsys, *words, code=0):
    return run(capsys, "sample", *words, code=code)


@pytest.mark.parametrize(
    ("stage", "calls"), [("", 2), ("stages/steps-4", 4), ("stages/guided", 50), ("stages/teacher", 50)]
)
def test_every_stage_is_sampled_as_a_run(fast, tmp_path, capsys, stage, calls):
    words = [fast / stage, "--guidance", "2.5", "--num", "3", "--out", tmp_path / "x.npz", "--json"]
    made = json.loads(sampled(capsys, *words).out)
    assert made["nfe"] == calls and made["guidance"] == 2.5


def test_the_scale_is_an_input(fast, tmp_path, capsys):
    """A model that learned something of its scale answers differently at two; here its weights are made to."""
    run_folder = tmp_path / "run"
    shutil.copytree(fast, run_folder)
    for name in ("model.safetensors", "model-ema.safetensors"):
        tensors, about = read_tensors(run_folder / name)
        key = "network.bank.entries.guidance.fc2.weight"
        assert key in tensors
        tensors[key] += 3.0
        tensors = {k: v + 0.1 if k.endswith("weight") else v for k, v in tensors.items()}
        write_tensors(run_folder / name, tensors, about)
    files = []
    for scale in ("1", "2", "2"):
        files.append(tmp_path / f"{len(files)}.npy")
        sampled(capsys, run_folder, "--guidance", scale, "--num", "3", "--out", files[-1])
    assert files[0].read_bytes() != files[1].read_bytes() and files[1].read_bytes() == files[2].read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guidance", "8"], r"scales in [1, 3]"),
        (["--steps", "8"], "distilled for 2 steps"),
        (["--start", "0.5"], "has no start to choose"),
    ],
)
def test_what_it_was_not_taught_is_refused(fast, tmp_path, capsys, words, said):
    assert said in sampled(capsys, fast, *words, "--num", "2", "--out", tmp_path / "x.npz", code=2).err


def test_low_rank_stages_are_merged(trained, tmp_path, capsys):
    """What differs from the stage before has the rank that was asked for; the run is like any other."""
    out = tmp_path / "low"
    run(capsys, "distill", trained, "--steps", "4", "--scale", "1", "3", "--lora", "1", *FEW, "--out", out)
    before, after = (load_model(out / "stages" / name).state_dict() for name in ("guided", "steps-4"))
    changed = {k: after[k] - v for k, v in before.items() if not torch.equal(after[k], v)}
    assert len(changed) > 3 and all(int(torch.linalg.matrix_rank(v, atol=1e-6)) == 1 for v in changed.values())
    made = json.loads(sampled(capsys, out, "--guidance", "2", "--num", "2", "--out", tmp_path / "x.npz", "--json").out)
    assert made["nfe"] == 4
    said = run(capsys, "distill", trained, "--lora", "0", "--out", tmp_path / "no", code=2).err
    assert "rank must be at least 1" in said and len(said.splitlines()) == 1


def test_killed_in_a_stage_it_goes_on_there(trained, fast, tmp_path, capsys, monkeypatch):
    from condiff.training.engine import Engine

    advance = Engine.advance

    class Cut(BaseException):
        pass

    def until(self, at, batches):
        if at == 1 and getattr(self.objective, "steps", None) == 2:
            raise Cut
        return advance(self, at, batches)

    words = ["distill", trained, "--steps", "4", "2", "--scale", "1", "3", *FEW, "--out", tmp_path / "cut"]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "advance", until)
        with pytest.raises(Cut):
            main([str(w) for w in words])
    capsys.readouterr()
    said = run(capsys, "train", "--resume", tmp_path / "cut")
    assert "stage 4 of 4: steps-2" in said.err and "stage 3" not in said.err
    ours, whole = (read_tensors(folder / "model-ema.safetensors")[0] for folder in (tmp_path / "cut", fast))
    assert all(bool((ours[k] == v).all()) for k, v in whole.items())


def test_the_method_trains_the_teacher_too(tmp_path, capsys):
    sizes = ["--set", "network.heads=2", "--set", "training.batch=8", "--set", "stages.0.training.steps=1"]
    words = ["train", "digits", "--method", "guided-distillation", "--steps", "2", *SMALL, *sizes, "--json"]
    metrics = json.loads(run(capsys, *words, "--out", tmp_path / "run").out)
    assert metrics["nfe"] == 4 and metrics["train_seconds"] > 0
    lines = (tmp_path / "run/stages/guided/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert len((tmp_path / "run/stages/steps-8/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "4", "3"], "doesn't lead to 3"),
        (["--steps", "6", "--start", "12", "--scale", "1", "1.5"], "guidance 2, outside --scale 1 1.5"),
        (["--steps", "0"], "doesn't lead to 0"),
        (["--set", "stages.7.name=x"], "unknown setting"),
    ],
)
def test_bad_input_is_said_in_a_line(trained, tmp_path, capsys, words, said):
    error = run(capsys, "distill", trained, *words, "--out", tmp_path / "no", code=2).err
    assert said in error and len(error.splitlines()) == 1 and not (tmp_path / "no").exists()


def test_runs_that_can_not_be(trained, fast, tmp_path, capsys):
    assert "exists already" in run(capsys, "distill", trained, "--out", fast, code=2).err
    assert "told its guidance already" in run(capsys, "distill", fast, "--scale", "1", "2", code=2).err
    assert "how many --steps" in run(capsys, "distill", fast, "--out", tmp_path / "a", code=2).err
    plain = tmp_path / "plain"
    words = ["train", "digits", "--method", "ddpm", "--steps", "1", *TINY, "--set", "objective.transform=null"]
    run(capsys, *words, "--out", plain)
    assert "conditions always there" in run(capsys, "distill", plain, "--scale", "1", "2", code=2).err
    assert "can't be distilled to 2 steps" in run(capsys, "distill", plain, "--steps", "2", code=2).err


def test_a_distilled_run_goes_on_from_the_steps_that_it_knows(fast, tmp_path, capsys):
    """Its levels are those of 2 steps: a student of more has a teacher that was never taught."""
    said = run(capsys, "distill", fast, "--steps", "1", "--dry-run", "--out", tmp_path / "dry").out
    assert "name: steps-1" in said and "name: steps-2" not in said and "name: guided" not in said
    words = ["distill", fast, "--out", tmp_path / "no", "--steps"]
    assert "doesn't lead to 4" in run(capsys, *words, "4", code=2).err
    assert "distilled for 2 steps" in run(capsys, *words, "1", "--start", "4", code=2).err
    assert "leave out --stochastic" not in run(capsys, *words, "1", "--dry-run").err
    assert "leave out --stochastic" in run(capsys, *words, "1", "--stochastic", code=2).err


def test_a_dry_run_shows_the_stages_and_trains_nothing(trained, tmp_path, capsys):
    said = run(capsys, "distill", trained, "--steps", "8", "--dry-run", "--out", tmp_path / "dry").out
    assert "name: guided" in said and "name: steps-16" in said and "name: steps-8" in said
    assert not (tmp_path / "dry").exists()
