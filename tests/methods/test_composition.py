"""What goes with what: pairs of the axes run on exact models with the right law, or are refused; as the table says."""

import pytest
import torch

from condiff import conditions, guidance, process, sampling
from condiff.conditions import Conditions
from condiff.methods import composition, composition_hooks, composition_models, compositions
from condiff.methods.composition_models import Told
from condiff.process import Gaussian, Interpolant, Rectified, oracles
from condiff.sampling import DDIM, GaussianLaw

TABLE = composition.stored()
ROWS = [(f"{a} x {b}", row) for a, b in composition.PAIRS for row in composition.AXES[a]]


@pytest.mark.filterwarnings("ignore:.*log-densities read off a path are noisy")
@pytest.mark.parametrize(("pair", "row"), ROWS, ids=[f"{pair}: {row}" for pair, row in ROWS])
@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["", "other half"])
def test_a_row_of_the_table_is_what_happens(pair, row, half):
    """Whatever runs has the law that it should have: :func:`composition.outcome` fails otherwise.

    Halves are the colours of a chessboard, so that every row and column of every pair is in either.
    """
    first, second = pair.split(" x ")
    colour = half + list(TABLE[pair]).index(row)
    for column, told in list(TABLE[pair][row].items())[colour % 2 :: 2]:
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


# What is exported and no part that others are combined with, or a part that the table has by another name.
ELSEWHERE = {
    "bases, and what annotations name": """Endpoint Keep NoiseLaw Schedule Time TokenLevel TokenPrior TokenTime KINDS
        Grid Hook Entry Run State Step Observed BELONGING SIDES Spec Transform Prior Process Level Prediction Guided
        TokenPrediction Solver""",
    "in every row: normal noise, and what a joint process or an unnamed choice has by default": """Normal JointPrior
        LinearKeep RatioKeep Ramps TokenFilter""",
    "starts of a sampler; the table's are the process's own and, below t = 1, the data's moments": """Marginal
        PrincipalLaw ProgressiveNoise Teleport Given""",
    "functions of a process, or of predictions": """KineticReport Separation from_mse_curve kinetic_energy
        kinetic_optimal kinetic_report mix mix_tokens model_separation points_separation population_separation
        stack_levels straight_sigmas""",
    "uses of a sampler, with tests of their own": """Descent Inversion Langevin Likelihood Likeness Propagation
        TrajectoryAnalysis affine_law analyse continuous_law denoising_energy guidance_of infill invert ito_likelihood
        likeness log_likelihood measure_statistics multimodal_in propagate refine repaint_grid resolution_shift sample
        sample_modalities sde_log_likelihood start_index teleport trajectory typical_time beside""",
    "hooks and edits of a network's own kind: codecs, modalities, attention": """Aggregated AttentionEdit ClipDecoded
        LocalBlend""",
    "energies and functions of steps, given to a part that the table has": """ClassScore Quantile SineBoost SineShare
        gradient quantile_levels residual_noise tempered""",
    "how conditions are embedded, corrupted and dropped while a model is trained": """Chain ConditionBank Corrupt
        CorruptionLaw Dropout EitherEnd Embedded FixedNoise Frames GuidanceScale Label Map Observation Perturb
        RandomScale Scalar TiedDropout TimeNoise Tokens Vector cat scale_features as_conditions""",
}


@pytest.mark.parametrize("room", [process, sampling, guidance, conditions], ids=lambda room: room.__name__)
def test_every_part_is_in_the_table_or_has_a_reason(room):
    """What a room exports is used by the axes, or named above: a new part can't be forgotten."""
    tables = (compositions, composition_hooks, composition_models)
    used = {name for name in room.__all__ if any(vars(m).get(name) is getattr(room, name) for m in tables)}
    listed = {name for names in ELSEWHERE.values() for name in names.split()}
    assert not set(room.__all__) - used - listed, "put these into the table (or say in ELSEWHERE why not)"


def test_reasons_are_of_parts_that_exist():
    known = {name for room in (process, sampling, guidance, conditions) for name in room.__all__}
    names = [name for names in ELSEWHERE.values() for name in names.split()]
    assert set(names) <= known and len(names) == len(set(names))


def test_every_kind_of_condition_is_in_the_table():
    kinds = {entry.kind for make in compositions.CONDITIONS.values() for entry in make().values()}
    assert kinds == set(conditions.KINDS)


def test_wrong_samples_are_found(monkeypatch):
    """The check can fail: a rule that takes a little too much of x0, one that adds a little too much noise."""
    for wrong in (_Biased(), _Noisy()):
        composition._tried.cache_clear()
        monkeypatch.setitem(compositions.SOLVERS, "DDIM", lambda model, wrong=wrong: wrong)
        with pytest.raises(AssertionError, match=r"from their law|no convergence"):
            composition.outcome(process="rectified flow", solver="DDIM")
    composition._tried.cache_clear()


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
    said, true = Told(process, ("x0",))(x, t), oracles.gaussian(process, [0.0, 0.0], std=0.6)(x, t)
    torch.testing.assert_close(said.velocity, true.velocity, rtol=1e-12, atol=1e-12)
    process = Interpolant("linear", "brownian")
    cov = torch.diag(torch.tensor([0.36, 0.36, 0.5, 0.5], dtype=torch.float64))
    pair = oracles.paired(process, torch.tensor([[0.0, 0.0], [0.2, 0.2]], dtype=torch.float64), cov)
    true = type(pair)(**{**pair.__dict__, "blind": True})(x, t)
    said = Told(process, ("velocity", "noise"))(x, t)
    torch.testing.assert_close(said.velocity, true.velocity, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(said.noise, true.noise, rtol=1e-10, atol=1e-12)
    law = Told(process, ("velocity", "noise")).law(process.at(t), Conditions())
    variance = 0.16 * 0.36 + 0.36 * 0.5 + 0.24
    expected = GaussianLaw(torch.full((2,), 0.12, dtype=torch.float64), variance * torch.eye(2).double())
    assert law.distance(expected) < 1e-12
