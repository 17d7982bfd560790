"""Segments: the rows of schedules of several variables, what they refuse, and the hooks of single variables."""

import json
from dataclasses import replace

import pytest
import torch

from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import Cosine, Gaussian, Joint, oracles
from condiff.sampling import DDIM, Euler, ForVariables, Hook, Inpaint, Record, Segments, Uniform, sample, trajectory

F64 = torch.float64
LAW = Gaussian(Cosine())
PAIR = Joint({"x": LAW, "y": LAW})
COV = torch.tensor([[1.0, 0.56], [0.56, 0.49]], dtype=F64)


def oracle():
    return oracles.joint_normal(PAIR, {"x": torch.tensor([1.0]), "y": torch.tensor([-0.5])}, COV)


def rows(segments, steps):
    found = segments.rows(steps)
    return list(zip(found["x"], found["y"], strict=True))


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        ([{"x": (0, 1), "y": (1, 1)}], [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]),
        ([{"x": (0, 1), "y": (0.3, 0.3)}], [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]),
        ([{"x": (0, 1), "y": (0, 1)}], [(i, i) for i in range(5)]),
        (
            [{"x": (0, 0.5), "y": (0.2, 0.2)}, {"x": (0.5, 1), "y": (0.2, 1)}],
            [(0, 0), (1, 0), (2, 0), (2, 1), (3, 2), (3, 3), (4, 4)],
        ),
        ([{"x": (0.5, 1), "y": (0, 1)}], [(2, 0), (2, 1), (3, 2), (3, 3), (4, 4)]),
    ],
)
def test_rows(segments, wanted):
    assert rows(Segments(segments), 5) == wanted


def test_grids_are_those_rows_of_the_times_and_the_end():
    held = Segments([{"x": (0, 1), "y": (1, 1)}])
    grids = held.grids(PAIR, 4)
    assert grids["x"].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grids["y"].tolist() == [0.25] * 4 + [0.0]  # noised as the last step is, and stepped at the end
    clean = replace(held, clean=("y",)).grids(PAIR, 4)
    assert clean["y"].tolist() == [0.0] * 5
    coarse = Segments([{"x": (0, 1), "y": (0.4, 0.4)}]).grids(PAIR, 4)
    assert coarse["y"].tolist() == [0.75] * 4 + [0.0]
    listed = Segments([{"x": (0, 1), "y": (0, 1)}], grid=[0.9, 0.4, 0.1])
    assert listed.grids(PAIR)["y"].tolist() == [0.9, 0.4, 0.1]


def test_between():
    assert Segments.between(["x", "y"]).segments == ({"x": (0.0, 1.0), "y": (0.0, 1.0)},)
    one = Segments.between(["x", "y"], start={"x": 0.4}, hold={"y": 0.7}, clean=())
    assert one.segments == ({"x": (0.4, 1.0), "y": (0.7, 0.7)},)


def test_configuration_round_trip():
    one = Segments([{"x": (0, 1), "y": (1, 1)}], grid=Uniform(start=0.9), clean=("y",))
    assert from_config(json.loads(json.dumps(to_config(one)))) == one


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Segments([{"x": (0, 0.5), "y": (0, 0)}, {"x": (0.5, 1), "y": (1, 1)}]).rows(5), "'y' jumps"),
        (lambda: Segments([{"y": (0, 0), "x": (0, 0.5)}, {"y": (0, 1), "x": (0.9, 1)}]).rows(5), "'x' jumps"),
        (lambda: Segments([{"x": (1, 1), "y": (1, 1)}]), "nothing is left to sample"),
        (lambda: Segments([{"x": (0, 1)}, {"y": (0, 1)}]), "all segments have the variables"),
        (lambda: Segments([{"x": (1, 0)}]), "0 <= l <= r <= 1"),
        (lambda: Segments([{"x": (0, 1.5)}]), "0 <= l <= r <= 1"),
        (lambda: Segments([]), "at least one segment"),
        (lambda: Segments([{"x": (0, 1), "y": (0.5, 1)}], clean=("y",)), "throughout is clean"),
        (lambda: Segments([{"x": (0, 1)}]).rows(0), "at least 1"),
        (lambda: Segments([{"x": (0, 1), "z": (0, 1)}]).grids(PAIR, 4), "must have the names"),
        (lambda: Segments([{"x": (0, 1), "y": (0, 1)}]).grids(PAIR), "give steps="),
        (lambda: Segments([{"x": (0, 1), "y": (0, 1)}], grid=[1.0, 0.0]).grids(PAIR, 1), "or a list of times"),
        (lambda: Segments.between(["x"], hold={"z": 1.0}), "unknown variable 'z'"),
        (lambda: Segments.between(["x", "y"], hold={"x": 1.0}, start={"x": 0.5}), "not both"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(BadValue, match=match):
        call()


def test_other_refusals():
    with pytest.raises(BadType, match="list of dictionaries"):
        Segments({"x": (0, 1)})
    one = oracles.gaussian(LAW, torch.zeros(1), std=1.0)
    with pytest.raises(Incompatible, match="several variables"):
        sample(one, solver=DDIM(), grid=Segments([{"x": (0, 1)}]), steps=4, num=1)


def test_a_variable_is_stepped_where_its_index_changes():
    """One solver state each: what is held comes back bit for bit, and in the end all have stepped."""
    start = {"x": torch.randn(3, 1, dtype=F64), "y": torch.randn(3, 1, dtype=F64)}
    segments = Segments([{"x": (0, 0.5), "y": (0.2, 0.2)}, {"x": (0.5, 1), "y": (0.2, 1)}])
    moved = []
    for step in trajectory(oracle(), start, solver=Euler(), grid=segments, steps=5):
        moved.append(tuple(not torch.equal(step.x_t[n], step.x_s[n]) for n in ("x", "y")))
        assert (step.t["x"].t != step.s["x"].t, step.t["y"].t != step.s["y"].t) == moved[-1]
    assert moved == [(1, 0), (1, 0), (0, 1), (1, 1), (0, 1), (1, 1), (1, 1)]


# Hooks of single variables


def test_inpainting_of_one_variable_follows_its_own_time():
    """The kept part is noised to the level that the variable is at, by one noise; in the end it is what was given."""
    known, mask = torch.tensor([[2.0]], dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    noise = torch.tensor([[0.3]], dtype=F64)
    record = Record(lambda step: (step.s["y"], step.x_s["y"]))
    hooks = [ForVariables({"y": Inpaint(known, mask, noise=noise)}), record]
    segments = Segments([{"x": (0, 0.5), "y": (0.2, 0.2)}, {"x": (0.5, 1), "y": (0.2, 1)}])
    made = sample(oracle(), solver=DDIM(), grid=segments, steps=5, num=1, seed=0, dtype=F64, hooks=hooks)
    assert torch.equal(made["y"], known)
    for level, value in record.values:
        torch.testing.assert_close(value, level.data * known + level.noise * noise)


def test_a_held_variable_isnt_touched():
    """Fresh noise at every step moves a variable that is on its way, and leaves one that waits as it is."""
    known, mask = torch.tensor([[2.0]], dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    hooks = [ForVariables({"x": Inpaint(known, mask), "y": Inpaint(known, mask)})]
    start = {"x": torch.randn(1, 1, dtype=F64), "y": torch.randn(1, 1, dtype=F64)}
    segments = Segments([{"x": (0, 1), "y": (0.5, 0.5)}])
    steps = list(trajectory(oracle(), start, solver=DDIM(), grid=segments, steps=5, hooks=hooks, rng=0))
    assert all(torch.equal(step.x_s["y"], steps[0].x_s["y"]) for step in steps[:-1])
    assert torch.equal(steps[-1].x_s["y"], known) and torch.equal(steps[-1].x_s["x"], known)


def test_every_place_of_a_hook_is_that_of_its_variable():
    seen = []

    class Look(Hook):
        def before(self, x, run):
            seen.append(("before", run.t.t, tuple(x.shape)))
            return x

        def prediction(self, prediction, run):
            seen.append(("prediction", prediction.level.t))
            return prediction

        def mean(self, mean, std, prediction, run):
            seen.append(("mean", run.name, std > 0.0))
            return mean

        def drawn(self, noise, mean, std, prediction, run):
            return 0.0 * noise

    hooks = [ForVariables({"x": Look()})]
    start = {"x": torch.ones(2, 1, dtype=F64), "y": torch.ones(2, 1, dtype=F64)}
    (step,) = trajectory(oracle(), start, solver=DDIM(eta=1.0), grid=[0.8, 0.4], hooks=hooks, rng=0)
    assert seen == [("before", 0.8, (2, 1)), ("prediction", 0.8), ("mean", "x", True)]
    assert torch.equal(step.noise["x"], torch.zeros(2, 1, dtype=F64)) and step.noise["y"].abs().min() > 0.0


def test_hooks_that_dont_fit_are_refused():
    start = {"x": torch.ones(2, 1), "y": torch.ones(2, 1)}

    class Whole(Hook):
        def start(self, run):
            pass

    with pytest.raises(BadValue, match="unknown variable 'z'"):
        list(trajectory(oracle(), start, solver=DDIM(), steps=1, hooks=[ForVariables({"z": Record()})]))
    with pytest.raises(BadType, match="must be a Hook"):
        ForVariables({"x": DDIM()})
    with pytest.raises(Incompatible, match="whole run"):
        ForVariables({"x": Whole()})
    one = oracles.gaussian(LAW, torch.zeros(1), std=1.0)
    with pytest.raises(Incompatible, match="needs a joint state"):
        sample(one, solver=DDIM(), steps=1, num=1, hooks=[ForVariables({"x": Record()})])
    with pytest.raises(BadValue, match="noise of shape"):
        inpaint = Inpaint(torch.zeros(1), torch.ones(1, dtype=torch.bool), noise=torch.zeros(5, 1))
        sample(one, solver=DDIM(), steps=1, num=1, hooks=[inpaint])
