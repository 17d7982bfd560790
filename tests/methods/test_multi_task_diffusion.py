"""A latent that carries several modalities, on Gaussians whose answers are known, and as networks learn it."""

import math
import warnings

import pytest
import torch

from condiff.conditions import as_conditions
from condiff.denoiser import Denoiser
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Classifier, Free
from condiff.metrics import elbo, joint_elbo
from condiff.multimodal import Image, Label, Modalities, MultiModal, Vector
from condiff.networks import MLP, DiT
from condiff.process import Cosine, Discrete, Driven, Gaussian, Prediction, oracles
from condiff.random import as_source
from condiff.sampling import DDPM, Aggregated, Inpaint, Uniform, affine_law, repaint_grid, sample, sample_modalities
from condiff.sampling.multimodal import decoded
from condiff.training import Denoising, DiscreteTimes, MultiModalDenoising

F64 = torch.float64
STEPS, RHO, GIVEN = 300, 0.8, 1.5
SCHEDULES = {
    "linear": Discrete.ddpm(STEPS, 0.1 / STEPS, 20.0 / STEPS),
    "cosine": Discrete.cosine(STEPS),
}
COV = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=F64)


class Pair:
    """The exact model of two unit Gaussians x1, x2 of correlation 0.8, side by side in a latent of two numbers.

    Told x2, it predicts from ``p(x1 | x2, z_1-part)``.
    """

    told, kinds, shape, target = True, {"x1": "vector", "x2": "vector"}, (2,), "x0"

    def __init__(self, process):
        self.process = process
        self.modalities = Modalities({"x1": Vector(1, own=True), "x2": Vector(1, own=True)})
        self.joint = oracles.gaussian(process, [0.0, 0.0], COV)
        self.conditional = oracles.gaussian(process, [0.0], [[1.0 - RHO**2]])

    def __call__(self, z, t, cond=None):
        level, cond = self.process.at(t), as_conditions(cond, self.kinds)
        x0 = self.joint(z, level).x0
        if "x2" in cond:
            x2 = cond["x2"].value.to(z)
            shift = RHO * x2
            first = shift + self.conditional(z[:, :1] - level.data * shift, level).x0
            x0 = torch.cat([first, x2], dim=1)
        heads = {"x1": x0[:, :1], "x2": x0[:, 1:]}
        return Prediction(z, level, {"x0": x0}, aux={"modalities": heads})

    def said(self, prediction):
        return prediction.aux["modalities"]


def pair(schedule="linear"):
    return Pair(Driven(schedule=SCHEDULES[schedule]))


def law(model, hooks=(), cond=None):
    """Mean and covariance of what is decoded at z_1: the last step is the posterior mean there."""
    return affine_law(model, solver=DDPM(), steps=STEPS, hooks=hooks, cond=cond)


def x2(rows=1, value=GIVEN):
    return torch.full((rows, 1), value, dtype=F64)


# Joint, conditional, replaced: by exact propagation


@pytest.mark.parametrize(("schedule", "variance", "covariance"), [("linear", 0.973, 0.783), ("cosine", 0.984, 0.790)])
def test_joint_samples_have_the_covariance_of_the_data(schedule, variance, covariance):
    found = law(pair(schedule)).cov
    assert float(found[0, 0]) == pytest.approx(variance, abs=0.001)
    assert float(found[0, 1]) == pytest.approx(covariance, abs=0.001)
    torch.testing.assert_close(found, COV, atol=0.03, rtol=0.0)


@pytest.mark.parametrize(("schedule", "variance"), [("linear", 0.345), ("cosine", 0.352)])
def test_a_model_that_is_told_samples_the_conditional_law(schedule, variance):
    found = law(pair(schedule), cond={"x2": x2()})
    assert float(found.mean[0]) == pytest.approx(RHO * GIVEN, abs=0.02)
    assert float(found.cov[0, 0]) == pytest.approx(1.0 - RHO**2, abs=0.03)
    assert float(found.cov[0, 0]) == pytest.approx(variance, abs=0.001)


class Rows(Aggregated):
    """The known row for however many rows there are."""

    def prediction(self, prediction, run):
        known = {name: value.expand(len(prediction.x_t), -1) for name, value in self.known.items()}
        return Aggregated(self.modalities, known).prediction(prediction, run)


BIASED = [("linear", 0.745, 0.524, 0.480), ("cosine", 0.747, 0.531, 0.487)]


@pytest.mark.parametrize(("schedule", "mean", "replaced", "overwritten"), BIASED)
def test_replacement_is_biased_by_what_is_said_of_it(schedule, mean, replaced, overwritten):
    """So that nobody calls it exact: a mean of 0.75 and a variance of 0.5 where 1.2 and 0.36 are right."""
    model = pair(schedule)
    inside = law(model, [Rows(model.modalities, {"x2": x2()})])
    over = law(model, [Inpaint(torch.tensor([[0.0, GIVEN]], dtype=F64), torch.tensor([[False, True]]))])
    for found, variance in ((inside, replaced), (over, overwritten)):
        assert float(found.mean[0]) == pytest.approx(mean, abs=0.002)
        assert float(found.cov[0, 0]) == pytest.approx(variance, abs=0.002)


@pytest.mark.parametrize(
    ("how", "mean", "variance"), [("told", 1.2, 0.345), ("replaced", 0.745, 0.524), ("overwritten", 0.745, 0.480)]
)
def test_the_sampler_is_what_was_propagated(how, mean, variance):
    """By drawing 4000 samples, for each way of knowing."""
    x = sample_modalities(pair(), 4000, known={"x2": [GIVEN]}, how=how, seed=0)
    assert torch.equal(x["x2"], torch.full((4000, 1), GIVEN))
    assert float(x["x1"].mean()) == pytest.approx(mean, abs=4.0 * math.sqrt(variance / 4000))
    assert float(x["x1"].var()) == pytest.approx(variance, rel=4.0 * math.sqrt(2.0 / 4000))


def test_repeats_make_overwriting_better():
    """Time travel: the unknown part comes to agree with the known one."""
    model, first = pair(), 1.0 / STEPS
    times = Uniform(end=first).times(model.process, 99)
    means = [
        float(
            sample_modalities(
                model, 2000, known={"x2": [GIVEN]}, how="overwritten", grid=repaint_grid(times, 3, n), seed=0
            )["x1"].mean()
        )
        for n in (1, 4)
    ]
    assert means[0] < 0.8 < 1.0 < means[1]


def test_heads_give_the_aggregate_of_the_latent():
    """With exact heads the two aggregates are one; so is one of the user's."""
    model = pair()
    rule = lambda prediction, run: torch.cat([prediction.aux["modalities"][n] for n in ("x1", "x2")], dim=1)
    x = [sample_modalities(model, 4, aggregate=how, steps=20, seed=0) for how in ("latent", "heads", rule)]
    for other in x[1:]:
        for name in ("x1", "x2"):
            torch.testing.assert_close(other[name], x[0][name])


# The bound


def exact_log_prob(x):
    both = torch.cat([x["x1"], x["x2"]], dim=1)
    return torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), COV).log_prob(both)


def drawn(rows, seed=0):
    both = (
        torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(seed)) @ torch.linalg.cholesky(COV).mT
    )
    return {"x1": both[:, :1], "x2": both[:, 1:]}


def expected_bound(model):
    """Its mean over the data: ``Cov[x | z_t] = (C^-1 + snr I)^-1`` is what the exact denoiser leaves of the squares."""
    levels = model.process.levels(torch.arange(1, STEPS + 1, dtype=F64) / STEPS)
    snr = [(level.data / level.noise) ** 2 for level in levels]
    left = [float(torch.linalg.inv(torch.linalg.inv(COV) + r * torch.eye(2, dtype=F64)).trace()) for r in snr]
    steps = sum(0.5 * (a - b) * e for a, b, e in zip(snr, snr[1:], left[1:], strict=False))
    decoded_at_first = 0.5 * snr[0] * left[0] + math.log(2.0 * math.pi / snr[0])
    return -(0.5 * snr[-1] * 2.0 + steps + decoded_at_first)


def test_the_joint_bound_is_its_closed_form_and_lies_below():
    x = drawn(4000)
    found = joint_elbo(pair(), x, rng=0)
    error = 4.0 * float(found.total.std()) / math.sqrt(4000)
    assert float(found.total.mean()) == pytest.approx(expected_bound(pair()), abs=error)
    assert expected_bound(pair()) < -math.log(2.0 * math.pi * math.e) - 0.5 * math.log(1.0 - RHO**2)  # the entropy
    assert set(found.reconstruction) == {"x1", "x2"}


def fine(model):
    """Times even in the log-SNR, whose bound loses ``D / 4 sum (d log snr)^2``: 0.2 nats of two numbers."""
    return model.process.time(torch.linspace(9.0, -9.0, 801, dtype=F64))


def test_the_joint_bound_is_tight_in_many_small_steps():
    x, model = drawn(1000), Pair(Gaussian(Cosine()))
    gap = exact_log_prob(x) - joint_elbo(model, x, fine(model), rng=0).total
    error = 4.0 * float(gap.std()) / math.sqrt(1000)
    assert -error < float(gap.mean()) < 0.3 + error


def test_the_bound_given_a_modality_is_that_of_the_conditional_law():
    x, model = drawn(1000), Pair(Gaussian(Cosine()))
    found = joint_elbo(model, x, fine(model), rng=0, known=["x2"])
    exact = torch.distributions.Normal(RHO * x["x2"], math.sqrt(1.0 - RHO**2)).log_prob(x["x1"])[:, 0]
    gap = exact - found.total
    assert set(found.reconstruction) == {"x1"}
    error = 4.0 * float(gap.std()) / math.sqrt(1000)
    assert -error < float(gap.mean()) < 0.2 + error


def test_the_prior_of_the_bound_is_its_divergence():
    """Of N(c E, s^2) from the N(0, s^2) that is drawn from, where little is lost yet."""
    x, model = drawn(20), Pair(Gaussian(Cosine()))
    found, level = joint_elbo(model, x, torch.tensor([0.1, 0.3, 0.6], dtype=F64), rng=0), model.process.at(0.6)
    drive = torch.cat([x["x1"], x["x2"]], dim=1)
    laws = [torch.distributions.Normal(mean, level.noise) for mean in (level.data * drive, torch.zeros_like(drive))]
    expected = torch.distributions.kl_divergence(*laws).sum(1)
    torch.testing.assert_close(found.prior, expected)
    rest = sum(found.reconstruction.values()) - found.steps.sum(0)
    torch.testing.assert_close(found.total, rest - expected)


def test_one_modality_has_the_bound_of_its_diffusion():
    process = Driven(schedule=SCHEDULES["cosine"])
    oracle = oracles.gaussian(process, [0.0], [[1.0]])

    class One:
        told, kinds, said = False, {}, staticmethod(lambda p: p.aux["modalities"])
        modalities, shape = Modalities({"x": Vector(1, own=True)}), (1,)

        def __init__(self):
            self.process = process

        def __call__(self, z, t, cond=None):
            p = oracle(z, t)
            return Prediction(z, p.level, p.values, aux={"modalities": {"x": p.x0}})

    x = torch.randn(16, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    times = torch.arange(1, STEPS + 1, dtype=F64) / STEPS
    found, plain = joint_elbo(One(), {"x": x}, rng=3), elbo(oracle, x, times, rng=3)
    torch.testing.assert_close(found.total, plain.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.steps, plain.steps, rtol=1e-12, atol=1e-12)


# DDPM is the case of one modality


def networks(conditions=None, seed=0, shape=(1, 8, 8)):
    torch.manual_seed(seed)
    net = DiT(shape=shape, width=32, depth=2, heads=2, conditions=conditions or {})
    for p in net.parameters():  # outputs that start at 0 would hide mistakes
        p.data = p.data + 0.05 * torch.randn(p.shape)
    return net


def pictures(rows=4, seed=0):
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_one_modality_is_ddpm_tensor_for_tensor():
    net, schedule = networks(), Discrete.cosine(40)
    own = MultiModal(net, Driven(schedule=schedule), {"image": Image(1, 8, 8, std=1.0)})
    plain = Denoiser(net, Gaussian(schedule), "noise", shape=(1, 8, 8))
    how = Denoising(times=DiscreteTimes(grid=40))
    losses = MultiModalDenoising(latent=how, weights={"image": 0.0})(own, {"x": pictures()}, rng=0)
    expected = how(plain, {"x": pictures()}, rng=0)
    assert torch.equal(losses.loss, expected.loss)
    assert torch.equal(losses.per_sample, expected.per_sample)
    x = [sample(model, solver=DDPM(), steps=40, num=3, seed=0) for model in (own, plain)]
    assert torch.equal(*x)


# Heads and the trunk


def trunk_gradients(model, objective, batch):
    model.zero_grad()
    objective(model, batch, rng=0).loss.backward()
    return {n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("detach", [True, False])
def test_heads_that_leave_the_trunk_alone(detach):
    """Without weight in the loss, or detached, heads change nothing of the trunk's gradients."""
    process, batch = (
        Driven(schedule=Discrete.cosine(40)),
        {"x": pictures(), "cond": {"label": torch.tensor([0, 1, 2, 9])}},
    )
    kinds = {"image": Image(1, 8, 8), "label": Label(10)}
    joint = MultiModal(networks(), process, Modalities(kinds, weights={"label": 0.0}))
    for p in joint.heads.parameters():  # outputs that start at 0 send no gradient back
        p.data += 0.1 * torch.randn(p.shape)
    alone = MultiModal(networks(), process, {"image": Image(1, 8, 8)})
    weights = {"image": 1.0, "label": 1.0} if detach else {"image": 0.0, "label": 0.0}
    found = trunk_gradients(joint, MultiModalDenoising(weights=weights, detach=detach), batch)
    expected = trunk_gradients(alone, MultiModalDenoising(weights={"image": 0.0}), {"x": pictures()})
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=0.0, atol=1e-8)
    heads = [p for p in joint.heads.parameters() if p.requires_grad]
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in heads) == detach


def test_heads_flow_into_the_trunk_otherwise():
    batch = {"x": pictures(), "cond": {"label": torch.tensor([0, 1, 2, 9])}}
    model = MultiModal(networks(), Driven(schedule=Discrete.cosine(40)), {"image": Image(1, 8, 8), "label": Label(10)})
    for p in model.heads.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    alone, both = (trunk_gradients(model, MultiModalDenoising(detach=d), batch) for d in (True, False))
    assert max(float((alone[n] - both[n]).abs().max()) for n in alone) > 1e-4


def test_all_known_comes_back_inside_and_is_refused_outside():
    kinds = Modalities({"image": Image(1, 8, 8), "label": Label(10)})
    model = MultiModal(networks(kinds.conditions()), Driven(schedule=Discrete.cosine(40)), kinds)
    known = {"image": pictures(2), "label": torch.tensor([3, 4])}
    out = decoded(model, torch.randn(2, 1, 8, 8), 1 / 40, kinds.known(known), known, None)
    assert all(torch.equal(out[name], known[name]) for name in known)
    with pytest.raises(BadValue, match="nothing to sample"):
        sample_modalities(model, known=known)


# What a network is told


def labelled(seed=0, process=None):
    kinds = Modalities({"image": Image(1, 8, 8), "label": Label(10)})
    net = networks(kinds.conditions(), seed)
    model = MultiModal(net, process or Driven(schedule=Discrete.cosine(40)), kinds)
    for p in model.heads.parameters():
        p.data = p.data + 0.1 * torch.randn(p.shape)
    return model


def test_known_rows_come_back_and_flags_count_row_by_row():
    model = labelled()
    x = sample_modalities(model, known={"label": [3, 1]}, steps=4, seeds=[5, 6])
    assert x["label"].tolist() == [3, 1]
    one = sample_modalities(model, known={"label": 1}, steps=4, seeds=[6])
    torch.testing.assert_close(one["image"], x["image"][1:])
    other = sample_modalities(model, known={"label": 2}, steps=4, seeds=[6])
    assert not torch.allclose(one["image"], other["image"])
    z = torch.randn(2, 1, 8, 8)
    told = model.modalities.known({"label": torch.tensor([3, 3])}, keep={"label": torch.tensor([True, False])})
    torch.testing.assert_close(model(z, 0.5, told).noise[1], model(z, 0.5).noise[1])
    assert not torch.allclose(model(z, 0.5, told).noise[0], model(z, 0.5).noise[0])


def test_guidance_by_what_is_known():
    """Dropping the flags is the other branch of classifier-free guidance."""
    model = labelled()
    z, cond = torch.randn(2, 1, 8, 8), {"label": torch.tensor([3, 1])}
    said = Free(model, scale=2.0)(z, 0.5, cond).noise
    torch.testing.assert_close(said, 2.0 * model(z, 0.5, cond).noise - model(z, 0.5).noise, rtol=1e-4, atol=1e-5)
    x = sample_modalities(Free(model, scale=2.0), known={"label": [3, 1]}, steps=4, seed=0)
    assert x["label"].tolist() == [3, 1]
    with pytest.raises(Incompatible, match="guidance"):
        sample_modalities(Free(model, scale=2.0), known={"label": [3, 1]}, aggregate="heads", steps=4)


def test_the_label_head_is_a_noisy_classifier():
    model = labelled()
    z, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 1])
    logits = model.said(model(z, 0.5))["label"].double()
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(model.log_prob("label", labels, z, 0.5), expected)
    guided = Classifier(model, model.classifier("label", labels), scale=3.0)
    u = z.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(model.log_prob("label", labels, u, 0.5).sum(), u)
    torch.testing.assert_close(guided(z, 0.5).score, model(z, 0.5).score + 3.0 * grad, rtol=1e-4, atol=1e-5)


def test_subsets_are_drawn_row_by_row():
    """Half of the rows know something: the label or the picture, as often, never both."""
    model = labelled()
    keep = MultiModalDenoising(known=0.5)._subsets(model, 4000, as_source(0), "cpu")
    seen = torch.stack([keep["image"], keep["label"]]).double()
    assert float(seen.sum(0).max()) == 1.0
    assert seen.mean(1).tolist() == pytest.approx([0.25, 0.25], abs=4 * math.sqrt(0.25 * 0.75 / 4000))


def test_a_known_modality_has_no_loss_for_its_head():
    model = labelled()
    batch = {"x": pictures(64), "cond": {"label": torch.arange(64) % 10}}
    losses = MultiModalDenoising(known=1.0)(model, batch, rng=0)
    assert float(losses.parts["label"]) == pytest.approx(0.5 * math.log(10), rel=0.35)  # half of the rows say log(10)
    assert set(losses.parts) == {"latent", "image", "label"}


def test_labels_weigh_a_tenth_unless_told_otherwise():
    model, batch = labelled(), {"x": pictures(16), "cond": {"label": torch.arange(16) % 10}}
    for weights, weight in (({}, 0.1), ({"label": 0.7}, 0.7)):
        losses = MultiModalDenoising(weights=weights)(model, batch, rng=0)
        parts = losses.parts
        total = parts["latent"] + parts["image"] + weight * parts["label"]
        torch.testing.assert_close(losses.loss.detach(), total.to(losses.loss))


def test_by_default_samples_take_every_step_of_the_table():
    """From z_N to z_1: times in between are not the chain's."""
    times = []
    sample_modalities(pair(), 1, seed=0, aggregate=lambda p, run: times.append(p.level.t) or p.x0)
    assert times == pytest.approx([i / STEPS for i in range(STEPS, 1, -1)], abs=1e-12)


def test_what_a_row_lacks_is_not_told_as_known():
    """A missing label is no class: the row is trained as one in which nothing is known of it."""
    model, told = labelled(), []
    batch = {"x": {"image": pictures(64), "label": torch.arange(64) % 10}}
    there = torch.arange(64) % 2 == 0
    held = {"image": torch.ones(1, 1, 8, 8, dtype=torch.bool), "label": there}
    model.register_forward_pre_hook(lambda module, args: told.append(args[2]))
    MultiModalDenoising(known=1.0)(model, {**batch, "mask": held}, rng=0)
    MultiModalDenoising(known=1.0)(model, batch, rng=0)
    some, every = (cond["label"].kept() for cond in told)
    assert bool(every[~there].any()) and torch.equal(some, every & there)
    assert torch.equal(told[0]["image"].kept(), told[1]["image"].kept())


# Masked views


def pair_of_pictures(told=True):
    kinds = Modalities({"image": Image(1, 8, 8), "view": Image(1, 8, 8, mean=0.3)})
    net = networks(kinds.conditions() if told else {}, shape=(2, 8, 8))
    model = MultiModal(net, Driven(schedule=Discrete.cosine(40)), kinds)
    for p in model.heads.parameters():
        p.data = p.data + 0.1 * torch.randn(p.shape)
    return model


@pytest.mark.parametrize("how", ["told", "replaced", "overwritten"])
def test_what_a_mask_leaves_out_of_a_known_view_is_not_read(how):
    model, view, seen = pair_of_pictures(), pictures(3), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    seen[..., 2:5, 3:7] = False
    options = {"how": how, "mask": {"view": seen}, "steps": 4, "seeds": [0, 1, 2]}
    made = sample_modalities(model, known={"view": view}, **options)
    other = sample_modalities(model, known={"view": torch.where(seen, view, torch.nan)}, **options)
    assert all(torch.equal(made[name], other[name]) for name in made)
    assert torch.equal(made["view"], torch.where(seen, view, 0.3))
    changed = sample_modalities(model, known={"view": torch.where(seen, view + 1.0, view)}, **options)
    assert not torch.allclose(changed["image"], made["image"])
    whole = sample_modalities(model, known={"view": view}, **{**options, "mask": None})
    assert not torch.allclose(whole["image"], made["image"])
    one = sample_modalities(model, known={"view": view[1:2]}, **{**options, "seeds": [1]})
    torch.testing.assert_close(one["image"], made["image"][1:2])


def test_a_masked_view_is_told_and_aggregated_as_in_training():
    """Its holes have the mean, with which they add nothing to the latent."""
    model, view, seen = pair_of_pictures(), pictures(3), torch.rand(3, 1, 8, 8) > 0.5
    told, steps = [], []
    model.register_forward_pre_hook(lambda module, args: told.append(args[2]["view"].value))
    rule = lambda prediction, run: (
        steps.append(model.modalities.expected(model.said(prediction), {"view": told[-1]})) or steps[-1]
    )
    sample_modalities(model, known={"view": view}, mask={"view": seen}, steps=2, seed=0, aggregate=rule)
    assert torch.equal(told[0], model.modalities.known({"view": view}, mask={"view": seen})["view"].value)
    placed = model.modalities.encode("view", view, seen)
    torch.testing.assert_close(steps[0][:, 1:], placed[:, 1:])
    inside = model.modalities.own("view", 3, seen)
    assert torch.equal(inside[:, 1:], seen)
    assert not bool(inside[:, :1].any())


def test_masks_that_mean_nothing_are_refused():
    seen = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    for options, message in (
        ({"mask": {"view": seen}}, "isn't known"),
        ({"known": {"view": pictures(2)}, "mask": {"view": seen.float()}}, "booleans"),
        ({"known": {"view": pictures(2)}, "mask": {"view": seen[..., :5]}}, "broadcast"),
    ):
        with pytest.raises(BadValue, match=message):
            sample_modalities(pair_of_pictures(), 2, steps=2, **options)
    with pytest.raises(BadValue, match="for parts"):
        sample_modalities(labelled(), 2, known={"label": 3}, mask={"label": torch.ones(1, dtype=torch.bool)})


# Refusals


def test_untold_networks_warn_and_refuse():
    model = MultiModal(networks(), Driven(schedule=Discrete.cosine(40)), {"image": Image(1, 8, 8), "label": Label(10)})
    with pytest.warns(UserWarning, match="biased"):
        sample_modalities(model, 2, known={"label": 3}, steps=3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_modalities(model, 2, known={"label": 3}, how="replaced", steps=3, seed=0)
    with pytest.raises(Incompatible, match="can't be told"):
        sample_modalities(model, 2, known={"label": 3}, how="told", steps=3)
    with pytest.raises(Incompatible, match="alone"):  # the label's code lies on the picture's channels
        sample_modalities(model, 2, known={"image": pictures(2)}, how="overwritten", steps=3)


BAD = [
    ({"known": {"lable": 3}}, "label"),
    ({"known": {"label": 10}}, "0 ... 9"),
    ({"known": {"label": [1, 2, 3]}}, "as many"),
    ({"known": {"image": torch.zeros(2, 3, 8, 8)}}, r"\(1, 8, 8\)"),
    ({"how": "told"}, "none are known"),
    ({"how": "exact", "known": {"label": 3}}, "overwritten"),
    ({"aggregate": "head"}, "heads"),
    ({"decode": "mean"}, "mode"),
    ({"grid": [1.0, 0.5, 0.0]}, "above 0"),
    ({"seed": 1, "seeds": [1, 2]}, "one of seed="),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(o)) + str(i) for i, (o, _) in enumerate(BAD)])
def test_nonsense_is_refused_at_the_door(options, message):
    with pytest.raises(BadValue, match=message):
        sample_modalities(labelled(), 2, **options)


def test_a_drive_that_comes_late_is_refused():
    with pytest.raises(Incompatible, match="z_1"):
        labelled(process=Driven(schedule=Discrete.cosine(40), drive=(0.0, 1.0)))
    with pytest.raises(Incompatible, match="z_1"):  # all at the first step, but below its noise
        labelled(process=Driven(schedule=Discrete.cosine(40), drive=(0.01,)))


def test_objectives_that_do_not_fit_are_refused():
    batch = {"x": pictures(), "cond": {"label": torch.zeros(4, dtype=torch.long)}}
    with pytest.raises(Incompatible, match="untrained"):
        MultiModalDenoising(known=0.0)(labelled(), batch)
    with pytest.raises(BadValue, match="probability"):
        MultiModalDenoising(known=1.5)
    with pytest.raises(BadValue, match="label"):
        MultiModalDenoising(weights={"lable": 1.0})(labelled(), batch)
    with pytest.raises(BadValue, match="missing"):
        MultiModalDenoising()(labelled(), {"x": pictures()})
    with pytest.raises(BadValue, match=r"0 \.\.\. 9"):
        MultiModalDenoising()(labelled(), {"x": pictures(), "cond": {"label": torch.full((4,), 11)}})


def test_an_mlp_of_two_vectors_trains():
    kinds = Modalities({"x1": Vector(1, own=True), "x2": Vector(1, own=True)})
    torch.manual_seed(0)
    net = MLP(shape=(2,), width=32, conditions=kinds.conditions())
    model = MultiModal(net, Driven(schedule=SCHEDULES["linear"]), kinds)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    objective, losses = MultiModalDenoising(latent=Denoising(times=DiscreteTimes(grid=STEPS))), []
    for i in range(60):
        loss = objective(model, {"x": {n: v.float() for n, v in drawn(256, i).items()}}, rng=i).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
