"""Student-t noise: its law, its limit, and what must not be asked of it."""

import math
import warnings

import pytest
import torch
from scipy import stats

from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import EDM, Cosine, Gaussian, Given, Moments, Normal, Prediction, StudentT, VPLinear
from condiff.random import PerSample, Shard, Tape, as_source
from condiff.sampling import DDIM, DDPM, Euler, sample, trajectory

F64 = torch.float64


def _draw(df, shape, seed=0):
    return StudentT(df).sample(as_source(seed), shape, F64)


@pytest.mark.parametrize("df", [3.0, 16.0, 128.0])
def test_a_coordinate_is_students_t(df):
    z = _draw(df, (20000, 5))
    assert stats.kstest(z[:, 2].numpy(), stats.t(df).cdf).pvalue > 0.01


@pytest.mark.parametrize(("df", "dims"), [(4.0, 2), (64.0, 48)])
def test_norms_are_those_of_the_papers_beta_form(df, dims):
    # |z|^2 / df = B / (1 - B) with B ~ Beta(N / 2, D / 2), with z's direction uniform.
    z = _draw(df, (20000, dims))
    ratio = z.square().sum(1) / df
    assert stats.kstest((ratio / (1 + ratio)).numpy(), stats.beta(dims / 2, df / 2).cdf).pvalue > 0.01
    direction = z / z.norm(dim=1, keepdim=True)
    assert float((direction.T @ direction / 20000 - torch.eye(dims, dtype=F64) / dims).abs().max()) < 0.02


def test_one_chi_square_is_shared_by_all_coordinates():
    # Given z, the same seed's normal draw has the same direction: rows are multiples.
    z = _draw(2.0, (6, 3, 4))
    ratio = z / as_source(0).normal((6, 3, 4), F64)
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-12, atol=0.0)
    assert ratio[:, 0, 0].std() > 0.1


@pytest.mark.parametrize("df", [math.inf, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_df_is_normal_bit_for_bit(df, dtype):
    for rng in (3, [1, 2, 3]):
        heavy = StudentT(df).sample(as_source(rng), (3, 4), dtype)
        normal = Normal().sample(as_source(rng), (3, 4), dtype)
        assert torch.equal(heavy, normal) == math.isinf(df)
        assert heavy.dtype == dtype


def test_infinite_df_gives_identical_samples():
    def draw(law, solver):
        return sample(Point(Gaussian(Cosine(), law)), solver=solver, steps=4, num=3, seed=1)

    for solver in (Euler(), DDIM(eta=1.0)):
        assert torch.equal(draw(StudentT(math.inf), solver), draw(Normal(), solver))


def test_a_rows_noise_depends_on_its_own_seed_only():
    law = StudentT(3.0)
    together = law.sample(PerSample([5, 6, 7]), (3, 4), F64)
    alone = law.sample(PerSample([6]), (1, 4), F64)
    assert torch.equal(together[1:2], alone)
    sharded = law.sample(Shard(as_source(0), 1, 3, 4), (2, 4), F64)
    assert torch.equal(sharded, law.sample(as_source(0), (4, 4), F64)[1:3])


def test_draws_can_be_given():
    n, half_chi2 = torch.ones(2, 3, dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    z = StudentT(4.0).sample(Tape([n, half_chi2]), (2, 3), F64)
    torch.testing.assert_close(z, torch.tensor([[1.0], [2.0]], dtype=F64).expand(2, 3))


@pytest.mark.parametrize(("df", "error"), [(0.0, BadValue), (-1.0, BadValue), (math.nan, BadValue), ("2", BadType)])
def test_bad_degrees_of_freedom(df, error):
    with pytest.raises(error, match="df"):
        StudentT(df)


def test_configuration_round_trip():
    process = Gaussian(EDM(), StudentT(128.0))
    assert from_config(to_config(process)) == process
    assert from_config(to_config(StudentT())) == StudentT(math.inf)


class Point:
    """All data at one point."""

    shape, kinds = (3,), {}

    def __init__(self, process):
        self.process, self.point = process, torch.tensor([1.0, -2.0, 0.5], dtype=F64)

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"x0": self.point.to(x.dtype).expand_as(x)})


def test_forward_and_every_quantity_but_the_score():
    process = Gaussian(VPLinear(), StudentT(4.0))
    x0 = torch.randn(5, 3, dtype=F64)
    truth = process.forward(x0, 0.4, rng=2)
    z = StudentT(4.0).sample(as_source(2), (5, 3), F64)
    level = truth.level
    torch.testing.assert_close(truth.x_t, level.data * x0 + level.noise * z)
    said = Prediction(truth.x_t, level, {"velocity": truth.velocity})
    for kind in ("x0", "noise", "v"):
        torch.testing.assert_close(said.to(kind), truth.to(kind), rtol=1e-12, atol=1e-12)
    with pytest.raises(Incompatible, match="not Gaussian"):
        _ = said.score
    assert torch.isfinite(Prediction(truth.x_t, process.at(0.4), {"x0": x0}).noise).all()


def test_the_prior_has_the_law():
    process = Gaussian(EDM(), StudentT(3.0))
    x = process.prior().sample(process.at(1.0), (20000, 2), as_source(0), dtype=F64)
    assert stats.kstest((x[:, 0] / 80.0).numpy(), stats.t(3.0).cdf).pvalue > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normal = stats.kstest((x[:, 0] / 80.0).numpy(), stats.norm.cdf).pvalue
    assert normal < 1e-6


@pytest.mark.parametrize("solver", [Euler(), DDIM()], ids=str)
def test_deterministic_solvers_run_along_straight_lines_to_a_point(solver):
    # One data point: x(sigma) = y + (x_1 - y) sigma / sigma_max exactly, any df, any steps.
    process = Gaussian(EDM(rho=1.0), StudentT(4.0))
    model = Point(process)
    x1 = process.prior().sample(process.at(1.0), (4, 3), as_source(0), dtype=F64)
    for step in trajectory(model, x1, solver=solver, steps=5):
        expected = model.point + (x1 - model.point) * step.s.noise / 80.0
        torch.testing.assert_close(step.x_s, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(eta=0.5), DDPM()], ids=str)
def test_stochastic_solvers_are_refused_before_the_first_call(solver):
    class Untouched(Point):
        def __call__(self, x, t, cond=None):
            raise AssertionError("called")

    with pytest.raises(Incompatible, match=r"not closed under addition.*Euler"):
        sample(Untouched(Gaussian(EDM(), StudentT(8.0))), solver=solver, steps=4, num=2, seed=0)


def test_kernels_sdes_and_renoising_are_refused():
    process = Gaussian(Cosine(), StudentT(8.0))
    s, t = process.at(0.2), process.at(0.7)
    truth = process.forward(torch.zeros(2, 3), t, rng=0)
    for call in (
        lambda: process.kernel(s, t),
        lambda: process.posterior_std(t, s),
        lambda: process.posterior(truth, s),
        lambda: process.diffusion2(t),
        lambda: process.renoise(truth.x_t, s, t, rng=0),
    ):
        with pytest.raises(Incompatible, match="StudentT"):
            call()
    assert Gaussian(Cosine(), StudentT(math.inf)).kernel(process.at(0.2), process.at(0.7))[1] > 0.0


def test_moments_under_heavy_noise_add_normal_data_and_heavy_noise():
    process = Gaussian(Cosine(), StudentT(5.0))
    level = process.at(0.5)
    x = Moments(mean=1.0, var=4.0).sample(level, (40000, 1), as_source(0), dtype=F64)
    variance = level.data**2 * 4.0 + level.noise**2 * 5.0 / 3.0
    assert float(x.mean()) == pytest.approx(level.data, abs=5 * (variance / 40000) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=0.05)


# Priors


def test_moments_are_those_of_the_marginal():
    process, mean = Gaussian(Cosine()), torch.tensor([1.0, -2.0], dtype=F64)
    level = process.at(0.6)
    x = Moments(mean=mean, var=0.3).sample(level, (50000, 2), as_source(0), dtype=F64)
    std = (level.data**2 * 0.3 + level.noise**2) ** 0.5
    assert float((x.mean(0) - level.data * mean).abs().max()) < 5 * std / 50000**0.5
    assert float((x.std(0) / std - 1).abs().max()) < 0.02
    with pytest.raises(BadValue, match="mean of shape"):
        Moments(mean=mean).sample(level, (4, 3), as_source(0))
    with pytest.raises(BadValue, match="var"):
        Moments(var=-1.0)


def test_moments_around_each_sample_is_sdedit():
    process, x0 = Gaussian(Cosine()), torch.randn(4, 3, dtype=F64)
    noised = Moments(mean=x0).sample(process.at(0.3), (4, 3), as_source(5), dtype=F64)
    torch.testing.assert_close(noised, process.forward(x0, 0.3, rng=5).x_t, rtol=1e-14, atol=1e-15)


def test_a_given_start():
    x = torch.randn(2, 3)
    assert torch.equal(Given(x).sample(Gaussian(Cosine()).at(1.0), (2, 3), as_source(0)), x)
    with pytest.raises(BadValue, match="given state"):
        Given(x).sample(Gaussian(Cosine()).at(1.0), (3, 3), as_source(0))


# Renoising and posteriors on Gaussian paths


@pytest.mark.parametrize("process", [Gaussian(VPLinear()), Gaussian(Cosine()), Gaussian(EDM())], ids=str)
def test_renoising_keeps_the_path(process):
    x0, z1, z2 = torch.randn(3, 2, 4, dtype=F64)
    s, t = process.at(0.3), process.at(0.8)
    x_t = process.renoise(process.forward(x0, s, noise=z1).x_t, s, t, noise=z2)
    ratio, std = process.kernel(s, t)
    torch.testing.assert_close(x_t, t.data * x0 + ratio * s.noise * z1 + std * z2)
    assert math.hypot(ratio * s.noise, std) == pytest.approx(t.noise, rel=1e-12)
    torch.testing.assert_close(process.renoise(x0, 0.8, 0.8, noise=z1), x0)
    rows = process.renoise(x0, torch.tensor([0.2, 0.4]), torch.tensor([0.5, 0.9]), noise=z2)
    alone = process.renoise(x0[1:], float(torch.tensor(0.4)), float(torch.tensor(0.9)), noise=z2[1:])
    torch.testing.assert_close(rows[1:], alone)
    with pytest.raises(BadValue, match="s <= t"):
        process.renoise(x0, 0.8, 0.3, rng=0)
    assert process.kernel(process.at(0.8), process.at(0.3))[1] == 0.0
    with pytest.raises(BadValue, match="shape of x_s"):
        process.renoise(x0, 0.3, 0.8, noise=z1[:1])


def test_renoising_onto_pure_noise_forgets():
    process = Gaussian(Cosine())
    z = torch.randn(2, 3, dtype=F64)
    torch.testing.assert_close(process.renoise(torch.full((2, 3), 1e6, dtype=F64), 0.5, 1.0, noise=z), z)
