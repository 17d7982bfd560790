"""Tiny networks of every kind, with weights that aren't zero, and inputs for them."""

import torch

from condiff.conditions import Condition, Conditions, Frames, Label, Map, Observation, Tokens
from condiff.networks import MLP, DiT, GatedSeries, UNet

LABEL = {"label": Label(10)}
TEXT = {"label": Label(10), "text": Tokens(5)}
BUILD = {
    "mlp": lambda **k: MLP(shape=(6,), width=16, depth=2, conditions=LABEL, **k),
    "dit-image": lambda **k: DiT(shape=(2, 4, 6), width=16, depth=2, heads=2, conditions=LABEL, **k),
    "dit-volume": lambda **k: DiT(
        shape=(1, 2, 4, 4), width=24, depth=2, heads=2, patch=(1, 2, 2), positions="rotary", conditions=LABEL, **k
    ),
    "dit-video": lambda **k: DiT(
        shape=(3, 2, 4, 4),
        layout="video",
        width=24,
        depth=2,
        heads=2,
        patch=(1, 2, 2),
        positions="rotary",
        qk_norm=True,
        conditions={**LABEL, "past": Frames(2, 2), "depth": Map(1)},
        **k,
    ),
    "dit-series": lambda **k: DiT(
        shape=(8, 3), width=16, depth=2, heads=2, patch=1, conditions={**LABEL, "seen": Observation(3)}, **k
    ),
    "gated-series": lambda **k: GatedSeries(
        shape=(8, 3), width=16, depth=2, states=8, conditions={**LABEL, "seen": Observation(3)}, **k
    ),
    "dit-cross": lambda **k: DiT(shape=(1, 4, 4), width=16, depth=2, heads=2, conditions=TEXT, **k),
    "dit-joint": lambda **k: DiT(shape=(1, 4, 4), width=16, depth=2, heads=2, tokens="joint", conditions=TEXT, **k),
    "unet-signal": lambda **k: UNet(
        shape=(2, 9), layout="signal", width=8, multipliers=(1, 2), groups=4, conditions=LABEL, **k
    ),
    "unet-image": lambda **k: UNet(
        shape=(1, 6, 5),
        width=8,
        multipliers=(1, 2, 2),
        strides=((2, 1), 2),
        layers=1,
        attention_levels=(1,),
        head_width=8,
        groups=4,
        conditions=TEXT,
        **k,
    ),
    "unet-volume": lambda **k: UNet(
        shape=(1, 3, 4, 4), width=8, multipliers=(1, 2), layers=1, groups=4, skip="add", conditions=LABEL, **k
    ),
    "unet-video": lambda **k: UNet(
        shape=(3, 1, 4, 4),
        layout="video",
        width=8,
        multipliers=(1, 2),
        strides=((1, 2, 2),),
        layers=1,
        groups=4,
        skip="none",
        film="add",
        conditions={**LABEL, "past": Frames(2, 1)},
        **k,
    ),
}
VALUES = {
    "label": lambda b: Condition(torch.arange(b) % 10, "label"),
    "text": lambda b: Condition(torch.randn(b, 3, 5), "tokens", mask=torch.tensor([[True, True, False]]).repeat(b, 1)),
    "past": lambda b, c=2: Condition(torch.randn(b, 2, c, 4, 4), "frames"),
    "depth": lambda b: Condition(torch.randn(b, 3, 1, 4, 4), "map"),
    "seen": lambda b: Condition(torch.randn(b, 8, 3), "observation", mask=torch.rand(b, 8, 1) > 0.5),
}


def stir(net, std=0.15):
    """Random weights everywhere, the zero-initialised ones included."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=std)
    return net


def make(name, **options):
    return stir(BUILD[name](**options))


def inputs(net, batch=3, dtype=torch.float32):
    """State, times and conditions that the network takes."""
    values = {}
    for name, spec in net.bank.specs.items():
        values[name] = VALUES[name](batch, spec.channels) if name == "past" else VALUES[name](batch)
    cond = Conditions(values).map(lambda v: v.to(dtype) if v.is_floating_point() else v)
    return torch.randn(batch, *net.config.shape, dtype=dtype), torch.rand(batch), cond
