"""The closed form against numerical integration, the exact denoiser, and solvers' orders; teleportation's refusals."""

import math
from itertools import pairwise

import pytest
import torch

from condiff.conditions import Label
from condiff.data import TensorData, class_laws, digits, principal_law
from condiff.denoiser import Denoiser
from condiff.errors import BadFile, BadType, BadValue, Degenerate, Incompatible
from condiff.guidance import Free
from condiff.networks import MLP
from condiff.process import (
    EDM,
    Bridge,
    Cosine,
    Gaussian,
    Marginal,
    PrincipalLaw,
    Rectified,
    StudentT,
    Teleport,
)
from condiff.process.oracles import empirical, gaussian, low_rank, mixture
from condiff.sampling import (
    DDIM,
    SDE,
    Heun,
    Karras,
    Record,
    Tail,
    Uniform,
    UniformLogSNR,
    analyse,
    likeness,
    propagate,
    sample,
    teleport,
)

DIMS, RANK = 5, 3
EDM_PATH, VP_PATH, FLOW = Gaussian(EDM()), Gaussian(Cosine()), Gaussian(Rectified())
PATHS = {"edm": EDM_PATH, "cosine": VP_PATH, "flow": FLOW}
GRID = Karras(sigma_min=0.002, sigma_max=80.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def law(rank=RANK, residual=0.0, seed=0):
    basis = torch.linalg.qr(normal(DIMS, DIMS, seed=seed)).Q.mT[:rank]
    return PrincipalLaw(normal(DIMS, seed=1), basis, torch.tensor([2.0, 0.5, 0.1, 0.05, 0.01])[:rank], residual)


def dense(one):
    rest = torch.eye(one.dims, dtype=torch.float64) - one.basis.mT @ one.basis
    return (one.basis.mT * one.variances) @ one.basis + one.residual * rest


LAWS = {"full": law(rank=DIMS), "low rank": law(), "with a rest": law(residual=0.03), "point": law(rank=0)}


# The closed form


@pytest.mark.parametrize(("path", "name"), [("edm", "low rank"), ("edm", "with a rest"), ("cosine", "low rank")])
def test_the_closed_form_solves_the_ode(path, name):
    """Against RK4 in 4000 steps of ``dx = d data x0 + d noise z`` with the exact denoiser."""
    process, one = PATHS[path], LAWS[name]
    oracle = low_rank(process, one)
    if path == "edm":  # even in log sigma, from 80 to 0.002
        sigma = torch.linspace(math.log(80.0), math.log(0.002), 8001, dtype=torch.float64).exp()
        times = process.time(-2.0 * sigma.log())
    else:  # even in log t, from 1 to 0.001
        times = torch.linspace(0.0, math.log(0.001), 8001, dtype=torch.float64).exp()
    levels = process.levels(times)
    x = start = levels[0].noise * normal(3, DIMS, seed=2)

    def slope(x, level, du):
        said = oracle(x, level)
        return du * said.linear(x0=level.d_data, noise=level.d_noise)

    u = sigma.log() if path == "edm" else times.log()
    h = float(u[2] - u[0])
    # dt / du: sigma = 80 t^7, so dt/du = t / 7; and dt / d log t = t
    speed = [float(level.t) / (7.0 if path == "edm" else 1.0) for level in levels]
    for i in range(0, 8000, 2):
        a, b, c = levels[i : i + 3]
        k1 = slope(x, a, speed[i])
        k2 = slope(x + 0.5 * h * k1, b, speed[i + 1])
        k3 = slope(x + 0.5 * h * k2, b, speed[i + 1])
        k4 = slope(x + h * k3, c, speed[i + 2])
        x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    torch.testing.assert_close(one.transport(process, start, levels[0], levels[-1]), x, rtol=0, atol=3e-12)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("path", PATHS)
def test_the_denoiser_is_that_of_the_dense_gaussian(name, path):
    process, one = PATHS[path], LAWS[name]
    oracle, same = low_rank(process, one), gaussian(process, one.mean, cov=dense(one))
    x = normal(4, DIMS)
    for t in (1.0, 0.6, 0.3, torch.tensor([0.9, 0.5, 0.4, 0.2], dtype=torch.float64)):
        for kind in ("x0", "noise"):
            # the dense one knows a variance of 0 beside noise of 1e-3 to 1e-10 only
            torch.testing.assert_close(oracle(x, t).to(kind), same(x, t).to(kind), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(oracle.score(x, t), same.score(x, t), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_predictions_along_the_path_have_their_closed_form(path):
    """``x0 = mean + sum xi c u``, ``xi = data v / sqrt(V(t) V(T))``: 1e-14."""
    process, one = PATHS[path], LAWS["low rank"]
    top = process.at(1.0)
    x = top.noise * normal(4, DIMS)
    c = one.away(x, top) @ one.basis.mT
    for t in (0.9, 0.5, 0.2):
        level = process.at(t)
        xi = level.data * one.variances / (one.spread(level)[0] * one.spread(top)[0]).sqrt()
        said = low_rank(process, one)(one.transport(process, x, 1.0, t), t).x0
        torch.testing.assert_close(said, one.mean + (xi * c) @ one.basis, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("path", PATHS)
def test_transport_composes_and_inverts(name, path):
    process, one = PATHS[path], LAWS[name]
    x = process.at(1.0).noise * normal(4, DIMS)
    direct = one.transport(process, x, 1.0, 0.0)
    torch.testing.assert_close(one.transport(process, one.transport(process, x, 1.0, 0.4), 0.4, 0.0), direct, **TIGHT)
    there = one.transport(process, x, 1.0, 0.4)
    back = one.transport(process, there, 0.4, 1.0)
    torch.testing.assert_close(back / process.at(1.0).noise, x / process.at(1.0).noise, rtol=0, atol=1e-12)
    assert one.transport(process, x, 0.7, 0.7) is x


TIGHT = {"rtol": 0, "atol": 1e-12}


def test_a_golden_trajectory_of_edm():
    """``mean + sigma / sigma_T y + U (sqrt((sigma^2 + v) / (sigma_T^2 + v)) - sigma / sigma_T) U^T y``, written out."""
    one = LAWS["low rank"]
    x = 80.0 * normal(2, DIMS)
    for sigma in (40.0, 3.0, 0.1):
        y = x - one.mean
        scale = torch.sqrt((sigma**2 + one.variances) / (80.0**2 + one.variances)) - sigma / 80.0
        golden = one.mean + sigma / 80.0 * y + ((y @ one.basis.mT) * scale) @ one.basis
        t = float(EDM_PATH.time(torch.tensor(-2.0 * math.log(sigma), dtype=torch.float64)))
        torch.testing.assert_close(one.transport(EDM_PATH, x, 1.0, t), golden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_a_point_is_approached_along_a_straight_line(path):
    process, one = PATHS[path], LAWS["point"]
    top, level, x = process.at(1.0), process.at(0.3), normal(4, DIMS)
    expected = level.data * one.mean + level.noise / top.noise * (x - top.data * one.mean)
    torch.testing.assert_close(one.transport(process, x, top, level), expected, rtol=1e-14, atol=1e-14)


def test_the_gaussian_explains_the_score_of_points_at_high_noise():
    """20 random points in four dimensions: 1 - EV near 7e-1, 1e-1, 1e-7, 2e-11 at sigma = .3, 1, 10, 80."""
    x = normal(20, 4)
    model, one = empirical(EDM_PATH, x), principal_law(x)
    unbiased = PrincipalLaw(one.mean, one.basis, one.variances * 20 / 19)
    found, other = [], []
    for sigma in (0.3, 1.0, 10.0, 80.0):
        t = float(EDM_PATH.time(torch.tensor(-2.0 * math.log(sigma), dtype=torch.float64)))
        states = x[torch.arange(4000) % 20] + sigma * normal(4000, 4, seed=3)
        found.append(1.0 - likeness(model, one, states, t).explained)
        other.append(1.0 - likeness(model, unbiased, states, t).explained)
    for got, least, most in zip(found, (0.4, 0.03, 3e-8, 1e-13), (1.0, 0.3, 1e-6, 1e-10), strict=True):
        assert least < got < most
    assert other[2] > found[2] and other[3] > found[3]  # it is the population covariance that matches


ORDERS = [(DDIM(), 1, 0.05), (Heun(), 2, 0.06)]


@pytest.mark.parametrize(("solver", "order", "room"), ORDERS, ids=["DDIM", "Heun"])
def test_solvers_converge_to_the_closed_form(solver, order, room):
    """On a log grid of EDM, 40 to 320 steps."""
    one = LAWS["full"]
    x = 80.0 * normal(6, DIMS)
    grid = UniformLogSNR(sigma_min=0.002, sigma_max=80.0, last="sigma_min")
    errors = []
    for steps in (40, 80, 160, 320):
        times = grid.times(EDM_PATH, steps)
        got = sample(low_rank(EDM_PATH, one), solver=solver, initial=x, grid=times)
        exact = one.transport(EDM_PATH, x, float(times[0]), float(times[-1]))
        errors.append(float((got - exact).square().mean().sqrt()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=room)


def test_components_emerge_where_signal_equals_noise():
    one = LAWS["full"]
    for process in PATHS.values():
        for v, t in zip(one.variances.tolist(), one.emergence(process).tolist(), strict=True):
            level = process.at(t)
            assert level.data**2 * v == pytest.approx(level.noise**2, rel=1e-9)


# Fitting


def test_the_law_of_data_is_their_mean_and_covariance():
    x = normal(300, 2, 3) * torch.tensor([2.0, 1.0, 0.5]).double() + 0.7
    one = principal_law(x, batch=64)
    torch.testing.assert_close(one.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense(one), torch.cov(x.flatten(1).T, correction=0), rtol=1e-10, atol=1e-12)
    few = principal_law(x, rank=2)
    assert few.rank == 2 and few.std == pytest.approx(one.std, rel=1e-12)
    assert few.residual == pytest.approx(float(one.variances[2:].sum()) / 4.0, rel=1e-10)
    assert (one.low, one.high, one.count) == (float(x.min()), float(x.max()), 300)


def test_the_components_of_large_samples_without_their_covariance():
    x = normal(400, 1200) * torch.arange(1, 1201).double() ** -0.8
    one = principal_law(x, rank=20)
    exact = torch.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T / 400).flip(0)[:20]
    torch.testing.assert_close(one.variances, exact, rtol=1e-5, atol=0)
    assert one.std == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()), rel=1e-9)


def test_laws_are_stored(tmp_path):
    one = principal_law(digits(), rank=10)
    one.save(tmp_path / "law.safetensors")
    again = PrincipalLaw.load(tmp_path / "law.safetensors")
    for name in ("mean", "basis", "variances"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert (again.residual, again.low, again.high, again.count) == (one.residual, one.low, one.high, 1438)
    from condiff.files import write_tensors

    write_tensors(tmp_path / "other.safetensors", {"mean": torch.zeros(2)})
    with pytest.raises(BadFile, match="condiff statistics"):
        PrincipalLaw.load(tmp_path / "other.safetensors")


# Teleportation


@pytest.fixture(scope="module")
def data():
    x = digits().batch(range(300))["x"].double().flatten(1)
    return x, principal_law(x)


@pytest.fixture(scope="module")
def kernels(data):
    """Digits smeared by a deviation of 0.1, and their Gaussian."""
    x, one = data
    return mixture(EDM_PATH, x, stds=0.1), PrincipalLaw(one.mean, one.basis, one.variances + 0.01, one.residual + 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_skip_is_the_plain_sampler_bit_for_bit(kernels, dtype):
    model, one = kernels
    options = {"solver": Heun(), "grid": GRID, "steps": 4, "num": 3, "seed": 7, "dtype": dtype}
    assert torch.equal(teleport(model, one, skip=0, **options), sample(model, **options))


def test_skipped_steps_save_calls_and_little_is_lost(kernels):
    """The exact denoiser of smeared digits, 18 Heun steps: a start at ten deviations is as good as the whole grid and
    better than fewer whole steps at the same cost; one deviation is too late."""
    model, one = kernels
    options = {"solver": Heun(), "grid": GRID, "num": 8, "seed": 0, "dtype": torch.float64}
    exact = sample(model, steps=100, **options)

    def error(x):
        return float((x - exact).square().mean().sqrt())

    early = error(teleport(model, one, steps=18, sigma=8.5, **options))  # 23 evaluations
    assert early < 1.1 * error(sample(model, steps=18, **options))
    assert early < error(sample(model, steps=12, **options))
    assert error(teleport(model, one, steps=18, sigma=1.1, force=True, **options)) > 3.0 * early


def test_the_start_is_found_where_the_gaussian_explains_the_score(kernels):
    model, one = kernels
    options = {"solver": DDIM(), "grid": GRID, "steps": 18, "num": 2, "seed": 0}
    found = teleport(model, one, **options)
    levels = EDM_PATH.levels(GRID.times(EDM_PATH, 18))
    matching = [k for k in range(17) if torch.equal(found, teleport(model, one, skip=k, force=True, **options))]
    assert len(matching) == 1 and 2.0 < levels[matching[0]].noise < 6.0


def test_a_tail_is_the_end_of_its_grid():
    times = GRID.times(EDM_PATH, 18)
    assert torch.equal(Tail(GRID, skip=5).times(EDM_PATH, 18), times[5:])
    assert torch.equal(Tail(GRID, sigma=8.5).times(EDM_PATH, 18), times[6:])
    assert torch.equal(Tail(Uniform(), sigma=0.5).times(FLOW, 9), Uniform().times(FLOW, 9)[6:])


def test_a_law_for_each_class():
    x = torch.cat([normal(60, 3) + 4.0, 0.5 * normal(60, 3, seed=5) - 4.0])
    laws = class_laws(TensorData(x.float(), {"label": torch.arange(120) // 60}, range="keep"))
    start = Teleport(laws, label=torch.tensor([1, 0, 1]))
    noise = 80.0 * normal(3, 3)
    top, level = EDM_PATH.at(1.0), EDM_PATH.at(0.5)
    got = start.carry(noise, top, level)
    for i, k in enumerate((1, 0, 1)):
        torch.testing.assert_close(got[i], laws[k].transport(EDM_PATH, noise[i : i + 1], top, level)[0])
    model = mixture(EDM_PATH, torch.stack([one.mean for one in laws]), torch.stack([dense(one) for one in laws]),
                    labels=[0, 1])  # fmt: skip
    cond = {"label": torch.tensor([0, 1, 1, 0])}
    y = teleport(model, laws, solver=Heun(), grid=GRID, steps=18, skip=14, cond=cond, seed=0, dtype=torch.float64)
    assert y.shape == (4, 3) and bool((y[[0, 3]] > 0.0).all()) and bool((y[[1, 2]] < 0.0).all())


def test_the_marginal_is_where_stochastic_samplers_start():
    one = LAWS["with a rest"]
    x = Marginal(one).sample(VP_PATH.at(0.4), (40_000, DIMS), source_of(0), dtype=torch.float64)
    level = VP_PATH.at(0.4)
    cov = level.data**2 * dense(one) + level.noise**2 * torch.eye(DIMS, dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), level.data * one.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.05)


def source_of(seed):
    from condiff.random import as_source

    return as_source(seed)


# Analysis


def test_gaussian_trajectories_are_what_the_theory_says():
    """For Gaussian data the measured shares are the predicted ones, and trajectories stay near a plane."""
    one = LAWS["full"]
    x = 80.0 * normal(4000, DIMS)
    found = analyse(low_rank(EDM_PATH, one), one, x, solver=Heun(), grid=GRID, steps=30)
    torch.testing.assert_close(found.decided, found.predicted, rtol=0, atol=0.02)
    assert float(found.plane.min()) > 0.999 and float((found.plane - found.rotation).min()) > -1e-9
    assert bool((found.explained[found.explained == found.explained] > 1.0 - 1e-12).all())
    emerged = found.emergence()
    assert emerged.tolist() == found.emergence("predicted").tolist()
    assert bool((emerged.diff() <= 0.0).all())  # the outline first


def test_the_plane_is_the_best_fit_by_both_ends(kernels):
    """Each state by least squares on x_T and x_0; and nothing else lies in the plane."""
    model, one = kernels
    start, record = 80.0 * normal(3, 64), Record()
    found = analyse(model, one, start, solver=DDIM(), grid=GRID, steps=10)
    sample(model, solver=DDIM(), grid=GRID, steps=10, initial=start, hooks=[record])
    path = torch.stack([start, *record.values], 1)
    for row, share in zip(path, found.plane.tolist(), strict=True):
        ends = row[[0, -1]].T
        fit = ends @ torch.linalg.lstsq(ends, row.T).solution
        assert share == pytest.approx(1.0 - float((row.T - fit).square().sum() / row.square().sum()), abs=1e-12)
        assert share < 1.0 - 1e-7


def test_every_skipped_step_saves_its_calls(kernels):
    model, one = kernels
    for skip in (0, 3, 6):
        record = Record(lambda step: step.nfe)
        teleport(model, one, solver=Heun(), grid=GRID, steps=8, skip=skip, num=2, seed=0, force=True, hooks=[record])
        assert record.values[-1] == 2 * (8 - skip) - 1


def test_displacements_grow_as_predicted():
    one = LAWS["full"]
    x = 80.0 * normal(4, DIMS)
    for component in (0, 3):
        found = propagate(low_rank(EDM_PATH, one), x, component, 0.1, law=one, solver=Heun(), grid=GRID, steps=200)
        assert found.predicted == pytest.approx(
            float(one.variances[component] / (6400 + one.variances[component])) ** 0.5
        )
        torch.testing.assert_close(found.growth, torch.full((4,), found.predicted).double(), rtol=2e-3, atol=0)
        assert float(found.sideways.max()) < 1e-8
    mixed = propagate(low_rank(EDM_PATH, one), x, torch.ones(DIMS), 0.1, law=one, solver=Heun(), grid=GRID, steps=20)
    assert math.isnan(mixed.predicted) and bool((mixed.growth > 0.0).all())


def test_any_denoiser_is_analysed_and_drawn(kernels, tmp_path):
    model, one = kernels
    found = analyse(model, one, 80.0 * normal(8, 64), solver=DDIM(), grid=GRID, steps=8, components=3)
    assert found.decided.shape == (8, 3) and float(found.plane.min()) > 0.9
    assert found.explained[0] > 0.9999 > found.explained[-1]
    assert found.figure(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert set(found.as_dict()) == {"plane", "rotation", "variances", "emergence", "predicted_emergence"}


# Refusals


def network(process=EDM_PATH, shape=(64,)):
    return Denoiser(MLP(shape=shape, width=8, depth=1, conditions={"label": Label(3)}), process, "x0", shape=shape)


RUN = {"solver": Heun(), "grid": GRID, "steps": 8, "num": 2, "seed": 0}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"solver": SDE()}, Incompatible, "draws noise"),
        ({"solver": Heun(churn=10.0)}, Incompatible, "draws noise"),
        ({"solver": DDIM}, BadType, "takes a solver"),
        ({"sigma": 100.0}, BadValue, "above the first level"),
        ({"sigma": 1e-4}, BadValue, "leaves no step"),
        ({"sigma": 0.0}, BadValue, "above 0"),
        ({"skip": 8}, BadValue, "leaves no step"),
        ({"skip": -1}, BadValue, "skip"),
        ({"skip": None}, BadValue, "either"),
        ({"skip": 2, "sigma": 8.0}, BadValue, "either"),
        ({"skip": "late"}, BadValue, "auto"),
        ({"grid": [0.5, 1.0, 0.0], "steps": None, "skip": 1}, BadValue, "fall"),
        ({"skip": 7}, BadValue, r"explains|deviations"),
    ],
)
def test_bad_teleports_are_refused(kernels, change, error, message):
    model, one = kernels
    with pytest.raises(error, match=message):
        teleport(model, one, **{**RUN, **change})


def test_statistics_of_another_model_are_refused(kernels):
    model, one = kernels
    other = principal_law(normal(9, 3))
    with pytest.raises(BadValue, match="don't fit"):
        teleport(model, other, **RUN)
    shifted = PrincipalLaw((one.mean + 1.0) / 2.0, one.basis, one.variances / 4.0, one.residual / 4.0)  # of [0, 1]
    with pytest.raises(BadValue, match="range"):
        teleport(model, shifted, skip=3, **RUN)
    with pytest.raises(Incompatible, match="force=True"):
        teleport(Free(network(), scale=2.0), one, **RUN)
    with pytest.raises(BadValue, match="label"):
        teleport(model, [one, one], **RUN)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: principal_law(torch.zeros(4, 2)), BadValue, "the same"),
        (lambda: principal_law(torch.randn(1, 2)), BadValue, "two samples"),
        (lambda: principal_law(torch.randn(5, 2), rank=3), BadValue, "rank"),
        (lambda: principal_law(torch.randn(3, 8), rank=3), BadValue, "rank"),
        (lambda: principal_law(torch.randn(5, 2), rank=0), BadValue, "rank"),
        (lambda: principal_law(torch.full((3, 2), math.nan)), BadValue, "NaN"),
        (lambda: principal_law(torch.ones(3, 2, dtype=torch.long)), BadType, "floating"),
        (lambda: principal_law(torch.randn(3)), BadValue, "samples"),
        (lambda: PrincipalLaw(torch.zeros(2), torch.ones(1, 2), torch.ones(1)), BadValue, "orthonormal"),
        (lambda: PrincipalLaw(torch.zeros(2), torch.eye(2), torch.tensor([1.0, -0.1])), BadValue, ">= 0"),
        (lambda: PrincipalLaw(torch.zeros(3), torch.eye(2), torch.ones(2)), BadValue, "basis"),
        (lambda: PrincipalLaw(torch.tensor([0.0, math.inf]), torch.eye(2), torch.ones(2)), BadValue, "finite"),
        (lambda: PrincipalLaw.from_covariance([0.0, 0.0], [[1.0, 0.0], [0.5, 1.0]]), BadValue, "symmetric"),
        (lambda: PrincipalLaw.from_covariance([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]), BadValue, "semi-definite"),
        (lambda: LAWS["low rank"].transport(EDM_PATH, torch.zeros(1, 4), 1.0, 0.5), BadValue, "samples"),
        (lambda: LAWS["low rank"].transport(EDM_PATH, torch.zeros(1, 5, dtype=torch.long), 1.0, 0.5), BadType, "float"),
        (lambda: LAWS["low rank"].transport(EDM_PATH, torch.zeros(1, 5), 0.0, 0.5), Degenerate, "no variance"),
        (lambda: LAWS["low rank"].transport(Bridge(), torch.zeros(1, 5), 1.0, 0.5), Incompatible, "closed form"),
        (lambda: low_rank(Gaussian(EDM(), StudentT(3.0)), LAWS["full"]), Incompatible, "closed form"),
        (lambda: Teleport([LAWS["full"]] * 2), BadValue, "label="),
        (lambda: Teleport([LAWS["full"]] * 2, label=torch.tensor([2])), BadValue, "labels"),
        (lambda: Teleport("law"), BadType, "PrincipalLaw"),
        (lambda: Teleport(LAWS["full"], start=0.0), BadValue, "start"),
        (lambda: Tail(GRID), BadValue, "either"),
        (lambda: Tail(GRID, skip=1, sigma=2.0), BadValue, "either"),
        (lambda: Tail(GRID, sigma=-1.0), BadValue, "positive"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_later_start_than_the_teleport_itself_is_refused(kernels):
    model, one = kernels
    with pytest.raises(BadValue, match="before the teleport"):
        sample(model, solver=DDIM(), grid=[1.0, 0.5], prior=Teleport(one, start=0.8), num=2, seed=0)


def test_analysis_refuses_noise_and_single_paths(kernels):
    model, one = kernels
    with pytest.raises(Incompatible, match="draws noise"):
        analyse(model, one, 80.0 * normal(4, 64), solver=SDE(), grid=GRID, steps=4)
    with pytest.raises(BadValue, match="two trajectories"):
        analyse(model, one, 80.0 * normal(1, 64), solver=DDIM(), grid=GRID, steps=4)
    for direction, size in ((99, 0.1), (torch.zeros(64), 0.1), (torch.ones(3), 0.1), (0, 0.0)):
        with pytest.raises(BadValue, match=r"component|direction"):
            propagate(model, 80.0 * normal(2, 64), direction, size, law=one, solver=DDIM(), grid=GRID, steps=4)
