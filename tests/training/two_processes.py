"""Starting two processes on gloo, and comparing what they trained with what one did."""

import json
import os
import socket
import subprocess
import sys

import torch

from condiff.files import read_tensors


def run_two(program, *words):
    """Two processes with the environment that torchrun and accelerate launch set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.path.dirname(__file__),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [p.communicate(timeout=120)[1] for p in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(ends)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def close(a, b):
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for name in ("loss", "grad_norm", "validation_loss"):
        left, right = ([r[name] for r in records if name in r] for records in (a, b))
        torch.testing.assert_close(torch.tensor(left), torch.tensor(right), rtol=2e-5, atol=1e-6)


def assert_close_runs(a, b):
    """The same loss curve, the same weights."""
    close(lines(a), lines(b))
    for file in ("model.safetensors", "model-ema.safetensors"):
        torch.testing.assert_close(read_tensors(a / file)[0], read_tensors(b / file)[0], rtol=1e-4, atol=1e-5)
