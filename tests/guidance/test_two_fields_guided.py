"""Guidance of models that predict two quantities, velocity and noise or residual and noise: neither is lost."""

import pytest
import torch

from condiff.conditions import as_conditions
from condiff.errors import Incompatible
from condiff.guidance import Anchored, Combine, Free, Proximal, Term
from condiff.process import Absorbing, Interpolant, Joint, Prediction, oracles

PROCESS = Interpolant("linear", "brownian")
GIVEN = {"label": torch.tensor([1, 0, 1])}
X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Fields:
    """Velocity and noise that a label moves, with an endpoint that isn't seen."""

    process, shape, kinds = PROCESS, (4,), {"label": "label"}

    def __call__(self, x_t, t, cond):
        level, entry = self.process.at(t), cond["label"]
        on = torch.where(entry.kept(), entry.value + 1.0, 0.0)[:, None] * torch.tensor([1.0, -2.0, 0.5, 0.1])
        return Prediction(x_t, level, {"velocity": 0.3 * x_t + on, "noise": 0.1 * x_t - on**2})


def test_proximal_guidance_of_everything_is_plain_guidance():
    """With quantile 0 nothing is left out, not even the smallest difference; for either mode and field."""
    plain = Combine(Fields(), [Term(weight=1.5), Term(weight=-0.5, replace={"label": [0]})])(X, 0.4, GIVEN)
    for mode in ("soft", "hard"):
        said = Proximal(Fields(), 1.5, source={"label": [0]}, quantile=0.0, mode=mode)(X, 0.4, GIVEN)
        for kind in ("velocity", "noise", "x0"):
            torch.testing.assert_close(said.to(kind), plain.to(kind), rtol=1e-12, atol=1e-12)


def test_rescaling_is_of_each_field():
    model, said = Fields(), Free(Fields(), 3.0, rescale=1.0)(X, 0.4, GIVEN)
    alone = model(X, 0.4, as_conditions(GIVEN, model.kinds))
    for kind in ("velocity", "noise"):
        torch.testing.assert_close(said.to(kind).std(1), alone.to(kind).std(1), rtol=1e-12, atol=1e-12)


def test_what_compares_states_refuses_tokens_and_joint_states_at_the_door():
    tokens = oracles.tokens(Absorbing(3), torch.ones(2, 3, 3), torch.tensor([0.5, 0.5]))

    class Two(Fields):
        process = Joint({"a": PROCESS, "b": Absorbing(3)})

    for model in (tokens, Two()):
        with pytest.raises(Incompatible, match="one continuous state"):
            Proximal(model, 1.5, source={"label": [0]})
        with pytest.raises(Incompatible, match="one continuous state"):
            Anchored(model, 1.5)
