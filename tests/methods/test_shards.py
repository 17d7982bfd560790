"""Blocks of samples that are kept: what they hold, and what they depend on."""

import re
from dataclasses import fields, replace

import pytest
import torch

from condiff.data import digits
from condiff.errors import Incompatible
from condiff.methods import Facts, shards
from condiff.methods.drawing import plan_samples
from condiff.methods.drawn import Part
from condiff.methods.flow_matching import recipe
from condiff.sampling import DDPM


@pytest.fixture(scope="module")
def plan():
    own = recipe(Facts.of(digits()))
    return plan_samples(own.denoiser(0), own, digits("test"), num=7, seed=1, batch=3)


@pytest.mark.parametrize(
    "part",
    [
        Part(torch.randn(3, 1, 4, 4), 25),
        Part(torch.arange(12).reshape(3, 4), 8, torch.tensor([3, 8, 5])),
        Part({"image": torch.randn(3, 2), "label": torch.tensor([1, 0, 2])}, 12),
    ],
    ids=["values", "tokens", "joint"],
)
def test_a_block_comes_back_as_it_was(tmp_path, part):
    blocks = shards.Blocks(tmp_path / "out.npz", {})
    blocks.write(range(3, 6), part)
    again = blocks.read(range(3, 6))
    torch.testing.assert_close(again.x, part.x, rtol=0, atol=0)
    assert again.nfe == part.nfe and (part.calls is None) == (again.calls is None)
    if part.calls is not None:
        assert torch.equal(again.calls, part.calls)


def test_blocks_are_the_same_rows_whoever_asks(plan):
    assert [(rows.start, rows.stop) for rows in plan.blocks()] == [(0, 3), (3, 6), (6, 7)]


OTHERS = {
    "num": 8,
    "seed": 2,
    "batch": 4,
    "times": torch.linspace(1.0, 0.1, 5, dtype=torch.float64),
    "device": torch.device("meta"),
    "cond": {"label": torch.zeros(7, dtype=torch.long)},
    "known": (torch.zeros(7, 2), torch.ones(7, 2, dtype=torch.bool)),
    "names": ["a"] * 7,
    "frames": 9,
}


def test_what_is_left_out_are_fields_of_a_plan(plan):
    assert {*OTHERS, *shards.OTHERWISE} <= {f.name for f in fields(plan)}


@pytest.mark.parametrize("name", OTHERS)
def test_work_with_another_field_is_refused(plan, tmp_path, name):
    blocks = shards.Blocks(tmp_path / "out.npz", shards.settings_of(plan, weights="abc"))
    blocks.begin()
    blocks.check()
    other = replace(plan, **{name: OTHERS[name]})
    with pytest.raises(Incompatible, match=name):
        shards.Blocks(tmp_path / "out.npz", shards.settings_of(other, weights="abc")).check()


def test_work_with_another_sampler_or_model_is_refused(plan, tmp_path):
    blocks = shards.Blocks(tmp_path / "out.npz", shards.settings_of(plan, weights="abc"))
    blocks.begin()
    for changes, weights, name in (({"solver": DDPM()}, "abc", "solver"), ({"guidance": 3.0}, "abc", "guidance")):
        other = replace(plan, sampler=replace(plan.sampler, **changes))
        with pytest.raises(Incompatible, match=name):
            shards.Blocks(tmp_path / "out.npz", shards.settings_of(other, weights=weights)).check()
    fewer = replace(plan, sampler=replace(plan.sampler, steps=3), times=torch.linspace(1.0, 0.0, 4))
    with pytest.raises(Incompatible, match="3 here; times differ: repeat") as seen:
        shards.Blocks(tmp_path / "out.npz", shards.settings_of(fewer, weights="abc")).check()
    assert not re.search("[0-9a-f]{16}", str(seen.value).replace(str(tmp_path), ""))  # hashes are nothing to read
    with pytest.raises(Incompatible, match="weights is 'abc' in the file"):
        shards.Blocks(tmp_path / "out.npz", shards.settings_of(plan, weights="abd")).check()
