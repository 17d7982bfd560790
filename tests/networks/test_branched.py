"""A UNet that splits after its middle is, output by output, a UNet."""

import itertools

import pytest
import torch
from torch import nn

from condiff.conditions import Endpoint, Label
from condiff.config import from_config, to_config
from condiff.denoiser import Denoiser
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks import Branched, BranchedConfig, DiTConfig, UNetConfig
from condiff.process import Residual

NET = UNetConfig(
    shape=(2, 9, 6), width=16, multipliers=(1, 2), layers=1, attention_levels=(1,), conditions={"label": Label(3)}
)
UP = ("up.", "norm.", "output.")


def shaken(net):
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def alone(net, index):
    """The UNet of one output, with the trunk's encoder and that output's decoder."""
    skip = net.config.skips[index]
    from dataclasses import replace

    unet = replace(net.config.network, skip=skip).build()
    rest = [i for i in range(len(net.config.skips)) if i != net.own]
    decoder = net.trunk if index == net.own else net.decoders[rest.index(index)]
    weights = {k: v for k, v in net.trunk.state_dict().items() if not k.startswith(UP)}
    weights |= {k: v for k, v in decoder.state_dict().items() if k.startswith(UP)}
    unet.load_state_dict(weights)
    return unet.eval()


@pytest.mark.parametrize("skips", [("none", "concat"), ("concat", "add", "none"), ("none", "none"), ("add",)], ids=str)
@torch.no_grad()
def test_every_output_is_that_of_a_unet(skips):
    net = shaken(Branched(network=NET, skips=skips))
    for shape in ((2, 9, 6), (2, 8, 8)):
        x, time, cond = torch.randn(3, *shape), torch.rand(3), {"label": torch.tensor([0, 1, 2])}
        outs = net(x, time, cond).chunk(len(skips), dim=1)
        for i, out in enumerate(outs):
            torch.testing.assert_close(out, alone(net, i)(x, time, cond), rtol=1e-5, atol=1e-5)
        for a, b in itertools.combinations(outs, 2):
            assert float((a - b).abs().max()) > 1e-2


def test_all_weights_are_trained():
    net = shaken(Branched(network=NET))
    net(torch.randn(2, 2, 9, 6), torch.rand(2), {"label": torch.tensor([0, 1])}).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_two_heads_of_a_denoiser():
    config = BranchedConfig(network=UNetConfig(shape=(1, 8, 8), width=16, conditions={"degraded": Endpoint(1)}))
    assert from_config(to_config(config)) == config and isinstance(config.build(), nn.Module)
    model = Denoiser(config.build(), Residual(), ("residual", "noise"), shape=(1, 8, 8))
    assert model.kinds == {"degraded": "endpoint"}
    said = model(torch.randn(2, 1, 8, 8), 0.5, {"degraded": torch.randn(2, 1, 8, 8)})
    assert said.residual.shape == said.noise.shape == (2, 1, 8, 8)
    assert Denoiser.from_config(model.config()).config() == model.config()
    with pytest.raises(Incompatible, match="outputs=1"):
        Denoiser(config.build(), Residual(), "residual")


def test_refusals():
    for fields, error in (
        ({"network": NET, "skips": ("conct",)}, BadValue),
        ({"network": NET, "skips": ()}, BadValue),
        ({"network": DiTConfig(shape=(1, 8, 8))}, BadType),
        ({"network": UNetConfig(shape=(1, 8, 8), learned_variance=True)}, BadValue),
    ):
        with pytest.raises(error):
            BranchedConfig(**fields)
