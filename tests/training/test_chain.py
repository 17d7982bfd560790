"""Stages one after the other: what each begins with, what is stored, and that a run that was cut goes on as if not."""

import json

import pytest
import tiny_training as tiny
import torch
import two_processes

from condiff.conditions import GuidanceScale, Label
from condiff.denoiser import Denoiser
from condiff.distill import Chain, DistilledGrid, Halving, Stage, guided_stage, halving_stages
from condiff.errors import BadFile, BadType, BadValue, Incompatible
from condiff.files import read_tensors
from condiff.model_files import load_model
from condiff.networks import MLP, LoRA
from condiff.process import Cosine, Gaussian
from condiff.sampling import DDIM, Overshoot
from condiff.training import Denoising, TrainConfig, Trainer


def config(**changes):
    base = {"steps": 12, "batch": 8, "lr": 1e-3, "save_every": 4, "log_every": 4, "ema": (0.9,), "tensorboard": False}
    return TrainConfig(**{**base, **changes})


def start(seed=0):
    torch.manual_seed(seed)
    net = MLP(shape=(4,), width=16, depth=1, conditions={"label": Label(3)})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Denoiser(net, Gaussian(Cosine()), "v", shape=(4,))


def stages(**changes):
    return (
        Stage(name="teacher", objective=Denoising(), training=config()),
        guided_stage(1.0, 3.0, config(**changes), features=16),
        *halving_stages(2, 1, config(schedule="linear"), scales=(1.0, 3.0)),
    )


def chain(folder=None, **options):
    return Chain(start(), tiny.TinyData(), options.pop("stages", stages()), folder, quiet=True, **options)


def tensors(path):
    return read_tensors(path)[0]


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, stage_name, step):
    """The trainings stop at a step of a stage."""
    from condiff.training.engine import Engine

    advance = Engine.advance

    def until(self, at, batches):
        inside = type(self.objective).__name__, getattr(self.objective, "steps", None)
        if at == step and inside == stage_name:
            raise Interrupted
        return advance(self, at, batches)

    monkeypatch.setattr(Engine, "advance", until)


GUIDED, TWO, ONE = ("GuidedDistillation", None), ("Halving", 2), ("Halving", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert chain(folder).fit().stage == "steps-1"
    return folder


@pytest.mark.parametrize(("where", "step"), [(GUIDED, 0), (GUIDED, 7), (TWO, 5), (ONE, 0), (ONE, 11)])
def test_resume_is_bit_exact(tmp_path, whole, monkeypatch, where, step):
    with monkeypatch.context() as patch:
        interrupt(patch, where, step)
        with pytest.raises(Interrupted):
            chain(tmp_path / "run").fit()
    done = {f.parent.name: f.stat().st_mtime_ns for f in (tmp_path / "run").glob("stages/*/metrics.jsonl")}
    finished = {f.parent.name for f in (tmp_path / "run").glob("stages/*/finished.json")}
    other = Chain(start(), tiny.TinyData(), stages(), tmp_path / "run", quiet=True, resume=True)
    torch.manual_seed(5)
    assert other.fit() == (12, False, None, "steps-1")
    for name in ("teacher", "guided", "steps-2", "steps-1"):
        for file in ("model.safetensors", "model-ema.safetensors"):
            a, b = (folder / "stages" / name / file for folder in (whole, tmp_path / "run"))
            assert tiny.same(tensors(a), tensors(b)), (name, file)
    assert tiny.same(tensors(whole / "model-ema.safetensors"), tensors(tmp_path / "run" / "model-ema.safetensors"))
    for name in finished:  # not repeated
        assert (tmp_path / "run/stages" / name / "metrics.jsonl").stat().st_mtime_ns == done[name]


def test_a_finished_chain_resumes_to_itself(tmp_path, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.glob("stages/**/*.safetensors")}
    again = chain(whole, resume=True)
    assert again.fit() == (12, False, None, "steps-1")
    assert {p: p.stat().st_mtime_ns for p in whole.glob("stages/**/*.safetensors")} == before
    assert list(again.models) == ["teacher", "guided", "steps-2", "steps-1"]


def test_files_tell_the_whole_chain(whole):
    told = json.loads((whole / "config.json").read_text())
    assert [s["name"] for s in told["stages"]] == ["teacher", "guided", "steps-2", "steps-1"]
    assert told["stages"][2]["objective"]["part"] == "distill.Halving"
    assert told["stages"][2]["grid"] == {"part": "distill.DistilledGrid", "trained": 2}
    assert "guidance" in told["denoiser"]["network"]["conditions"]


def test_models_are_the_stages(whole):
    final, last, guided = (load_model(f) for f in (whole, whole / "stages/steps-1", whole / "stages/guided"))
    x, cond = torch.randn(2, 4), {"label": torch.tensor([0, 1]), "guidance": torch.tensor([1.0, 2.0])}
    assert torch.equal(final(x, 0.5, cond).v, last(x, 0.5, cond).v)
    assert not torch.equal(final(x, 0.5, cond).v, guided(x, 0.5, cond).v)
    assert "guidance" not in load_model(whole / "stages/teacher").kinds


def test_in_memory_it_is_the_same(whole):
    work = chain()
    work.fit()
    assert tiny.same(work.models["steps-1"].state_dict(), tensors(whole / "model-ema.safetensors"))


def updated_stages(lora=LoRA(rank=2, targets=()), **changes):
    """Guidance, then a halving, by low-rank updates."""
    rest = halving_stages(2, 2, config(**changes), scales=(1.0, 3.0), lora=lora)
    return guided_stage(1.0, 3.0, config(**changes), features=16, lora=lora), *rest


def test_low_rank_updates_are_merged_when_their_stage_ends(tmp_path):
    """The updates have their rank, what the stage adds learns freely, and the folders are those of plain models."""
    work = chain(tmp_path / "run", stages=updated_stages())
    work.fit()
    before, guided = (model.state_dict() for model in (start(), load_model(tmp_path / "run/stages/guided")))
    raw, two = load_model(tmp_path / "run/stages/guided", "raw").state_dict(), work.models["steps-2"].state_dict()
    assert raw.keys() == guided.keys() == two.keys() and not any("lora" in key for key in two)
    for old, new in ((before, guided), (before, raw), (guided, two)):
        ranks = {k: int(torch.linalg.matrix_rank(new[k] - v, atol=1e-6)) for k, v in old.items() if v.ndim == 2}
        assert max(ranks.values()) == 2 and sum(map(bool, ranks.values())) > 3, ranks
        assert all(torch.equal(new[k], v) for k, v in old.items() if v.ndim == 1)
    fresh = guided["network.bank.entries.guidance.fc2.weight"]
    assert int(torch.linalg.matrix_rank(fresh)) > 2
    assert all(p.requires_grad for p in work.models["steps-2"].parameters())
    memory = chain(stages=updated_stages())
    memory.fit()
    assert tiny.same(memory.models["steps-2"].state_dict(), tensors(tmp_path / "run/model-ema.safetensors"))
    assert load_model(tmp_path / "run")(torch.randn(2, 4), 0.5, {"guidance": torch.ones(2)}).v.shape == (2, 4)


def test_low_rank_stages_resume_bit_for_bit(tmp_path, monkeypatch):
    chain(tmp_path / "whole", stages=updated_stages()).fit()
    for where, step in ((GUIDED, 7), (TWO, 5)):
        with monkeypatch.context() as patch:
            interrupt(patch, where, step)
            with pytest.raises(Interrupted):
                chain(tmp_path / "cut", stages=updated_stages(), resume=where == TWO).fit()
    chain(tmp_path / "cut", stages=updated_stages(), resume=True).fit()
    for name in ("model", "model-ema"):
        assert tiny.same(*(tensors(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut")))
    with pytest.raises(Incompatible, match="other stages"):
        chain(tmp_path / "cut", stages=updated_stages(None), resume=True)
    with pytest.raises(Incompatible, match="sharded"):
        guided_stage(training=config(parallel="fsdp"), lora=LoRA())


CHAIN_IN_TWO = """
import sys
import test_chain
assert test_chain.chain(sys.argv[1]).fit().stage == "steps-1"
"""


def test_two_processes_run_the_chain_of_one(tmp_path, whole):
    """The weights go from stage to stage as in one process, up to round-off that four trainings amplify."""
    two = tmp_path / "two"
    two_processes.run_two(CHAIN_IN_TWO, two)
    assert chain(two, resume=True).fit() == (12, False, None, "steps-1")  # finished, for one process too
    for name in ("teacher", "guided", "steps-2", "steps-1"):
        ours, theirs = (two_processes.lines(run / "stages" / name) for run in (two, whole))
        losses = [torch.tensor([record["loss"] for record in records]) for records in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
    weights = [tensors(run / "model-ema.safetensors") for run in (two, whole)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


def test_each_stage_begins_with_the_one_before_and_is_taught_by_it(whole):
    step0 = tensors(whole / "stages/steps-2/checkpoints/step-000008/model.safetensors")  # the oldest that is kept
    assert step0.keys() == tensors(whole / "stages/guided/model-ema.safetensors").keys()
    stage, before = stages()[1], load_model(whole / "stages/teacher")
    student = stage.student(before)
    x, label = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    scales = torch.linspace(1.0, 3.0, 5)
    assert torch.equal(student(x, 0.3, {"label": label, "guidance": scales}).v, before(x, 0.3, {"label": label}).v)
    assert tiny.same(stage.student(before).state_dict(), student.state_dict())  # a function of the seed


def test_every_stage_is_taught_by_the_averaged_model_of_the_one_before(monkeypatch):
    """Student and teacher of each stage are what the stage before has made, not the start, nor its raw weights."""
    seen = {"trained": [], "taught": []}
    for what, given in seen.items():
        plain = getattr(Stage, what)

        def watched(self, before, plain=plain, given=given):
            given.append(tiny.weights(before))
            return plain(self, before)

        monkeypatch.setattr(Stage, what, watched)
    work = chain()
    work.fit()
    made = [tiny.weights(start()), *(tiny.weights(model) for model in work.models.values())]
    for given in seen.values():
        assert len(given) == 4
        assert all(tiny.same(a, b) for a, b in zip(given, made, strict=False))


def test_the_start_is_left_as_it_is():
    model = start()
    before = tiny.weights(model)
    Chain(model, tiny.TinyData(), stages()[1:], quiet=True).fit()
    assert tiny.same(before, model.state_dict())
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_a_stage_alone_is_a_training(tmp_path):
    """A chain of one stage ends where the trainer does."""
    alone = Trainer(start(), tiny.TinyData(), Denoising(), config(), tmp_path / "plain", quiet=True)
    alone.fit()
    one = chain(tmp_path / "chain", stages=stages()[:1])
    one.fit()
    plain, chained = (tensors(tmp_path / n / "model-ema.safetensors") for n in ("plain", "chain"))
    assert tiny.same(plain, chained)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: stages()[:3], "another denoiser|another objective|other stages"),
        (lambda: stages(lr=5e-3), "other stages"),
    ],
)
def test_another_chain_is_not_resumed(whole, change, match):
    with pytest.raises(Incompatible, match=match):
        chain(whole, stages=change(), resume=True)


def test_refusals(tmp_path, whole):
    with pytest.raises(BadFile, match="continue it with resume=True"):
        chain(whole)
    with pytest.raises(BadFile, match="no run to resume"):
        chain(tmp_path / "none", resume=True)
    with pytest.raises(BadValue, match="needs run_dir"):
        chain(resume=True)
    with pytest.raises(BadValue, match="different names"):
        chain(stages=(*stages(), stages()[0]))
    with pytest.raises(BadType, match="one or more Stage"):
        chain(stages=())
    with pytest.raises(BadType, match="a module"):
        Chain(lambda x: x, tiny.TinyData(), stages())
    with pytest.raises(BadValue, match="named by small letters"):
        Stage(name="../escape")
    with pytest.raises(BadType, match="TrainConfig"):
        Stage(name="a", training=3)
    with pytest.raises(Incompatible, match="TinyNet can't be told more"):
        Chain(tiny.denoiser(), tiny.TinyData(), [guided_stage()])
    noisy = Denoiser(start().network, Gaussian(Cosine()), "noise", shape=(4,))
    with pytest.raises(Incompatible, match="can't be distilled to 2 steps"):  # before the first stage is trained
        Chain(noisy, tiny.TinyData(), stages())
    with pytest.raises(BadValue, match="already"):
        Chain(start(), tiny.TinyData(), [guided_stage(), Stage(name="b", conditions={"guidance": GuidanceScale()})])


@pytest.mark.parametrize(("first", "last"), [(6, 2), (12, 5), (4, 8), (4, 0), (3, 1)])
def test_steps_that_halving_does_not_connect(first, last):
    with pytest.raises(BadValue, match="doesn't lead to"):
        halving_stages(first, last)


def test_stages_of_halving():
    made = halving_stages(16, 4, scales=(1.0, 3.0), stochastic=True)
    assert [s.name for s in made] == ["steps-16", "steps-8", "steps-4"]
    assert made[0].solver == Overshoot() and made[0].objective.double
    assert halving_stages(4, 4)[0].solver == DDIM()
    assert made[2].grid == DistilledGrid(4) and isinstance(made[2].objective, Halving)
