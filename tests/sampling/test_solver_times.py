"""Solvers on all kinds of times: pauses, turns, times per row and per frame, steps up."""

import pytest
import torch
from solver_cases import ALL, DETERMINISTIC, FLOW, VP, Point, Says, each, equal, go, has_final, oracle_on, state

from condiff.config import from_config, to_config
from condiff.errors import BadValue
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Renoise,
    RungeKutta,
    State,
    UniPC,
    trajectory,
)

# Pauses and turns


@each("solver", ALL)
def test_a_repeated_time_is_the_identity(solver):
    for grid in ([0.5, 0.5], torch.full((2, 3), 0.5), torch.full((3, 3, 1), 1.0)):
        assert torch.equal(go(solver, grid, state(), process=FLOW if torch.is_tensor(grid) else VP), state())


@each("solver", [s for s in DETERMINISTIC if not isinstance(s, RungeKutta)])
@pytest.mark.parametrize("rows", [False, True])
def test_a_pause_ends_the_history(solver, rows):
    """Times 0.9 .. 0.5, 0.5 .. 0.2 in one go is going to 0.5 and starting anew."""

    def column(times):
        grid = torch.tensor(times, dtype=torch.float64)
        return grid[:, None].expand(-1, 3).contiguous() if rows else grid

    solver = from_config({**to_config(solver), **({"lower_order_final": False} if has_final(solver) else {})})
    whole = go(solver, column([0.9, 0.8, 0.65, 0.5, 0.5, 0.4, 0.3, 0.2]), state())
    half = go(solver, column([0.9, 0.8, 0.65, 0.5]), state())
    equal(whole, go(solver, column([0.5, 0.4, 0.3, 0.2]), half))


@each("solver", [DPMSolverPP(3, lower_order_final=False), DPMSolver(3, lower_order_final=False), AdamsBashforth(3),
                 UniPC(3, lower_order_final=False)])  # fmt: skip
def test_a_turn_ends_the_history(solver):
    whole = go(solver, [0.2, 0.4, 0.5, 0.6, 0.5, 0.4, 0.3], state())
    up = go(solver, [0.2, 0.4, 0.5, 0.6], state())
    equal(whole, go(solver, [0.6, 0.5, 0.4, 0.3], up))


@each("solver", [DPMSolverPP(2), DPMSolverPP(3), UniPC(2), AdamsBashforth(3)])
def test_a_state_that_lost_its_past_goes_on_at_first_order(solver):
    solver = from_config({**to_config(solver), **({"lower_order_final": False} if has_final(solver) else {})})
    levels = VP.levels(torch.tensor([0.9, 0.7, 0.5, 0.3], dtype=torch.float64))
    plan, first = solver.plan(levels), (Euler() if isinstance(solver, AdamsBashforth) else DDIM()).plan(levels)
    prediction = oracle_on(VP)(state(), levels[2])
    mean, _ = solver.advance(state(), prediction, plan[2], State())
    reference = Euler() if isinstance(solver, AdamsBashforth) else DDIM()
    equal(mean, reference.advance(state(), prediction, first[2], State())[0])


def test_learned_variances_pause_with_their_rows():
    """The deviation has the state's shape here, the pause that of the rows."""
    head = {"variance": torch.zeros(3, 3, dtype=torch.float64)}
    grid = torch.tensor([[0.9, 0.7, 0.5], [0.9, 0.6, 0.0], [0.8, 0.6, 0.0]], dtype=torch.float64)
    steps = list(
        trajectory(Says(oracle_on(VP), "noise", head), state(), solver=DDPM("learned_range"), grid=grid, rng=0)
    )
    moved = [[bool((step.x_s[i] != step.x_t[i]).all()) for i in range(3)] for step in steps]
    assert moved == [[False, True, True], [True, False, False]]
    assert torch.equal(steps[1].x_s[1:], steps[0].x_s[1:])


# Times per row and per frame


@each("solver", DETERMINISTIC)
def test_rows_with_their_own_times_are_independent(solver):
    columns = [[0.9, 0.7, 0.5, 0.3, 0.1], [0.8, 0.5, 0.3, 0.2, 0.05], [0.95, 0.6, 0.5, 0.25, 0.0]]
    together = go(solver, torch.tensor(columns, dtype=torch.float64).T.contiguous(), state())
    for i, column in enumerate(columns):
        equal(together[i : i + 1], go(solver, column, state()[i : i + 1]))


@each("solver", ALL)
def test_frames_with_their_own_times(solver):
    """A grid (N + 1, B, F): data that factorise over frames are sampled frame by frame."""
    columns = torch.tensor([[0.9, 0.6], [0.7, 0.4], [0.5, 0.4], [0.2, 0.1]], dtype=torch.float64)
    noise = [state(4, s, (2, 3)) for s in range(4)]
    frames = Point(FLOW, (2, 3))
    x = go(solver, columns[:, None].expand(-1, 4, -1).contiguous(), noise[3], frames, rng=Tape(noise))
    for f in range(2):
        alone = Tape([z[:, f] for z in noise])
        grid = columns[:, f, None].expand(-1, 4).contiguous()
        equal(x[:, f], go(solver, grid, noise[3][:, f], Point(FLOW), rng=alone))


@each("solver", ALL)
@pytest.mark.parametrize("grid", [[1.0, 0.6, 0.3, 0.05], torch.rand(4, 3, dtype=torch.float64).sort(0, True).values])
def test_states_keep_their_dtype(solver, grid):
    x = go(solver, grid, state().float(), process=FLOW)
    assert x.dtype == torch.float32


# Steps up


@each("solver", [DDIM(eta=1.0), SDE(), DPMSolverPP(2, noise=1.0), Renoise(DPMSolverPP(3))])
def test_a_step_up_draws_from_the_forward_kernel(solver):
    noise = [state(seed=s) for s in range(8)]
    steps = list(trajectory(oracle_on(VP), state(), solver=solver, grid=[0.5, 0.8, 0.6], rng=Tape(noise)))
    ratio, std = VP.kernel(VP.at(0.5), VP.at(0.8))
    equal(steps[0].x_s, ratio * state() + std * noise[0])
    assert [step.nfe for step in steps] == [0, 1] and steps[0].prediction is None
    assert torch.equal(steps[0].noise, noise[0])


def test_up_is_an_option():
    grid, x = [0.5, 0.8], state()
    integrated = go(DDIM(), grid, x)
    assert torch.equal(go(DDIM(), grid, x, up="integrate"), integrated)
    assert torch.equal(go(DDIM(), grid, x, up="renoise", rng=5), go(DDIM(eta=1.0), grid, x, rng=5))
    equal(go(DDIM(eta=1.0), grid, x, up="integrate"), integrated)
    with pytest.raises(BadValue, match="Did you mean 'renoise'"):
        go(DDIM(), grid, x, up="renoised")


def test_rows_may_go_up_while_others_go_down():
    grid = torch.tensor([[0.5, 0.8], [0.7, 0.6], [0.4, 0.3]], dtype=torch.float64)
    noise = [state(2, s) for s in range(4)]
    x = go(DDIM(eta=1.0), grid, state(2), rng=Tape(noise))
    for row, column in ((slice(0, 1), [0.5, 0.7, 0.4]), (slice(1, 2), [0.8, 0.6, 0.3])):
        equal(x[row], go(DDIM(eta=1.0), column, state(2)[row], rng=Tape([z[row] for z in noise])))


def test_history_ends_where_a_grid_goes_up():
    """After a jump the multistep rule starts anew."""
    noise = [state(seed=s) for s in range(9)]
    solver = Renoise(DPMSolverPP(3, lower_order_final=False))
    whole = go(solver, [0.9, 0.7, 0.5, 0.8, 0.6, 0.5], state(), rng=Tape(noise))
    down = go(solver, [0.9, 0.7, 0.5], state())
    ratio, std = VP.kernel(VP.at(0.5), VP.at(0.8))
    equal(whole, go(solver, [0.8, 0.6, 0.5], ratio * down + std * noise[0]))


@each("solver", [DPMSolverPP(3, lower_order_final=False), UniPC(3, lower_order_final=False), AdamsBashforth(3)])
def test_a_state_can_be_copied_and_cut(solver):
    """Two continuations of one state don't disturb each other; a cut state goes on as the whole one's rows."""
    levels = VP.levels(torch.linspace(0.9, 0.1, 6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.9, 0.8]))
    plan, model, x, past = solver.plan(levels), oracle_on(VP), state(), solver.start()
    for i in range(3):
        x, _ = solver.advance(x, model(x, levels[i]), plan[i], past)
    copies = [past.copy(), past.copy()]
    ends = [solver.advance(x, model(x, levels[3]), plan[3], one)[0] for one in copies]
    assert torch.equal(*ends) and len(past.history) == len(copies[0].history)
    assert past.history[0].level is not copies[0].history[0].level
    index, cut = torch.tensor([2, 0]), past.rows(torch.tensor([2, 0]))
    assert torch.equal(cut.history[0].level.t, levels[2].t[index])
    rows = solver.plan([level.rows(index) for level in levels])
    equal(solver.advance(x[index], model(x[index], levels[3].rows(index)), rows[3], cut)[0], ends[0][index])
