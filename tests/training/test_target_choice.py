"""A network that chooses its target: the mixed loss against its formula, where the share goes, when it ends."""

import pytest
import torch
from torch import nn

from condiff.conditions import Condition, Conditions
from condiff.data import TensorData
from condiff.denoiser import Denoiser, EDMPrecondition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import Gaussian, Ramps, Rectified, Residual
from condiff.training import Denoising, TargetChoice, TrainConfig, Trainer, choose_target

F64 = torch.float64
PROCESS = Residual(schedule=Ramps(variance=0.25))


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Says(nn.Module):
    """A network that says what a function of (x, t, y) says, times a weight that is 1 and shifted by one that is 0."""

    condition_kinds = {"y": "endpoint"}  # noqa: RUF012

    def __init__(self, fn):
        super().__init__()
        self.fn, self.shift = fn, nn.Parameter(torch.zeros(1))

    def forward(self, x, time, cond):
        return self.fn(x, time.to(x.dtype), cond["y"].value.to(x.dtype)) + self.shift


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_is_the_papers(clip, loss):
    x0, y, z, f = rand(6, 3), rand(6, 3, seed=1), rand(6, 3, seed=2), rand(6, 3, seed=3)
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    choice = TargetChoice(objective=Denoising(loss=loss), clip=clip).double()
    with torch.no_grad():
        choice.share.fill_(0.504)
    model = Denoiser(Says(lambda x, t, y: f), PROCESS, "residual")
    got = choice.objective.at(model, x0, t, z, Conditions({"y": Condition(y, "endpoint")}))
    level, s = PROCESS.at(t), 0.504
    a, b = level.source[:, None], level.noise[:, None]
    x_t = x0 + a * (y - x0) + b * z
    clean = (x_t - a * y - b * f) / (1 - a)
    clean = clean if clip is None else clean.clamp(-clip, clip)
    residual, noise = s * f + (1 - s) * (y - clean), s * (x_t - y - (a - 1) * f) / b + (1 - s) * f
    d = {"l1": torch.abs, "l2": torch.square}[loss]
    expected = (s * d(residual - (y - x0)) + (1 - s) * d(noise - z)).mean(1)
    torch.testing.assert_close(got.per_sample, expected, rtol=1e-6, atol=1e-8)  # the share is stored in float64
    assert set(got.parts) == {"residual", "noise"}


def pairs(count=256):
    """All samples are 0: the residual is y, the noise (x_t - A y) / B."""
    y = rand(count, 4, seed=5).float().clamp(-1, 1)
    return TensorData(torch.zeros(count, 4), {"y": y}, kinds={"y": "endpoint"}, range="keep")


def true_noise(x, t, y):
    level = PROCESS.at(t.double())
    return ((x - level.source[:, None] * y) / level.noise[:, None]).to(x.dtype)


@pytest.mark.parametrize(("says", "target"), [(lambda x, t, y: y, "residual"), (true_noise, "noise")])
def test_it_chooses_what_the_network_can_say(says, target):
    made = []

    def make(kind):
        made.append(kind)
        return Denoiser(Says(says), PROCESS, kind, shape=(4,))

    out = choose_target(make, pairs(), steps=200, batch=32, lr=1e-3, quiet=True)
    assert out.target == target and out.decided and 10 <= out.steps < 30  # at most lr a step with Adam
    assert (out.share > 0.5) == (target == "residual") and made == ["residual"]


def test_an_open_choice_says_so():
    out = choose_target(
        lambda kind: Denoiser(Says(true_noise), PROCESS, kind, shape=(4,)), pairs(), steps=3, lr=1e-4, quiet=True
    )
    assert out.target == "noise" and not out.decided and out.steps == 3


def test_a_training_that_is_done_ends_and_is_saved(tmp_path):
    choice = TargetChoice()
    model = Denoiser(Says(true_noise), PROCESS, "residual", shape=(4,))
    config = TrainConfig(steps=100, batch=32, schedule="constant", tensorboard=False)
    status = Trainer(model, pairs(), choice, config, tmp_path, quiet=True).fit()
    assert choice.done and status.step < 30 and not status.stopped
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if f"{status.step:0>3}" in p.name]
    again = TargetChoice()
    other = Denoiser(Says(true_noise), PROCESS, "residual", shape=(4,))
    resumed = Trainer(other, pairs(), again, config, tmp_path, quiet=True, resume=True)
    assert again.done and torch.equal(again.share, choice.share)
    assert resumed.fit().step == status.step


def test_what_cannot_choose_is_refused():
    batch = pairs().batch([0, 1])
    for model in (
        Denoiser(Says(true_noise), PROCESS, ("residual", "noise")),
        Denoiser(Says(true_noise), Gaussian(Rectified()), "noise", EDMPrecondition()),
    ):
        with pytest.raises(Incompatible, match="one output"):
            TargetChoice()(model, batch, rng=0)
    for make, match in (
        (lambda: TargetChoice(("residual", "residual")), "two quantities"),
        (lambda: TargetChoice(("residual", "nose")), "noise"),
        (lambda: TargetChoice(band=0.5), "band"),
        (lambda: TargetChoice(clip=0.0), "clip"),
        (lambda: TargetChoice(objective="l1"), "Denoising"),
    ):
        with pytest.raises((BadValue, BadType), match=match):
            make()
