"""A model and data so small that a training takes a moment; also a program that starts trainings to stop and kill.

It reads lines ``{"run": ..., "changes": {...}, "delay": ...}`` and forks a process for each, which trains in that
folder or resumes what is there: a fresh process without the seconds of importing torch.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from condiff.denoiser import Denoiser
from condiff.process import Gaussian, Rectified
from condiff.training import Denoising, LogitNormal, TrainConfig, Trainer


class TinyNet(nn.Module):
    """x and time through two layers, with dropout and blocks as real networks have them."""

    condition_kinds = MappingProxyType({"label": "label"})

    def __init__(self, size=4, width=16, dropout=0.1):
        super().__init__()
        self.enter = nn.Linear(size + 1, width)
        self.label = nn.Embedding(3, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(width, size)

    def forward(self, x, time, cond):
        h = torch.relu(self.enter(torch.cat([x, time[:, None]], dim=1)) + self.label(cond["label"].value))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(self.dropout(h))


class TinyData:
    """Three clusters, with an augmentation that depends on the epoch."""

    kinds = MappingProxyType({"label": "label"})

    def __init__(self, length=50, size=4, spoiled=()):
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(length) % 3
        self.x = torch.randn(3, size, generator=generator)[self.y] + 0.1 * torch.randn(
            length, size, generator=generator
        )
        for row in spoiled:
            self.x[row, 0] = float("nan")

    def __len__(self):
        return len(self.x)

    def batch(self, indices, epoch=0):
        return {"x": self.x[indices] * (1.0 if epoch % 2 else -1.0), "cond": {"label": self.y[indices]}}

    def fingerprint(self):
        return f"tiny {len(self)} {float(self.x.nansum()):.6f}"


def denoiser(seed=0, **kwargs):
    """A fresh one; the global generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(TinyNet(**kwargs), Gaussian(Rectified()), "velocity", shape=(kwargs.get("size", 4),))


def config(**changes):
    base = {"steps": 20, "batch": 8, "lr": 1e-2, "save_every": 5, "log_every": 5, "tensorboard": False}
    return TrainConfig(**{**base, **changes})


def trainer(run_dir=None, *, seed=0, dropout=0.1, data=None, objective=None, model=None, **changes):
    """A trainer of the tiny model; keywords of Trainer and of TrainConfig alike."""
    own = {k: changes.pop(k) for k in ("resume", "validation", "sample", "extra", "optimizer") if k in changes}
    return Trainer(
        denoiser(seed, dropout=dropout) if model is None else model,
        TinyData() if data is None else data,
        Denoising(times=LogitNormal()) if objective is None else objective,
        config(**changes),
        run_dir,
        quiet=True,
        **own,
    )


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Slow(TinyData):
    """Data that takes its time, so that there is time to be killed in."""

    delay = 0.0

    def batch(self, indices, epoch=0):
        time.sleep(self.delay)
        return super().batch(indices, epoch)


def train_in_child(order):
    """Train as ordered, and leave with the exit code."""
    data = Slow()
    data.delay = order["delay"]
    run = Path(order["run"])
    work = trainer(run, resume=run.exists(), data=data, **order["changes"])
    print(json.dumps({"ready": work.step}), flush=True)
    return work.fit().exit_code


def main():
    torch.set_num_threads(1)
    trainer(steps=1).fit()  # what torch imports at its first step is then there for all children
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                code = train_in_child(json.loads(line))
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
