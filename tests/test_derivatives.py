"""Derivatives of denoisers against central differences in float64, and closed forms."""

import pytest
import torch
from torch import nn

from condiff.conditions import Label
from condiff.denoiser import Denoiser, Plain
from condiff.derivatives import divergence, draw_probes, jvp, modules, neighbours, plain_kernels, whole_times
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Classifier, Energy, Free, Given
from condiff.networks import DiT, UNet
from condiff.process import EDM, Cosine, Discrete, Gaussian, Prediction, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.random import as_source

SCHEDULES = [VPLinear(), Cosine(), Rectified(), EDM(), Discrete.stable_diffusion()]
MEANS = [[-1.0, 0.3], [1.0, 0.0], [0.5, 2.0]]
LABEL = {"label": torch.tensor([0, 1, 0, 1])}


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def oracle(schedule):
    return mixture(Gaussian(schedule), MEANS, stds=[0.3, 0.5, 0.4], labels=[0, 0, 1])


def difference(denoiser, x, t, cond, kind, dx, dt, h=1e-5):
    ahead, behind = (denoiser(x + s * h * dx, t + s * h * dt, cond).to(kind) for s in (1, -1))
    return (ahead - behind) / (2.0 * h)


def guided(name, schedule=VPLinear()):
    model = oracle(schedule)
    if name == "free":
        return Free(model, scale=3.0)
    if name == "interval":
        return Free(model, scale=3.0, interval=(0.1, 0.9))
    if name == "rescaled":
        return Free(model, scale=3.0, rescale=0.7)
    if name == "classifier":
        return Classifier(
            Given(model, only=()),
            lambda x, level, cond: model.log_prob(x, level, cond) - model.log_prob(x, level),
            scale=2.0,
        )
    through = name == "energy-through"
    return Energy(model, lambda u, level, cond: (u**4).sum(1), scale=0.1, at="x0", through=through)


@pytest.mark.parametrize("kind", ["noise", "x0", "velocity"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_along_state_and_time_of_oracles(schedule, kind):
    model, x, dx = oracle(schedule), rand(4, 2), rand(4, 2, seed=1)
    t, dt = torch.tensor([0.3003, 0.4004, 0.5005, 0.6006], dtype=torch.float64), torch.linspace(0.5, 2.0, 4).double()
    found = jvp(model, x, t, LABEL, kind=kind, dx=dx, dt=dt)
    torch.testing.assert_close(found.value, model(x, t, LABEL).to(kind))
    expected = difference(model, x, t, LABEL, kind, dx, dt)
    torch.testing.assert_close(found.derivative, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["free", "interval", "rescaled", "classifier", "energy", "energy-through"])
@pytest.mark.parametrize("graph", [False, True], ids=["no_grad", "grad"])
def test_of_guided_denoisers(name, graph):
    model, x, dx = guided(name), rand(4, 2), rand(4, 2, seed=1)
    with torch.set_grad_enabled(graph):
        found = jvp(model, x, 0.5, LABEL, kind="noise", dx=dx, dt=1.5)
        expected = difference(model, x, 0.5, LABEL, "noise", dx, 1.5)
    torch.testing.assert_close(found.value, model(x, 0.5, LABEL).noise)
    torch.testing.assert_close(found.derivative, expected, rtol=1e-6, atol=1e-6)


NETWORKS = {
    "dit": lambda: DiT(shape=(2, 4, 4), width=16, depth=2, heads=2, conditions={"label": Label(2)}),
    "unet": lambda: UNet(shape=(2, 4, 4), width=8, multipliers=(1, 2), groups=4, conditions={"label": Label(2)}),
}


def denoiser(network, schedule=Cosine()):
    torch.manual_seed(0)
    net = NETWORKS[network]()
    for p in net.parameters():
        nn.init.normal_(p, std=0.15)
    return Denoiser(net.double().eval(), Gaussian(schedule), "v", shape=(2, 4, 4))


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_of_networks_with_fused_kernels(network):
    model, x, dx = denoiser(network), rand(4, 2, 4, 4), rand(4, 2, 4, 4, seed=1)
    model = Free(model, scale=2.0)
    found = jvp(model, x, 0.5, LABEL, kind="noise", dx=dx)
    expected = difference(model, x, 0.5, LABEL, "noise", dx, 0.0)
    torch.testing.assert_close(found.derivative, expected, rtol=1e-5, atol=1e-7)
    # Times enter networks in float32, and random networks turn fast in time: a coarser difference at exact times.
    along = jvp(model, x, 0.5, LABEL, kind="noise", dt=1.0).derivative
    coarse = difference(model, x, 0.5, LABEL, "noise", 0.0 * x, 1.0, h=2.0**-16)
    torch.testing.assert_close(along, coarse, rtol=0, atol=2e-3 * float(coarse.abs().max()))


class Rounds(nn.Module):
    """A network that knows whole-numbered times only, by an embedding table or by rounding."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.embed = nn.Embedding(1001, 2).double()
        with torch.no_grad():
            self.embed.weight.copy_(torch.sin(torch.arange(2002.0).reshape(1001, 2) / 300.0))

    def forward(self, x, time, cond):
        time = time if self.table else time.round().long()
        return x * self.embed(time)


class Smooth(nn.Module):
    def forward(self, x, time, cond):
        index = 2.0 * time.double()
        return x * torch.stack([torch.sin(index / 300.0), torch.sin((index + 1.0) / 300.0)], 1)


@pytest.mark.parametrize("table", [True, False], ids=["embedding", "rounding"])
def test_whole_numbered_times_need_a_difference_quotient(table):
    process = Gaussian(Discrete.stable_diffusion())

    class Told(Denoiser):
        def forward(self, x_t, t, cond=None):
            level = self.process.at(t)
            time = torch.as_tensor(level.model_time, dtype=torch.float64).expand(len(x_t))
            if table and bool((time == time.round()).all()):
                time = time.long()
            return Prediction(x_t, level, {"noise": self.network(x_t, time, None)})

    model, x = Told(Rounds(table), process), rand(4, 2)
    assert whole_times(model, x, 0.5)
    with pytest.raises(Incompatible, match="difference quotient"):
        jvp(model, x, 0.5, kind="noise", dt=1.0)
    only_x = jvp(model, x, 0.5, kind="noise", dx=x).derivative
    torch.testing.assert_close(only_x, model(x, 0.5).noise)
    found = jvp(model, x, 0.5, kind="noise", dx=x, dt=2.0, between=neighbours(process, 0.5))
    smooth = Denoiser(Smooth(), process, "noise", Plain(index=True))
    assert not whole_times(smooth, x, 0.5)
    expected = jvp(smooth, x, 0.5, kind="noise", dx=x, dt=2.0)
    torch.testing.assert_close(found.derivative, expected.derivative, rtol=1e-4, atol=1e-4)


def test_a_model_without_time_is_not_one_that_rounds():
    class Blind(nn.Module):
        def forward(self, x, time, cond):
            return torch.tanh(x)

    model = Denoiser(Blind(), Gaussian(Discrete.ddpm()), "noise")
    assert not whole_times(model, rand(4, 2), 0.5)
    assert float(jvp(model, rand(4, 2), 0.5, kind="noise", dt=1.0).derivative.abs().max()) == 0.0


def test_neighbours_are_numbered_levels():
    process = Gaussian(Discrete.ddpm(steps=10))
    assert neighbours(process, 0.5) == pytest.approx((0.4, 0.6))
    assert neighbours(process, 0.53) == pytest.approx((0.5, 0.6))
    assert neighbours(process, 1.0) == pytest.approx((0.9, 1.0))
    assert neighbours(process, 0.1) == pytest.approx((0.1, 0.2))
    assert neighbours(process, 0.04) == pytest.approx((0.04, 0.1))
    with pytest.raises(Incompatible, match="no numbered levels"):
        neighbours(Gaussian(Cosine()), 0.5)


def test_the_switch_reaches_networks_inside_wrappers_and_is_undone():
    model = denoiser("dit")
    outer = Given(Free(model, scale=2.0))
    assert next(iter(modules(outer))) is model
    parts = [m for m in model.modules() if hasattr(m, "backend")]
    with plain_kernels(outer):
        assert parts and {m.backend for m in parts} == {"plain"}
    assert {m.backend for m in parts} == {"sdpa"}


def test_a_kernel_without_derivative_is_named_with_what_to_pick():
    class Fused(nn.Module):
        def forward(self, x, time, cond):
            q = x.reshape(1, 1, *x.shape)
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0].reshape(x.shape)

    model = Denoiser(Fused(), Gaussian(Cosine()), "noise")
    with pytest.raises(Incompatible, match=r"set_attention_backend\('native'\)"):
        jvp(model, rand(4, 8), 0.5, kind="noise", dx=rand(4, 8))


def test_diffusers_attention():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).double().eval()  # fmt: skip

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, time, cond):
            return self.net(x, time).sample

    model = Denoiser(Wrapped(), Gaussian(Discrete.ddpm()), "noise", Plain(index=True))
    x, dx = rand(2, 1, 8, 8), rand(2, 1, 8, 8, seed=1)
    found = jvp(model, x, 0.5, kind="noise", dx=dx).derivative
    torch.testing.assert_close(found, difference(model, x, 0.5, None, "noise", dx, 0.0), rtol=1e-5, atol=1e-7)
    assert not whole_times(model, x, 0.5)


def test_divergence_of_a_gaussian():
    """The score of N(m, C) at a level has the Jacobian -(a^2 C + s^2)^-1."""
    process = Gaussian(VPLinear())
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    model, level = gaussian(process, [1.0, -0.5], cov=cov.tolist()), process.at(0.4)
    total = level.data**2 * cov + level.noise**2 * torch.eye(2, dtype=torch.float64)
    value, found = divergence(model, rand(4, 2), level, kind="score")
    torch.testing.assert_close(value, model(rand(4, 2), level).score)
    torch.testing.assert_close(found, -torch.linalg.inv(total).trace().expand(4, 1))
    probes = draw_probes(4000, "rademacher", rand(1, 2), as_source(0))
    _, guess = divergence(model, rand(1, 2), level, kind="score", probes=probes)
    assert guess.shape == (1, 4000) and float(guess.mean()) == pytest.approx(float(found[0]), abs=0.05)


def test_refusals():
    model, x = oracle(Cosine()), rand(4, 2)
    with pytest.raises(BadValue, match="give a direction"):
        jvp(model, x, 0.5)
    with pytest.raises(BadValue, match="dx of shape"):
        jvp(model, x, 0.5, dx=x[:1])
    with pytest.raises(BadValue, match="dt is a number or one per row"):
        jvp(model, x, 0.5, dt=torch.ones(3))
    with pytest.raises(BadValue, match="velocity"):
        jvp(model, x, 0.5, kind="velocty", dx=x)
    with pytest.raises(BadType, match="floating point"):
        jvp(model, x.long(), 0.5, dx=x.long())
    with pytest.raises(BadValue, match="two times around t"):
        jvp(model, x, 0.5, dt=1.0, between=(0.6, 0.7))
    with torch.inference_mode(), pytest.raises(Incompatible, match="inference_mode"):
        jvp(model, x, 0.5, dx=x)
    joint = type("Joint", (), {"process": object(), "shape": None, "__call__": lambda *a: None})()
    with pytest.raises(Incompatible, match="one continuous state"):
        jvp(joint, x, 0.5, dx=x)
