"""The whole denoiser, guided or not: transforms of torch.func, compilation, times of all shapes."""

import pytest
import torch
from torch.func import jacrev, jvp, vmap

from condiff.conditions import Condition, Conditions, Label
from condiff.denoiser import Denoiser, EDMPrecondition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Free
from condiff.networks import MLP, DiT
from condiff.process import EDM, Bridge, Gaussian, Rectified, VPLinear

LABELS = torch.tensor([1, 2, 3])
MODELS = [("velocity", Rectified(), None), ("noise", VPLinear(), None), ("x0", EDM(), EDMPrecondition())]
GUIDES = {
    "plain": lambda model: model,
    "guided": lambda model: Free(model, scale=2.0, interval=(0.1, 0.9)),
    "per row": lambda model: Free(model, scale=torch.tensor([1.0, 2.0, 3.0])),
}


def model_of(target, schedule, precondition, attention="plain"):
    torch.manual_seed(0)
    net = DiT(shape=(1, 4, 4), width=16, depth=1, heads=2, conditions={"label": Label(10)}, attention=attention)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Denoiser(net, Gaussian(schedule), target, precondition, (1, 4, 4)).eval()


def x_of(seed=0):
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def told(labels=LABELS):
    return Conditions({"label": Condition(labels, "label")})


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("parts", MODELS, ids=lambda p: p[0])
def test_derivatives_in_the_state_and_in_time(parts, guide):
    model, x, v = GUIDES[guide](model_of(*parts)), x_of(), x_of(1)
    t = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    _, along = jvp(lambda a: model(a, t, told()).x0, (x,), (v,))
    _, back = torch.func.vjp(lambda a: model(a, t, told()).x0, x)
    (pulled,) = back(v)
    torch.testing.assert_close((along * v).sum(), (pulled * v).sum(), rtol=1e-4, atol=1e-4)
    _, slope = jvp(lambda s: model(x, s, told()).x0, (t,), (torch.ones_like(t),))
    h = 2e-5
    centre = (model(x, t + h, told()).x0 - model(x, t - h, told()).x0) / (2.0 * h)
    assert (slope - centre).norm() < 0.02 * slope.norm()


@pytest.mark.parametrize("parts", MODELS, ids=lambda p: p[0])
def test_vmap_over_samples_with_their_times_and_labels(parts):
    model, x, t = model_of(*parts), x_of(), torch.tensor([0.3, 0.5, 0.7])

    def one(x, t, label):
        return model(x[None], t[None], told(label[None])).x0[0]

    torch.testing.assert_close(vmap(one)(x, t, LABELS), model(x, t, told()).x0, rtol=1e-5, atol=1e-5)
    jacobian = vmap(jacrev(one))(x, t, LABELS)
    _, along = jvp(lambda a: model(a, t, told()).x0, (x,), (x_of(1),))
    torch.testing.assert_close(torch.einsum("bijkxyz,bxyz->bijk", jacobian, x_of(1)), along, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.5, torch.tensor([0.3, 0.5, 0.7])], ids=["number", "rows"])
@pytest.mark.parametrize("guide", GUIDES)
def test_compiles_whole_without_a_graph_break(guide, t):
    model = GUIDES[guide](model_of(*MODELS[0], "sdpa"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t, y: model(x, t, told(y)).x0, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x_of(), t, LABELS), model(x_of(), t, told()).x0)


def test_times_of_all_shapes():
    model = model_of(*MODELS[0])
    common = model(x_of(), 0.5, told()).x0
    for t in (torch.tensor(0.5), torch.full((3,), 0.5), [0.5, 0.5, 0.5]):
        torch.testing.assert_close(model(x_of(), t, told()).x0, common)
    for t in (torch.full((1,), 0.5), torch.full((4,), 0.5), torch.full((3, 2), 0.5)):
        with pytest.raises(BadValue, match="leading dimensions of x"):
            model(x_of(), t, told())


def test_an_endpoint_takes_the_states_dtype():
    class Net(torch.nn.Module):
        def forward(self, x, time, cond):
            return 0.5 * x

    y = Conditions({"y": Condition(x_of().double(), "endpoint")})
    said = Denoiser(Net(), Bridge(), "x0")(x_of(), 0.5, y)
    assert said.noise.dtype == said.source.dtype == torch.float32


def test_parts_that_do_not_belong_together_are_refused_when_made():
    network = MLP(shape=(2,), width=8, depth=1)
    with pytest.raises(BadType, match=r"isn't a process yet: Gaussian\(Rectified"):
        Denoiser(network, Rectified())
    with pytest.raises(Incompatible, match="outputs=2, this one has 1"):
        Denoiser(network, Gaussian(Rectified()), target=("velocity", "noise"))
