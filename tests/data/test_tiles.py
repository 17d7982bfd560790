"""Windows that cover a picture: joined again they are the picture, whatever its size."""

import itertools

import pytest
import torch

from condiff.config import from_config, to_config
from condiff.data import Tiles
from condiff.errors import BadType, BadValue

SHAPES = [(16, 16), (17, 40), (5, 33), (16, 7), (3, 2), (1, 1), (100, 31)]


@pytest.mark.parametrize(("shape", "overlap"), itertools.product(SHAPES, (0, 3, 7)))
def test_joined_again_they_are_the_picture(shape, overlap):
    x, tiles = torch.randn(3, *shape, dtype=torch.float64), Tiles(size=(16, 16), overlap=overlap)
    windows = tiles.cut(x)
    assert windows.shape[1:] == (3, 16, 16)
    torch.testing.assert_close(tiles.join(windows, shape), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "overlap"), itertools.product(range(16, 70), (0, 3, 7)))
def test_neighbours_share_what_they_should_and_no_window_is_wasted(n, overlap):
    starts = [left for _, left in Tiles(size=(16, 16), overlap=overlap).starts((16, n))]
    assert starts[0] == 0 and starts[-1] == n - 16
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(gap <= 16 - overlap for gap in gaps)
    assert (len(starts) - 2) * (16 - overlap) + 16 < n or len(starts) <= 2


def test_weights_fall_to_the_borders():
    """Two windows that say 0 and 1 blend linearly where they overlap, and only there."""
    tiles = Tiles(size=(8, 8), overlap=3)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None].expand(2, 1, 8, 8)
    out = tiles.join(values, (8, 13))[0, 0]
    torch.testing.assert_close(out, torch.tensor([0.0] * 5 + [0.25, 0.5, 0.75] + [1.0] * 5, dtype=torch.float64))


def test_small_pictures_are_mirrored():
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert Tiles(size=(1, 8)).pad(x).tolist() == [[[1, 2, 3, 2, 1, 2, 3, 2]]]


def test_refusals():
    for make, error in (
        (lambda: Tiles(size=(8, 8), overlap=4), BadValue),
        (lambda: Tiles(size=(8, 0)), BadValue),
        (lambda: Tiles(size=(8, 8), overlap=-1), BadValue),
        (lambda: Tiles(size=(8.0, 8)), BadType),
        (lambda: Tiles(size=(8, 8)).join(torch.zeros(3, 1, 8, 8), (8, 9)), BadValue),
    ):
        with pytest.raises(error):
            make()
    assert from_config(to_config(Tiles(size=(8, 8), overlap=2))) == Tiles(size=(8, 8), overlap=2)
