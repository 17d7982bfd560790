"""Several denoisers of one state as one: fields, what each is told, training, files, another order of the clocks."""

import itertools

import pytest
import torch
from torch import nn

from condiff.conditions import Condition, Conditions, Endpoint, Label
from condiff.denoiser import Denoiser, Plain, Told
from condiff.errors import BadType, BadValue, Incompatible
from condiff.heads import Heads
from condiff.model_files import load_model, save_model
from condiff.networks import DiT
from condiff.process import Clocks, Gaussian, Ramps, Rectified, Residual
from condiff.sampling import DDIM, Uniform, sample
from condiff.training import Denoising

SHAPE = (1, 4, 4)
PROCESS = Residual(schedule=Ramps(variance=0.25))


class Says(nn.Module):
    """Says the time that it is told, everywhere."""

    condition_kinds = {"degraded": "endpoint"}  # noqa: RUF012

    def forward(self, x, time, cond):
        return time.reshape(-1, 1, 1, 1).expand_as(x)


def clocks(process=PROCESS):
    return Heads(
        Denoiser(Says(), process, "residual", Told(coefficient="source"), SHAPE),
        Denoiser(Says(), process, "noise", Told(coefficient="noise"), SHAPE),
    )


def net(seed, **conditions):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = DiT(shape=SHAPE, width=16, depth=1, heads=2, conditions=conditions)
        for parameter in out.parameters():
            nn.init.normal_(parameter, std=0.2)
    return out


def given(rows=3):
    return Conditions({"degraded": Condition(torch.randn(rows, *SHAPE), "endpoint")})


@pytest.mark.parametrize("t", [0.4, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)], ids=["one", "rows"])
def test_each_head_is_told_its_own_clock(t):
    said, level = clocks()(torch.randn(3, *SHAPE), t, given()), PROCESS.at(t)
    for kind, told in (("residual", level.source), ("noise", level.noise)):
        told = torch.as_tensor(told, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(3, *SHAPE)
        torch.testing.assert_close(said.to(kind), told)
    assert set(said.values) == {"residual", "noise"} and clocks().targets == ("residual", "noise")


def test_networks_that_know_their_clock_serve_every_order():
    """Residual first, then noise: each move is of one head, told how much of its own is left."""
    steps, start, cond = 4, torch.randn(3, *SHAPE), given()
    process = Residual(schedule=Clocks.residual_first(Ramps(variance=0.25)))
    ours = sample(clocks().on(process), solver=DDIM(), initial=start, cond=cond, steps=2 * steps, grid=Uniform())
    x, grid = start, torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    level = PROCESS.at(grid)
    for name in ("source", "noise"):
        left = getattr(level, name).tolist()
        for now, then in itertools.pairwise(left):
            x = x - (now - then) * now  # what the head says is what it is told
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_sum_over_the_heads():
    one = Denoiser(net(0, degraded=Endpoint(1)), PROCESS, "residual", shape=SHAPE)
    two = Denoiser(net(1, degraded=Endpoint(1)), PROCESS, "noise", shape=SHAPE)
    x, z, t = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    losses = [Denoising(loss="l1").at(m, x, t, z, given_(x)).loss for m in (one, two, Heads(one, two))]
    torch.testing.assert_close(losses[0] + losses[1], losses[2])
    losses[2].backward()
    assert all(p.grad is not None for p in one.parameters()) and all(p.grad is not None for p in two.parameters())


def given_(x):
    return {"degraded": Condition(0.5 * x, "endpoint")}


def test_conditions_go_to_the_heads_that_know_them():
    plain = Denoiser(net(0), PROCESS, "residual", shape=SHAPE)
    labelled = Denoiser(net(1, label=Label(3)), PROCESS, "noise", shape=SHAPE)
    heads, x, cond = Heads(plain, labelled), torch.randn(3, *SHAPE), given()
    both = cond.replace(label=Condition(torch.arange(3), "label"))
    said = heads(x, 0.5, both)
    torch.testing.assert_close(said.noise, labelled(x, 0.5, both).noise)
    torch.testing.assert_close(said.residual, plain(x, 0.5, cond).residual)
    assert heads.kinds == {"label": "label"}
    with pytest.raises(BadValue, match="labl"):
        heads(x, 0.5, cond.replace(labl=Condition(torch.arange(3), "label")))


def test_a_folder_of_heads(tmp_path):
    heads = Heads(
        Denoiser(net(0, degraded=Endpoint(1)), PROCESS, "residual", Told(coefficient="source"), SHAPE),
        Denoiser(net(1, degraded=Endpoint(1)), PROCESS, "noise", Told(coefficient="noise"), SHAPE),
    )
    save_model(tmp_path, heads)
    back = load_model(tmp_path, "raw")
    x, cond = torch.randn(3, *SHAPE), given()
    assert isinstance(back, Heads) and back.config() == heads.config()
    torch.testing.assert_close(back(x, 0.3, cond).x0, heads(x, 0.3, cond).x0)
    with pytest.raises(BadValue, match="several networks"):
        load_model(tmp_path, "raw", process=PROCESS)


def test_refusals():
    residual, noise = (Denoiser(Says(), PROCESS, kind, shape=SHAPE) for kind in ("residual", "noise"))
    for make, error, match in (
        (lambda: Heads(residual), BadValue, "at least two"),
        (lambda: Heads(residual, residual), BadValue, "different quantities"),
        (lambda: Heads(residual, Says()), BadType, "takes denoisers"),
        (lambda: Heads(residual, Denoiser(Says(), Gaussian(Rectified()), "noise", shape=SHAPE)), Incompatible, "share"),
        (lambda: Heads(residual, Denoiser(Says(), PROCESS, "noise", shape=(1, 5, 5))), Incompatible, "share"),
        (lambda: Told(coefficient="nose"), BadValue, "noise"),
        (lambda: Told(index=True), BadValue, "index"),
    ):
        with pytest.raises(error, match=match):
            make()
    assert isinstance(Told(), Plain) and noise.on(PROCESS).network is noise.network
