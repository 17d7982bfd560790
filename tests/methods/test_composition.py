"""What goes with what: pairs of the axes run on exact models with the right law, or are refused; as the table says."""

import pytest
import torch

from condiff.conditions import Conditions
from condiff.methods import composition, compositions
from condiff.methods.compositions import Told
from condiff.process import Gaussian, Interpolant, Rectified, oracles
from condiff.sampling import DDIM, GaussianLaw

TABLE = composition.stored()
ROWS = [(f"{a} x {b}", row) for a, b in composition.PAIRS for row in composition.AXES[a]]


@pytest.mark.filterwarnings("ignore:.*log-densities read off a path are noisy")
@pytest.mark.parametrize(("pair", "row"), ROWS, ids=[f"{pair}: {row}" for pair, row in ROWS])
def test_a_row_of_the_table_is_what_happens(pair, row):
    """Whatever runs has the law that it should have: :func:`composition.outcome` fails otherwise."""
    first, second = pair.split(" x ")
    for column, told in TABLE[pair][row].items():
        found = composition.outcome(**{first: row, second: column})
        assert [found.outcome, found.why] == told, f"{row} with {column}"


def test_the_table_is_complete():
    for (a, b), (name, rows) in zip(composition.PAIRS, TABLE.items(), strict=True):
        assert name == f"{a} x {b}" and set(rows) == set(composition.AXES[a])
        assert all(set(row) == set(composition.AXES[b]) for row in rows.values())
    refused = [
        why for rows in TABLE.values() for row in rows.values() for kind, why in row.values() if kind == "refused"
    ]
    assert all(refused), "a refusal says why"


def test_wrong_samples_are_found(monkeypatch):
    """The check can fail: a rule that takes a little too much of x0, one that adds a little too much noise."""
    for wrong in (_Biased(), _Noisy()):
        monkeypatch.setitem(compositions.SOLVERS, "DDIM", lambda model, wrong=wrong: wrong)
        with pytest.raises(AssertionError, match=r"from their law|no convergence"):
            composition.outcome(process="rectified flow", solver="DDIM")


class _Biased(DDIM):
    def advance(self, x, prediction, c, state):
        mean, std = super().advance(x, prediction, c, state)
        return mean + 0.01 * prediction.x0, std


class _Noisy(DDIM):
    def advance(self, x, prediction, c, state):
        mean, _ = super().advance(x, prediction, c, state)
        return mean, 0.08

    @property
    def stochastic(self):
        return True


def test_the_model_of_the_table_is_the_oracle_of_its_data():
    """Told against the library's own oracles: a Gaussian, and a pair whose endpoint isn't seen."""
    x, t = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.6
    process = Gaussian(Rectified())
    said, true = Told(process, "x0")(x, t), oracles.gaussian(process, [0.0, 0.0], std=0.6)(x, t)
    torch.testing.assert_close(said.velocity, true.velocity, rtol=1e-12, atol=1e-12)
    process = Interpolant("linear", "brownian")
    cov = torch.diag(torch.tensor([0.36, 0.36, 0.5, 0.5], dtype=torch.float64))
    pair = oracles.paired(process, torch.tensor([[0.0, 0.0], [0.2, 0.2]], dtype=torch.float64), cov)
    true = type(pair)(**{**pair.__dict__, "blind": True})(x, t)
    said = Told(process, "velocity and noise")(x, t)
    torch.testing.assert_close(said.velocity, true.velocity, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(said.noise, true.noise, rtol=1e-10, atol=1e-12)
    law = Told(process, "velocity and noise").law(process.at(t), Conditions())
    variance = 0.16 * 0.36 + 0.36 * 0.5 + 0.24
    expected = GaussianLaw(torch.full((2,), 0.12, dtype=torch.float64), variance * torch.eye(2).double())
    assert law.distance(expected) < 1e-12
