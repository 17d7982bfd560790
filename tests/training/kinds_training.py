"""Trainings of tokens, volumes and clips so small that two processes do all three in a moment."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from condiff.data import TensorData, TokenData
from condiff.denoiser import Denoiser
from condiff.networks import DiT, TokenTransformer
from condiff.process import Absorbing, Gaussian, Rectified
from condiff.token_denoiser import TokenDenoiser
from condiff.training import Denoising, TokenDenoising, TrainConfig, Trainer

NAMES = ("tokens", "volumes", "clips")


class ClipNet(nn.Module):
    """(B, F, C, H, W) through two convolutions over frames and pixels, with the time as a channel."""

    def __init__(self, channels=2, width=8):
        super().__init__()
        self.enter = nn.Conv3d(channels + 1, width, 3, padding=1)
        self.leave = nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, x, time, cond):
        x = x.transpose(1, 2)
        told = time[:, None, None, None, None].expand_as(x[:, :1])
        return self.leave(torch.relu(self.enter(torch.cat([x, told], 1)))).transpose(1, 2)


def parts(name):
    """``(denoiser, data, objective)`` from a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    if name == "tokens":
        rows = torch.randint(0, 7, (30, 6), generator=generator)
        network = TokenTransformer(shape=(6,), vocab=7, width=16, depth=1, heads=2)
        denoiser = TokenDenoiser(network, Absorbing(7), (6,), time_free=True)
        return denoiser, TokenData.of_rows(rows, 7, "ids"), TokenDenoising()
    shape = {"volumes": (1, 4, 4, 4), "clips": (3, 2, 4, 4)}[name]
    data = TensorData(torch.randn(30, *shape, generator=generator), range="keep")
    network = ClipNet() if name == "clips" else DiT(shape=shape, width=16, depth=1, heads=2, patch=2)
    denoiser = Denoiser(network, Gaussian(Rectified()), "velocity", shape=shape)
    return denoiser, data, Denoising()


def train(root):
    """One run after the other, by as many processes as there are."""
    for name in NAMES:
        denoiser, data, objective = parts(name)
        config = TrainConfig(
            steps=6, batch=8, lr=1e-2, ema=(0.9,), save_every=3, validate_every=3, log_every=3, tensorboard=False
        )
        Trainer(denoiser, data, objective, config, Path(root) / name, validation=data, quiet=True).fit()


def train_together(root):
    """The same in one process group for all runs."""
    dist.init_process_group("gloo")
    train(root)
    dist.destroy_process_group()
