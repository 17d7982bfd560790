"""Things that bounce in a box."""

import pytest
import torch

from condiff.data import bouncing_ball, moving_digits
from condiff.errors import BadType, BadValue
from condiff.methods.ca2_vdm import centres


def test_a_clip_is_a_function_of_seed_and_index_at_any_length():
    short, long = (moving_digits(9, frames=n, side=20, per_clip=2, seed=3) for n in (7, 30))
    x = long.batch([4, 8])["x"]
    assert x.shape == (2, 30, 1, 20, 20) and x.min() == -1.0 and x.max() <= 1.0
    assert torch.equal(x[:, :7], short.batch([4, 8])["x"]) and torch.equal(x[1:], long.batch([8], epoch=5)["x"])
    assert not torch.equal(x, moving_digits(9, frames=30, side=20, per_clip=2, seed=4).batch([4, 8])["x"])
    assert long.fingerprint() != short.fingerprint() and moving_digits(2, split="test").name == "moving digits/test"


@pytest.mark.parametrize("bounce", ["mirror", "random"])
def test_digits_stay_in_the_box_and_keep_their_speed_between_walls(bounce):
    data = moving_digits(64, frames=40, side=16, speed=(0.5, 2.0), bounce=bounce)
    place = data.positions(torch.arange(64))[:, :, 0]
    assert place.min() >= 0.0 and place.max() <= 8.0
    step = place.diff(dim=1)
    assert step.abs().max() <= 2.0
    inside = ((place > 2.0) & (place < 6.0)).all(-1)
    free = (inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:])[..., None].expand(-1, -1, 2)
    assert free.any() and (step[:, 1:] - step[:, :-1])[free].abs().max() < 1e-12
    if bounce == "mirror":  # speeds never change, whatever is hit
        hit = ((place[:, 1:] == 0.0) | (place[:, 1:] == 8.0)).any()
        reach = place.diff(dim=1).abs().amax(1)
        assert not hit and reach.min() >= 0.5


def test_random_bounces_are_not_mirrors():
    ways = [moving_digits(64, frames=40, side=16, bounce=b).positions(torch.arange(64)) for b in ("mirror", "random")]
    same = (ways[0] == ways[1]).all(-1)[:, :, 0]
    assert same[:, 0].all() and not same[:, -1].any()
    first = same.long().sum(1)
    assert (torch.arange(40)[None] < first[:, None]).eq(same).all()  # equal until the first wall, then for good apart


def test_the_ball_is_where_it_is_said_to_be():
    data = bouncing_ball(16, frames=12, side=24)
    x = data.batch(range(16))["x"]
    said = data.positions(torch.arange(16))[:, :, 0] + 3.5
    assert (centres(x) - said).abs().max() < 0.2  # the measure leaves dim pixels out


def test_given_frames_are_a_condition():
    data = moving_digits(4, frames=6, given=2)
    row = data.batch([1])
    assert torch.equal(row["cond"]["first"], row["x"][:, :2]) and data.kinds == {"first": "frames"}
    assert moving_digits(4, frames=6).batch([1])["cond"] == {}


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"count": 0}, BadValue),
        ({"frames": 1.0}, BadType),
        ({"side": 9}, BadValue),
        ({"speed": (2.0, 1.0)}, BadValue),
        ({"speed": (0.0, 99.0)}, BadValue),
        ({"bounce": "soft"}, BadValue),
        ({"split": "both"}, BadValue),
        ({"given": 20}, BadValue),
        ({"per_clip": 0}, BadValue),
    ],
    ids=str,
)
def test_boxes_that_cannot_be(how, error):
    with pytest.raises(error):
        moving_digits(**how)
