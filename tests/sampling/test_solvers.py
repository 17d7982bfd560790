"""Solvers: identities between them, both ends, endpoints, the anatomy of a step, options."""

import itertools

import pytest
import torch
from solver_cases import (
    ALL,
    COSINE,
    DETERMINISTIC,
    FLOW,
    SINGLE_LINE,
    STOCHASTIC,
    VE,
    VP,
    Point,
    Says,
    each,
    equal,
    go,
    oracle_on,
    state,
)

from condiff.conditions import Condition, Conditions
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process import EDM, Bridge, Gaussian, Interpolant, Prediction, StudentT
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    Consistency,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    Renoise,
    RungeKutta,
    State,
    UniPC,
    sample,
    trajectory,
)

# Identities


@pytest.mark.parametrize("process", [VP, COSINE, FLOW, VE], ids=str)
@each("solver", SINGLE_LINE)
def test_data_at_a_point_is_reached(solver, process):
    x = sample(Point(process), solver=solver, grid=[0.99, 0.7, 0.3, 0.1, 0.02, 0.0], num=2, seed=0, dtype=torch.float64)
    equal(x, torch.full((2, 3), 0.7, dtype=torch.float64))


NO_CORRECTOR = {"skip_corrector": tuple(range(9)), "lower_order_final": False}
TWINS = [
    (DDIM(), DPMSolverPP(1), VP),
    (DDIM(), DPMSolver(1), VP),
    (DDIM(), Heun(corrector=False), VP),
    (DDIM(), UniPC(1, **NO_CORRECTOR), VP),
    (DDIM(), Euler(), FLOW),
    (Euler(), AdamsBashforth(1), VP),
    (Euler(), SDE(noise=0.0), VP),
    (DPMSolverPP(2, lower_order_final=False), UniPC(2, **NO_CORRECTOR), VP),
    (DPMSolverPP(3, lower_order_final=False), UniPC(3, **NO_CORRECTOR), VP),
    (DPMSolver(3, lower_order_final=False), UniPC(3, predict="noise", **NO_CORRECTOR), VP),
    (DDIM(eta=1.0), DDPM("posterior"), VP),
    (DDIM(eta=1.0), DPMSolverPP(1, noise=1.0), VP),
    (DDIM(eta=1.0), DPMSolverPP(1, noise=1.0), VE),
    (Heun(), Heun(churn=1.0, churn_min=1e6, churn_max=2e6), VP),
]


@pytest.mark.parametrize(("one", "other", "process"), TWINS, ids=str)
def test_the_same_rule_by_two_names(one, other, process):
    grid, noise = [0.9, 0.8, 0.5, 0.3, 0.2, 0.05], [state(seed=s) for s in range(5)]
    results = [go(solver, grid, state(), process=process, rng=Tape(noise)) for solver in (one, other)]
    equal(*results)


@each("solver", DETERMINISTIC)
def test_converged_rules_agree(solver):
    """Every ODE rule goes to the same place."""
    grid = VP.time(torch.linspace(-4.0, 5.0, 201, dtype=torch.float64))
    equal(go(solver, grid, state()), go(RungeKutta("rk4"), grid, state()), rtol=0.05, atol=0.05)


# Ends


# Euler-Maruyama isn't stable on so coarse a grid where g is as large as on the cosine path.
ENDS = [(s, p) for s, p in itertools.product(ALL, (COSINE, FLOW)) if not (s == SDE() and p is COSINE)]


@pytest.mark.parametrize("kind", ["v", "velocity"])
@pytest.mark.parametrize(("solver", "process"), ENDS, ids=str)
def test_both_ends_are_finite(solver, kind, process):
    """From data(t) = 0 to noise(t) = 0, with a model that exists there."""
    denoiser = Says(oracle_on(process), kind)
    x = go(solver, [1.0, 0.8, 0.5, 0.2, 0.0], state(200), denoiser)
    assert bool(torch.isfinite(x).all()) and 0.2 < float(x.std()) < 2.0


@each("solver", [s for s in ALL if not isinstance(s, SDE)])
def test_rows_at_either_end_do_not_disturb_the_others(solver):
    """A column of times that has not begun, one that is done, one on its way."""
    denoiser = Says(oracle_on(COSINE), "v")
    grid = torch.tensor([[1.0, 0.6, 0.0], [1.0, 0.3, 0.0], [0.9, 0.3, 0.0]], dtype=torch.float64)
    draws = [state(seed=s) for s in range(9)]
    steps = list(trajectory(denoiser, state(), solver=solver, grid=grid, rng=Tape(draws)))
    x = steps[-1].x_s
    assert torch.equal(steps[0].x_s[0], state()[0]) and torch.equal(x[2], state()[2])
    assert torch.equal(steps[1].x_s[1], steps[0].x_s[1])
    assert bool(torch.isfinite(x).all()) and not torch.equal(x[1], state()[1])


@pytest.mark.parametrize("kind", ["x0", "noise", "velocity"])
@each("solver", DETERMINISTIC + STOCHASTIC[:5])
def test_what_is_clean_may_wait(solver, kind):
    """A clean frame among noisy ones, with models whose other quantities don't exist there."""
    denoiser = Says(oracle_on(FLOW), kind)
    grid = torch.tensor([[0.0, 0.8, 0.5], [0.0, 0.5, 0.5], [0.0, 0.2, 0.2]], dtype=torch.float64)
    x = go(solver, grid, state(), denoiser)
    assert torch.equal(x[0], state()[0]) and bool(torch.isfinite(x).all())


# Endpoints


@each(
    "solver", [DDIM(), DDIM(eta=1.0), DDPM(), DDPM("beta"), SDE(), DPMSolverPP(2), DPMSolverPP(2, noise=1.0), UniPC(2)]
)
def test_a_bridge_from_its_endpoint(solver):
    """Data at a point, a bridge that starts at y: the noise there is zero, and every rule arrives."""
    process, y = Bridge(), state(64, 9)

    class Known:
        kinds, shape = {"y": "endpoint"}, (3,)

        def __call__(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {"x0": torch.full_like(x, 0.7)}, cond.source)

    Known.process = process
    grid = [1.0, 0.8, 0.5, 0.2, 0.0] if solver.stochastic else [0.99, 0.8, 0.5, 0.2, 0.0]
    cond = Conditions({"y": Condition(y, "endpoint")})
    x = sample(Known(), solver=solver, grid=grid, num=64, cond=cond, seed=0, dtype=torch.float64)
    equal(x, torch.full_like(x, 0.7), rtol=1e-9, atol=1e-9)


def test_interpolants_take_a_free_noise_level():
    """An interpolant with noise inside only: SDE starts where its noise is zero."""
    process = Interpolant("trig", "brownian")

    class Known:
        kinds, shape = {"y": "endpoint"}, (3,)

        def __call__(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {"x0": torch.full_like(x, 0.7)}, cond.source)

    Known.process = process
    cond = Conditions({"y": Condition(state(64, 9), "endpoint")})
    x = sample(Known(), solver=SDE(0.3, "sigma"), steps=20, cond=cond, seed=0, dtype=torch.float64)
    equal(x, torch.full_like(x, 0.7))


# Anatomy of a step, and options


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [
        (DDIM(), 5), (DPMSolverPP(3), 5), (UniPC(3), 5), (Heun(), 8), (RungeKutta("heun"), 9), (RungeKutta("rk4"), 18),
        (RungeKutta("midpoint"), 10), (Heun(corrector=False), 5),
    ],
    ids=str,
)  # fmt: skip
def test_number_of_evaluations(solver, nfe):
    steps = list(trajectory(oracle_on(FLOW), state(), solver=solver, steps=5))
    assert steps[-1].nfe == nfe


def test_runge_kutta_may_evaluate_the_end():
    coarse, fine = (torch.linspace(0.9, 0.0, n, dtype=torch.float64) for n in (41, 401))
    exact = go(RungeKutta("rk4", True), fine, state(), process=FLOW)
    for evaluate_end, nfe in ((True, 160), (False, 158)):
        solver = RungeKutta("rk4", evaluate_end)
        *_, last = trajectory(oracle_on(FLOW), state(), solver=solver, grid=coarse)
        assert last.nfe == nfe
        equal(last.x_s, exact, rtol=1e-6, atol=1e-6)
    with pytest.raises(Degenerate):
        go(RungeKutta("rk4", True), coarse, state(), Says(oracle_on(FLOW), "x0"))


@each("solver", ALL)
def test_gradients_flow(solver):
    x = state().requires_grad_()
    go(solver, [0.9, 0.5, 0.2, 0.1], x, process=FLOW, grad=True).sum().backward()
    assert bool(torch.isfinite(x.grad).all()) and float(x.grad.abs().min()) > 0.0


@each("solver", ALL)
def test_solvers_are_configurations(solver):
    assert from_config(to_config(solver)) == solver
    assert isinstance(hash(solver), int)


def test_learned_range_spans_both_variances():
    levels = VP.levels(torch.tensor([0.6, 0.4], dtype=torch.float64))
    for v, variance in ((-1.0, "posterior"), (1.0, "beta")):
        denoiser = Says(oracle_on(VP), "noise", {"variance": torch.full((3, 3), v, dtype=torch.float64)})
        learned, fixed = DDPM("learned_range"), DDPM(variance)
        c = learned.plan(levels)[0]
        std = learned.advance(state(), denoiser(state(), 0.6), c, State())[1]
        equal(
            std, torch.full((3, 3), fixed.advance(state(), denoiser(state(), 0.6), c, State())[1], dtype=torch.float64)
        )
    denoiser.aux = {"variance": torch.zeros(3, 3, dtype=torch.float64)}
    middle = learned.advance(state(), denoiser(state(), 0.6), c, State())[1]
    equal(middle, torch.full((3, 3), (c.small * c.large) ** 0.5, dtype=torch.float64))


def test_churn_raises_the_noise_and_no_more():
    """gamma = sqrt(2) - 1 at most; the raised level is a level of the process."""
    grid = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    levels = VP.levels(grid)
    sigma = [level.noise / level.data for level in levels]
    for churn, factor in ((0.3, 1.1), (100.0, 2.0**0.5)):
        for i, c in enumerate(Heun(churn=churn).plan(levels)):
            assert c.start.noise / c.start.data == pytest.approx(factor * sigma[i], rel=1e-9)
    plan = Heun(churn=1.0, churn_min=sigma[1], churn_max=sigma[1]).plan(levels)
    assert [c.churn is None for c in plan] == [True, False, True]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DDIM(eta=-0.1), "eta"),
        (lambda: DDPM("larg"), "unknown variance"),
        (lambda: DPMSolverPP(4), "order must be one of 1, 2, 3"),
        (lambda: DPMSolverPP(True), "takes an integer, got True"),
        (lambda: DPMSolverPP(noise=-1.0), "noise"),
        (lambda: DPMSolverPP(rule="heun"), "unknown rule"),
        (lambda: UniPC(variant="bh3"), "Did you mean 'bh1' or 'bh2'|Did you mean 'bh2' or 'bh1'"),
        (lambda: UniPC(predict="v"), "unknown quantity"),
        (lambda: SDE(scale="sigm"), "Did you mean 'sigma'"),
        (lambda: SDE(noise=-1.0), "noise"),
        (lambda: Heun(churn=-1.0), "churn"),
        (lambda: Heun(churn_min=2.0, churn_max=1.0), "churn_min <= churn_max"),
        (lambda: RungeKutta("rk5"), "Did you mean 'rk"),
        (lambda: AdamsBashforth(5), "order"),
    ],
)
def test_options_are_checked(make, match):
    with pytest.raises((BadType, BadValue), match=match):
        make()


def test_missing_and_misshaped_variance_heads():
    with pytest.raises(Incompatible, match="variance head"):
        go(DDPM("learned_range"), [0.5, 0.2], state())
    denoiser = Says(oracle_on(VP), "noise", {"variance": torch.zeros(3, 2)})
    with pytest.raises(BadValue, match="shape of x_t"):
        go(DDPM("learned_range"), [0.5, 0.2], state(), denoiser)


@each("solver", [s for s in STOCHASTIC if s != Consistency() and not isinstance(s, Renoise)])
def test_fresh_noise_of_another_law_is_refused(solver):
    """Only normal noise may be added in portions."""
    process = Gaussian(EDM(sigma_max=10.0), StudentT(df=5.0))
    with pytest.raises(Incompatible):
        go(solver, [0.5, 0.2], state(), Point(process))


def test_every_pair_of_twins_differs_from_the_others():
    """The comparisons above can fail: rules that should differ do."""
    results = [go(s, [0.9, 0.8, 0.5, 0.3, 0.2, 0.05], state()) for s in DETERMINISTIC]
    for a, b in itertools.combinations(results, 2):
        assert float((a - b).abs().max()) > 1e-6
