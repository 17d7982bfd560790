"""Guided distillation: exact items of its two stages, its samplers, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch

import condiff as cd
from condiff.conditions import Condition, Conditions, GuidanceScale, Label, RandomScale
from condiff.config import from_config, to_config
from condiff.denoiser import Denoiser
from condiff.distill import (
    Chain,
    DistilledGrid,
    Encoding,
    GuidedDistillation,
    Halving,
    encode,
    encoding_stages,
    extended,
    fraction,
    guided_stage,
    halving_stages,
    two_steps,
)
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Distilled, Free
from condiff.methods import guided_distillation
from condiff.methods.facts import Facts
from condiff.networks import MLP, DiT, UNet
from condiff.process import ClippedCosine, Cosine, Gaussian, Interpolant, Prediction, Rectified, VPLinear, oracles
from condiff.sampling import DDIM, Overshoot, invert, sample
from condiff.training import TruncatedSNR

PROCESS = Gaussian(Cosine())
PATHS = [PROCESS, Gaussian(VPLinear()), Gaussian(Rectified())]


def labelled(process=PROCESS):
    """A law with two classes, whose guidance is known exactly."""
    return oracles.mixture(process, [[-1.0, 0.3], [0.2, 1.0], [1.0, -0.5]], stds=[0.4, 0.6, 0.5], labels=[0, 1, 1])


def state(rows=6, dim=2, seed=0):
    return torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truth_at(process, t, x):
    return Prediction(x, process.at(t), {"noise": torch.zeros_like(x)})


# Stage two: halving


@pytest.mark.parametrize("process", PATHS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_one_step_with_the_target_lands_where_two_of_the_teacher_do(process, steps):
    teacher, x = labelled(process), state()
    objective = Halving(steps=steps).of(teacher)
    cond = Conditions()
    for i in range(steps, 0, -1):
        u, m, s = i / steps, (i - 0.5) / steps, (i - 1) / steps
        aim = objective.aim(truth_at(process, u, x), Conditions())
        level = process.at(s)
        landed = level.data * aim.x0 if level.noise == 0.0 else aim.linear(x0=level.data, noise=level.noise)
        two = sample(teacher, initial=x, grid=[u, m, s], solver=DDIM())
        assert float((landed - two).abs().max()) < 1e-12
        if i == 1:  # the target is what the teacher says last, exactly
            levels = (process.at(torch.tensor(v, dtype=torch.float64)) for v in (u, m))
            _, x2 = two_steps(teacher, x, *levels, Conditions())
            assert torch.equal(Halving(steps=steps).of(teacher).aim(truth_at(process, torch.tensor(u), x), cond).x0, x2)


class Perfect:
    """A student without error: it says its teacher's targets at its own levels."""

    def __init__(self, teacher, steps, double=False, direct=False):
        self.process, self.shape = teacher.process, teacher.shape
        self.objective = Halving(steps=steps, double=double, direct=direct).of(teacher)

    def __call__(self, x, t, cond=None):
        return self.objective.aim(truth_at(self.process, t, x), Conditions())


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_perfect_rounds_are_the_teachers_chain(rounds):
    teacher, x, student = labelled(), state(), labelled()
    for k in range(rounds):
        student = Perfect(student, 2 ** (rounds - 1 - k))
    one = sample(student, initial=x, grid=DistilledGrid(1), steps=1, solver=DDIM())
    many = sample(teacher, initial=x, steps=2**rounds, solver=DDIM())
    assert float((one - many).abs().max()) < 1e-12


def test_the_share_of_the_second_prediction():
    levels = [PROCESS.at(t) for t in (0.5, 0.375, 0.25)]
    u, m, s = levels
    ratio = s.noise / u.noise
    teacher, x = labelled(), state()
    first = teacher(x, u)
    x1, x2 = two_steps(teacher, x, u, m, Conditions())
    middle = first.linear(x0=m.data, noise=m.noise)
    end = s.data * x2 + s.noise * (middle - m.data * x2) / m.noise
    by_the_book = (end - ratio * x) / (s.data - ratio * u.data)
    g = fraction(u, m, s)
    assert 0.5 <= g <= 1.0
    assert torch.allclose((1.0 - g) * x1 + g * x2, by_the_book, atol=1e-13)


def test_nothing_cancels_in_float32():
    """At thousands of steps the quotient of states loses the target; the combination of predictions keeps it."""
    steps = 4096
    teacher = labelled()
    x = state().float()
    exact = Halving(steps=steps).of(teacher).aim(truth_at(PROCESS, 0.5, x.double()), Conditions()).x0
    ours = Halving(steps=steps).of(teacher).aim(truth_at(PROCESS, 0.5, x), Conditions()).x0
    assert float((ours - exact).abs().max()) < 2e-6


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_one_point_of_data_is_the_target_everywhere(steps):
    point = oracles.empirical(PROCESS, torch.tensor([[0.3, -0.7]], dtype=torch.float64))
    for double in (False, True):
        objective = Halving(steps=steps, double=double).of(point)
        for i in range(1, steps + 1):
            aim = objective.aim(truth_at(PROCESS, i / steps, state()), Conditions())
            assert torch.allclose(aim.x0, torch.tensor([0.3, -0.7], dtype=torch.float64).expand(6, 2), atol=1e-12)
    for solver in (DDIM(), Overshoot()):
        x = sample(point, num=4, seed=0, steps=steps, grid=DistilledGrid(steps), solver=solver, dtype=torch.float64)
        assert torch.allclose(x, torch.tensor([0.3, -0.7], dtype=torch.float64).expand(4, 2), atol=1e-12)


class Straight:
    """A map whose x0 stays along each path: the end that pure noise leads to."""

    process, shape = PROCESS, (2,)

    def __call__(self, x, t, cond=None):
        level = PROCESS.at(t)  # x = data f(z) + noise z with f(z) = 2 z
        a, s = (c if isinstance(c, float) else c[:, None] for c in (level.data, level.noise))
        return Prediction(x, level, {"x0": 2.0 * x / (2.0 * a + s)})


def test_straight_paths_have_nothing_to_learn():
    teacher = Straight()
    losses = Halving(steps=8).of(teacher)(teacher, {"x": state()}, rng=0)
    assert float(losses.loss) < 1e-24


def test_double_steps_end_where_the_stochastic_sampler_goes():
    objective = Halving(steps=4, double=True)
    assert objective.step_end(torch.tensor([1.0, 0.75, 0.5, 0.25])).tolist() == [0.5, 0.25, 0.0, 0.0]
    assert Halving(steps=4).step_end(torch.tensor([1.0, 0.25])).tolist() == [0.75, 0.0]
    teacher, x = labelled(), state()
    aim = objective.of(teacher).aim(truth_at(PROCESS, 0.75, x), Conditions())
    level = PROCESS.at(0.25)
    two = sample(teacher, initial=x, grid=[0.75, 0.5, 0.25], solver=DDIM())
    assert float((aim.linear(x0=level.data, noise=level.noise) - two).abs().max()) < 1e-12


@pytest.mark.parametrize("rounds", [2, 3])
def test_perfect_rounds_of_double_steps_are_the_teachers_chain(rounds):
    """A student of double steps leads from 1 / N to the data at once, so that halving it again loses nothing."""
    teacher, x, student = labelled(), state(), labelled()
    for k in range(rounds):
        student = Perfect(student, 2 ** (rounds - 1 - k), double=True, direct=k > 0)
    one = sample(student, initial=x, grid=DistilledGrid(1), steps=1, solver=DDIM())
    many = sample(teacher, initial=x, steps=2 ** (rounds - 1), solver=DDIM())
    assert float((one - many).abs().max()) < 1e-12
    assert [s.objective.direct for s in halving_stages(4, 1, stochastic=True)] == [False, True, True]
    assert [s.objective.direct for s in halving_stages(4, 2, stochastic=True, taught=True)] == [True, True]
    assert not any(s.objective.direct for s in halving_stages(4, 1, taught=True))


def test_students_are_taught_at_their_own_times():
    seen = []

    class Watching(Straight):
        def __call__(self, x, t, cond=None):
            seen.append(PROCESS.at(t).t)
            return super().__call__(x, t)

    Halving(steps=4).of(Straight())(Watching(), {"x": state(200)}, rng=0)
    assert set((seen[0] * 4).tolist()) == {1.0, 2.0, 3.0, 4.0}


# Encoders: the other way


class Walked(Perfect):
    """An encoder without error."""

    def __init__(self, teacher, steps, direct=False):
        self.process, self.shape = teacher.process, teacher.shape
        self.objective = Encoding(steps=steps, direct=direct).of(teacher)


@pytest.mark.parametrize("process", PATHS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_one_step_to_noise_lands_where_two_of_the_teacher_do(process, steps):
    teacher, x = labelled(process), state()
    objective = Encoding(steps=steps).of(teacher)
    for i in range(steps):
        s, m, u = i / steps, (i + 0.5) / steps, (i + 1) / steps
        aim, level = objective.aim(Prediction(x, process.at(s), {"noise": x}), Conditions()), process.at(u)
        landed = aim.linear(x0=level.data, noise=level.noise)
        two = invert(teacher, x, grid=[u, m, s], solver=DDIM()).latent
        assert float((landed - two).abs().max()) < 1e-12


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_perfect_encoders_are_the_teachers_inversion(rounds):
    teacher, x, student = labelled(), state(), labelled()
    for k in range(rounds):
        student = Walked(student, 2 ** (rounds - 1 - k), direct=k > 0)
    one, many = encode(student, x, 1), invert(teacher, x, steps=2**rounds, solver=DDIM())
    assert float((one.latent - many.latent).abs().max()) < 1e-12
    assert one.nfe == 1 and one.times.tolist() == [0.0, 1.0]
    assert [s.objective.direct for s in encoding_stages(4, 1)] == [False, True, True]


def test_encoding_and_sampling_in_few_steps_come_back():
    """What an encoder and a sampler without error make of each other, halved from many steps: the data again."""
    encoder = sampler = labelled()
    for k, n in enumerate((32, 16, 8, 4)):
        encoder, sampler = Walked(encoder, n, direct=k > 0), Perfect(sampler, n)
    x = labelled().sample(6, 0).double()
    back = sample(sampler, initial=encode(encoder, x, 4).latent, grid=DistilledGrid(4), steps=4, solver=DDIM())
    rough = sample(labelled(), initial=invert(labelled(), x, steps=4, solver=DDIM()).latent, steps=4, solver=DDIM())
    assert float((back - x).abs().max()) < 0.2 * float((rough - x).abs().max())


def test_encoders_learn_what_the_teacher_walks():
    """A chain of encoders of a network; its losses fall, at the data as well, and it is asked there."""
    teacher = Denoiser(network("mlp"), PROCESS, "v", shape=(1, 4, 4))
    data = cd.data.TensorData(torch.rand(64, 1, 4, 4) * 2 - 1)
    training = cd.TrainConfig(steps=60, batch=16, lr=3e-3, ema=(), tensorboard=False)
    chain = Chain(teacher, data, encoding_stages(2, 1, training), quiet=True)
    chain.fit()
    objective = Encoding(steps=2).of(teacher)
    before, after = (
        objective(m, data.batch(range(64)), rng=0).loss.detach() for m in (teacher, chain.models["encode-2"])
    )
    assert float(after) < 0.5 * float(before)
    found = encode(chain.models["encode-1"], data.batch(range(4))["x"], 1)
    assert found.nfe == 1 and found.latent.shape == (4, 1, 4, 4)


def test_encoders_that_can_not_be():
    with pytest.raises(Incompatible, match="x0 says nothing"):
        Chain(Denoiser(network("mlp"), PROCESS, "x0", shape=(1, 4, 4)), cd.data.digits(), encoding_stages(2))
    with pytest.raises(BadValue, match="at least 1 step"):
        Encoding(steps=0)
    with pytest.raises(BadValue, match="doesn't lead to"):
        encoding_stages(6, 2)


# Stage one: guidance


def network(kind, **conditions):
    torch.manual_seed(0)
    make = {
        "mlp": lambda: MLP(shape=(1, 4, 4), width=16, depth=1, conditions=conditions),
        "dit": lambda: DiT(shape=(1, 4, 4), width=16, depth=1, heads=2, conditions=conditions),
        "unet": lambda: UNet(shape=(1, 4, 4), width=8, conditions=conditions),
    }[kind]
    net = make()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("kind", ["mlp", "dit", "unet"])
def test_the_student_begins_as_the_conditional_teacher(kind):
    teacher = Denoiser(network(kind, label=Label(3)), PROCESS, "v", shape=(1, 4, 4))
    student = extended(teacher, {"guidance": GuidanceScale(1.0, 9.0)})
    x, t, label = torch.randn(9, 1, 4, 4), torch.linspace(0.0, 1.0, 9), torch.arange(9) % 3
    said = teacher(x, t, {"label": label}).v
    assert said.abs().max() > 0.01
    told = student(x, t, {"label": label, "guidance": torch.linspace(1.0, 9.0, 9)}).v
    assert torch.equal(said, told)
    # the new weights learn: a gradient reaches them at zero weight
    student(x, t, {"label": label, "guidance": torch.linspace(1.0, 9.0, 9)}).v.square().sum().backward()
    assert student.network.bank.entries["guidance"].fc2.weight.grad.abs().max() > 0.0


def test_the_target_is_the_guided_teacher_at_each_rows_scale():
    teacher, x = labelled(), state()
    label, scales = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([1.0, 1.5, 2.0, 3.0, 5.0, 15.0])
    calls = []

    class Counting:
        process, shape, kinds = PROCESS, (2,), {"label": "label"}

        def __call__(self, x, t, cond=None):
            calls.append(len(x))
            return teacher(x, t, cond)

    objective = GuidedDistillation().of(Counting())
    calls.clear()
    times = torch.linspace(0.1, 1.0, 6, dtype=torch.float64)
    cond = Conditions({"label": Condition(label, "label"), "guidance": Condition(scales, "scalar")})
    aim = objective.aim(truth_at(PROCESS, times, x), cond)
    assert calls == [12]  # both evaluations of all rows in one call
    for i in range(6):
        told = {"label": label[i : i + 1]}
        one = Free(teacher, scale=float(scales[i]))(x[i : i + 1], float(times[i]), told)
        w = float(scales[i]) - 1.0  # the paper's
        paper = (1.0 + w) * teacher(x[i : i + 1], float(times[i]), told).v - w * teacher(
            x[i : i + 1], float(times[i])
        ).v
        assert torch.allclose(aim.v[i : i + 1], one.v, atol=1e-13)
        assert torch.allclose(aim.v[i : i + 1], paper, atol=1e-13)
    assert torch.allclose(aim.x0[:1], teacher(x[:1], 0.1, {"label": label[:1]}).x0, atol=1e-13)  # scale 1: conditional


@pytest.mark.parametrize("kind", ["x0", "noise", "v", "score", "velocity"])
def test_guidance_is_the_same_in_every_quantity(kind):
    teacher, x = labelled(), state()
    told, t, w = {"label": torch.ones(6, dtype=torch.long)}, 0.6, 2.5
    guided = Free(teacher, scale=1.0 + w)(x, t, told).to(kind)
    parts = (1.0 + w) * teacher(x, t, told).to(kind) - w * teacher(x, t).to(kind)
    assert torch.allclose(guided, parts, atol=1e-13)


def test_the_loss_is_the_larger_of_those_of_x0_and_noise():
    weighting = TruncatedSNR()
    for t in (0.05, 0.3, 0.5, 0.7, 0.95):
        level = PROCESS.at(t)
        snr = (level.data / level.noise) ** 2
        assert weighting.on("x0", level) == pytest.approx(max(snr, 1.0))
        assert weighting.on("noise", level) == pytest.approx(max(snr, 1.0) / snr)
    student = Denoiser(network("mlp", label=Label(3)), PROCESS, "v", shape=(1, 4, 4))
    student = extended(student, {"guidance": GuidanceScale()})
    objective = guided_stage().objective.of(student_teacher := Denoiser(network("mlp", label=Label(3)), PROCESS, "v"))
    x, label = torch.randn(5, 1, 4, 4), torch.arange(5) % 3
    noise, t = torch.randn(5, 1, 4, 4), torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    cond = {"label": label, "guidance": torch.tensor([1.0, 2.0, 3.0, 4.0, 2.5])}
    losses = objective.at(student, x, t, noise, cond)
    x_t = PROCESS.forward(x, t, noise=noise).x_t
    target = Free(student_teacher.eval(), scale=cond["guidance"])(x_t, t, {"label": label}).x0
    error = (student(x_t, t, cond).x0 - target).square().flatten(1).mean(1)
    level = PROCESS.at(t)
    expected = error * torch.clamp((level.data / level.noise) ** 2, min=1.0)
    assert torch.allclose(losses.per_sample.double(), expected, rtol=1e-4)


def test_scales_are_drawn_for_each_row_within_their_range():
    draw = RandomScale(low=1.5, high=3.0)
    cond = Conditions({"label": Condition(torch.zeros(2000, dtype=torch.long), "label")})
    scale = draw(cond, t=torch.zeros(2000), rng=0)["guidance"].value
    assert float(scale.min()) >= 1.5 and float(scale.max()) <= 3.0
    assert float(scale.mean()) == pytest.approx(2.25, abs=0.03)
    assert draw(cond, t=None, rng=0) is cond  # whoever samples says the scale
    kept = cond.replace(guidance=Condition(torch.full((2000,), 2.0), "scalar"))
    assert draw(kept, t=torch.zeros(2000), rng=0) is kept


# What samples a distilled model


def test_distilled_guidance_is_one_call_a_step():
    calls = []

    class Told:
        process, shape, kinds = PROCESS, (2,), {"label": "label", "guidance": "scalar"}

        def __call__(self, x, t, cond=None):
            calls.append(cond["guidance"].value.tolist())
            return labelled()(x, t, {"label": cond["label"]})

    y = {"label": torch.tensor([0, 1])}
    sample(Distilled(Told(), 3.0), cond=y, steps=4, solver=DDIM(), seed=0)
    assert calls == [[3.0, 3.0]] * 4
    calls.clear()
    sample(Distilled(Told(), torch.tensor([1.0, 2.0])), cond=y, steps=1, solver=DDIM(), seed=0)
    sample(Distilled(Told(), lambda level: 1.0 + level.t), cond=y, steps=2, solver=DDIM(), seed=0)
    assert calls == [[1.0, 2.0], [2.0, 2.0], [1.5, 1.5]]


MODES = oracles.mixture(PROCESS, [[-2.0], [0.0], [2.0]], stds=[math.sqrt(0.05)] * 3, weights=[0.5, 0.3, 0.2])


def drawn_evenly(steps):
    """By quantiles of noise: the deterministic map is monotone."""
    z = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)[:, None]
    return sample(MODES, initial=z, steps=steps, solver=DDIM())


def mode_variances(x):
    return [float(x[m].var()) for m in (x < -1, (x > -1) & (x < 1), x > 1)]


def mode_errors(steps):
    """Errors of the weights of the modes."""
    x = drawn_evenly(steps)
    shares = [float((x < -1).double().mean()), float(((x > -1) & (x < 1)).double().mean())]
    return max(abs(shares[0] - 0.5), abs(shares[1] - 0.3), abs(sum(shares) - 0.8))


def test_the_deterministic_sampler_is_of_first_order():
    errors = [mode_errors(n) for n in (8, 16, 32, 64)]
    assert errors == pytest.approx([0.058, 0.029, 0.014, 0.007], abs=1.5e-3)
    spread = {n: mode_variances(drawn_evenly(n)) for n in (16, 32, 64, 128)}
    assert all(0.0415 < v < 0.0535 for v in spread[16])
    away = [max(abs(v - 0.05) for v in spread[n]) for n in (16, 32, 64, 128)]
    assert all(a / b == pytest.approx(2.0, abs=0.25) for a, b in pairwise(away))


def test_the_stochastic_sampler_spreads_too_little_in_few_steps():
    """Three modes of variance 0.05: what exact denoisers give."""
    spread = {}
    for steps in (16, 32, 256):
        x = sample(MODES, num=12000, seed=0, steps=steps, solver=Overshoot(), dtype=torch.float64)
        spread[steps] = mode_variances(x)
    assert all(0.023 < v < 0.033 for v in spread[16])
    assert all(0.030 < v < 0.039 for v in spread[32])
    assert all(0.044 < v < 0.051 for v in spread[256])


def test_overshoot_is_two_levels_down_and_one_up():
    """The mean and spread of a step, written out."""
    teacher, x = labelled(), state()
    t, s, r = (PROCESS.at(v) for v in (0.75, 0.5, 0.25))
    mean, std = Overshoot().advance(x, teacher(x, t), Overshoot().plan([t, s, r])[0], None)
    below = teacher(x, t).linear(x0=r.data, noise=r.noise)
    assert torch.allclose(mean, (s.data / r.data) * below, atol=1e-14)
    assert std == pytest.approx(math.sqrt(s.noise**2 - (s.data / r.data) ** 2 * r.noise**2))
    last, still = Overshoot().advance(x, teacher(x, s), Overshoot().plan([s, PROCESS.at(0.0)])[0], None)
    assert torch.allclose(last, teacher(x, s).x0, atol=1e-14) and still == 0.0


@pytest.mark.parametrize("ways", ["sample", "invert"])
def test_of_normal_data_both_ways_converge_to_the_flow(ways):
    """z - mean scaled to the data's deviation, at first order."""
    model, z = oracles.mixture(PROCESS, [[0.7]], stds=0.3), torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (32, 64, 128):
        if ways == "sample":
            errors.append(float((sample(model, initial=z, steps=steps, solver=DDIM()) - (0.7 + 0.3 * z)).abs().max()))
        else:
            back = invert(model, 0.7 + 0.3 * z, steps=steps, solver=DDIM()).latent
            errors.append(float((back - z).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.2)


def test_the_papers_schedule():
    """Its log-SNR runs from 20 to -20."""
    schedule = ClippedCosine()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.allclose(schedule.log_snr(t), torch.tensor([20.0, 0.0, -20.0], dtype=torch.float64), atol=1e-9)
    low = math.atan(math.exp(-10.0))
    u = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    book = -2.0 * torch.log(torch.tan((math.atan(math.exp(10.0)) - low) * u + low))
    assert torch.allclose(schedule.log_snr(u), book, atol=1e-9)
    assert torch.allclose(schedule.time(schedule.log_snr(u)), u, atol=1e-12)
    near = (schedule.alpha(u + 1e-6) - schedule.alpha(u)) / 1e-6
    assert torch.allclose(schedule.d_alpha(u), near, atol=1e-5)
    assert torch.allclose(schedule.alpha(u) ** 2 + schedule.sigma(u) ** 2, torch.ones(11, dtype=torch.float64))
    with pytest.raises(BadValue, match="limit > 0"):
        ClippedCosine(limit=0.0)


# Refusals, configurations, recipe


def test_refusals():
    x = {"x": torch.randn(4, 2)}
    with pytest.raises(BadValue, match="needs a teacher"):
        Halving(steps=4)(Straight(), x, rng=0)
    with pytest.raises(BadValue, match="at least 1 step"):
        Halving(steps=0)
    with pytest.raises(BadValue, match="about a teacher of double steps"):
        Halving(steps=4, direct=True)
    with pytest.raises(BadType, match="a teacher is a denoiser"):
        Halving(steps=4).of(3)
    with pytest.raises(Incompatible, match="its teacher on"):
        Halving(steps=4).of(labelled(PATHS[1]))(Straight(), x, rng=0)
    with pytest.raises(BadValue, match="taught at their times"):
        Halving(steps=4).of(labelled()).aim(truth_at(PROCESS, 0.6, state()), Conditions())
    with pytest.raises(Incompatible, match="no antithetic"):
        GuidedDistillation(antithetic=True)
    with pytest.raises(BadValue, match="RandomScale"):
        GuidedDistillation().of(labelled())(Straight(), x, rng=0)
    with pytest.raises(BadValue, match="classifier-free guidance needs conditions"):
        GuidedDistillation(transform=RandomScale()).of(labelled())(Straight(), x, rng=0)
    noise = Denoiser(network("mlp"), PROCESS, "noise")
    with pytest.raises(Incompatible, match="can't be distilled to 2 steps"):
        Halving(steps=2).of(noise)(noise, {"x": torch.randn(2, 1, 4, 4)}, rng=0)
    with pytest.raises(Incompatible, match="leads to an endpoint"):
        bridge = Interpolant()
        fraction(*(bridge.at(t) for t in (0.5, 0.4, 0.3)))
    with pytest.raises(BadValue, match="distilled for 4 steps"):
        DistilledGrid(4).times(PROCESS, 8)
    with pytest.raises(Incompatible, match="on grids that go down"):
        Overshoot().plan([PROCESS.at(t) for t in (0.3, 0.5, 0.2)])


def test_scales_outside_the_trained_range_and_absent_ones():
    student = Denoiser(network("mlp", label=Label(3)), PROCESS, "v", shape=(1, 4, 4))
    student = extended(student, {"guidance": GuidanceScale(1.0, 4.0)})
    x, label = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(BadValue, match=r"scales in \[1, 4\]"):
        Distilled(student, 5.0)
    with pytest.raises(BadValue, match=r"scales in \[1, 4\]"):
        student(x, 0.5, {"label": label, "guidance": torch.tensor([2.0, 0.5])})
    with pytest.raises(BadValue, match="strength of its guidance"):
        student(x, 0.5, {"label": label})
    with pytest.raises(BadValue, match="strength of its guidance"):
        Free(student, scale=2.0)(x, 0.5, {"label": label, "guidance": torch.tensor([2.0, 2.0])})
    with pytest.raises(BadValue, match="low < high"):
        GuidanceScale(4.0, 1.0)
    with pytest.raises(BadValue, match="come in pairs"):
        GuidanceScale(features=7)
    with pytest.raises(BadValue, match="low <= high"):
        RandomScale(low=2.0, high=1.0)


def test_the_recipe_is_a_chain_and_comes_back_from_its_file():
    recipe = guided_distillation.recipe(Facts.of(cd.data.digits()), start=8, end=2)
    assert [s.name for s in recipe.chain()] == ["teacher", "guided", "steps-8", "steps-4", "steps-2"]
    assert from_config(to_config(recipe)) == recipe
    last = recipe.last
    assert (last.sampler.steps, last.sampler.grid, last.stages) == (2, DistilledGrid(2), ())
    assert isinstance(last.guided(last.denoiser(0)), Distilled)
    assert isinstance(recipe.of_stage("teacher").guided(recipe.denoiser(0)), Free)
    with pytest.raises(BadValue, match="unknown stage"):
        recipe.of_stage("steps-3")
    with pytest.raises(BadValue, match="guides by a condition"):
        guided_distillation.recipe(Facts((2,)))
