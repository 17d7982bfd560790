"""Sampling on an accelerator, pretended: nothing mixes devices, and no step waits for a value."""

import pytest
import torch
from pretend import Pretend, There
from solver_cases import ALL, FLOW, VP, each

from condiff.conditions import Label
from condiff.denoiser import Denoiser, EDMPrecondition
from condiff.guidance import Energy, Free, Switch
from condiff.networks import DiT
from condiff.process import Absorbing, Bridge, Discrete, Gaussian, MaskAndUniform, Retimed, StudentT, VPLinear
from condiff.process.oracles import empirical, gaussian, mixture
from condiff.sampling import (
    DDIM,
    ClipX0,
    DynamicThreshold,
    Inpaint,
    PredictorCorrector,
    TauLeaping,
    TokenAncestral,
    Unmask,
    invert,
    sample,
)
from condiff.token_denoiser import TokenDenoiser

ROWS = torch.tensor([[1.0, 0.9], [0.7, 0.9], [0.5, 0.6], [0.2, 0.2], [0.0, 0.0]], dtype=torch.float64)
LABELS = {"label": torch.tensor([0, 1])}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.condition_kinds = {"label": "label"}

    def forward(self, x, time, cond=None):
        assert time.device == x.device
        return 0.1 * x


class Tokens(torch.nn.Module):
    def forward(self, x, time, cond=None):
        return 0.1 * x[..., None] + torch.zeros(5, device=x.device)


def on_device(call, reads=0):
    """The result of ``call()``, made without mixing devices and with so many reads."""
    with Pretend() as device:
        out = call()
    assert isinstance(out, There) and out.raw.isfinite().all()
    assert len(device.reads) == reads, device.reads
    return out.raw


def start():
    with Pretend():
        return torch.linspace(-1.0, 1.0, 6).reshape(2, 3).to("meta")


GUIDES = {
    "plain": lambda model: model,
    "free": lambda model: Free(model, scale=2.0, rescale=0.3),
    "free per row": lambda model: Free(model, scale=torch.tensor([1.0, 2.0]), interval=(0.1, 0.9)),
    "energy": lambda model: Energy(model, lambda u, level, cond: u.square().sum(1), interval=(0.0, 0.95)),
    "switch": lambda model: Switch([model, model], [0.5]),
}


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("grid", [[1.0, 0.7, 0.5, 0.0], ROWS], ids=["common", "rows"])
@each("solver", [*ALL, PredictorCorrector(DDIM())])
def test_solvers(solver, grid, guide):
    model = GUIDES[guide](Denoiser(Net(), FLOW, "velocity", shape=(3,)))
    options = {"solver": solver, "grid": grid, "cond": LABELS, "rng": 0}
    there = on_device(lambda: sample(model, initial=start(), **options))
    torch.testing.assert_close(there, sample(model, initial=start().raw, **options))


MODELS = {
    "edm": lambda: Denoiser(Net(), VP, "x0", EDMPrecondition(), shape=(3,)),
    "table": lambda: Denoiser(Net(), Gaussian(Discrete.cosine(10)), "v", shape=(3,)),
    "retimed": lambda: Free(Retimed(Denoiser(Net(), FLOW, shape=(3,)), VP, outside="nearest"), scale=2.0),
    "gaussian": lambda: gaussian(VP, torch.zeros(3), std=0.5),
    "mixture": lambda: Free(
        mixture(VP, [[-1.0, 0.0, 1.0], [0.5, 1.0, 0.0]], stds=[0.4, 0.6], labels=[0, 1]), scale=2.0
    ),
    "points": lambda: empirical(VP, torch.eye(3)),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("grid", [[1.0, 0.7, 0.5, 0.0], ROWS], ids=["common", "rows"])
def test_denoisers(model, grid):
    model = MODELS[model]()
    cond = LABELS if isinstance(model, Free) else None
    there = on_device(lambda: sample(model, solver=DDIM(), grid=grid, initial=start(), cond=cond))
    torch.testing.assert_close(there, sample(model, solver=DDIM(), grid=grid, initial=start().raw, cond=cond))


def test_a_network_with_its_weights_there():
    net = DiT(shape=(1, 4, 4), width=16, depth=1, heads=2, conditions={"label": Label(4)})

    def call():
        return sample(
            Free(Denoiser(net.to("meta"), FLOW, shape=(1, 4, 4)), scale=2.0), solver=DDIM(eta=1.0), grid=ROWS,
            cond=LABELS, seeds=[3, 4], device="meta",
        )  # fmt: skip

    on_device(call)


MASK = torch.tensor([True, False, True])
CALLS = {
    "held": lambda model, x: sample(model, solver=DDIM(), steps=3, initial=x, held=MASK),
    "hooks": lambda model, x: sample(
        model, solver=DDIM(), steps=3, initial=x, rng=0,
        hooks=[Inpaint(torch.zeros(2, 3), MASK), ClipX0(), DynamicThreshold(0.9)],
    ),
    "negative": lambda model, x: sample(
        Free(model, scale=2.0, negative={"label": torch.tensor([3])}), solver=DDIM(), steps=3, initial=x, cond=LABELS
    ),
    "prior": lambda model, x: sample(model, solver=DDIM(eta=1.0), steps=3, seeds=[1, 2], device="meta"),
    "inversion": lambda model, x: invert(model, x, solver=DDIM(), steps=3).latent,
    "forward": lambda model, x: VP.forward(x, torch.tensor([0.1, 0.2]), rng=0).velocity,
    "times there": lambda model, x: VP.forward(x, torch.tensor([0.1, 0.2]).to("meta"), rng=0).velocity,
    "renoise": lambda model, x: VP.renoise(x, torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]), rng=0),
    "heavy noise": lambda model, x: Gaussian(VPLinear(), StudentT(5.0)).forward(x, 0.5, rng=0).velocity,
    "endpoint": lambda model, x: Bridge().forward(x, torch.tensor([0.1, 0.2]), source=x, rng=0).velocity,
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_other_calls(call):
    on_device(lambda: CALLS[call](Denoiser(Net(), FLOW, "velocity", shape=(3,)), start()))


@pytest.mark.parametrize("solver", [Unmask(), TokenAncestral(), TauLeaping()], ids=str)
@pytest.mark.parametrize("process", [Absorbing(vocab=5), MaskAndUniform(vocab=5)], ids=["mask", "both"])
def test_tokens(process, solver):
    if isinstance(process, MaskAndUniform) and isinstance(solver, Unmask):
        return
    model = TokenDenoiser(Tokens(), process, shape=(6,))
    on_device(lambda: sample(model, solver=solver, steps=3, seeds=[1, 2], device="meta"))
