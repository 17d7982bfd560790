"""A chain into which the data is fed: marginals and posteriors by Gaussian algebra, DDPM as a special case."""

import json
import math
from itertools import pairwise

import pytest
import torch

from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import Cosine, Discrete, Driven, Gaussian, StudentT, VPLinear, oracles
from condiff.sampling import DDIM, DDPM, affine_law, sample

F64 = torch.float64


def linear(steps):
    """Betas from 0.1 / T to 20 / T."""
    return Discrete.ddpm(steps, 0.1 / steps, 20.0 / steps)


def random_drive(steps, seed=0):
    return torch.rand(steps, dtype=F64, generator=torch.Generator().manual_seed(seed)).tolist()


def nodes(process):
    n = process.schedule.steps
    return process.levels(torch.arange(n + 1, dtype=F64) / n)


def by_recursion(process):
    """``c_i = sqrt(alpha_i) (c_{i-1} + w_i)``, variance and share of z_0, step by step."""
    alphas = (1.0 - process.schedule.betas).tolist()
    weights = [*process.drive, *[0.0] * (len(alphas) - len(process.drive))]
    c, var, share, out = 0.0, 0.0, 1.0, []
    for alpha, w in zip(alphas, weights, strict=True):
        c, var, share = math.sqrt(alpha) * (c + w), alpha * var + 1.0 - alpha, math.sqrt(alpha) * share
        out.append((c, share, var))
    return out


@pytest.mark.parametrize("drive", [(1.0,), (0.5, 0.0, 0.25), "random"], ids=["ddpm", "gaps", "random"])
def test_the_recursion_is_the_closed_form(drive):
    drive = random_drive(50) if drive == "random" else drive
    process = Driven(schedule=linear(50), drive=drive, start=True)
    for (c, share, var), level in zip(by_recursion(process), nodes(process)[1:], strict=True):
        assert level.data == pytest.approx(c, abs=1e-12)
        assert level.source == pytest.approx(share, abs=1e-12)
        assert level.noise**2 == pytest.approx(var, abs=1e-12)


def simulated(process, drive, start, paths, seed=0):
    """All states of the chain, drawn step by step from its definition."""
    rng = torch.Generator().manual_seed(seed)
    weights = [*process.drive, *[0.0] * (process.schedule.steps - len(process.drive))]
    z, out = torch.full((paths,), start, dtype=F64), []
    for beta, w in zip(process.schedule.betas.tolist(), weights, strict=True):
        noise = torch.randn(paths, dtype=F64, generator=rng)
        z = math.sqrt(1.0 - beta) * (z + w * drive) + math.sqrt(beta) * noise
        out.append(z)
    return out


def test_paths_of_the_chain_have_the_marginal_and_the_posterior():
    """Mean and variance of the marginal, slope and variance of the posterior by regression on 400k paths."""
    process = Driven(schedule=linear(50), drive=random_drive(50, seed=3), start=True)
    levels, drive, start, paths = nodes(process), 1.3, -0.7, 400_000
    chain = simulated(process, drive, start, paths)
    end, error = levels[-1], 5.0 / math.sqrt(paths)
    assert float(chain[-1].mean()) == pytest.approx(end.data * drive + end.source * start, abs=error)
    assert float(chain[-1].var()) == pytest.approx(end.noise**2, abs=3 * error)
    s, t = levels[20], levels[21]
    before, after = chain[19], chain[20]
    cov = torch.cov(torch.stack([before, after]))
    slope = float(cov[0, 1] / cov[1, 1])
    rho = process.ratio(s, t) * s.noise**2 / t.noise**2
    std = process.posterior_std(t, s)
    assert slope == pytest.approx(rho, abs=5 * std / t.noise / math.sqrt(paths))
    assert float(cov[0, 0] - slope * cov[0, 1]) == pytest.approx(std**2, rel=0.02)
    residual = before.mean() - slope * after.mean()
    offset = (s.data - rho * t.data) * drive + (s.source - rho * t.source) * start
    assert float(residual) == pytest.approx(offset, abs=0.01)


@pytest.mark.parametrize("start", [False, True])
def test_posteriors_averaged_over_the_marginal_are_the_marginal(start):
    """Integrating q(z_s | z_t, E) over q(z_t | E) gives q(z_s | E), to 1e-12 for all steps t >= 2."""
    process = Driven(schedule=linear(60), drive=random_drive(60), start=start)
    levels, truth = nodes(process), by_recursion(process)
    for i, (s, t) in enumerate(pairwise(levels[1:])):
        (c, share, var), (c_next, share_next, var_next) = truth[i], truth[i + 1]
        rho = process.ratio(s, t) * s.noise**2 / t.noise**2
        assert s.data + rho * (c_next - t.data) == pytest.approx(c, abs=1e-12)
        assert s.source + rho * (start * share_next - t.source) == pytest.approx(start * share, abs=1e-12)
        assert rho**2 * var_next + process.posterior_std(t, s) ** 2 == pytest.approx(var, abs=1e-12)


def test_both_forms_of_the_posterior_mean_are_one():
    """``[sqrt(alpha)(1 - a_s^2)(z - sqrt(alpha) w E) + beta c_s E] / (1 - a_t^2)`` and ``c_s E + rho (z - c_t E)``."""
    process = Driven(schedule=linear(40), drive=random_drive(40))
    x0, levels = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1)), nodes(process)
    for i in (2, 17, 40):
        s, t, w = levels[i - 1], levels[i], process.drive[i - 1]
        truth = process.forward(x0, t, rng=0)
        beta, var_s, var_t = float(process.schedule.betas[i - 1]), s.noise**2, t.noise**2
        root = math.sqrt(1.0 - beta)
        expected = (root * var_s * (truth.x_t - root * w * x0) + beta * s.data * x0) / var_t
        mean, std = process.posterior(truth, s)
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
        assert std**2 == pytest.approx(beta * var_s / var_t, rel=1e-12)


def test_steps_over_several_nodes_are_the_steps_between_them():
    """A kernel over two nodes is the two kernels, with what the drive adds."""
    process = Driven(schedule=linear(40), drive=random_drive(40))
    a, b, c = (nodes(process)[i] for i in (4, 5, 6))
    (first, std1), (second, std2), (both, std) = process.kernel(a, b), process.kernel(b, c), process.kernel(a, c)
    assert both == pytest.approx(first * second, rel=1e-12)
    assert std**2 == pytest.approx(second**2 * std1**2 + std2**2, rel=1e-12)
    x0, z = torch.ones(2, 1, dtype=F64), torch.full((2, 1), 0.3, dtype=F64)
    still = torch.zeros_like(z)
    there = process.renoise(process.renoise(z, a, b, x0=x0, noise=still), b, c, x0=x0, noise=still)
    torch.testing.assert_close(process.renoise(z, a, c, x0=x0, noise=still), there, rtol=1e-12, atol=1e-12)


def test_a_divergence_of_posteriors_is_that_of_their_gaussians():
    process = Driven(schedule=linear(30), drive=random_drive(30))
    s, t = nodes(process)[11:13]
    one, other = torch.tensor([[0.4]], dtype=F64), torch.tensor([[-1.1]], dtype=F64)
    truth = process.forward(one, t, rng=0)
    means = [process.posterior(truth.set("x0", x), s)[0] for x in (one, other)]
    expected = float((means[0] - means[1]) ** 2) / (2.0 * process.posterior_std(t, s) ** 2)
    assert process.posterior_error(t, s) * float((one - other) ** 2) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), linear(100)], ids=["cosine", "vp", "table"])
def test_on_a_path_to_noise_it_is_half_the_difference_of_the_snr(schedule):
    process = Gaussian(schedule)
    s, t = process.levels(torch.tensor([0.3, 0.37]))
    snr = [(level.data / level.noise) ** 2 for level in (s, t)]
    assert process.posterior_error(t, s) == pytest.approx(0.5 * (snr[0] - snr[1]), rel=1e-9)


# DDPM


@pytest.mark.parametrize("schedule", [linear(100), Discrete.cosine(100)], ids=["linear", "cosine"])
def test_all_at_the_first_step_is_ddpm_bit_for_bit(schedule):
    driven, plain = Driven(schedule=schedule), Gaussian(schedule)
    t = torch.linspace(0.0, 1.0, 301, dtype=F64)
    for own, other in zip(driven.curves(t), plain.curves(t), strict=True):
        assert torch.equal(own.nan_to_num(), other.nan_to_num())
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    for solver in (DDPM(), DDIM()):
        x = [
            sample(oracles.gaussian(p, [0.0, 0.0], cov), solver=solver, steps=20, num=4, seed=0)
            for p in (driven, plain)
        ]
        assert torch.equal(*x)
    snr = torch.tensor([3.0, 0.0, -2.0], dtype=F64)
    assert torch.equal(driven.time(snr), plain.time(snr))


PROFILES = {
    "first step": (lambda i: float(i == 1), 0.973),
    "halves": (lambda i: 2.0**-i, 0.972),
    "slow": (lambda i: 0.1 * 0.9 ** (i - 1), 0.944),
    "first 100": (lambda i: 0.01 * (i <= 100), 0.313),
    "step 100": (lambda i: float(i == 100), 0.0),
}


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_fed_in_late_is_lost(name):
    """Variance of what is decoded at z_1 from the exact denoiser of unit Gaussian data, T = 300."""
    weight, expected = PROFILES[name]
    process = Driven(schedule=linear(300), drive=[weight(i) for i in range(1, 301)])
    oracle = oracles.gaussian(process, [0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
    law = affine_law(oracle, solver=DDPM(), steps=300)  # the last step is the posterior mean at z_1
    assert float(law.cov[0, 0]) == pytest.approx(expected, abs=0.0015)
    assert process.decodable == (name in ("first step", "halves"))


def test_the_signal_falls_at_every_step_or_the_data_cannot_be_decoded():
    assert Driven(schedule=linear(100), drive=(1.0, 0.01)).decodable
    assert not Driven(schedule=linear(100), drive=(0.0, 1.0)).decodable
    beta = float(linear(100).betas[0])  # c_1^2 / beta_1, what z_1 says of E over its noise
    for drive, known in ((1.1, True), (0.9, False)):
        assert Driven(schedule=linear(100), drive=(drive * math.sqrt(beta / (1.0 - beta)),)).decodable == known


# Between nodes, devices of a process, refusals


def test_derivatives_are_those_of_the_curves():
    process = Driven(schedule=linear(40), drive=random_drive(40), start=True)
    t = torch.rand(60, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    step = 1e-7
    inside = ((t * 40) % 1 > 1e-3) & ((t * 40) % 1 < 1 - 1e-3)
    ahead, behind, here = process.curves(t + step), process.curves(t - step), process.curves(t)
    for i in range(3):
        slope = (ahead[i] - behind[i]) / (2 * step)
        torch.testing.assert_close(here[3 + i][inside], slope[inside], rtol=1e-5, atol=1e-5)


def test_its_configuration_round_trips():
    process = Driven(schedule=Discrete.cosine(50), drive=(0.5, 0.25), start=True)
    assert from_config(json.loads(json.dumps(to_config(process)))) == process


def test_what_makes_no_chain_is_refused():
    for drive in ((), (0.0, 0.0), (float("nan"),), (1.0,) * 31):
        with pytest.raises(BadValue, match=r"drive|weights"):
            Driven(schedule=linear(30), drive=drive)
    with pytest.raises(BadValue, match=">= 0 at every step"):
        Driven(schedule=linear(30), drive=(1.0, -2.0))
    with pytest.raises(BadType, match="Discrete"):
        Driven(schedule=Cosine())
    with pytest.raises(Incompatible, match="normal"):
        Driven(schedule=linear(30), noise_law=StudentT(4.0))
    with pytest.raises(BadValue, match="endpoint"):
        Driven(schedule=linear(30), start=True).forward(torch.zeros(2, 1), 0.5)
