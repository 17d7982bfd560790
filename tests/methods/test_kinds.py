"""Kinds of data: which is which, and that a new one is one class."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from condiff.data import TensorData, TokenData, digits, split, volumes, write_phantoms
from condiff.errors import Incompatible
from condiff.methods import Facts, Sampler, kinds
from condiff.methods.drawing import draw_samples
from condiff.methods.drawn import Part
from condiff.methods.flow_matching import recipe
from condiff.methods.kinds import Kind, Vectors, kind_of
from condiff.process import Absorbing, Gaussian, Joint, Rectified, oracles
from condiff.sampling import DDIM, DDPM, sample


def values(*shape, num=12):
    return TensorData(torch.randn(num, *shape, generator=torch.Generator().manual_seed(0)), range="keep")


def tokens(num=12):
    return TokenData.of_rows(torch.arange(num * 5).reshape(num, 5) % 7, 7, "ids")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: values(3), "Vectors"),
        (lambda: values(5, 2), "Series"),
        (lambda: values(1, 4, 4), "Pictures"),
        (lambda: values(2, 4, 4), "Fields"),
        (lambda: values(1, 4, 4, 4), "Volumes"),
        (lambda: values(2, 1, 4, 4, 4), "Vectors"),
        (tokens, "Tokens"),
        (digits, "Pictures"),
    ],
    ids=["vectors", "series", "pictures", "fields", "volumes", "five", "tokens", "digits"],
)
def test_the_kind_of_data(make, kind):
    data = make()
    assert type(kind_of(data)).__name__ == kind
    own = kind_of(Facts(data.shape, vocab=data.vocab))  # what the shape alone says makes the same defaults
    assert own.default_method == kind_of(data).default_method


def test_scans_are_volumes_in_files(tmp_path):
    write_phantoms(tmp_path, 4, side=8)
    data = volumes(tmp_path, target="t2", condition=["t1"])
    assert type(kind_of(split(data, 0.25)[1])).__name__ == "Scans"


def test_processes_of_other_samples_are_refused():
    for data, process, hint in (
        (values(3), Absorbing(7), "holds values, which x can't learn: use --method flow-matching"),
        (values(3), Joint({"a": Gaussian(Rectified())}), "holds values"),
        (tokens(), Gaussian(Rectified()), "holds tokens, which x can't learn: use --method radd"),
    ):
        with pytest.raises(Incompatible, match=hint):
            kind_of(data).check_process(data, process, "x")


class Walks(Kind):
    """Sums of draws, which no trajectory makes."""

    def matches(self, data):
        return data.name == "walks"

    def draw(self, plan, rows):
        rng = plan.source(rows)
        steps = torch.stack([rng.normal((len(rows), 1)) for _ in range(plan.data.shape[0])], 1)
        return Part(steps.cumsum(1), nfe=len(steps[0]))


def test_a_kind_with_its_own_way_to_draw_is_one_class(monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", (Walks(), *kinds.KINDS))
    data = values(6, 1)
    data.name = "walks"
    own = recipe(Facts.of(data))
    made = draw_samples(own.denoiser(0), own, data, num=5, seed=3, batch=2)
    again = draw_samples(own.denoiser(0), own, data, num=2, seed=6)
    assert made.x.shape == (5, 6, 1) and made.nfe == 6
    assert torch.equal(made.x[3:], again.x)


class TwoOracles(nn.Module):
    """A denoiser of two variables that have nothing to do with each other."""

    def __init__(self):
        super().__init__()
        self.kinds, self.shape = {}, {"a": (2,), "b": (1, 2, 2)}
        self.process = Joint({"a": Gaussian(Rectified()), "b": Gaussian(Rectified())})
        self.parts = {
            "a": oracles.gaussian(self.process["a"], [1.0, -1.0], std=0.5),
            "b": oracles.gaussian(self.process["b"], torch.zeros(1, 2, 2), std=1.0),
        }

    def forward(self, x_t, t, cond=None):
        return {name: self.parts[name](x, t[name]) for name, x in x_t.items()}


class Pair(Vectors):
    """A dictionary of two variables."""

    def matches(self, data):
        return isinstance(data.shape, dict)

    def fits(self, process):
        return isinstance(process, Joint)

    def stored(self, made, run):
        return made.x

    def write(self, made, out, run, told):
        np.savez(out, **{name: x.numpy() for name, x in made.x.items()})


@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=lambda s: type(s).__name__)
def test_joint_states_are_drawn_as_tensors_are(monkeypatch, solver, tmp_path):
    monkeypatch.setattr(kinds, "KINDS", (Pair(), *kinds.KINDS))
    data = SimpleNamespace(shape=TwoOracles().shape, vocab=None, classes=(), kinds={}, name="pair")
    own = recipe(Facts((2,)))
    own = replace(own, process=TwoOracles().process, sampler=Sampler(solver=solver, steps=6))
    model = TwoOracles()
    made = draw_samples(model, own, data, num=5, seed=2, batch=2)
    assert made.num == 5 and {n: tuple(x.shape) for n, x in made.x.items()} == {"a": (5, 2), "b": (5, 1, 2, 2)}
    direct = sample(model, solver=solver, steps=6, seeds=range(2, 7))
    torch.testing.assert_close(made.x, direct)
    kind_of(data).write(made, tmp_path / "pair.npz", None, None)
    assert np.load(tmp_path / "pair.npz")["b"].shape == (5, 1, 2, 2)
    kind_of(data).check_process(data, model.process, "x")
