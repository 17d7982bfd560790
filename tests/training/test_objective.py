"""Objectives: weightings convert exactly, draws are shared, masks and weights mean what they say."""

import itertools

import pytest
import torch
from torch import nn

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoiser, EDMPrecondition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import EDM, Cosine, Gaussian, Joint, Prediction, Rectified, VPLinear
from condiff.random import Shard, as_source
from condiff.training import (
    ELBO,
    P2,
    SNR,
    Denoising,
    EDMLogNormal,
    EDMWeight,
    Huber,
    JointDenoising,
    LearnedVariance,
    MinSNR,
    PerFrame,
    Sigmoid,
    TruncatedSNR,
    UniformTimes,
    UniformWeight,
)

WEIGHTINGS = [
    SNR(),
    MinSNR(),
    MinSNR(gamma=0.5),
    TruncatedSNR(),
    P2(k=0.7, gamma=1.3),
    EDMWeight(),
    Sigmoid(),
    Sigmoid(bias=-1.0, per_log_snr=True),
    ELBO(),
]
PATHS = [VPLinear(), Cosine(), Rectified(shift=2.0), EDM(sigma_max=5.0, rho=1.0)]
TARGETS = ("x0", "noise", "velocity", "v", "score")


class Affine(nn.Module):
    """A network in float64."""

    condition_kinds = {}  # noqa: RUF012

    def __init__(self, size=3, outputs=1, aux=None):
        super().__init__()
        self.layer, self.aux = nn.Linear(size, size * outputs, dtype=torch.float64), aux

    def forward(self, x, time, cond):
        out = self.layer(x)
        return out if self.aux is None else (out, self.aux(x))


def model(schedule=None, target="v", **kwargs):
    torch.manual_seed(1)
    return Denoiser(Affine(**kwargs), Gaussian(schedule or Cosine()), target)


def data(rows=7, *shape):
    return torch.randn(rows, *(shape or (3,)), dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("schedule", PATHS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_weighting_is_one_loss_whatever_the_target(schedule, weighting):
    denoiser = model(schedule)
    losses = [
        Denoising(target=k, weighting=weighting, times=UniformTimes(low=0.02, high=0.98))(denoiser, {"x": data()}, 3)
        for k in TARGETS
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other.per_sample, losses[0].per_sample, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("schedule", PATHS)
def test_published_forms_of_the_weights(schedule):
    level = Gaussian(schedule).at(torch.linspace(0.05, 0.95, 13, dtype=torch.float64))
    a, s = level.data, level.noise
    snr, log_snr = (a / s) ** 2, level.log_snr
    slope = 2.0 * (level.d_noise / s - level.d_data / a)  # - d log SNR / dt
    expected = {
        (SNR(), "noise"): torch.ones_like(a),
        (SNR(), "x0"): snr,
        (MinSNR(), "x0"): snr.clamp_max(5.0),
        (MinSNR(), "noise"): snr.clamp_max(5.0) / snr,
        (TruncatedSNR(), "x0"): snr.clamp_min(1.0),
        (P2(k=0.7, gamma=1.3), "noise"): (0.7 + snr) ** -1.3,
        (EDMWeight(), "x0"): (1.0 / snr + 0.25) / (0.25 / snr),
        (Sigmoid(), "noise"): torch.sigmoid(2.0 - log_snr),
        (Sigmoid(per_log_snr=True), "noise"): torch.sigmoid(2.0 - log_snr) * slope,
        (ELBO(), "x0"): 0.5 * snr * slope,
        (UniformWeight(), "velocity"): torch.ones_like(a),
    }
    if isinstance(schedule, Cosine | VPLinear):
        expected[MinSNR(), "v"] = snr.clamp_max(5.0) / (snr + 1.0)  # Hang 2023, section 3.4
    if schedule == Rectified():
        expected[SNR(), "velocity"] = (1.0 - level.t) ** 2
    for (weighting, kind), want in expected.items():
        got = torch.as_tensor(weighting.on(kind, level), dtype=torch.float64).expand_as(want)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_weights_are_finite_at_the_clean_end_where_they_exist():
    level = Gaussian(Rectified()).at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    for weighting, kind in itertools.product([SNR(), MinSNR(), P2(), Sigmoid()], ["noise", "velocity", "v"]):
        assert torch.isfinite(weighting.on(kind, level)).all(), (weighting, kind)


def test_edm_loss_is_one_on_the_raw_output():
    """lambda(sigma) c_out^2 = 1 (Karras 2022, B.6): the loss is the network's own mean squared error."""
    torch.manual_seed(1)
    denoiser = Denoiser(Affine(), Gaussian(EDM()), "x0", EDMPrecondition(sigma_data=0.7))
    objective = Denoising(weighting=EDMWeight(sigma_data=0.7), times=EDMLogNormal())
    x, rng = data(), as_source(5)
    got = objective(denoiser, {"x": x}, 5).per_sample
    t = objective.times.sample(denoiser.process, x.shape, rng)
    truth = denoiser.process.forward(x, t, rng=rng)
    c_in, c_skip, c_out = (w[:, None] for w in denoiser.precondition.weights(truth.level))
    raw = denoiser.network(c_in * truth.x_t, t, None)
    wanted = (x - c_skip * truth.x_t) / c_out
    torch.testing.assert_close(got, (raw - wanted).square().mean(1))


def test_shards_and_halves_see_the_draws_of_the_whole():
    denoiser, objective, x = model(), Denoising(), data(6)
    whole = objective(denoiser, {"x": x}, 9).per_sample
    parts = [objective(denoiser, {"x": x[i : i + 2]}, Shard(as_source(9), i, i + 2, 6)).per_sample for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0.0)


def test_at_shares_time_and_noise():
    """Two conditions, one (t, noise): the difference of losses is due to the conditions alone."""
    denoiser, objective, x = model(), Denoising(target="noise"), data()
    rng = as_source(4)
    t = objective.times.sample(denoiser.process, x.shape, rng)
    noise = rng.normal(x.shape, torch.float64)
    given = objective.at(denoiser, x, t, noise)
    torch.testing.assert_close(given.per_sample, objective(denoiser, {"x": x}, 4).per_sample)
    assert given.per_sample.shape == (7,)
    common, each = (objective.at(denoiser, x, t, noise).loss for t in (0.5, torch.full((7,), 0.5)))
    torch.testing.assert_close(common, each)


def test_row_weights_and_masks():
    denoiser, objective, x = model(), Denoising(), data()
    plain = objective(denoiser, {"x": x}, 0)
    weight = torch.arange(7.0)
    weighted = objective(denoiser, {"x": x, "weight": weight}, 0)
    torch.testing.assert_close(weighted.per_sample, plain.per_sample)
    torch.testing.assert_close(weighted.loss, (weight * plain.per_sample).mean())
    one = objective(denoiser, {"x": x, "mask": torch.tensor([[1, 0, 1]])}, 0).per_sample
    columns = [objective(denoiser, {"x": x, "mask": torch.eye(3)[i : i + 1]}, 0).per_sample for i in (0, 2)]
    torch.testing.assert_close(one, sum(columns) / 2)
    none = torch.ones(7, 3)
    none[2] = 0
    assert objective(denoiser, {"x": x, "mask": none}, 0).per_sample[2] == 0.0


def test_what_the_mask_leaves_out_does_not_count_even_as_nan():
    class Spoils(nn.Module):
        def forward(self, x, time, cond):
            return torch.cat([x[:, :2], torch.full_like(x[:, 2:], float("nan"))], dim=1)

    denoiser = Denoiser(Spoils(), Gaussian(Cosine()), "v")
    got = Denoising()(denoiser, {"x": data(), "mask": torch.tensor([[1.0, 1.0, 0.0]])}, 0)
    assert torch.isfinite(got.loss)


def test_antithetic_is_the_mean_over_both_signs():
    denoiser, objective, x = model(), Denoising(antithetic=True), data()
    plain, rng = Denoising(), as_source(0)
    t = objective.times.sample(denoiser.process, x.shape, rng)
    z = rng.normal(x.shape, torch.float64)
    want = 0.5 * (plain.at(denoiser, x, t, z).per_sample + plain.at(denoiser, x, t, -z).per_sample)
    torch.testing.assert_close(objective(denoiser, {"x": x}, 0).per_sample, want)


def test_several_fields_are_summed_and_logged():
    torch.manual_seed(1)
    denoiser = Denoiser(Affine(outputs=2), Gaussian(Rectified()), ("velocity", "noise"))
    losses = Denoising()(denoiser, {"x": data()}, 0)
    assert set(losses.parts) == {"velocity", "noise"}
    torch.testing.assert_close(losses.loss, sum(losses.parts.values()))
    assert not losses.parts["noise"].requires_grad


def test_auxiliary_losses_are_added_and_logged():
    aux = lambda x: {"losses": {"balance": torch.tensor(2.0), "exit": x.mean(1)}}
    x = data()
    losses = Denoising()(model(aux=aux), {"x": x}, 0)
    plain = Denoising()(model(), {"x": x}, 0)
    assert set(losses.parts) == {"balance", "exit"}
    torch.testing.assert_close(losses.loss, plain.loss + 2.0 + losses.parts["exit"])
    torch.testing.assert_close(losses.loss, losses.per_sample.mean() + 2.0)


def test_distances():
    denoiser, x = model(), data()
    said, true = torch.tensor([0.0, 0.0]), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(Huber()(said, true), torch.tensor([0.125, 2.5]))
    l1 = Denoising(loss="l1")(denoiser, {"x": x}, 0).loss
    assert l1 != Denoising()(denoiser, {"x": x}, 0).loss
    torch.testing.assert_close(
        Denoising(loss=Huber(delta=1e-6))(denoiser, {"x": x}, 0).loss, l1 * 1e-6, rtol=1e-4, atol=0.0
    )


def test_times_per_frame():
    class Frames(nn.Module):
        def forward(self, x, time, cond):
            assert time.shape == x.shape[:2]
            return x * time[..., None].double()

    denoiser = Denoiser(Frames(), Gaussian(Rectified()), "velocity")
    losses = Denoising(times=PerFrame(), weighting=MinSNR())(denoiser, {"x": data(4, 5, 3)}, 0)
    assert losses.t.shape == (4, 5)
    assert losses.per_sample.shape == (4,)


def test_the_transform_is_told_about_training_and_time():
    seen = []

    def transform(cond, t, rng, training):
        seen.append((tuple(t.shape), training))
        return cond.drop("label")

    class Asks(nn.Module):
        def forward(self, x, time, cond):
            assert not cond["label"].kept().any()
            return x

    denoiser = Denoiser(Asks(), Gaussian(Cosine()), "v")
    Denoising(transform=transform)(
        denoiser, {"x": data(), "cond": {"label": torch.zeros(7, dtype=torch.long)}}, 0, False
    )
    assert seen == [((7,), False)]


def test_the_endpoint_of_a_batch_reaches_the_process():
    from condiff.process import Interpolant

    class Zero(nn.Module):
        def forward(self, x, time, cond):
            return torch.zeros_like(x)

    x, y = data(), data(7) + 1.0
    process = Interpolant()
    denoiser = Denoiser(Zero(), process, "velocity")
    got = Denoising()(denoiser, {"x": x, "source": y}, 3)
    rng = as_source(3)
    t = Denoising().times.sample(process, x.shape, rng)
    truth = process.forward(x, t, source=y, rng=rng)
    torch.testing.assert_close(got.per_sample, truth.velocity.square().mean(1))


def test_learned_variance_is_the_divergence_of_normals():
    process, objective = Gaussian(VPLinear()), LearnedVariance(steps=50)
    x0, t = data(5), torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    truth = process.forward(x0, t, rng=0)
    guess = x0 + 0.1
    head = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3)
    said = Prediction(truth.x_t, truth.level, {"x0": guess}, aux={"variance": head})
    got = objective(said, truth) / (objective.weight * objective.steps)
    assert (got[0] == 0.0).all()  # the step into t = 0
    level, s = process.at(t[1:]), process.at(t[1:] - 1.0 / 50)
    ratio, forward = process.kernel(s, level)
    posterior = process.posterior_std(level, s)

    def mean(x):
        gain = s.noise**2 * ratio / level.noise**2
        return s.data[:, None] * x + gain[:, None] * (truth.x_t[1:] - level.data[:, None] * x)

    fraction = (head[1:] + 1.0) / 2.0
    log_var = fraction * 2.0 * forward.log()[:, None] + (1.0 - fraction) * 2.0 * posterior.log()[:, None]
    true = torch.distributions.Normal(mean(x0[1:]), posterior[:, None].expand(4, 3))
    own = torch.distributions.Normal(mean(guess[1:]), (0.5 * log_var).exp())
    torch.testing.assert_close(got[1:], torch.distributions.kl_divergence(true, own), rtol=1e-8, atol=1e-10)


def test_learned_variance_trains_the_head_only():
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, time, cond):
            return self.mean(x), {"variance": self.head(x)}

    denoiser = Denoiser(Headed(), Gaussian(VPLinear()), "noise")
    x = data().float()
    both = Denoising(variance=LearnedVariance())(denoiser, {"x": x}, 0)
    assert set(both.parts) == {"noise", "variance"}
    both.loss.backward()
    with_head = denoiser.network.mean.weight.grad.clone()
    assert denoiser.network.head.weight.grad.abs().sum() > 0
    denoiser.zero_grad()
    Denoising()(denoiser, {"x": x}, 0).loss.backward()
    torch.testing.assert_close(with_head, denoiser.network.mean.weight.grad)
    with pytest.raises(Incompatible, match="variance head"):
        Denoising(variance=LearnedVariance())(model(), {"x": data()}, 0)


def test_half_precision_outputs_make_a_float32_loss():
    class Half(nn.Module):
        def forward(self, x, time, cond):
            return (x * 0.0).bfloat16() + 300.0

    denoiser = Denoiser(Half(), Gaussian(Cosine()), "v")
    assert Denoising()(denoiser, {"x": data().float()}, 0).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ({"x": torch.zeros(2, 3), "label": torch.zeros(2)}, BadValue, "conditions go under 'cond'"),
        ({"cond": {}}, BadType, "needs x"),
        ([1.0], BadType, "a batch is a mapping"),
        ({"x": torch.zeros(0, 3)}, BadValue, "at least one row"),
        ({"x": torch.zeros(2, 3), "weight": torch.zeros(3)}, BadValue, r"weight must have shape \(2,\)"),
        ({"x": torch.zeros(2, 3), "mask": torch.zeros(2)}, BadValue, "must broadcast"),
        ({"x": torch.zeros(2, 3), "mask": torch.zeros(2, 2)}, BadValue, "must broadcast"),
        ({"x": torch.zeros(2, 3), "cond": {"label": torch.zeros(3).long()}}, BadValue, "x has 2 rows"),
        ({"x": torch.zeros(2, 3).long()}, BadType, "floating-point"),
    ],
)
def test_bad_batches_are_refused(batch, error, match):
    with pytest.raises(error, match=match):
        Denoising()(model(), batch, 0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Denoising(target="velosity"), "Did you mean 'velocity'"),
        (lambda: Denoising(loss="l3"), "unknown loss"),
        (lambda: MinSNR(gamma=0.0), "gamma > 0"),
        (lambda: EDMWeight(sigma_data=-1.0), "sigma_data > 0"),
        (lambda: Huber(delta=0.0), "delta > 0"),
        (lambda: P2(k=0.0), "k > 0"),
    ],
)
def test_bad_settings_are_refused(make, match):
    with pytest.raises(BadValue, match=match):
        make()


class Pair(nn.Module):
    """A joint denoiser whose variables see each other."""

    kinds, shape = {}, None

    def __init__(self, process):
        super().__init__()
        self.process, self.layer = process, nn.Linear(5, 5, dtype=torch.float64)

    def forward(self, x, t, cond=None):
        levels = self.process.at(t)
        out = self.layer(torch.cat([x["a"], x["b"]], dim=1))
        return {
            "a": Prediction(x["a"], levels["a"], {"v": out[:, :3]}),
            "b": Prediction(x["b"], levels["b"], {"noise": out[:, 3:]}),
        }


def test_joint_states_have_a_time_and_a_loss_per_variable():
    joint = Joint({"a": Gaussian(Cosine()), "b": Gaussian(Rectified())})
    denoiser, x = Pair(joint), {"a": data(6), "b": data(6, 2)}
    how = {"b": Denoising(target="velocity", weighting=MinSNR(), times=UniformTimes(low=0.2, high=0.8))}
    losses = JointDenoising(variables=how, weights={"a": 3.0})(denoiser, {"x": x}, 0)
    torch.testing.assert_close(losses.loss, 3.0 * losses.parts["a"] + losses.parts["b"])
    assert losses.t["a"].shape == (6,) and not torch.equal(losses.t["a"], losses.t["b"])
    tied = JointDenoising(tied=True)(denoiser, {"x": x}, 0)
    assert torch.equal(tied.t["a"], tied.t["b"])
    # each variable's loss is its own Denoising's, at the same draws
    rng = as_source(0)
    times = {n: how.get(n, Denoising()).times.sample(joint[n], x[n].shape, rng) for n in joint}
    noise = {n: rng.normal(x[n].shape, torch.float64) for n in joint}
    truth = joint.forward(x, times, noise=noise)
    said = denoiser({n: p.x_t for n, p in truth.items()}, {n: p.level for n, p in truth.items()})
    want = how["b"].fields(said["b"], truth["b"], None)["velocity"].mean()
    torch.testing.assert_close(losses.parts["b"], want.detach())


def test_joint_states_are_checked():
    joint = Joint({"a": Gaussian(Cosine()), "b": Gaussian(Rectified())})
    x = {"a": data(6), "b": data(6, 2)}
    with pytest.raises(BadType, match="JointDenoising"):
        Denoising()(Pair(joint), {"x": x}, 0)
    with pytest.raises(BadType, match="Denoising"):
        JointDenoising()(Pair(joint), {"x": data()}, 0)
    with pytest.raises(BadValue, match="unknown variable 'c'"):
        JointDenoising(weights={"c": 1.0})(Pair(joint), {"x": x}, 0)
    with pytest.raises(BadValue, match="the same number"):
        JointDenoising()(Pair(joint), {"x": {"a": data(6), "b": data(5, 2)}}, 0)
    with pytest.raises(BadValue, match="dictionary over the same variables"):
        JointDenoising()(Pair(joint), {"x": x, "mask": torch.ones(6, 3)}, 0)


def test_a_batch_of_conditions_stays_what_it_is():
    from condiff.training import as_batch

    cond = Conditions({"label": Condition(torch.arange(4), "label")})
    batch = as_batch({"x": torch.zeros(4, 2), "cond": cond, "weight": torch.ones(4)})
    assert as_batch(batch) is batch
    assert batch.to("cpu").cond["label"].value.tolist() == [0, 1, 2, 3]
    assert len(batch) == 4
