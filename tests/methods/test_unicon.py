"""UniCon: the sampler's law on a bivariate normal, the loss, guidance, the four tasks, and what is refused."""

import importlib

import pytest
import torch

import condiff as cd
from condiff.aligned import Aligned
from condiff.errors import BadValue, Incompatible
from condiff.methods import unicon
from condiff.methods.catalogue import ENTRIES
from condiff.methods.companions import UniCon, guided
from condiff.networks import Tie, add_pair
from condiff.process import Cosine, Discrete, Gaussian, Joint, oracles
from condiff.random import as_source
from condiff.sampling import DDIM, ForVariables, Inpaint, Segments, sample

F64, SHAPE = torch.float64, (1, 8, 8)
SD = Gaussian(Discrete.stable_diffusion())
PAIR = Joint({"x": SD, "y": SD})
COV = torch.tensor([[1.0, 0.56], [0.56, 0.49]], dtype=F64)
MEAN = torch.tensor([1.0, -0.5], dtype=F64)
EXACT = oracles.joint_normal(PAIR, {"x": MEAN[:1], "y": MEAN[1:]}, COV)
GIVEN = 0.3  # y*


# Exact (d): the sampler is affine in its start, so a few starts give the law of its samples


def times(n):
    """round(linspace(999, 0, n + 1)) as indices of the table, with the last level clean."""
    t = SD.schedule.at_index(torch.linspace(999, 0, n + 1, dtype=F64).round())
    t[-1] = 0.0
    return t.tolist()


def ends(starts, grid):
    """Where DDIM leads starts (R, 2): (R, 2)."""
    initial = {"x": starts[:, :1], "y": starts[:, 1:]}
    made = sample(EXACT, solver=DDIM(), initial=initial, grid=grid)
    return torch.cat([made["x"], made["y"]], dim=1)


def law(mean, factor, grid):
    """Mean and covariance of the samples from N(mean, factor factor^T)."""
    out = ends(torch.cat([mean[None], mean + factor.T]), grid)
    spread = (out[1:] - out[0]).T
    return out[0], spread @ spread.T


def start_of(n):
    level = SD.at(times(n)[0])
    return level.data, level.noise


@pytest.mark.parametrize(("n", "variance"), [(50, 0.3243), (200, 0.3489), (1000, 0.3568)])
def test_given_a_clean_companion(n, variance):
    a, s = start_of(n)
    mean = a * (1.0 + (GIVEN + 0.5) * 0.56 / 0.49)
    std = (a * a * (1.0 - 0.56**2 / 0.49) + s * s) ** 0.5
    grid = Segments([{"x": (0, 1), "y": (1, 1)}], grid=times(n), clean=("y",))
    found, cov = law(torch.tensor([mean, GIVEN], dtype=F64), torch.tensor([[std, 0.0], [0.0, 0.0]], dtype=F64), grid)
    assert float(found[0]) == pytest.approx(1.9143, abs=5e-5)
    assert float(cov[0, 0]) == pytest.approx(variance, abs=5e-5)
    assert float(found[1]) == GIVEN and float(cov[1, 1]) == 0.0
    assert abs(float(cov[0, 0]) - 0.36) < 0.36 * (0.05 if n >= 200 else 0.11)


@pytest.mark.parametrize(("n", "covariance"), [(50, 0.5371), (200, 0.5543), (1000, 0.5589)])
def test_both_together(n, covariance):
    a, s = start_of(n)
    factor = torch.linalg.cholesky(a * a * COV + s * s * torch.eye(2, dtype=F64))
    found, cov = law(a * MEAN, factor, Segments([{"x": (0, 1), "y": (0, 1)}], grid=times(n)))
    torch.testing.assert_close(found, MEAN, rtol=1e-10, atol=1e-10)
    assert float(cov[0, 1]) == pytest.approx(covariance, abs=5e-5)


@pytest.mark.parametrize(("n", "variance"), [(50, 0.7758), (200, 0.8143), (1000, 0.8260)])
def test_following_a_noisy_companion(n, variance):
    """y stays at one noised latent: x has the law given that latent, whose variance is 0.8301."""
    index = int((SD.schedule.table - 0.4245).abs().argmin())
    level, (a, s) = SD.at(float(SD.schedule.at_index(index))), start_of(n)
    total = level.data**2 * 0.49 + level.noise**2
    y = 0.2
    mean, left = 1.0 + level.data * 0.56 / total * (y + 0.5 * level.data), 1.0 - (level.data * 0.56) ** 2 / total
    assert left == pytest.approx(0.8301, abs=5e-5)
    std = (a * a * left + s * s) ** 0.5
    grid = {"x": times(n), "y": [level.t] * (n + 1)}
    start = torch.tensor([[a * mean, y], [a * mean + std, y]], dtype=F64)
    out = ends(start, grid)
    assert float(out[0, 0]) == pytest.approx(mean, abs=1e-9)
    assert float((out[1, 0] - out[0, 0]) ** 2) == pytest.approx(variance, abs=5e-5)


def test_held_at_the_last_index_it_is_the_law_given_a_noised_companion():
    n = 200
    (a, s), level = start_of(n), SD.at(times(n)[-2])
    total = level.data**2 * 0.49 + level.noise**2
    gain = level.data * 0.56 / total
    mean_y, std_y = level.data * GIVEN, level.noise
    mean = 1.0 + gain * (mean_y + 0.5 * level.data)
    left = 1.0 - (level.data * 0.56) ** 2 / total
    factor = torch.tensor([[(a * a * left + s * s) ** 0.5, a * gain * std_y], [0.0, std_y]], dtype=F64)
    grid = Segments([{"x": (0, 1), "y": (1, 1)}], grid=times(n))
    found, cov = law(torch.tensor([a * mean, mean_y], dtype=F64), factor, grid)
    assert float(found[0]) == pytest.approx(1.9047, abs=5e-5)
    exact = left + (gain * std_y) ** 2
    assert exact == pytest.approx(0.3733, abs=5e-5)
    assert float(cov[0, 0]) == pytest.approx(exact, rel=0.05)  # 200 steps


def test_the_order_in_the_number_of_steps_is_one():
    def error(n):
        a, s = start_of(n)
        factor = torch.linalg.cholesky(a * a * COV + s * s * torch.eye(2, dtype=F64))
        return 0.56 - float(law(a * MEAN, factor, Segments([{"x": (0, 1), "y": (0, 1)}], grid=times(n)))[1][0, 1])

    assert error(100) / error(200) == pytest.approx(2.0, abs=0.1)


# The loss


def base(process=None, target="v", **fields):
    torch.manual_seed(0)
    net = cd.networks.DiT(shape=SHAPE, width=16, depth=2, heads=2, **fields)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return cd.Denoiser(net, Gaussian(Cosine()) if process is None else process, target, shape=SHAPE).eval()


def stirred(model):
    for name, p in model.named_parameters():
        if p.requires_grad and ("lora_B" in name or "post" in name):
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


LABELS = {"conditions": {"label": cd.conditions.Label(10)}}


@pytest.mark.parametrize("target", ["noise", "v"])
def test_the_loss_is_the_weighted_mean_over_all_rows(target):
    """Independent times of both, w = min(SNR, 5) / SNR on noise, / (SNR + 1) on v."""
    model = stirred(unicon.join(base(SD, target), ("x", "y"), rank=2))
    batch = {"x": {name: torch.randn(6, *SHAPE).clamp(-1, 1) for name in ("x", "y")}}
    objective = unicon.objective(model)
    losses = objective(model, batch, 3)
    assert set(losses.t) == {"x", "y"} and not torch.equal(losses.t["x"], losses.t["y"])
    for name in ("x", "y"):  # indices of the table
        assert torch.equal((losses.t[name] * 1000).round() / 1000, losses.t[name]) and losses.t[name].min() > 0.0
    truth = model.process.forward(batch["x"], losses.t, rng=_after_times(objective, model, batch, 3))
    said = model({n: p.x_t for n, p in truth.items()}, {n: p.level for n, p in truth.items()})
    total = 0.0
    for name in ("x", "y"):
        level = truth[name].level
        snr = (level.data / level.noise) ** 2
        weight = snr.clamp(max=5.0) / (snr if target == "noise" else snr + 1.0)
        error = (said[name].to(target) - truth[name].to(target)).square().flatten(1).mean(1)
        total = total + (weight * error.double()).mean() / 2
    torch.testing.assert_close(losses.loss.double(), total, rtol=1e-5, atol=0.0)


def _after_times(objective, model, batch, seed):
    """A source that has given the times already."""
    source = as_source(seed)
    objective._times(model.process, batch["x"], source)
    return source


def test_only_the_new_weights_are_trained_and_stored(tmp_path):
    model = unicon.join(base(), ("x", "y"), rank=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = cd.data.TensorData(
        torch.randn(16, *SHAPE).clamp(-1, 1), {"y": torch.randn(16, *SHAPE)}, kinds={"y": "map"}, range="keep"
    )
    data = cd.data.AsVariables(rows, x="x", y="y")
    run = cd.train(model, data, unicon.objective(model), steps=3, batch=4, run_dir=tmp_path / "run", quiet=True)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    new = {name for name, _ in model.named_parameters() if "exchanges" in name or ".own." in name}
    # A is reached once the zero behind it has moved, in the second step.
    assert changed == new
    stored = set(cd.files.read_tensors(tmp_path / "run" / "model.safetensors")[0])
    assert stored == new
    assert isinstance(run.ema, Aligned)


def test_text_is_dropped_for_one_for_both_and_for_the_other():
    model = unicon.join(base(**LABELS), ("x", "y"), rank=2)
    objective = unicon.objective(model, dropout=0.1, dropped=("label",))
    assert objective.transform.intervals == {"x.label": (0.0, 0.2), "y.label": (0.1, pytest.approx(0.3))}
    batch = {
        "x": {name: torch.randn(4, *SHAPE) for name in ("x", "y")},
        "cond": {"x.label": torch.arange(4), "y.label": torch.arange(4)},
    }
    assert objective(model, batch, 0).loss.isfinite()


# Guidance and sampling


def test_guidance_has_three_terms():
    model = stirred(unicon.join(base(**LABELS), ("x", "y"), rank=2))
    x = {name: torch.randn(3, *SHAPE) for name in ("x", "y")}
    kinds = model.kinds
    cond = cd.conditions.as_conditions({"label": [1, 2, 3], "joint": torch.ones(3)}, kinds)
    told, free, apart = model(x, 0.5, cond), model(x, 0.5, cond.drop("label")), model(x, 0.5, cond.drop("joint"))
    for scale, hearing in ((7.5, 1.5), (1.0, 2.0), (3.0, 0.0)):
        said = guided(model, scale, hearing)(x, 0.5, cond)
        for n in x:
            wanted = free[n].v + scale * (told[n].v - free[n].v) + hearing * (told[n].v - apart[n].v)
            torch.testing.assert_close(said[n].v, wanted, rtol=1e-4, atol=1e-4)
    assert guided(model) is model


def pair(**fields):
    return UniCon(stirred(unicon.join(base(**fields), ("image", "small"), rank=2)).eval())


PICTURES = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


def test_the_four_tasks_are_four_grids():
    """The same as sampling the model with the grids written out."""
    model = pair()
    joint = model.model

    def drawn(grid, prior=None):
        return sample(joint, solver=DDIM(), num=3, grid=grid, steps=4, prior=prior, seed=0)

    given = cd.process.Moments(mean=PICTURES)
    one = [{"image": (0, 1), "small": (1, 1)}]
    wanted = drawn(Segments(one, clean=("small",)), {"small": given})
    made = model.sample(given={"small": PICTURES}, steps=4)
    assert torch.equal(made["image"], wanted["image"]) and torch.equal(made["small"], PICTURES)
    wanted = drawn(Segments([{"image": (1, 1), "small": (0, 1)}], clean=("image",)), {"image": given})
    assert torch.equal(model.estimate(PICTURES, steps=4), wanted["small"])
    wanted = drawn(Segments([{"image": (0, 1), "small": (0, 1)}]))
    assert all(torch.equal(v, wanted[n]) for n, v in model.joint(num=3, steps=4).items())
    wanted = drawn(Segments([{"image": (0, 1), "small": (0.7, 0.7)}]), {"small": given})
    made = model.sample(given={"small": PICTURES}, hold={"small": 0.7}, steps=4)
    assert torch.equal(made["image"], wanted["image"])
    wanted = drawn(Segments([{"image": (0.5, 1), "small": (0, 1)}]), {"image": given})
    made = model.sample(given={"image": PICTURES}, start={"image": 0.5}, steps=4)
    assert torch.equal(made["image"], wanted["image"])


def test_a_network_that_knows_a_table_alone_has_its_companion_noised_as_the_last_step():
    model = unicon.join(base(SD, "noise"), ("image", "small"), rank=2)
    model.denoiser.precondition = cd.denoiser.Plain(index=True)
    made = UniCon(stirred(model).eval()).sample(given={"small": PICTURES}, steps=4)
    assert not torch.equal(made["small"], PICTURES) and made["small"].shape == PICTURES.shape


def test_inpainting_of_the_picture_while_its_companion_is_given():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    hooks = [ForVariables({"image": Inpaint(PICTURES, mask, noise="fixed")})]
    made = pair().sample(given={"small": PICTURES}, steps=4, hooks=hooks)
    assert torch.equal(made["image"][:, :, :4], PICTURES[:, :, :4])
    assert not torch.equal(made["image"][:, :, 4:], PICTURES[:, :, 4:])
    assert torch.equal(made["small"], PICTURES)


def test_permuted_pairs_give_permuted_samples():
    """One seed per sample; the batch's order doesn't matter, and a changed pair leaves the others bit for bit."""
    model = pair().model
    options = {"solver": DDIM(), "steps": 3, "grid": Segments([{"image": (0, 1), "small": (1, 1)}], clean=("small",))}

    def drawn(pictures, seeds):
        return sample(model, prior={"small": cd.process.Moments(mean=pictures)}, seeds=seeds, **options)["image"]

    made, order = drawn(PICTURES, [1, 2, 3]), [2, 0, 1]
    torch.testing.assert_close(drawn(PICTURES[order], [3, 1, 2]), made[order], rtol=1e-5, atol=1e-5)
    changed = PICTURES.clone()
    changed[1] = -changed[1]
    other = drawn(changed, [1, 2, 3])
    assert torch.equal(other[[0, 2]], made[[0, 2]]) and not torch.equal(other[1], made[1])


def test_saved_and_loaded(tmp_path):
    model = pair()
    model.save(tmp_path / "small")
    again = UniCon.load(base(), tmp_path / "small", ("image", "small"))
    assert torch.equal(again.estimate(PICTURES, steps=3), model.estimate(PICTURES, steps=3))
    with pytest.raises(Incompatible, match="width 16, and here it is 32"):
        net = cd.networks.DiT(shape=SHAPE, width=32, depth=2, heads=2)
        UniCon.load(cd.Denoiser(net, Gaussian(Cosine()), "v", shape=SHAPE), tmp_path / "small", ("image", "small"))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.sample(given={"small": torch.zeros(3, 1, 4, 4)}), "samples of shape"),
        (lambda m: m.sample(given={"small": PICTURES, "image": PICTURES}), "nothing is left to sample"),
        (lambda m: m.sample(given={"depth": PICTURES}), "unknown variable 'depth'"),
        (lambda m: m.sample(hold={"small": 0.5}, num=2), "isn't given"),
        (lambda m: m.sample(start={"image": 0.5}, num=2), "isn't given"),
        (lambda m: m.sample(given={"small": PICTURES}, hold={"small": 0.0}), r"lies in \(0, 1\]"),
        (lambda m: m.sample(given={"small": PICTURES}, hold={"small": 1.5}), r"lies in \(0, 1\]"),
        (lambda m: m.sample(given={"small": PICTURES}, start={"small": 1.0}), r"lies in \[0, 1\)"),
        (lambda m: m.sample(given={"small": PICTURES, "image": PICTURES[:2]}, hold={"image": 0.5}), "number of rows"),
        (lambda m: m.joint(), "how many samples"),
        (lambda m: m.sample(num=2, hold={"other": 1.0}), "unknown variable"),
        (lambda m: unicon.join(base(), ("a", "b", "c")), "two variables"),
        (lambda m: Aligned(m.model.denoiser, ("a", "b"), [Tie("a", "b", adapter="edges")]), "unknown adapter"),
        (lambda m: unicon.join(m.model.denoiser, ("image", "small")), "name of its own"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(BadValue, match=match):
        call(pair())


def test_two_companions_at_once(tmp_path):
    """Several pairs on one network, each with its own weights, summed."""
    model = base()
    for seed, name in enumerate(("small", "edges")):
        add_pair(model.network, name, rank=2, own=True, seed=seed)
    ties = [Tie("image", name, (0.5, 1.0), name, own=True) for name in ("small", "edges")]
    both = UniCon(stirred(Aligned(model, ("image", "small", "edges"), ties)).eval())
    made = both.sample(given={"small": PICTURES, "edges": -PICTURES}, steps=3)
    other = both.sample(given={"small": PICTURES, "edges": PICTURES}, steps=3)
    assert not torch.equal(made["image"], other["image"]) and torch.equal(made["small"], PICTURES)
    with pytest.raises(BadValue, match="small, edges: say adapter="):
        both.save(tmp_path / "both")
    both.save(tmp_path / "edges", "edges")
    assert (tmp_path / "edges" / "pair.json").is_file() and not (tmp_path / "both").exists()
    everything = both.sample(given={"image": PICTURES}, steps=3)
    assert everything["edges"].shape == everything["small"].shape == PICTURES.shape


def test_the_entry_and_the_experiment():
    entry = ENTRIES["unicon"]
    assert not entry.trains and callable(importlib.import_module("condiff.methods.unicon").reproduce)
    data = unicon.digits_and_thumbnails("test")
    rows = data.batch([0, 5])["x"]
    assert set(rows) == {"image", "small"} and data.shape == {"image": SHAPE, "small": SHAPE}
    assert torch.equal(rows["small"][:, :, ::2, ::2], rows["small"][:, :, 1::2, 1::2])
    torch.testing.assert_close(rows["small"][:, :, 0, 0], rows["image"][:, :, :2, :2].mean((2, 3)))
