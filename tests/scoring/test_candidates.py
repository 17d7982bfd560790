"""Errors of candidates on shared noise: closed forms, levels, stages, invariances, refusals."""

import math

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoiser
from condiff.errors import BadValue, Incompatible, NonFinite
from condiff.guidance import Free
from condiff.metrics import denoising_log_prob
from condiff.networks import MLP
from condiff.process import Absorbing, Discrete, Gaussian, Prediction, Rectified, Residual
from condiff.process.oracles import mixture
from condiff.scoring import (
    Bound,
    DiffusionClassifier,
    Error,
    Noises,
    Total,
    candidate_errors,
    condition_use,
    level_indices,
    stage_indices,
)
from condiff.training import ELBO, SNR, Denoising

DDPM = Gaussian(Discrete.ddpm())
D, CLASSES, VAR = 16, 4, 0.3


def means(scale=0.6):
    return scale * torch.randn(CLASSES, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def oracle(process=DDPM):
    return mixture(process, means(), stds=math.sqrt(VAR), labels=range(CLASSES))


def samples(n=12):
    return oracle().sample_labelled(n, 0, dtype=torch.float64)


def classifier(model=None, stages=((20, 1),), **options):
    return DiffusionClassifier(
        denoiser=model or oracle(), candidates={"label": torch.arange(CLASSES)}, stages=stages, **options
    )


def closed_form(x0, level):
    """``d (a^2 v / V)^2 + (s a / V)^2 |x0 - m_c|^2``, (B, C)."""
    a, s = level.data, level.noise
    total = a * a * VAR + s * s
    distance2 = (x0[:, None] - means()).square().sum(-1)
    return D * (a * a * VAR / total) ** 2 + (s * a / total) ** 2 * distance2


# Levels


def test_the_grid_of_levels_is_the_published_one():
    assert level_indices(1000, 20) == list(range(25, 1000, 50))
    stages = stage_indices(1000, (5, 20))
    assert stages[0] == [125, 325, 525, 725, 925]
    assert stages[1] == [i for i in range(25, 1000, 50) if i not in stages[0]]


@pytest.mark.parametrize(
    ("counts", "new"),
    [((50, 500), [50, 450]), ((20, 50, 100, 500), [20, 50, 80, 350]), ((50, 100, 500, 1000), [50, 100, 400, 450])],
)
def test_stages_are_of_the_published_sizes(counts, new):
    stages = stage_indices(1000, counts)
    assert [len(s) for s in stages] == new
    flat = [i for s in stages for i in s]
    assert len(set(flat)) == len(flat) and 0 <= min(flat) <= max(flat) < 1000


def test_a_count_of_levels_is_refused_with_what_is_possible():
    with pytest.raises(BadValue, match=r"0 noise levels .* at least one"):
        level_indices(1000, 0)


@pytest.mark.parametrize("counts", [(), (0,), (5, 5), (10, 5), (1001,), (0, 5)])
def test_bad_counts_of_levels_are_refused(counts):
    with pytest.raises(BadValue, match="level"):
        stage_indices(1000, counts)


# Closed forms


@pytest.mark.parametrize("index", [50, 300, 700])
def test_errors_of_gaussian_classes_have_their_closed_form(index):
    """400 000 draws agree to 0.02 (summed over 16 elements)."""
    x, _ = samples(1)
    level = DDPM.at((index + 1) / 1000)
    z = torch.randn(400_000, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t = level.data * x + level.noise * z
    exact = closed_form(x, level)[0]
    for c in range(2):
        eps = level.noise * (x_t - level.data * means()[c]) / (level.data**2 * VAR + level.noise**2)
        assert float((z - eps).square().sum(1).mean()) == pytest.approx(float(exact[c]), abs=0.02)
    ours = candidate_errors(
        oracle(),
        x,
        Conditions({"label": Condition(torch.arange(2), "label")}),
        torch.full((20_000,), level.t, dtype=torch.float64),
        z[:20_000],
        [Error()],
        batch=20_000,
    )
    spread = D * 2.0 * 4 / math.sqrt(20_000 * D)
    torch.testing.assert_close(D * ours[0, 0].mean(-1).double(), exact[:2], rtol=0, atol=spread)


def test_the_least_error_is_the_nearest_mean_for_every_level_and_weight():
    x, _ = samples(200)
    bayes = oracle().class_log_prob(x, 0.0).argmax(1)
    for index in (50, 300, 700):
        assert torch.equal(closed_form(x, DDPM.at((index + 1) / 1000)).argmin(1), bayes)
    assert torch.equal((x[:, None] - means()).square().sum(-1).argmin(1), bayes)


@pytest.mark.parametrize(("reach", "tolerance"), [(14.0, 1.2e-4), (18.0, 2e-6)])
def test_the_likelihood_is_the_integral_of_the_errors(reach, tolerance):
    """The I-MMSE identity, with errors of the exact denoiser; what is left is the truncation."""
    x, _ = samples(1)
    log_snr = torch.linspace(-reach, reach, 20_001, dtype=torch.float64)
    snr = log_snr.exp()
    a, s = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    distance2 = (x - means()).square().sum(1)
    total = a * a * VAR + s * s
    errors = D * (a * a * VAR / total) ** 2 + (s * a / total) ** 2 * distance2[:, None]
    ours = denoising_log_prob(log_snr, errors, D)
    exact = -0.5 * distance2 / VAR - 0.5 * D * math.log(2 * math.pi * VAR)
    gap = (ours - exact).abs()
    assert float(gap.max()) < tolerance
    if reach == 14.0:
        assert float(gap.max()) > 1e-5  # the truncation is there


def test_the_likelihood_refuses_levels_that_do_not_fit():
    with pytest.raises(BadValue, match="increasing"):
        denoising_log_prob(torch.tensor([1.0, 0.0]), torch.zeros(2), 3)
    with pytest.raises(BadValue, match="as many errors"):
        denoising_log_prob(torch.tensor([0.0, 1.0]), torch.zeros(4, 3), 3)


def test_elbo_weights_give_bayes_rule():
    """With the exact errors in place of drawn ones, probabilities are the posterior of the classes."""
    x, _ = samples(8)
    clf, n = classifier(measure=Error(weight="elbo")), 4000
    times = (torch.arange(n, dtype=torch.float64) + 1.0) / n
    total = torch.zeros(8, CLASSES, dtype=torch.float64)
    smooth = Gaussian(Rectified())
    for level in smooth.levels(times[:-1]):
        total += float(ELBO().on("noise", level)) * closed_form(x, level) / n
    exact = oracle().class_log_prob(x, 0.0).exp()
    torch.testing.assert_close(clf.posterior(total / D, D), exact, rtol=0, atol=2e-3)
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    tilted = exact * prior / (exact * prior).sum(1, keepdim=True)
    torch.testing.assert_close(clf.posterior(total / D, D, prior), tilted, rtol=0, atol=2e-3)


def test_shared_noise_halves_the_spread_of_differences():
    x, n, runs = samples(1)[0], 50, 200
    pair = Conditions({"label": Condition(torch.arange(2), "label")})
    times = (torch.tensor(level_indices(1000, n), dtype=torch.float64) + 1.0) / 1000

    def errors(seed):
        noise = torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return candidate_errors(oracle(), x, pair, times, noise, [Error()])[0, 0].double().mean(-1)

    drawn = torch.stack([errors(seed) for seed in range(2 * runs)])
    shared = (drawn[:runs, 0] - drawn[:runs, 1]).std()
    apart = (drawn[:runs, 0] - drawn[runs:, 1]).std()
    assert float(shared) < 0.65 * float(apart)


# Stages and invariances


def test_pruning_to_all_but_one_is_the_exhaustive_choice():
    x, _ = samples(40)
    staged = classifier(stages=((5, CLASSES), (20, 1))).scores(x)
    plain = classifier(stages=((20, 1),)).scores(x)
    assert int(staged.seen.min()) == 20 and torch.equal(staged.seen, plain.seen)
    # the same levels in another order, with noise numbered by evaluation: compare with the errors on that very set
    assert torch.equal(staged.best, staged.errors.argmin(1))
    table = Noises(DDPM, (D,), 0).rows(0, 20, torch.float64, "cpu")
    order = [i for s in stage_indices(1000, (5, 20)) for i in s]
    times = (torch.tensor(order, dtype=torch.float64) + 1.0) / 1000
    all_of_them = Conditions({"label": Condition(torch.arange(CLASSES), "label")})
    exhaustive = candidate_errors(oracle(), x, all_of_them, times, table, [Error()])[0].double().mean(-1)
    torch.testing.assert_close(staged.errors, exhaustive, rtol=1e-5, atol=0)


def test_candidates_of_a_stage_share_their_levels_and_the_rest_stay_out():
    x, _ = samples(6)
    scores = classifier(stages=((4, 2), (12, 1))).scores(x)
    assert (scores.seen.sort(1).values == torch.tensor([4, 4, *(2 * [int(scores.seen.max())])])).all()
    assert (scores.seen.gather(1, scores.best[:, None]) == scores.seen.max()).all()
    first, second = (len(s) for s in stage_indices(1000, (4, 12)))
    assert scores.calls == CLASSES * first + 2 * second


def test_one_candidate_left_is_not_evaluated_again():
    x, _ = samples(3)
    short = classifier(stages=((10, 1),)).scores(x)
    assert torch.isfinite(short.errors).all() and short.calls == 10 * CLASSES


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_result_does_not_depend_on_the_batch(batch):
    x, _ = samples(5)
    want = classifier(stages=((5, 2), (20, 1))).scores(x.float())
    got = classifier(stages=((5, 2), (20, 1)), batch=batch).scores(x.float())
    torch.testing.assert_close(got.errors, want.errors, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.best, want.best)


def test_the_result_does_not_depend_on_the_order_of_candidates_or_the_neighbours():
    x, _ = samples(10)
    order = torch.tensor([2, 0, 3, 1])
    want = classifier(stages=((5, 2), (20, 1))).scores(x)
    mixed = DiffusionClassifier(
        denoiser=oracle(), candidates={"label": order}, stages=((5, 2), (20, 1)), classes=order.tolist()
    )
    got = mixed.scores(x)
    torch.testing.assert_close(got.errors, want.errors[:, order], rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed.predict(x), want.best)
    alone = classifier(stages=((5, 2), (20, 1))).scores(x[3:4])
    torch.testing.assert_close(alone.errors[0], want.errors[3], rtol=1e-5, atol=1e-5)


class Says:
    """The oracle's prediction, said as another quantity."""

    process, shape, kinds = DDPM, (D,), {"label": "label"}

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, x_t, t, cond=None):
        p = oracle()(x_t, t, cond)
        return Prediction(x_t, p.level, {self.kind: p.to(self.kind)})


@pytest.mark.parametrize("kind", ["v", "x0", "noise", "velocity"])
def test_errors_do_not_depend_on_what_the_model_predicts(kind):
    x, _ = samples(4)
    want = classifier().scores(x).errors
    torch.testing.assert_close(classifier(Says(kind)).scores(x).errors, want, rtol=1e-5, atol=1e-5)


def test_one_candidates_error_is_the_validation_loss_on_the_same_noise():
    torch.manual_seed(0)
    network = MLP(shape=(D,), width=16, depth=1, conditions={"label": _label(CLASSES)})
    model = Denoiser(network, DDPM, "noise", shape=(D,)).eval()
    x = samples(3)[0].float()
    noise = torch.randn(6, D)
    clf = DiffusionClassifier(
        denoiser=model, candidates={"label": torch.tensor([1, 2])}, stages=[(6, 1)], noise=noise, measure=Error()
    )
    times = (torch.tensor(level_indices(1000, 6), dtype=torch.float64) + 1.0) / 1000
    want = torch.zeros(3)
    for j in range(6):
        label = {"label": torch.ones(3, dtype=torch.long)}
        losses = Denoising(target="noise").at(model, x, times[j].expand(3), noise[j].expand(3, D), label)
        want += losses.per_sample.detach() / 6
    torch.testing.assert_close(clf.scores(x).errors[:, 0].float(), want, rtol=1e-5, atol=1e-6)


def _label(count):
    from condiff.conditions import Label

    return Label(count)


# Measures


def test_losses_and_weights():
    level = DDPM.at(0.4)
    truth = DDPM.forward(torch.zeros(1, 2), 0.4, noise=torch.tensor([[0.0, 0.0]]))
    said = Prediction(truth.x_t, level, {"noise": torch.tensor([[0.5, 2.0]])})
    assert float(Error()(said, truth)) == pytest.approx((0.25 + 4.0) / 2)
    assert float(Error(loss="l1")(said, truth)) == pytest.approx(1.25)
    assert float(Error(loss="huber")(said, truth)) == pytest.approx((0.125 + 1.5) / 2)
    assert float(Error(weight=lambda level: 3.0)(said, truth)) == pytest.approx(3 * 2.125)
    assert float(Error(weight=SNR(), target="x0")(said, truth)) == pytest.approx(2.125)
    half = float(ELBO().on("noise", level))
    assert float(Error(weight="elbo")(said, truth)) == pytest.approx(half * 2.125)
    both = Total((Error(), Error(loss="l1")))
    assert float(both(said, truth)) == pytest.approx(2.125 + 1.25)


@pytest.mark.parametrize("head", [-1.0, 0.0, 1.0])
def test_the_bound_is_the_divergence_of_two_gaussians(head):
    """KL of the true posterior from the model's step, per dimension in bits."""
    i, x0 = 400, torch.zeros(1, 3, dtype=torch.float64)
    t, s = DDPM.at((i + 1) / 1000), DDPM.at(i / 1000)
    truth = DDPM.forward(x0, t, noise=torch.ones_like(x0))
    guess = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    said = Prediction(truth.x_t, t, {"x0": guess}, aux={"variance": torch.full_like(x0, head)})
    mean_q, std_q = DDPM.posterior(truth, s)
    mean_p, _ = DDPM.posterior(said, s)
    beta = float(DDPM.schedule.betas[i])
    f = (head + 1) / 2
    log_var = f * math.log(beta) + (1 - f) * math.log(std_q**2)
    kl = 0.5 * (log_var - math.log(std_q**2) + (std_q**2 + (mean_q - mean_p).square()) / math.exp(log_var) - 1)
    assert float(Bound()(said, truth)) == pytest.approx(float(kl.mean()) / math.log(2), rel=1e-9)
    with pytest.raises(Incompatible, match="variance head"):
        Bound()(Prediction(truth.x_t, t, {"x0": guess}), truth)


# Does a model use its condition?


class Deaf:
    """Hears no label."""

    process, shape, kinds = DDPM, (D,), {"label": "label"}

    def __call__(self, x_t, t, cond=None):
        return oracle()(x_t, t)


def test_a_model_that_listens_is_told_from_one_that_does_not():
    x, y = samples(120)
    heard = condition_use(oracle(), x, {"label": y}, draws=10)
    assert heard.used and heard.true < heard.absent < heard.other
    assert heard.gain == pytest.approx(heard.other - heard.true, rel=1e-9)
    deaf = condition_use(Deaf(), x, {"label": y}, draws=10)
    assert not deaf.used and deaf.gain == 0.0 and deaf.true == deaf.absent


def test_condition_use_refuses_what_it_cannot_tell():
    x, y = samples(4)
    with pytest.raises(BadValue, match="same label"):
        condition_use(oracle(), x, {"label": torch.zeros_like(y)})
    with pytest.raises(BadValue, match="at least two"):
        condition_use(oracle(), x[:1], {"label": y[:1]})
    with pytest.raises(BadValue, match="labell"):
        condition_use(oracle(), x, {"label": y}, names=["labell"])
    with pytest.raises(Incompatible, match="no condition"):
        condition_use(oracle(), x, {})


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ()}, "keeps 1"),
        ({"stages": ((10, 2),)}, "keeps 1"),
        ({"stages": ((10, 5), (20, 1))}, "fewer and fewer of 4"),
        ({"stages": ((10, 2), (20, 2), (30, 1))}, "fewer and fewer"),
        ({"stages": ((20, 2), (10, 1))}, "must increase"),
        ({"stages": ((1001, 1),)}, "1001 noise levels"),
        ({"classes": [0, 1]}, "as many classes"),
        ({"trials": 0}, "at least 1"),
        ({"levels": 0}, "10 noise levels were asked for of 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadValue, match=message):
        classifier(**{"stages": ((10, 1),), **options})


def test_bad_candidates_and_models_are_refused():
    with pytest.raises(BadValue, match="no candidates"):
        DiffusionClassifier(denoiser=oracle(), candidates={})
    with pytest.raises(BadValue, match="are equal"):
        DiffusionClassifier(denoiser=oracle(), candidates={"label": torch.tensor([1, 2, 1])})
    given = Condition(torch.tensor([1, 1]), "label", keep=torch.tensor([True, False]))
    DiffusionClassifier(denoiser=oracle(), candidates={"label": given})  # a class, and none at all
    plain = mixture(DDPM, means(), stds=1.0)
    with pytest.raises(Incompatible, match="unconditional"):
        DiffusionClassifier(denoiser=plain, candidates={"label": torch.arange(2)})
    with pytest.raises(Incompatible, match="guided"):
        classifier(Free(oracle(), scale=2.0))
    with pytest.raises(Incompatible, match="one stage"):
        classifier(stages=((5, 2), (10, 1))).probabilities(samples(2)[0])
    with pytest.raises(BadValue, match="sum to 1"):
        classifier().probabilities(samples(2)[0], prior=torch.tensor([0.5, 0.5, 0.5, 0.5]))
    with pytest.raises(BadValue, match="oracle of samples"):
        classifier().predict(torch.zeros(2, 3))
    with pytest.raises(BadValue, match="at least one"):
        classifier().predict(torch.zeros(0, D))
    with pytest.raises(BadValue, match="table holds 5"):
        classifier(noise=torch.zeros(5, D, dtype=torch.float64)).scores(samples(1)[0])


class Broken(Deaf):
    def __call__(self, x_t, t, cond=None):
        p = oracle()(x_t, t)
        return p.set("noise", torch.full_like(x_t, math.nan))


class BrokenForThree(Deaf):
    """Fails for candidate 3, once it is compared with few others."""

    def __call__(self, x_t, t, cond=None):
        p = oracle()(x_t, t, cond)
        far = (cond["label"].value == 3) & (p.level.t > 0.6)
        return p.set("noise", torch.where(far[:, None], math.inf, p.noise))


def test_errors_that_are_not_numbers_are_refused():
    with pytest.raises(NonFinite, match="sample 0 under candidate 0"):
        classifier(Broken()).scores(samples(2)[0])
    x = means()[3:] + 0.01  # candidate 3 is the first of those that stay
    assert stage_indices(1000, [1, 3]) == [[499], [166, 832]]
    with pytest.raises(NonFinite, match=r"sample 0 under candidate 3 at t = 0\.833 is not finite"):
        classifier(BrokenForThree(), stages=((1, 2), (3, 1))).scores(x)
    with pytest.raises(BadValue, match="squared errors"):
        Error(loss="l1", weight="elbo")
    for options in ({"loss": "l3"}, {"target": "eps"}, {"weight": "snr"}):
        with pytest.raises(BadValue, match="unknown"):
            Error(**options)


def test_several_prompts_a_class():
    x, _ = samples(10)
    clf = classifier(classes=[0, 0, 1, 1])
    plain = classifier()
    assert torch.equal(clf.predict(x), plain.predict(x) // 2)
    p, q = clf.probabilities(x), plain.probabilities(x)
    torch.testing.assert_close(p, torch.stack([q[:, :2].sum(1), q[:, 2:].sum(1)], 1))


def test_trials_draw_several_noises_a_level():
    x, _ = samples(2)
    scores = classifier(stages=((5, 1),), trials=3).scores(x)
    assert int(scores.seen.min()) == 15 and scores.calls == 15 * CLASSES


def test_a_process_with_an_endpoint_is_told_it():
    """Errors of a residual path: the endpoint comes with each sample, the label is the candidate."""
    process = Residual()
    model = mixture(process, means(), stds=math.sqrt(VAR), labels=range(CLASSES))
    x, y = model.sample_labelled(30, 0, dtype=torch.float64)
    end = {"source": Condition(0.3 * torch.randn_like(x), "endpoint")}
    clf = DiffusionClassifier(
        denoiser=model, candidates={"label": torch.arange(CLASSES)}, stages=[(40, 1)], measure=Error(target="x0")
    )
    assert (clf.predict(x, end) == y).double().mean() > 0.7
    with pytest.raises(BadValue, match="endpoint"):
        clf.predict(x)
    with pytest.raises(BadValue, match="candidates and conditions"):
        clf.predict(x, {**end, "label": y})
    with pytest.raises(BadValue, match="30 samples, but 3 rows"):
        clf.predict(x, {"source": Condition(torch.zeros(3, D), "endpoint")})


def test_tokens_have_other_errors():
    class Tokens(Deaf):
        process = Absorbing(vocab=5)

    with pytest.raises(Incompatible, match="one state with noise"):
        classifier(Tokens())
