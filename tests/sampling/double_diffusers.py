"""diffusers' schedulers in float64, and the loop that drives them with one of our oracles.

diffusers keeps its tables in float32 and casts states to float32 in some steps. Here every scheduler module sees a
``torch`` and a ``numpy`` whose ``float32`` is ``float64``, so that two exact computations are compared and not two
roundings: trajectories then agree to about 1e-12, far below what a wrong coefficient would change.
"""

import contextlib
import importlib

import numpy
import torch

from condiff.process import Discrete, Gaussian, Prediction
from condiff.process.oracles import mixture
from condiff.random import Tape
from condiff.sampling import sample


class _Double:
    """A module whose single precision is double."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def double(module, tape=()):
    """A scheduler module in float64, drawing its noise from ``tape``."""
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    draws = iter(tape)
    saved = {name: getattr(module, name) for name in ("torch", "np", "randn_tensor") if hasattr(module, name)}
    module.torch = _Double(torch)
    if "np" in saved:
        module.np = _Double(numpy)
    if "randn_tensor" in saved:
        module.randn_tensor = lambda shape, **_: next(draws)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield module
    finally:
        torch.set_default_dtype(default)
        for name, value in saved.items():
            setattr(module, name, value)


def output(prediction, kind):
    """What a network of diffusers' ``prediction_type`` would have said."""
    names = {
        "epsilon": "noise",
        "sample": "x0",
        "v_prediction": "v",
        "flow_prediction": "velocity",
    }
    return prediction.to(names[kind])


def drive(scheduler, oracle, times, x, kind, *, per_alpha=False, **options):
    """diffusers' sampling loop from our state ``x``, with the oracle as its network; returns our final state.

    ``per_alpha``: schedulers whose state is ``x / alpha`` (Euler, Heun); they scale it back before the network.
    ``times``: our time of each of the scheduler's network calls.
    """
    state = x / oracle.process.at(times[0]).data if per_alpha else x
    assert len(scheduler.timesteps) == len(times)
    for t, time in zip(scheduler.timesteps, times, strict=True):
        seen = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        state = scheduler.step(output(oracle(seen, float(time)), kind), t, state, return_dict=False, **options)[0]
    return state


# What both sides are given

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STABLE_DIFFUSION = Gaussian(Discrete.stable_diffusion())
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def oracle_on(process):
    means = [[[-1.0, 0.5, 0.2]], [[1.0, -0.2, 0.1]], [[0.3, 1.2, -0.7]]]
    return mixture(process, means, stds=[0.4, 0.5, 0.6])


def state(seed=0, scale=1.0):
    return scale * torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tape(count):
    return [state(seed) for seed in range(100, 100 + count)]


def ours(process, solver, times, x, noise=()):
    return sample(oracle_on(process), solver=solver, grid=times, initial=x, rng=Tape(noise) if noise else 0)


def same(a, b):
    torch.testing.assert_close(a, b, **TOLERANCE)


class Says:
    """A denoiser that says the same whatever it is asked."""

    shape, kinds = (1, 3), {}

    def __init__(self, kind, value, process=STABLE_DIFFUSION, aux=None):
        self.kind, self.value, self.process, self.aux = kind, value, process, aux

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {self.kind: self.value}, aux=self.aux)
