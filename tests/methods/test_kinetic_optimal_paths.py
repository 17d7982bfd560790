"""Kinetic-optimal paths against closed forms, exact posteriors and brute-force perturbations."""

import dataclasses
import math

import pytest
import torch

from condiff.config import from_config, to_config
from condiff.data import TensorData, digits
from condiff.errors import BadType, BadValue, Incompatible
from condiff.methods import kinetic_optimal_paths
from condiff.methods.experiment import Facts
from condiff.process import (
    EDM,
    Bridge,
    Cosine,
    Gaussian,
    Moments,
    Rectified,
    Retimed,
    Separation,
    Tabulated,
    VPLinear,
    from_mse_curve,
    kinetic_energy,
    kinetic_optimal,
    kinetic_report,
    model_separation,
    points_separation,
    population_separation,
    straight_sigmas,
)
from condiff.process.kinetic import _energy
from condiff.process.oracles import empirical, gaussian, mixture
from condiff.sampling import DDIM, Euler, KineticEnergy, sample

ROOTS = torch.logspace(-3, math.log10(30.0), 60, dtype=torch.float64)
TIMES = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)


def separation(mmse, **facts):
    """The table of a function of the root."""
    return Separation(roots=ROOTS.tolist(), mmse=mmse(ROOTS).clamp(0.0, 1.0).cummin(0).values.tolist(), **facts)


def two_points(s):
    """The mean square error of -1 and 1, by quadrature: 1 - E tanh(s (s + z))^2."""
    z = torch.linspace(-12.0, 12.0, 20001, dtype=torch.float64)
    w = torch.exp(-0.5 * z * z)
    return torch.stack([(w * (1.0 - torch.tanh(k * (k + z)) ** 2)).sum() for k in s]) / w.sum()


FAR = separation(torch.zeros_like, start=1.0)
NORMAL = separation(lambda s: 1.0 / (1.0 + s * s), end=0.0)
ANALYTIC = separation(lambda s: (1.0 + s * s) ** -2)
TWO = separation(two_points)


def points(n, d, seed=0):
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    return x / x.square().mean().sqrt()


# The energy


@pytest.mark.parametrize("schedule", [Rectified(), Cosine(), "optimal"], ids=str)
@pytest.mark.parametrize("power", [1.0, 0.3])
def test_energy_is_the_mean_square_of_the_marginal_velocity(schedule, power):
    """Six points in three dimensions, 4e5 draws over times; the measured velocities are exact."""
    x = points(6, 3, seed=1) * power**0.5
    found = points_separation(x, draws=20_000)
    schedule = kinetic_optimal(found) if schedule == "optimal" else schedule
    oracle = empirical(Gaussian(schedule), x)
    generator, total, parts = torch.Generator().manual_seed(0), 0.0, 200
    for k in range(parts):
        t = (k + 0.5) / parts
        drawn = x[torch.randint(6, (2000,), generator=generator)]
        noise = torch.randn(2000, 3, dtype=torch.float64, generator=generator)
        x_t = oracle.process.forward(drawn, t, noise=noise).x_t
        total += float(oracle(x_t, t).velocity.square().mean()) / parts
    assert kinetic_energy(schedule, found) == pytest.approx(total, rel=0.01)


def test_energy_equals_the_integral_over_the_separation():
    """The polygon's length against the formula with derivatives, on a path that isn't optimal."""
    for schedule in (Rectified(), Cosine()):
        t = ((torch.arange(20_000) + 0.5) / 20_000).double()
        a, s, da, ds = schedule.alpha(t), schedule.sigma(t), schedule.d_alpha(t), schedule.d_sigma(t)
        lam = ANALYTIC.separation(a / s)
        formula = (da**2 + ds**2 - (1.0 - lam) * (da - a * ds / s) ** 2).mean()
        assert kinetic_energy(schedule, ANALYTIC) == pytest.approx(float(formula), rel=1e-6)


def test_energies_of_known_paths():
    assert kinetic_energy(Rectified(), FAR) == pytest.approx(2.0, abs=1e-9)
    assert kinetic_energy(Cosine(), FAR) == pytest.approx((math.pi / 2) ** 2, rel=1e-7)
    assert kinetic_energy(Cosine(), NORMAL) == pytest.approx(0.0, abs=1e-12)
    assert kinetic_energy(Rectified(), NORMAL) == pytest.approx(0.429204, abs=1e-6)
    assert kinetic_energy(Rectified(), TWO) == pytest.approx(0.982, abs=1e-3)
    assert kinetic_energy(Cosine(), TWO) == pytest.approx(0.869, abs=1e-3)


def test_a_variance_that_starts_linearly_has_infinite_energy_on_points():
    assert kinetic_energy(VPLinear(), TWO) == math.inf
    assert math.isfinite(kinetic_energy(VPLinear(), NORMAL))


# The optimum


def test_points_far_apart_give_the_straight_path():
    schedule = kinetic_optimal(FAR)
    torch.testing.assert_close(schedule.sigma(TIMES), TIMES, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.alpha(TIMES), 1.0 - TIMES, rtol=0, atol=1e-9)
    assert FAR.least_energy == pytest.approx(2.0, abs=1e-9)


def test_gaussian_data_need_no_energy_on_any_unit_radius():
    schedule = kinetic_optimal(NORMAL)
    assert NORMAL.angle == pytest.approx(0.0, abs=1e-7) and NORMAL.least_energy < 1e-9
    radius = schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2
    torch.testing.assert_close(radius, torch.ones_like(radius), rtol=0, atol=1e-8)
    assert kinetic_energy(schedule, NORMAL) < 1e-8


def test_the_analytic_separation():
    """``1 - lambda = (1 + s^2)^-2``: h = sin^2, phi = 1 - cos, Phi = 1."""
    angles = torch.linspace(0.0, math.pi / 2, 50, dtype=torch.float64)
    torch.testing.assert_close(ANALYTIC.phi(angles), 1.0 - torch.cos(angles), rtol=0, atol=2e-6)
    assert ANALYTIC.angle == pytest.approx(1.0, abs=2e-6)
    assert ANALYTIC.least_energy == pytest.approx(0.919395, abs=1e-5)
    assert kinetic_energy(kinetic_optimal(ANALYTIC), ANALYTIC) == pytest.approx(0.919395, abs=1e-5)


def test_two_points():
    assert TWO.angle == pytest.approx(0.69126, abs=5e-5)
    assert TWO.least_energy == pytest.approx(0.45912, abs=5e-5)
    assert kinetic_energy(kinetic_optimal(TWO), TWO) == pytest.approx(0.45912, abs=3e-4)


def test_no_perturbation_has_less_energy():
    """Of radius and angle of the curve, at nine knots, both ways."""
    schedule = kinetic_optimal(TWO)
    times = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    a, s = schedule.alpha(times), schedule.sigma(times)
    r, angle = torch.hypot(a, s), torch.atan2(a, s)
    best = TWO.least_energy
    for knot in range(1, 10):
        bump = torch.exp(-0.5 * ((times - knot / 10) / 0.06) ** 2) * times * (1.0 - times)
        for size in (-0.2, -0.05, 0.05, 0.2):
            for dr, da in ((size, 0.0), (0.0, size)):
                radius, turned = r * (1.0 + dr * bump), (angle + da * bump).clamp(0.0, math.pi / 2)
                phi = TWO.phi(turned)
                moved = radius.diff() ** 2 + 4.0 * radius[1:] * radius[:-1] * torch.sin(0.5 * phi.diff()) ** 2
                assert float((moved / times.diff()).sum()) > best


def test_a_feature_that_is_normal_halves_h():
    half = separation(lambda s: 0.5 * two_points(s) + 0.5 / (1.0 + s * s), end=0.5)
    assert half.angle == pytest.approx(0.69126 / math.sqrt(2.0), abs=1e-4)
    assert half.least_energy == pytest.approx(4.0 * math.sin(half.angle / 2.0) ** 2, rel=1e-12)


@pytest.mark.parametrize("power", [0.25, 1.0, 4.0])
def test_data_of_other_power_end_at_their_own_radius(power):
    """The straight line goes to radius sqrt(q); the unit chord, rescaled, costs more."""
    data = dataclasses.replace(TWO, power=power)
    least = 1.0 + power - 2.0 * math.sqrt(power) * math.cos(TWO.angle)
    assert data.least_energy == pytest.approx(least, rel=1e-12)
    assert kinetic_energy(kinetic_optimal(data), data) == pytest.approx(least, rel=1e-3)
    unit = kinetic_optimal(TWO)
    assert kinetic_energy(unit, data) >= least * (1.0 - 1e-9)
    if power != 1.0:
        assert kinetic_energy(unit, data) > 1.01 * least


CASES = {
    "two points": lambda: TWO,
    "analytic": lambda: ANALYTIC,
    "64 in 4": lambda: points_separation(points(64, 4), draws=1000),
    "64 in 64": lambda: points_separation(points(64, 64), draws=1000),
    "other power": lambda: points_separation(0.3 * points(20, 2), draws=1000),
}


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_below_the_straight_and_the_trigonometric_path(case):
    found = CASES[case]()
    optimum = kinetic_energy(kinetic_optimal(found), found)
    assert optimum == pytest.approx(found.least_energy, rel=2e-3)
    assert optimum <= min(kinetic_energy(Rectified(), found), kinetic_energy(Cosine(), found))


def test_schedules_are_schedules():
    """Exact ends, a falling log-SNR with its inverse, slopes that are those of the curves; stored and read back."""
    schedule = kinetic_optimal(TWO)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert schedule.alpha(ends).tolist() == [1.0, 0.0] and schedule.sigma(ends).tolist() == [0.0, 1.0]
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-10)
    step = 1e-6
    slope = (schedule.alpha(t + step) - schedule.alpha(t - step)) / (2.0 * step)
    torch.testing.assert_close(schedule.d_alpha(t), slope, rtol=1e-4, atol=1e-6)
    assert from_config(to_config(schedule)) == schedule
    assert from_config(to_config(TWO)) == TWO


def test_a_curve_that_moves_at_constant_speed():
    schedule = kinetic_optimal(TWO)
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    phi = TWO.phi(torch.atan2(schedule.alpha(t), schedule.sigma(t)))
    zeta = torch.polar(torch.hypot(schedule.alpha(t), schedule.sigma(t)), phi)
    end = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(TWO.angle, dtype=torch.float64))
    torch.testing.assert_close(zeta, t + (1.0 - t) * end, rtol=0, atol=2e-3)
    assert _energy(schedule, TWO, t) == pytest.approx(TWO.least_energy, rel=2e-3)


# Measuring the separation


def test_the_separation_rises_and_is_that_of_the_points():
    found = points_separation(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), draws=20_000)
    lam = found.separation(ROOTS)
    assert bool((lam.diff() >= -1e-12).all())
    torch.testing.assert_close(lam, 1.0 - two_points(ROOTS), rtol=0, atol=0.005)
    assert found.angle == pytest.approx(0.69126, abs=0.005)


def test_the_angle_rises_with_the_dimension():
    angles = [points_separation(points(64, d), draws=1000).angle for d in (4, 64, 1024)]
    assert angles[0] < angles[1] < angles[2] < math.pi / 2
    assert angles[2] == pytest.approx(1.504, abs=0.02)


def test_digits_have_their_published_angle():
    """All 1797 of them, centred and scaled to unit power."""
    data = digits("all")
    x = data.batch(range(1797))["x"].double().flatten(1)
    found = points_separation((x - x.mean(0)) / (x - x.mean(0)).square().mean().sqrt(), draws=400)
    assert found.angle == pytest.approx(1.271, abs=0.02)
    assert found.least_energy == pytest.approx(1.409, abs=0.04)
    lam = found.separation(torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(lam, torch.tensor([0.04, 0.37, 0.97, 1.0]).double(), rtol=0, atol=0.02)


def test_directions_outside_the_span_of_the_points_do_not_matter():
    """Few points in many dimensions are measured in their span; padding with zeros changes only the power."""
    x = points(8, 6)
    padded = torch.cat([x, torch.zeros(8, 94, dtype=torch.float64)], 1)
    roots = (0.3, 1.0, 3.0)
    few = points_separation(x, draws=4000, roots=roots)
    many = points_separation(padded, draws=4000, roots=[s * math.sqrt(6 / 100) for s in roots])
    torch.testing.assert_close(torch.tensor(few.mmse), torch.tensor(many.mmse), rtol=0.02, atol=0.001)


def test_a_denoiser_says_the_same_as_its_law():
    cov = torch.diag(torch.tensor([1.5, 0.5], dtype=torch.float64))
    oracle = gaussian(Gaussian(Cosine()), [0.4, -1.0], cov=cov)
    x = oracle.sample(20_000, rng=0, dtype=torch.float64)
    found = model_separation(oracle, x, draws=20_000, power=1.0, batch=20_000, roots=(0.3, 1.0, 3.0))
    exact = [0.5 * sum(v / (1.0 + s * s * v) for v in (1.5, 0.5)) for s in (0.3, 1.0, 3.0)]
    assert found.mmse == pytest.approx(exact, rel=0.02)


def test_the_population_of_normal_samples_is_normal():
    """Where the points themselves are far from it."""
    x = points(400, 4)
    assert population_separation(x, draws=400).angle < 0.25 < points_separation(x, draws=400).angle


def test_a_curve_of_errors_of_either_kind():
    s = ROOTS[::4]
    of_x0 = from_mse_curve(s.tolist(), two_points(s).tolist(), end=1.0)
    of_noise = from_mse_curve(s.tolist(), (two_points(s) * s**2).tolist(), kind="noise", end=1.0)
    assert of_x0.mmse == pytest.approx(of_noise.mmse, rel=1e-12)
    noisy = from_mse_curve([1.0, 0.1, 10.0], [0.4, 2.0, 0.5])
    assert noisy.mmse == pytest.approx((1.0 / 1.01, 0.4, 1.0 / 101.0))


def test_the_report_ranks():
    report = kinetic_report(TWO)
    assert report.least < report.energies["cosine"] < report.energies["rectified"]
    assert report.excess("rectified") == pytest.approx(0.982422 / 0.459155 - 1.0, rel=1e-3)
    assert "kinetic-optimal" in report.table() and "rectified" in report.table()
    assert report.as_dict()["least_energy"] == report.least


# Use


def test_a_model_of_the_straight_path_is_sampled_along_the_optimal_one():
    """Re-timed, and through diffusers' flow-matching scheduler with the remapped noise levels: the same steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = kinetic_optimal(TWO)
    straight = mixture(Gaussian(Rectified()), [[-1.0, 0.3], [1.0, -0.3]], stds=0.2)
    times = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
    start = torch.randn(5, 2, dtype=torch.float64)
    ours = sample(Retimed(straight, Gaussian(schedule)), solver=DDIM(), grid=times, initial=start)
    scheduler = FlowMatchEulerDiscreteScheduler()
    sigmas = straight_sigmas(schedule, times)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    x = start.clone()
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1].tolist(), strict=True):
        x = scheduler.step(straight(x, sigma).velocity, t, x).prev_sample
    torch.testing.assert_close(x.double(), ours, rtol=1e-4, atol=1e-4)  # diffusers keeps sigmas in float32


def test_energy_along_trajectories_is_the_predicted_one():
    x = points(5, 2)
    found = points_separation(x, draws=20_000)
    for schedule in (Rectified(), kinetic_optimal(found)):
        hook = KineticEnergy()
        oracle = empirical(Gaussian(schedule), x)
        options = {"grid": torch.linspace(0.999, 0.0, 201), "num": 1000, "seed": 0, "dtype": torch.float64}
        sample(oracle, solver=Euler(), prior=Moments(0.0, 1.0), hooks=[hook], **options)
        assert float(hook.per_dim.mean()) == pytest.approx(kinetic_energy(schedule, found), rel=0.06)
    with pytest.raises(BadValue, match="no trajectory"):
        _ = KineticEnergy().per_dim


def test_the_recipe_trains_on_its_own_schedule():
    data = TensorData(0.5 * points(60, 3).float().clamp(-2, 2), range="keep")
    recipe = kinetic_optimal_paths.recipe(Facts.of(data))
    assert from_config(to_config(recipe)) == recipe
    losses = recipe.objective(recipe.denoiser(0), {"x": data.batch(range(60))["x"]}, 0)
    assert torch.isfinite(losses.loss)
    with pytest.raises(BadValue, match=r"Facts\.of"):
        kinetic_optimal_paths.recipe(Facts((3,)))


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: points_separation(torch.zeros(5, 2)), "the same"),
        (lambda: points_separation(torch.zeros(0, 2)), "at least two"),
        (lambda: points_separation(torch.randn(1, 2)), "at least two"),
        (lambda: points_separation(torch.tensor([[1.0], [math.nan]])), "NaN"),
        (lambda: points_separation(torch.tensor([[1], [2]])), "floating"),
        (lambda: points_separation(points(4, 2), draws=0), "draws"),
        (lambda: points_separation(points(4, 2), roots=(1.0,)), "roots"),
        (lambda: population_separation(points(3, 2)), "four"),
        (lambda: population_separation(points(9, 2), widths=(-1.0,)), "widths"),
        (lambda: Separation(roots=(1.0, 0.5), mmse=(0.5, 0.4)), "rise"),
        (lambda: Separation(roots=(0.5, 1.0), mmse=(0.4, 0.5)), "fall"),
        (lambda: Separation(roots=(0.5, 1.0), mmse=(0.5, 0.4), power=0.0), "power"),
        (lambda: Separation(roots=(0.5, 1.0), mmse=(0.5, 0.4), end=2.0), "start and end"),
        (lambda: Separation(roots=(0.5, math.inf), mmse=(0.5, 0.4)), "finite"),
        (lambda: from_mse_curve([1.0, 2.0], [0.5, -0.1]), ">= 0"),
        (lambda: from_mse_curve([1.0, 2.0], [0.5, 0.1], kind="v"), "kind of error"),
        (lambda: kinetic_optimal(TWO, nodes=2), "nodes"),
        (lambda: kinetic_energy(Rectified(), TWO, parts=2), "parts"),
        (lambda: Gaussian(kinetic_optimal(TWO)).at(1.5), "0, 1"),
        (lambda: Gaussian(kinetic_optimal(TWO)).at(-0.1), "0, 1"),
        (lambda: Tabulated(times=(0.0, 0.5, 1.0), alphas=(1.0, 0.2, 0.5), sigmas=(0.0, 0.5, 0.6)), "fall"),
        (
            lambda: model_separation(gaussian(Gaussian(EDM()), [0.0], std=1.0), torch.randn(9, 1), roots=(1e-4, 1.0)),
            "path",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((BadValue, BadType), match=message):
        make()


def test_paths_to_an_endpoint_are_refused():
    oracle = gaussian(Gaussian(Cosine()), [0.0], std=1.0)
    with pytest.raises(Incompatible, match="paths from data"):
        model_separation(dataclasses.replace(oracle, process=Bridge()), torch.randn(9, 1))


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(beta_max=2.0)])
def test_energies_are_of_paths_from_data_to_unit_noise(schedule):
    with pytest.raises(BadValue, match="unit noise"):
        kinetic_energy(schedule, TWO)
