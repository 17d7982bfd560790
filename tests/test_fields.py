"""Every public configuration refuses values of another type, and numbers that aren't finite."""

import dataclasses
import inspect
import math

import pytest

from condiff import conditions, guidance, networks, process, sampling
from condiff.errors import BadType, BadValue
from condiff.networks import DiT, UNet
from condiff.process import Rectified
from condiff.process.oracles import gaussian

GIVEN = {
    "denoiser": gaussian(process.Gaussian(Rectified()), [0.0, 1.0], std=0.5),
    "schedule": Rectified(),
    "solver": sampling.DDIM(),
    "predictor": sampling.DDIM(),
    "scale": 2.0,
    "shape": (1, 8, 8),
    "vocab": 5,
    "classes": 4,
    "num": 4,
}
BAD = {
    "float": ["1.0", math.nan, True],
    "int": ["1", 1.5, math.nan, True],
    "bool": ["yes", 2],
    "str": [3],
    "float | None": ["1.0", math.nan, True],
    "int | None": ["1", 1.5, True],
    "str | None": [3],
}


def configs():
    """(class, fields that make one, name of a field, its declared type)."""
    for room in (process, sampling, guidance, conditions, networks):
        for name in room.__all__:
            cls = getattr(room, name)
            if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls) and hasattr(cls, "__post_init__")):
                continue
            fields = [f for f in dataclasses.fields(cls) if f.init]
            given = {f.name: GIVEN[f.name] for f in fields if f.name in GIVEN and f.default is dataclasses.MISSING}
            try:
                cls(**given)
            except (TypeError, ValueError):  # it needs functions, tensors, dictionaries
                continue
            yield from ((cls, given, f.name, str(f.type)) for f in fields if str(f.type) in BAD)


CONFIGS = list(configs())


def test_many_are_looked_at():
    assert len({cls for cls, *_ in CONFIGS}) > 40 and len(CONFIGS) > 100


@pytest.mark.parametrize(("cls", "given", "name", "kind"), CONFIGS, ids=[f"{c[0].__name__}-{c[2]}" for c in CONFIGS])
def test_other_types_are_refused(cls, given, name, kind):
    for value in BAD[kind]:
        with pytest.raises((BadType, BadValue), match=name):
            cls(**{**given, name: value})


def test_infinity_only_where_it_means_something():
    for make in (sampling.DDIM, lambda x: sampling.SDE(noise=x), lambda x: process.Cosine(shift=x)):
        with pytest.raises(BadValue, match="finite"):
            make(math.inf)
    assert sampling.ClipX0(low=-math.inf).low == -math.inf
    assert process.StudentT(math.inf).gaussian and sampling.Heun(churn_max=math.inf).churn_max == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiT(shape=(1, 8, 8), width=16, depth=1, heads=2, patch=1.5),
        lambda: DiT(shape=(1, 8, 8), width=16, depth=1, heads=2, patch=True),
        lambda: DiT(shape=(1, 8.5, 8), width=16, depth=1, heads=2),
        lambda: UNet(shape=(1, 8, 8), width=8, multipliers=(1, 2), groups=0),
        lambda: UNet(shape=(1, 8, 8), width=8, multipliers=(1, 2), head_width=0),
        lambda: UNet(shape=(1, 8, 8), width=8, multipliers=(1, 2), strides=1.5),
        lambda: sampling.BetaSigmas(alpha=-1.0),
        lambda: guidance.Free(GIVEN["denoiser"], scale=2.0, interval=(0.1, 0.2, 0.3)),
        lambda: guidance.Free(GIVEN["denoiser"], scale=2.0, interval="ab"),
        lambda: guidance.Free(GIVEN["denoiser"], scale=2.0, negative=3),
        lambda: guidance.Free(gaussian, scale=2.0),
        lambda: guidance.Combine(None, [guidance.Term(weight=1.0)]),
        lambda: guidance.Blend([gaussian], [1.0]),
        lambda: guidance.Given(3),
    ],
)
def test_other_nonsense(make):
    with pytest.raises((BadType, BadValue)):
        make()
