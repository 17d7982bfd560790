"""EluCD: exact identities of the tempered score, the two released samplers, reductions, refusals, the real classes."""

import math

import pytest
import torch
from torch import nn

from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue, Incompatible, NonFinite
from condiff.guidance import Classifier, ClassScore, Energy, gradient, tempered
from condiff.methods import elucd
from condiff.networks import soften
from condiff.process import EDM, Cosine, Discrete, Gaussian, Prediction
from condiff.process.oracles import mixture
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    Heun,
    Karras,
    MeanShift,
    Nudge,
    SineBoost,
    SineShare,
    Spaced,
    sample,
    trajectory,
)

F64 = torch.float64
SHAPE = (2, 3)


def net(classes=4, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes)
    )
    return layers.double().eval()


def oracle(process):
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=F64)
    return mixture(process, means, stds=0.4, labels=range(4), weights=[0.1, 0.2, 0.3, 0.4])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# The tempered score


@pytest.mark.parametrize(("joint", "marginal"), [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0)])
def test_the_gradient_of_the_score_is_its_formula(joint, marginal):
    classifier, u, y = net(), noise(5, *SHAPE), torch.tensor([0, 1, 2, 3, 1])
    grad = gradient(ClassScore(classifier, y, joint=joint, marginal=marginal))(u, None, Conditions())
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: classifier(v[None])[0], row) for row in u]
    )  # (B, K, *shape)
    p = (marginal * classifier(u)).softmax(1).detach()
    own = jacobian[torch.arange(5), y]
    want = joint * own - marginal * torch.einsum("bk,bk...->b...", p, jacobian)
    torch.testing.assert_close(grad, want, rtol=0, atol=1e-15)


def test_with_both_temperatures_at_one_it_is_the_log_probability():
    logits, y = noise(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    want = logits.log_softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(tempered(logits, y), want, rtol=0, atol=1e-15)
    huge = 1e4 * logits  # exp of these overflows
    assert torch.isfinite(tempered(huge, y)).all()


def test_without_a_marginal_other_logits_do_not_matter():
    logits, y = noise(3, 4).requires_grad_(), torch.tensor([0, 1, 2])
    (grad,) = torch.autograd.grad(tempered(logits, y, 1.0, 0.0).sum(), logits)
    assert torch.equal(grad, nn.functional.one_hot(y, 4).double())


def test_rows_that_are_flagged_absent_are_not_guided():
    label = Condition(torch.tensor([0, 1, 2]), "label", keep=torch.tensor([True, False, True]))
    grad = gradient(ClassScore(net()))(noise(3, *SHAPE), None, Conditions({"label": label}))
    assert (grad[1] == 0).all() and (grad[0] != 0).any() and (grad[2] != 0).any()


# Oracles


def test_the_exact_noisy_classifier_of_a_mixture():
    model = oracle(Gaussian(Cosine()))
    x, level = noise(7, *SHAPE), model.process.at(0.4)
    m = model.components.means.reshape(4, *SHAPE)
    distance2 = (x[:, None] - level.data * m).square().sum((2, 3))
    total = level.data**2 * 0.16 + level.noise**2
    want = (model.log_weights - distance2 / (2 * total)).log_softmax(1)
    torch.testing.assert_close(model.class_log_prob(x, level), want, rtol=1e-12, atol=1e-12)


def test_the_jacobian_of_the_denoised_sample_is_its_covariance():
    model = oracle(Gaussian(Cosine()))
    x, level = noise(3, *SHAPE), model.process.at(0.4)
    cov = model.posterior_cov(x, level)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None], level).x0[0], x[i]).reshape(6, 6)
        torch.testing.assert_close(jacobian, level.data / level.noise**2 * cov[i], rtol=0, atol=1e-14)


def test_guidance_through_the_denoiser_carries_that_factor():
    model, classifier, y = oracle(Gaussian(Cosine())), net(), torch.tensor([0, 1, 2])
    x, level = noise(3, *SHAPE), model.process.at(0.4)
    score = ClassScore(classifier, y, marginal=0.5)
    plain = model(x, level).score
    at_x0 = gradient(score)(model(x, level).x0, level, Conditions())
    detached = elucd.on_noise(model, score, scale=2.0)(x, level).score - plain
    torch.testing.assert_close(detached, 2.0 * at_x0, rtol=1e-9, atol=1e-12)
    through = elucd.on_noise(model, score, scale=2.0, through=True)(x, level).score - plain
    factor = level.data / level.noise**2 * model.posterior_cov(x, level)
    want = 2.0 * torch.einsum("bde,be->bd", factor, at_x0.flatten(1)).reshape(x.shape)
    torch.testing.assert_close(through, want, rtol=1e-9, atol=1e-12)


# Reductions


def test_with_the_exact_classifier_of_x_t_it_is_classifier_guidance():
    model, y = oracle(Gaussian(Cosine())), torch.tensor([0, 1, 2])
    x, z = noise(3, *SHAPE), noise(3, *SHAPE, seed=1)

    def log_prob(u, level, cond):
        return tempered(model.class_log_prob(u, level), y)

    def step(hooks):
        return next(trajectory(model, x, solver=DDPM(), grid=[0.7, 0.5], rng=Tape([z]), hooks=hooks)).x_s

    shifted = step([MeanShift(gradient(log_prob), extra=SineBoost(0.0))])
    level = model.process.at(0.7)
    std = model.process.posterior_std(level, model.process.at(0.5))
    classic = Classifier(model, log_prob)(x, level).score - model(x, level).score
    torch.testing.assert_close(shifted - step([]), std**2 * classic, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("place", ["mean", "noise", "state"])
def test_scale_zero_is_the_unguided_sampler_bit_for_bit(place):
    model = oracle(Gaussian(Cosine()))
    score = ClassScore(net(), torch.tensor([0, 1, 2, 3]))
    run = dict(solver=DDPM(), steps=5, num=4, seed=0, dtype=F64)
    hooks = {"mean": elucd.on_mean(score, 0.0, clip=None), "state": [Nudge(gradient(score), 0.0)], "noise": []}[place]
    guided = elucd.on_noise(model, score, 0.0) if place == "noise" else model
    assert torch.equal(sample(guided, hooks=hooks, **run), sample(model, **run))


# The released samplers, written out


class Heads:
    """A fixed function with a variance head, as ADM networks have."""

    process, shape, kinds = Gaussian(Discrete.ddpm()), SHAPE, {}

    def __call__(self, x_t, t, cond=None):
        level = self.process.at(t)
        eps = torch.tanh(1.7 * x_t + 0.2) * level.noise + 0.3 * x_t
        return Prediction(x_t, level, {"noise": eps}, aux={"variance": torch.sin(3.0 * x_t)})


def ancestral(x, y, noises, steps, classifier, marginal, gamma):
    """Sampler A: the respaced chain in the notation of guided-diffusion; the states after each step but the last."""
    model = Heads()
    index = Spaced("trailing").indices(model.process, steps).flip(0)
    bar = model.process.schedule.table[index]
    before = torch.cat([torch.ones(1, dtype=F64), bar[:-1]])
    beta = 1.0 - bar / before
    tilde = beta * (1.0 - before) / (1.0 - bar)
    tilde[0] = tilde[1]
    peak, out = torch.zeros(len(x), 1, 1, dtype=F64), []
    for t in range(steps - 1, 0, -1):
        said = model(x, float(index[t] + 1) / 1000)
        x0 = ((x - (1 - bar[t]).sqrt() * said.values["noise"]) / bar[t].sqrt()).clamp(-1, 1)
        w = (said.aux["variance"] + 1) / 2
        log_var = w * beta[t].log() + (1 - w) * tilde[t].log()
        mean = before[t].sqrt() * beta[t] / (1 - bar[t]) * x0
        mean = mean + (1 - beta[t]).sqrt() * (1 - before[t]) / (1 - bar[t]) * x
        u = x0.detach().requires_grad_()
        logits = classifier(u)
        score = logits.gather(1, y[:, None]).sum() - (marginal * logits).exp().sum(1).log().sum()
        (g,) = torch.autograd.grad(score, u)
        peak = torch.maximum(peak, log_var.exp().amax((1, 2), keepdim=True))
        boost = gamma * math.sin(math.pi * t / steps) * peak
        mean = mean + (log_var.exp() + boost) * g
        x = mean + (0.5 * log_var).exp() * noises[steps - 1 - t]
        out.append(x)
    return out


def test_the_ancestral_sampler_is_the_released_one():
    steps, y, classifier = 12, torch.tensor([0, 3, 1]), net()
    x, noises = noise(3, *SHAPE), [noise(3, *SHAPE, seed=10 + i) for i in range(12)]
    with soften(classifier, 3.0):
        want = ancestral(x, y, noises, steps, classifier, 0.5, 0.3)
        run = trajectory(
            Heads(),
            x,
            solver=DDPM("learned_range"),
            grid=Spaced("trailing"),
            steps=steps,
            rng=Tape(noises),
            hooks=elucd.on_mean(ClassScore(classifier, y, marginal=0.5), boost=0.3),
        )
        for step, state in zip(run, want, strict=False):
            torch.testing.assert_close(step.x_s, state, rtol=0, atol=3e-7)
            last = step
    assert last.index == steps - 2


def test_the_last_ancestral_step_is_the_denoised_sample():
    score = ClassScore(net(), torch.tensor([0, 3, 1]))
    run = trajectory(
        Heads(), noise(3, *SHAPE), solver=DDPM(), grid=Spaced("trailing"), steps=4, rng=0, hooks=elucd.on_mean(score)
    )
    *_, last = run
    torch.testing.assert_close(last.x_s, last.prediction.x0)


def released_heun(model, x, y, classifier, steps, strength, swell):
    """Sampler B: displacement before each of Heun's steps, which are unguided."""
    i = torch.arange(steps, dtype=F64)
    sigmas = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=F64)])
    at = lambda sigma: model.process.time(-2 * sigma.log())
    for k in range(steps):
        r = x.square().mean((1, 2), keepdim=True).sqrt()
        u = (x / r.clamp_min(1.0)).detach().requires_grad_()
        (g,) = torch.autograd.grad(classifier(u).gather(1, y[:, None]).sum(), u)
        w = max(strength / (steps + 1) * (steps + 1 - k), 1e-5) + strength * swell * math.sin(math.pi * k / steps)
        hat = x + w * r * g / g.square().mean((1, 2), keepdim=True).sqrt()
        slope = (hat - model(hat, at(sigmas[k])).x0) / sigmas[k]
        x = hat + (sigmas[k + 1] - sigmas[k]) * slope
        if sigmas[k + 1] > 0:
            again = (x - model(x, at(sigmas[k + 1])).x0) / sigmas[k + 1]
            x = hat + (sigmas[k + 1] - sigmas[k]) * 0.5 * (slope + again)
    return x


def test_the_edm_sampler_is_the_released_one():
    model, classifier, y = oracle(Gaussian(EDM(sigma_max=80.0))), net(), torch.tensor([0, 3, 1])
    start = 80.0 * noise(3, *SHAPE)
    want = released_heun(model, start, y, classifier, 10, 0.004, 0.3)
    hooks = elucd.on_state(ClassScore(classifier, y, marginal=0.0))
    got = sample(model, solver=Heun(), grid=Karras(0.002, 80.0), steps=10, initial=start, hooks=hooks)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    plain = sample(model, solver=Heun(), grid=Karras(0.002, 80.0), steps=10, initial=start)
    assert float((got - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 10, 799])
def test_a_nudge_is_a_share_of_the_state(steps):
    share = SineShare(0.004, 0.3)
    hook = Nudge(gradient(ClassScore(net(), torch.tensor([0, 3, 1]))), share)

    class At:
        t, cond, index = Gaussian(EDM()).at(0.5), Conditions(), 0

    run = At()
    run.steps = steps
    for i in {0, 1 % steps, steps // 2, steps - 1}:
        run.index = i
        x = 30.0 * noise(3, *SHAPE, seed=i)
        moved = hook.before(x, run) - x
        ratio = moved.square().mean((1, 2)).sqrt() / x.square().mean((1, 2)).sqrt()
        torch.testing.assert_close(ratio, torch.full((3,), share(run), dtype=F64), rtol=1e-6, atol=0)
    run.index = 0
    assert share(run) == pytest.approx(0.004, rel=1e-12)
    run.index = steps - 1
    last = 2 * 0.004 / (steps + 1) + 0.004 * 0.3 * math.sin(math.pi * (steps - 1) / steps)
    assert share(run) == pytest.approx(last, rel=1e-12)
    assert 2 * 0.004 / (steps + 1) >= 1e-5 * (1 - 1e-12)  # the floor doesn't bind


def test_the_boost_keeps_the_largest_variance_and_begins_anew():
    boost, seen = SineBoost(0.5), []

    def extra(variance, run):
        seen.append((variance, boost(variance, run), run.index, run.steps))
        return seen[-1][1]

    model = oracle(Gaussian(Cosine()))
    hook = MeanShift(gradient(ClassScore(net(), 1)), extra=extra)
    for _ in range(2):
        seen.clear()
        sample(model, solver=DDPM(), steps=6, num=2, seed=0, dtype=F64, hooks=[hook])
        peak = 0.0
        for variance, got, index, _ in seen:
            peak = max(peak, variance)
            assert got == pytest.approx(0.5 * math.sin(math.pi * (5 - index) / 6) * peak, rel=1e-12, abs=0)
        assert seen[-1][1:] == (0.0, 5, 6)


def test_a_sample_is_guided_alone():
    """Other samples in the batch, with other variances, don't change it."""
    classifier, x = net(), noise(3, *SHAPE)
    noises = [noise(3, *SHAPE, seed=10 + i) for i in range(5)]

    def run(rows):
        score = ClassScore(classifier, torch.tensor([0, 3, 1])[rows], marginal=0.5)
        hooks = [*elucd.on_mean(score), *elucd.on_state(score)]
        draws = Tape([z[rows] for z in noises])
        steps = trajectory(Heads(), x[rows], solver=DDPM("learned_range"), steps=5, rng=draws, hooks=hooks)
        return [step.x_s for step in steps][-1]

    torch.testing.assert_close(run([1]), run([0, 1, 2])[1:2], rtol=1e-10, atol=1e-12)


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tempered(noise(2, 3), torch.tensor([0, 3])), BadValue, r"lie in \[0, 2\]"),
        (lambda: tempered(noise(2, 3), torch.tensor([0, -1])), BadValue, "lie in"),
        (lambda: tempered(noise(2, 3), torch.tensor([0])), BadValue, "as many labels"),
        (lambda: tempered(noise(2, 3, 4), torch.tensor([0, 1])), BadValue, r"\(B, K\)"),
        (lambda: ClassScore(net().train(), 0), Incompatible, "training mode"),
        (lambda: ClassScore("resnet", 0), BadType, "a function"),
        (lambda: ClassScore(net(), 0, marginal=-1.0), BadValue, "marginal >= 0"),
        (lambda: ClassScore(net(), torch.tensor([0.0])), BadValue, "integers"),
        (lambda: SineBoost(-0.1), BadValue, ">= 0"),
        (lambda: SineShare(-0.1), BadValue, ">= 0"),
        (lambda: soften(net(), 0.0), BadValue, "beta > 0"),
    ],
)
def test_bad_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda: ClassScore(net(), torch.tensor([0])), BadValue, "2 samples need as many labels"),
        (lambda: ClassScore(net(), 9), BadValue, "lie in"),
        (lambda: ClassScore(lambda x: x.flatten(1)[:, 0], 0), BadValue, r"logits \(B, K\)"),
        (lambda: ClassScore(lambda x: torch.log(0.0 * x.flatten(1)), 0), NonFinite, "not finite"),
        (lambda: ClassScore(net()), BadValue, "labels="),
    ],
)
def test_bad_classifiers_and_labels_are_refused_when_sampling(score, error, message):
    with pytest.raises(error, match=message):
        sample(
            oracle(Gaussian(Cosine())), solver=DDPM(), steps=2, num=2, seed=0, dtype=F64, hooks=elucd.on_mean(score())
        )


def test_a_classifier_that_is_put_into_training_mode_later_is_refused():
    classifier = net()
    score = ClassScore(classifier, 0)
    classifier.train()
    with pytest.raises(Incompatible, match="training mode"):
        score(noise(1, *SHAPE), None, Conditions())


def test_schedules_over_steps_refuse_times_per_row():
    grid = torch.tensor([[1.0, 0.8], [0.5, 0.4], [0.0, 0.0]], dtype=F64)
    score = ClassScore(net(), 0)
    for hooks in (elucd.on_mean(score), elucd.on_state(score)):
        with pytest.raises(Incompatible, match="a time per row"):
            sample(oracle(Gaussian(Cosine())), solver=DDPM(), grid=grid, num=2, seed=0, dtype=F64, hooks=hooks)


# The real classes


class Bottleneck(nn.Module):
    """One module used three times, as in torchvision's ResNets."""

    def __init__(self, width):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, size, padding=size // 2) for size in (1, 3, 1))
        self.norms, self.relu = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3)), nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.norms[0](self.convs[0](x)))
        h = self.relu(self.norms[1](self.convs[1](h)))
        return self.relu(self.norms[2](self.convs[2](h)) + x)


class ResNet(nn.Module):
    def __init__(self, classes=5, width=8):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layer1, self.fc = nn.Sequential(Bottleneck(width), Bottleneck(width)), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.layer1(self.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def resnet(seed=0):
    torch.manual_seed(seed)
    return ResNet().eval()


def test_a_residual_network_softened_guides_and_comes_back():
    classifier, x = resnet(), torch.randn(2, 3, 16, 16)
    before = classifier(x)
    swap = soften(classifier, 3.0, x)
    assert len(swap.names) == 3
    grad = gradient(ClassScore(classifier, torch.tensor([1, 4]), marginal=0.5))(x, None, Conditions())
    assert grad.shape == x.shape and bool((grad != 0).any())
    swap.undo()
    assert torch.equal(classifier(x), before)


def test_the_shape_of_the_images_is_checked():
    with pytest.raises(Incompatible, match="decode="):
        ClassScore(resnet(), 1)(torch.randn(2, 4, 8, 8), None, Conditions())


def test_half_precision_states_meet_a_float32_classifier():
    x = torch.randn(2, 3, 16, 16)
    grad = gradient(ClassScore(resnet(), 1))(x.double(), None, Conditions())
    assert grad.dtype == F64


def test_preprocessing_is_explicit():
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    score = ClassScore(resnet(), 1, preprocess=lambda x: (x + 1) / 2 - mean)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(score.logits(x), resnet()((x + 1) / 2 - mean))


def test_ddim_with_a_shifted_noise():
    """The deterministic form: noise - scale noise(t) grad."""
    model, y = oracle(Gaussian(Cosine())), torch.tensor([0, 1, 2])
    score = ClassScore(net(), y, marginal=0.5)
    guided = elucd.on_noise(model, score, scale=lambda level: 2.0 * level.t)
    assert isinstance(guided, Energy)
    x, level = noise(3, *SHAPE), model.process.at(0.4)
    plain = model(x, level)
    g = gradient(score)(plain.x0, level, Conditions())
    torch.testing.assert_close(guided(x, level).noise, plain.noise - level.noise * 0.8 * g, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(sample(guided, solver=DDIM(), grid=[0.999, 0.5, 0.0], initial=x)).all()
