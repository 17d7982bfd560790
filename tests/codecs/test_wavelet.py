"""The Haar codec against its definition, PyWavelets, and the properties of an orthonormal map."""

import itertools
import math

import pytest
import torch

from condiff.codecs import Haar, HaarConfig
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue
from condiff.random import as_source

SIDES = {1: (12,), 2: (8, 12), 3: (8, 12, 16)}


def samples(axes, rows=2, channels=1, seed=0, dtype=torch.float32):
    return as_source(seed).normal((rows, channels, *SIDES[axes]), dtype=dtype)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_inverse_and_norm(axes, channels, levels):
    x, haar = samples(axes, channels=channels), Haar(axes=axes, levels=levels)
    z = haar.encode(x)
    assert tuple(z.shape[1:]) == haar.latent_shape(x.shape[1:])
    assert float((haar.decode(z) - x).abs().max()) < 1e-6 * levels
    plain = Haar(axes=axes, levels=levels, low=1.0).encode(x)
    assert float(plain.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_bands_are_pywavelets(axes):
    """Every band under its name: ``pywt`` calls low a and high d, one letter per axis in order."""
    pywt = pytest.importorskip("pywt", reason="PyWavelets is the oracle of this test")
    x, haar = samples(axes, rows=1), Haar(axes=axes, low=1.0)
    bands = pywt.dwtn(x[0, 0].double().numpy(), "haar")
    z = haar.encode(x)[0]
    for band, name in zip(z, haar.names, strict=True):
        theirs = torch.from_numpy(bands[name.replace("L", "a").replace("H", "d")])
        assert float((band.double() - theirs).abs().max()) < 1e-6, name


def test_order_of_the_bands():
    """A difference along one axis alone: the first letter is D, the second H, the third W."""
    haar = Haar(axes=3)
    assert haar.names == ("LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH")
    for axis, channel in ((0, 4), (1, 2), (2, 1)):
        ramp = torch.tensor([1.0, -1.0]).reshape([2 if i == axis else 1 for i in range(3)])
        z = haar.encode(ramp.expand(2, 2, 2)[None, None])
        assert z[0, channel].item() == pytest.approx(math.sqrt(8), rel=1e-6)
        assert z.count_nonzero() == 1


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_constant_samples(axes):
    c = 0.7
    z = Haar(axes=axes).encode(torch.full((1, 1, *SIDES[axes]), c))
    assert torch.allclose(z[:, 0], torch.full_like(z[:, 0], c * 2 ** (axes / 2) / 3), atol=1e-6)
    assert float(z[:, 1:].abs().max()) == 0.0
    if axes == 3:
        assert z[0, 0, 0, 0, 0].item() == pytest.approx(0.942809 * c, abs=1e-6)


def test_white_noise_stays_white():
    """The covariance of the transformed noise is M M^T, exactly the identity."""
    haar = Haar(axes=3, low=1.0)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, 4, 4, 4)
    matrix = haar.double().encode(basis).reshape(64, 64).T
    assert float((matrix @ matrix.T - torch.eye(64)).abs().max()) < 1e-14
    noise = Haar(axes=3, low=1.0).encode(as_source(0).normal((1, 1, 32, 32, 32)))
    variances = noise[0].flatten(1).var(1)
    assert float((variances - 1).abs().max()) < 6 * math.sqrt(2 / 16**3)


def test_channels_are_kept_apart():
    x, haar = samples(3, channels=3), Haar(axes=3)
    each = torch.cat([haar.encode(x[:, i : i + 1]) for i in range(3)], 1)
    assert torch.equal(haar.encode(x), each)


def test_levels_are_repeated_transforms():
    x, once = samples(2), Haar(axes=2)
    twice = Haar(axes=2, levels=2)
    assert torch.allclose(twice.encode(x), once.encode(once.encode(x)), atol=1e-6)
    assert twice.names[:5] == ("LL.LL", "LL.LH", "LL.HL", "LL.HH", "LH.LL")
    assert [float(s) for s in twice.scale[:6]] == [9.0, 3.0, 3.0, 3.0, 3.0, 1.0]


def test_statistics_of_bands():
    x = samples(3, rows=8, channels=2)
    haar = Haar(axes=3).standardise([x])
    z = haar.encode(x).unflatten(1, (2, 8)).movedim(2, 0).flatten(1)
    assert float(z.mean(1).abs().max()) < 1e-5
    assert float((z.std(1) - 1).abs().max()) < 1e-3
    assert torch.allclose(haar.decode(haar.encode(x)), x, atol=1e-6)


def test_gradients_and_double():
    x = samples(3, dtype=torch.float64).requires_grad_()
    haar = Haar(axes=3)
    haar.encode(x).square().sum().backward()
    low = haar.encode(x.detach())
    low[:, 1:] = 0
    expected = 2 * (x.detach() - (1 - 1 / 9) * 3 * haar.decode(low) / 3)
    assert x.grad.dtype == torch.float64
    assert torch.allclose(x.grad, expected, atol=1e-12)


def test_compiles():
    haar = Haar(axes=3)
    compiled = torch.compile(haar, backend="eager", fullgraph=True)
    x = samples(3)
    assert torch.equal(compiled(x), haar(x))


def test_configuration():
    config = HaarConfig(axes=2, levels=2, low=2.0)
    assert from_config(to_config(config)) == config
    assert config.build().config == config


@pytest.mark.parametrize(
    "shape", [(1, 7, 8, 8), (1, 8, 8), (8, 8, 8, 8, 8), (1, 0, 8, 8)], ids=["odd", "flat", "many", "empty"]
)
def test_refuses_shapes(shape):
    with pytest.raises(BadValue):
        Haar(axes=3).encode(torch.zeros(1, *shape))


def test_refuses_the_rest():
    haar = Haar(axes=3)
    with pytest.raises(BadType):
        haar.encode(torch.zeros(1, 1, 4, 4, 4, dtype=torch.int64))
    with pytest.raises(BadValue, match="multiple of 8 channels"):
        haar.decode(torch.zeros(1, 7, 4, 4, 4))
    for bad in ({"axes": 4}, {"levels": 0}, {"low": 0.0}, {"low": float("nan")}):
        with pytest.raises(BadValue):
            HaarConfig(**bad)
    assert haar.takes((1, 4, 4, 4))
    assert not haar.takes((1, 4, 5, 4))


def test_codec_of_every_dimension_has_all_bands():
    for axes, levels in itertools.product((1, 2, 3), (1, 2)):
        assert len(set(Haar(axes=axes, levels=levels).names)) == 2 ** (axes * levels)
