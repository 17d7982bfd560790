"""Joint processes: dictionaries of variables, each with its own process, time, solver and state."""

import json

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import (
    Absorbing,
    Bridge,
    Cosine,
    Gaussian,
    Given,
    Joint,
    JointPrior,
    Prediction,
    Rectified,
    VPLinear,
)
from condiff.process.token_prediction import TokenPrediction
from condiff.random import as_source
from condiff.sampling import (
    DDIM,
    AdamsBashforth,
    Euler,
    Heun,
    Hook,
    JointSolver,
    TokenAncestral,
    UniformLogSNR,
    sample,
    trajectory,
)

F64 = torch.float64
PAIR = Joint({"a": Gaussian(Rectified()), "b": Gaussian(Cosine())})


def _rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# The process


def test_forward_is_that_of_each_process():
    x0 = {"a": _rand(3, 2), "b": _rand(3, 4, 5)}
    noise = {"a": _rand(3, 2, seed=1), "b": _rand(3, 4, 5, seed=2)}
    t = {"a": 0.3, "b": torch.tensor([0.1, 0.5, 0.9], dtype=F64)}
    out = PAIR.forward(x0, t, noise=noise)
    for name in PAIR:
        alone = PAIR[name].forward(x0[name], t[name], noise=noise[name])
        assert torch.equal(out[name].x_t, alone.x_t)
        assert torch.equal(out[name].velocity, alone.velocity)
    drawn = PAIR.forward(x0, 0.5, rng=3)
    rng = as_source(3)
    for name in PAIR:
        assert torch.equal(drawn[name].x_t, PAIR[name].forward(x0[name], 0.5, rng=rng).x_t)


def test_levels_with_common_and_own_grids():
    common = PAIR.levels(torch.tensor([1.0, 0.5, 0.0]))
    assert [level["b"].t for level in common] == [1.0, 0.5, 0.0]
    assert common[1]["a"] == PAIR["a"].at(0.5)
    own = PAIR.levels({"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(2, 3)})
    assert own[0]["a"].t == 1.0
    assert own[0]["b"].t.shape == (3,)
    assert PAIR.at(own[0]) == own[0]
    assert {name: float(v) for name, v in PAIR.model_time(torch.tensor(0.25)).items()} == {"a": 0.25, "b": 0.25}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Joint({}), BadType, "dictionary of processes"),
        (lambda: Joint(Gaussian(Cosine())), BadType, "dictionary of processes"),
        (lambda: PAIR["c"], BadValue, "variable"),
        (lambda: PAIR.at({"a": 0.5}), BadValue, r"\['a', 'b'\]"),
        (lambda: PAIR.at(1.5), BadValue, r"\[0, 1\]"),
        (lambda: PAIR.levels({"a": torch.rand(3), "b": torch.rand(4)}), BadValue, "one length"),
        (lambda: PAIR.forward({"a": torch.zeros(1, 2)}, 0.5), BadValue, "x0"),
        (lambda: PAIR.forward(torch.zeros(1, 2), 0.5), BadType, "x0"),
        (
            lambda: PAIR.forward({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}, 0.5, noise={"c": 0}),
            BadValue,
            "variable of noise",
        ),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_configuration_round_trip():
    for part in (PAIR, JointSolver({"a": DDIM(), "b": Euler()}), JointSolver(DDIM(eta=0.5))):
        assert from_config(json.loads(json.dumps(to_config(part)))) == part
    with pytest.raises(BadType, match="'part'"):
        to_config(Joint({"part": Gaussian(Cosine())}))


# Sampling


class Points:
    """Independent variables, each at one point."""

    def __init__(self, process, **points):
        self.process, self.kinds = process, {}
        self.points = {name: torch.as_tensor(p, dtype=F64) for name, p in points.items()}
        self.shape = {name: tuple(p.shape) for name, p in self.points.items()}
        self.calls = 0

    def __call__(self, x, t, cond=None):
        self.calls += 1
        levels = self.process.at(t)
        return {
            name: Prediction(x[name], levels[name], {"x0": self.points[name].expand_as(x[name])}, source=None)
            for name in x
        }


class CorrelatedPair:
    """Exact denoiser of two scalars with unit variances and correlation rho, at any two times."""

    kinds, shape = {}, {"a": (1,), "b": (1,)}

    def __init__(self, rho=0.8):
        self.process, self.rho = PAIR, rho

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        a, b = level["a"], level["b"]
        cov = torch.tensor([[1.0, self.rho], [self.rho, 1.0]], dtype=F64)
        signal = torch.diag(torch.tensor([a.data, b.data], dtype=F64))
        noise = torch.diag(torch.tensor([a.noise, b.noise], dtype=F64) ** 2)
        gain = cov @ signal @ torch.linalg.inv(signal @ cov @ signal + noise)
        mean = torch.cat([x["a"], x["b"]], dim=1) @ gain.T
        return {name: Prediction(x[name], level[name], {"x0": mean[:, i : i + 1]}) for i, name in enumerate(("a", "b"))}


@pytest.mark.parametrize("solver", [Euler(), DDIM()], ids=str)
def test_independent_variables_are_sampled_as_if_alone(solver):
    x = {"a": _rand(4, 3), "b": _rand(4, 2, seed=1)}
    model = Points(PAIR, a=[1.0, 2.0, 3.0], b=[-1.0, 0.5])
    joint = sample(model, solver=solver, initial=x, steps=5)
    for name in x:

        class Alone:
            kinds, process, shape = {}, PAIR[name], tuple(x[name].shape[1:])

            def __call__(self, x_t, t, cond=None, point=model.points[name], process=PAIR[name]):
                return Prediction(x_t, process.at(t), {"x0": point.expand_as(x_t)})

        assert torch.equal(joint[name], sample(Alone(), solver=solver, initial=x[name], steps=5))


def test_one_call_per_step_and_everything_is_a_dictionary():
    model = Points(PAIR, a=[1.0], b=[2.0, 3.0])
    x = model.process.prior().sample(PAIR.at(1.0), {"a": (2, 1), "b": (2, 2)}, as_source(0), dtype=F64)
    steps = list(trajectory(model, x, solver=JointSolver({"a": DDIM(eta=1.0), "b": Euler()}), steps=3, rng=0))
    assert model.calls == steps[-1].nfe == 3
    step = steps[0]
    assert step.t["a"].t == 1.0
    assert step.noise["b"] is None
    assert step.noise["a"].shape == (2, 1)
    assert torch.equal(step.dx["b"], step.x_s["b"] - step.x_t["b"])
    assert set(step.prediction) == set(step.state.extra) == {"a", "b"}


def test_samples_have_the_joint_law():
    x = sample(CorrelatedPair(), solver=DDIM(), steps=200, num=20000, seed=0, dtype=F64)
    cov = torch.cov(torch.cat([x["a"], x["b"]], dim=1).T)
    expected = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    torch.testing.assert_close(cov, expected, rtol=0.0, atol=0.04)


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0)], ids=str)
def test_a_variable_that_stays_clean_conditions_the_other(solver):
    # b stays at t = 0 with b = 1.5: a | b has mean rho b and variance 1 - rho^2.
    b = torch.full((20000, 1), 1.5, dtype=F64)
    x = sample(
        CorrelatedPair(),
        solver=solver,
        grid={"a": torch.linspace(1, 0, 101), "b": torch.zeros(101)},
        prior={"b": Given(b)},
        num=20000,
        seed=0,
        dtype=F64,
    )
    assert torch.equal(x["b"], b)
    assert float(x["a"].mean()) == pytest.approx(0.8 * 1.5, abs=0.02)
    assert float(x["a"].var()) == pytest.approx(1 - 0.8**2, abs=0.02)


def test_a_waiting_variable_needs_nothing_of_its_prediction():
    # b waits at pure noise, where a model of the noise can't say the velocity; its solver isn't asked.
    class Noise(Points):
        def __call__(self, x, t, cond=None):
            out = super().__call__(x, t, cond)
            return {**out, "b": Prediction(x["b"], out["b"].level, {"noise": x["b"]})}

    x = {"a": _rand(3, 1), "b": _rand(3, 1, seed=1)}
    grid = {"a": [1.0, 0.5, 0.0], "b": [1.0, 1.0, 1.0]}
    out = sample(Noise(PAIR, a=[1.0], b=[2.0]), solver=Euler(), initial=x, grid=grid)
    assert torch.equal(out["b"], x["b"])
    torch.testing.assert_close(out["a"], torch.ones(3, 1, dtype=F64))


def test_coarse_to_fine_is_a_pair_of_grids():
    # First a alone (b at pure noise), then b given a: the same joint law.
    grid = {
        "a": torch.cat([torch.linspace(1, 0, 101), torch.zeros(100)]),
        "b": torch.cat([torch.ones(100), torch.linspace(1, 0, 101)]),
    }
    x = sample(CorrelatedPair(), solver=DDIM(), grid=grid, num=20000, seed=0, dtype=F64)
    cov = torch.cov(torch.cat([x["a"], x["b"]], dim=1).T)
    torch.testing.assert_close(cov, torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64), rtol=0.0, atol=0.04)


def test_grids_are_made_per_process():
    joint = Joint({"a": Gaussian(VPLinear()), "b": Gaussian(VPLinear(beta_max=10.0))})
    model = Points(joint, a=[1.0], b=[2.0])
    grid = UniformLogSNR()
    step = next(iter(trajectory(model, {"a": _rand(2, 1), "b": _rand(2, 1)}, solver=DDIM(), grid=grid, steps=4)))
    assert step.s["a"].t == float(grid.times(joint["a"], 4)[1])
    assert step.s["b"].t == float(grid.times(joint["b"], 4)[1]) != step.s["a"].t


def test_a_row_depends_on_its_own_seed_only():
    model = Points(PAIR, a=[1.0], b=[2.0, 3.0])
    solver, grid = DDIM(eta=1.0), [1.0, 0.6, 0.3]
    together = sample(model, solver=solver, grid=grid, seeds=[1, 2, 3])
    alone = sample(model, solver=solver, grid=grid, seeds=[2])
    for name in PAIR:
        assert torch.equal(together[name][1:2], alone[name])


def test_held_parts_come_back_bit_for_bit():
    model = Points(PAIR, a=[1.0, 2.0], b=[2.0, 3.0])
    x = {"a": _rand(3, 2), "b": _rand(3, 2, seed=1)}
    mask = torch.tensor([True, False])
    out = sample(model, solver=Euler(), initial=x, steps=3, held={"a": mask})
    assert torch.equal(out["a"][:, 0], x["a"][:, 0])
    torch.testing.assert_close(out["a"][:, 1], torch.full((3,), 2.0, dtype=F64))
    with pytest.raises(BadType, match="held"):
        sample(model, solver=Euler(), initial=x, steps=3, held=mask)


def test_one_variable_may_go_up():
    # RePaint on a alone: its step up is a draw from the forward kernel.
    model = Points(PAIR, a=[1.0], b=[2.0])
    x = {"a": _rand(3, 1), "b": _rand(3, 1, seed=1)}
    grid = {"a": [1.0, 0.5, 0.8, 0.2], "b": [1.0, 0.5, 0.4, 0.2]}
    steps = list(trajectory(model, x, solver=DDIM(eta=1.0), grid=grid, rng=0))
    up = steps[1]
    expected = PAIR["a"].renoise(up.x_t["a"], 0.5, 0.8, noise=up.noise["a"])
    torch.testing.assert_close(up.x_s["a"], expected)
    assert steps[1].noise["b"] is not None


def test_hooks_see_dictionaries_and_the_name_of_a_mean():
    seen = []

    class Watch(Hook):
        def before(self, x, run):
            return {name: v + 0.0 for name, v in x.items()}

        def prediction(self, prediction, run):
            return {name: p.set("x0", torch.zeros_like(p.x0)) for name, p in prediction.items()}

        def mean(self, mean, std, prediction, run):
            seen.append((run.name, run.t.t))
            return mean

    out = sample(Points(PAIR, a=[1.0], b=[2.0]), solver=DDIM(), steps=2, num=3, seed=0, hooks=[Watch()])
    assert seen == [("a", 1.0), ("b", 1.0), ("a", 0.5), ("b", 0.5)]
    assert float(out["a"].abs().max() + out["b"].abs().max()) == 0.0


class ImageAndTokens:
    """An image at a point and tokens that are known for sure."""

    def __init__(self):
        self.kinds = {}
        self.process = Joint({"image": Gaussian(Rectified()), "tokens": Absorbing(vocab=4)})
        self.shape = {"image": (2, 2), "tokens": (3,)}

    def __call__(self, x, t, cond=None):
        levels = self.process.at(t)
        logits = torch.full((*x["tokens"].shape, 4), -50.0)
        logits[..., 2] = 50.0
        return {
            "image": Prediction(x["image"], levels["image"], {"x0": torch.ones_like(x["image"])}),
            "tokens": TokenPrediction(x["tokens"], levels["tokens"], logits),
        }


def test_an_image_and_tokens_together():
    out = sample(
        ImageAndTokens(), solver=JointSolver({"image": Euler(), "tokens": TokenAncestral()}), steps=4, num=2, seed=0
    )
    torch.testing.assert_close(out["image"], torch.ones(2, 2, 2))
    assert out["tokens"].tolist() == [[2, 2, 2], [2, 2, 2]]


def test_an_endpoint_belongs_to_the_variable_of_its_name():
    joint = Joint({"a": Bridge(), "b": Gaussian(Rectified())})

    class Model(Points):
        def __call__(self, x, t, cond=None):
            levels = self.process.at(t)
            y = cond["a"].value
            return {
                "a": Prediction(x["a"], levels["a"], {"x0": self.points["a"].expand_as(x["a"])}, source=y),
                "b": Prediction(x["b"], levels["b"], {"x0": self.points["b"].expand_as(x["b"])}),
            }

    y = _rand(3, 2, seed=5)
    cond = Conditions({"a": Condition(y, "endpoint")})
    model = Model(joint, a=[1.0, 2.0], b=[3.0])
    steps = list(trajectory(model, _start(joint, cond), solver=DDIM(eta=1.0), cond=cond, steps=4, rng=0))
    assert torch.equal(steps[0].x_t["a"], y)
    torch.testing.assert_close(steps[-1].x_s["a"], torch.tensor([1.0, 2.0], dtype=F64).expand(3, 2))
    out = sample(model, solver=DDIM(eta=1.0), cond=cond, steps=4, seed=0, dtype=F64)
    torch.testing.assert_close(out["b"], torch.full((3, 1), 3.0, dtype=F64))


def test_each_bridge_goes_up_towards_its_own_end():
    joint = Joint({"a": Bridge(), "b": Bridge(variance=2.0)})

    class Model(Points):
        def __call__(self, x, t, cond=None):
            levels = self.process.at(t)
            return {
                name: Prediction(x[name], levels[name], {"x0": self.points[name].expand_as(x[name])}, cond[name].value)
                for name in x
            }

    ends = {"a": _rand(3, 2), "b": _rand(3, 2, seed=1)}
    cond = Conditions({name: Condition(y, "endpoint") for name, y in ends.items()})
    model = Model(joint, a=[1.0, 2.0], b=[3.0, 4.0])
    steps = list(trajectory(model, ends, solver=DDIM(eta=1.0), cond=cond, grid=[1.0, 0.4, 0.7, 0.2], rng=0))
    for name, y in ends.items():
        up = joint[name].renoise(steps[1].x_t[name], 0.4, 0.7, source=y, noise=steps[1].noise[name])
        torch.testing.assert_close(steps[1].x_s[name], up)


def _start(joint, cond):
    shapes = {"a": (3, 2), "b": (3, 1)}
    return joint.prior().sample(joint.at(1.0), shapes, as_source(0), source={"a": cond["a"].value}, dtype=F64)


def test_priors_by_name():
    with pytest.raises(BadValue, match="variable of the prior"):
        JointPrior({"c": Given(torch.zeros(1))}).sample(PAIR.at(1.0), {"a": (1, 1), "b": (1, 1)}, as_source(0))
    with pytest.raises(BadValue, match="shape"):
        sample(Points(PAIR, a=[1.0], b=[2.0]), solver=Euler(), steps=2, num=1, shape=(1,))


def test_what_a_joint_step_cannot_do_is_refused():
    model = Points(PAIR, a=[1.0], b=[2.0])
    with pytest.raises(Incompatible, match="more than once per step"):
        sample(model, solver=Heun(), steps=4, num=2, seed=0)
    with pytest.raises(BadValue, match="solvers must have the names"):
        sample(model, solver=JointSolver({"a": Euler()}), steps=2, num=2, seed=0)
    with pytest.raises(BadType, match="JointSolver"):
        JointSolver({"a": "euler"})

    class One:
        process, shape, kinds = PAIR["a"], (1,), {}

    with pytest.raises(Incompatible, match="Joint process"):
        sample(One(), solver=JointSolver(Euler()), steps=2, num=2, seed=0)


def test_the_state_of_a_joint_run_can_be_cut_by_rows():
    model = Points(PAIR, a=[1.0], b=[2.0, 3.0])
    x = {"a": _rand(4, 1), "b": _rand(4, 2, seed=1)}
    step = list(trajectory(model, x, solver=AdamsBashforth(), steps=3))[-1]
    cut = step.state.rows(torch.tensor([2, 0]))
    history = step.state.extra["b"].history
    assert history
    assert torch.equal(cut.extra["b"].history[0].x, history[0].x[[2, 0]])
