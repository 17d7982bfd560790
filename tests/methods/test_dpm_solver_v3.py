"""DPM-Solver-v3's claims: exact steps where f is of the assumed form, orders, and what it costs."""

import math

import pytest
import torch

from condiff.conditions import as_conditions
from condiff.errors import Incompatible
from condiff.guidance import Free
from condiff.process import Gaussian, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.random import as_source
from condiff.sampling import (
    DDIM,
    DPMSolverPP,
    DPMSolverV3,
    ModelStatistics,
    RungeKutta,
    UniPC,
    measure_statistics,
    sample,
    trajectory,
)
from condiff.sampling.measure_statistics import _Change, _evaluate, _moments, _States

VP = Gaussian(VPLinear())
MEANS = [[-1.0, 0.5, 0.2, 0.0], [1.0, -0.2, 0.1, 0.5], [0.3, 1.2, -1.0, -0.5]]
MIXTURE = mixture(VP, MEANS, stds=[0.4, 0.5, 0.6], labels=[0, 0, 1])
X = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rmse(solver, steps, grid, exact, model=MIXTURE):
    return float((sample(model, solver=solver, grid=grid, steps=steps, initial=X) - exact).square().mean().sqrt())


# 1. Degenerate tables


@pytest.mark.parametrize(("l", "s"), [(1.0, 0.0), (0.0, -1.0)], ids=["x0", "noise"])
def test_constant_tables_are_ddim_up_to_quadrature(l, s):  # noqa: E741
    errors = []
    for nodes in (120, 1200):
        tables = ModelStatistics.constant(VP, l=l, s=s, nodes=nodes)
        grid = tables.grid().times(VP, 8)
        a, b = (
            sample(MIXTURE, solver=v, grid=grid, initial=X)
            for v in (DPMSolverV3(tables, order=1, corrector=False), DDIM())
        )
        errors.append(float((a - b).abs().max()))
    assert errors[1] <= 1e-4 and errors[0] / errors[1] == pytest.approx(100.0, rel=0.05)


# 2 and 6. Exact single steps


def gaussian_case(nodes):
    """Normal data N(m, diag c) and the columns of the nodes."""
    rng = torch.Generator().manual_seed(3)
    m = 4.0 * torch.rand(5, dtype=torch.float64, generator=rng) - 2.0
    c = 0.05 + 1.95 * torch.rand(5, dtype=torch.float64, generator=rng)
    base = ModelStatistics.constant(VP, nodes=nodes)
    levels = VP.levels(base.times)
    alpha, sigma = (torch.tensor([[getattr(v, k)] for v in levels], dtype=torch.float64) for k in ("data", "noise"))
    var, e = alpha**2 * c + sigma**2, torch.exp(-2.0 * base.nodes)[:, None]
    x = torch.randn(6, 5, dtype=torch.float64, generator=rng)
    exact = alpha[-1] * m + (var[-1] / var[0]).sqrt() * (x - alpha[0] * m)
    return gaussian(VP, m.tolist(), cov=torch.diag(c).tolist()), base, m, c, e, sigma**2 / var, x, exact


def one_step(model, solver, x):
    return sample(model, solver=solver, grid=[1.0, 1e-3], initial=x)


@pytest.mark.parametrize(("nodes", "error"), [(600, 3e-7), (2400, 2e-8)])
def test_one_step_of_the_whole_way_is_exact_for_normal_data(nodes, error):
    model, base, m, c, e, l, x, exact = gaussian_case(nodes)  # noqa: E741
    tables = ModelStatistics(l=l, s=torch.zeros_like(l), b=2.0 * m * c * e / (c + e) ** 2, ends=base.ends, process=VP)
    assert float((one_step(model, DPMSolverV3(tables, order=1, corrector=False), x) - exact).abs().max()) < error
    assert float((one_step(model, DDIM(), x) - exact).abs().max()) > 1.0


def test_one_step_is_exact_for_f_that_follows_its_model():
    """f' = s f + b holds with l = 1, s = e / (c + e): quadrature of second order is all that is left."""
    errors = []
    for nodes in (1200, 2400):
        model, base, m, c, e, _, x, exact = gaussian_case(nodes)
        ones = torch.ones(nodes + 1, 5, dtype=torch.float64)
        tables = ModelStatistics(l=ones, s=e / (c + e), b=m * e / (c + e), ends=base.ends, process=VP)
        errors.append(float((one_step(model, DPMSolverV3(tables, order=1, corrector=False), x) - exact).abs().max()))
    assert errors[0] < 7e-3 and errors[1] < 1.8e-3 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


# 3. What is measured


def noise_at(model, x, lam):
    level = VP.at(float(VP.time(torch.tensor(2.0 * lam, dtype=torch.float64))))
    return model(x, level).noise, level


def along(model, x, lam, h, steps=8):
    """Runge-Kutta 4 on ``dy / dlam = -e^-lam E[z]`` for y = x / data, from lam to lam + h."""

    def slope(y, at):
        level = VP.at(float(VP.time(torch.tensor(2.0 * at, dtype=torch.float64))))
        return -math.exp(-at) * model(level.data * y, level).noise

    y = x / noise_at(model, x, lam)[1].data
    for k in range(steps):
        d, at = h / steps, lam + k * h / steps
        k1 = slope(y, at)
        k2 = slope(y + 0.5 * d * k1, at + 0.5 * d)
        k3 = slope(y + 0.5 * d * k2, at + 0.5 * d)
        k4 = slope(y + d * k3, at + d)
        y = y + d / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return y


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("lam", [-1.5, 0.2, 1.5])
def test_the_rate_of_f_is_that_along_the_path(lam, guided):
    """Central difference of f along the ODE, with an l that changes with lam: the l' term counts."""
    cond = {"label": torch.tensor([0, 1, 0])}
    inner = Free(MIXTURE, scale=2.0) if guided else MIXTURE
    model = (lambda x, level: inner(x, level, cond)) if guided else inner

    def l_at(at):
        return torch.sigmoid(torch.tensor([0.5, 0.0, -0.5, 1.0], dtype=torch.float64) - at)

    def f_at(h):
        y, at = along(model, X[:3], lam, h), lam + h
        level = VP.at(float(VP.time(torch.tensor(2.0 * at, dtype=torch.float64))))
        return math.exp(-at) * model(level.data * y, level).noise - l_at(at) * y

    h = 1e-3
    expected = (f_at(h) - f_at(-h)) / (2.0 * h)
    level = noise_at(model, X[:3], lam)[1]
    given = as_conditions(cond if guided else None, MIXTURE.kinds, "cpu")
    states = _States(inner, [level], None, given, 3, None, as_source(0), torch.float64, "forward")
    states.x = X[:3]
    noise, _, *change = _evaluate(inner, states, 0, slice(0, 3))
    l = l_at(lam)  # noqa: E741
    slope = -l * (1.0 - l)  # dl / dlam
    for i in range(3):  # of one state, means are values
        row = slice(i, i + 1)
        change_i = _Change(*(part[row] for part in change))
        found = _moments(X[row], noise[row], (l / level.noise)[None], change_i, level, True)
        torch.testing.assert_close(found.rest - slope * found.after, expected[i], rtol=0, atol=2e-5)
        assert float((slope * found.after).abs().max()) > 1e-3


@pytest.fixture(scope="module")
def measured():
    data = MIXTURE.sample(64, rng=1, dtype=torch.float64)
    tables = measure_statistics(MIXTURE, data=data, nodes=300, batch=64, rng=0)
    exact = sample(MIXTURE, solver=RungeKutta("rk4"), grid=tables.grid(), steps=300, initial=X)
    return tables, exact


# 4. Orders


@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.9, 1.1), (2, 1.85, 2.15), (3, 2.75, 3.4)])
def test_orders_with_measured_tables(measured, order, low, high):
    tables, exact = measured
    solver = DPMSolverV3(tables, order=order, corrector=False)
    errors = [rmse(solver, steps, tables.grid(), exact) for steps in (24, 48)]
    assert low < math.log2(errors[0] / errors[1]) < high


def test_pseudo_derivatives_of_order_3_are_of_order_2(measured):
    tables, exact = measured
    solver = DPMSolverV3(tables, order=3, corrector=False, pseudo_predictor=True)
    errors = [rmse(solver, steps, tables.grid(), exact) for steps in (24, 48)]
    assert 1.6 < math.log2(errors[0] / errors[1]) < 2.4


def test_fewer_evaluations_for_the_same_error(measured):
    """The claim: at least 15 % below tables that say nothing and DPM-Solver++ at 5, 8 and 10 evaluations."""
    tables, exact = measured
    plain = ModelStatistics.constant(VP, nodes=300)
    for steps in (5, 8, 10):
        ours = rmse(DPMSolverV3(tables, order=3, pseudo_corrector=False), steps, tables.grid(), exact)
        assert ours < 0.85 * rmse(DPMSolverV3(plain, order=3, pseudo_corrector=False), steps, tables.grid(), exact)
        assert ours < 0.85 * rmse(DPMSolverPP(), steps, tables.grid(), exact)
        assert ours < 0.85 * rmse(UniPC(3), steps, tables.grid(), exact)


# 5. Cost and order of the last step


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_as_many_evaluations_as_steps_and_a_last_step_of_first_order(measured, order, corrector):
    tables, _ = measured
    grid = tables.grid().times(VP, 6)
    *_, before, last = trajectory(MIXTURE, X, solver=DPMSolverV3(tables, order, corrector=corrector), grid=grid)
    assert last.nfe == 6 and last.index == 5
    if not corrector:
        alone = sample(
            MIXTURE, solver=DPMSolverV3(tables, order=1, corrector=False), grid=grid[-2:], initial=before.x_s
        )
        torch.testing.assert_close(last.x_s, alone, rtol=1e-12, atol=1e-12)


# 7. Files and scales


def test_tables_of_another_scale_are_refused(tmp_path):
    cond = {"label": torch.arange(6) % 2}
    tables = measure_statistics(Free(MIXTURE, scale=2.0), cond=cond, nodes=30, rng=0, dtype=torch.float64)
    tables.save(tmp_path / "t.safetensors")
    again = ModelStatistics.load(tmp_path / "t.safetensors")
    draws = [
        sample(Free(MIXTURE, scale=2.0), solver=DPMSolverV3(t), grid=t.grid(), steps=6, cond=cond, seed=0)
        for t in (tables, again)
    ]
    assert torch.equal(*draws)
    with pytest.raises(Incompatible, match="once for each scale"):
        sample(Free(MIXTURE, scale=2.5), solver=DPMSolverV3(again), grid=again.grid(), steps=6, cond=cond, seed=0)
