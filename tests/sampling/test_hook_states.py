"""Hooks and grids of one continuous state, given to tokens and to joint states."""

import pytest
import torch

from condiff.errors import Incompatible
from condiff.guidance import Energy
from condiff.process import Absorbing, Cosine, Gaussian, Joint, oracles
from condiff.sampling import (
    DDIM,
    DDPM,
    BetaSigmas,
    Boundary,
    ClipX0,
    Consistency,
    Displace,
    DynamicThreshold,
    ForVariables,
    Heun,
    JointSolver,
    Karras,
    KineticEnergy,
    Nudge,
    Overshoot,
    Renoise,
    Tail,
    TokenAncestral,
    UniformLogSNR,
    sample,
)

TOKENS = oracles.tokens(Absorbing(3), torch.ones(3, 3))
HOOKS = [
    ClipX0(),
    DynamicThreshold(),
    Boundary(),
    Displace(lambda x, run: 0.0 * x),
    Nudge(lambda u, t, c: u),
    KineticEnergy(),
]


class Both:
    """A number and tokens."""

    process, shape, kinds = Joint({"a": Gaussian(Cosine()), "b": Absorbing(3)}), {"a": (2,), "b": (2,)}, {}

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        number = oracles.gaussian(self.process["a"], [0.0, 0.0], std=0.5)
        return {"a": number(x["a"], level["a"]), "b": TOKENS(x["b"], level["b"])}


RULES = JointSolver({"a": DDIM(), "b": TokenAncestral()})


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: type(hook).__name__)
def test_hooks_of_one_continuous_state_are_refused_before_the_first_call(hook):
    with pytest.raises(Incompatible, match="acts on one continuous state"):
        sample(TOKENS, solver=TokenAncestral(), steps=2, num=1, hooks=[hook])
    with pytest.raises(Incompatible, match="ForVariables"):
        sample(Both(), solver=RULES, steps=2, num=1, hooks=[hook])
    with pytest.raises(Incompatible, match="acts on one continuous state"):
        sample(Both(), solver=RULES, steps=2, num=1, hooks=[ForVariables({"b": hook})])


def test_of_one_variable_they_run():
    hooks = [ForVariables({"a": ClipX0(-0.01, 0.01)})]
    x = sample(Both(), solver=RULES, steps=4, num=3, seed=0, hooks=hooks)
    assert float(x["a"].abs().max()) <= 0.01 and bool((x["b"] < 3).all())


@pytest.mark.parametrize("grid", [Karras(), UniformLogSNR(), BetaSigmas(), Tail(sigma=2.0)], ids=repr)
def test_tokens_have_no_noise_levels_to_space(grid):
    with pytest.raises(Incompatible, match="continuous states"):
        sample(TOKENS, solver=TokenAncestral(), grid=grid, steps=4, num=1)


@pytest.mark.parametrize("shift", ["mean", "state"])
@pytest.mark.parametrize("solver", [Consistency(), Heun(churn=5.0), Renoise(DDIM())], ids=repr)
def test_steps_are_displaced_where_their_noise_is_that_of_the_reverse_sde(solver, shift):
    model = Energy(oracles.gaussian(Gaussian(Cosine()), [0.0], std=0.5), lambda u, t, c: u.square().sum(1), shift=shift)
    with pytest.raises(Incompatible, match="scaled by the variance of a step"):
        sample(model, solver=solver, steps=3, num=1)
    for fits in (DDPM(), Renoise(DDPM()), Overshoot()):
        assert bool(sample(model, solver=fits, steps=3, num=1, seed=0).isfinite().all())
