"""Endpoints drawn from two frames."""

import pytest
import torch

import condiff as cd
from condiff.conditions import Condition, Conditions, EitherEnd
from condiff.errors import BadValue


def frames(rows, *shape):
    both = torch.stack([torch.full((rows, *shape), -1.0), torch.full((rows, *shape), 1.0)], 1)
    return Conditions({"frames": Condition(both, "frames")})


def test_the_side_says_which_frame_is_the_endpoint():
    cond = EitherEnd()(frames(400, 3, 2, 2), rng=0)
    side = cond["side"].value
    assert cond["endpoint"].kind == "endpoint" and cond["side"].kind == "scalar"
    assert torch.equal(cond.source, side.reshape(-1, 1, 1, 1).expand(400, 3, 2, 2))
    assert set(side.tolist()) == {-1.0, 1.0}
    assert abs(float(side.mean())) < 4.0 / 400**0.5  # a fair coin: 4 standard deviations
    assert torch.equal(cond["frames"].value, frames(400, 3, 2, 2)["frames"].value)


def test_a_row_depends_on_its_seed_only():
    one = EitherEnd()(frames(4, 2), rng=[5, 6, 7, 8])["side"].value
    other = EitherEnd()(frames(2, 2), rng=[7, 8])["side"].value
    assert torch.equal(one[2:], other)


@pytest.mark.parametrize(("sampling", "value"), [("prev", -1.0), ("next", 1.0)])
def test_outside_training_the_side_is_fixed(sampling, value):
    cond = EitherEnd(sampling=sampling)(frames(3, 2), rng=None, training=False)
    assert cond["side"].value.tolist() == [value] * 3
    assert torch.equal(cond.source, torch.full((3, 2), value))


def test_an_endpoint_that_is_given_stays():
    given = frames(2, 2).replace(
        endpoint=Condition(torch.full((2, 2), 9.0), "endpoint"), side=Condition(torch.ones(2), "scalar")
    )
    assert EitherEnd()(given, rng=0) is given


def test_bad_frames_are_refused():
    with pytest.raises(BadValue, match="unknown condition 'frames'"):
        EitherEnd()(Conditions())
    with pytest.raises(BadValue, match="must hold two frames"):
        EitherEnd()(Conditions({"frames": Condition(torch.zeros(2, 3, 4), "frames")}))
    with pytest.raises(BadValue, match="unknown side 'after'"):
        EitherEnd(sampling="after")
    assert cd.config.from_config(cd.config.to_config(EitherEnd(sampling="prev"))) == EitherEnd(sampling="prev")
