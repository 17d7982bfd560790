"""DCI: the maps, the correction, exact round trips, and the editing driver, against closed forms."""

import itertools

import pytest
import torch

from condiff.conditions import cat
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free, Proximal
from condiff.methods.dual_conditional_inversion import GRID, edit, invert_dual, reconstruct
from condiff.process import Discrete, Gaussian, Prediction
from condiff.process.oracles import mixture
from condiff.sampling import DDIM, ImplicitDDIM, Inversion, KeepPath, Step, TowardsReference, invert, sample
from condiff.sampling.anchors import dilated

PROCESS = Gaussian(Discrete.stable_diffusion())
EXACT = ImplicitDDIM(40)


def model(dims=64, classes=4):
    means = torch.randn(classes, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture(PROCESS, means.tolist(), stds=0.5, labels=list(range(classes)))


def some(net, num=3):
    cond = {"label": torch.arange(num) % 4}
    return net.sample(num, rng=1, cond=cond, dtype=torch.float64), cond


def rmse(a, b):
    return float((a - b).square().mean().sqrt())


def test_the_step_and_its_inverse_are_inverse_for_any_noise():
    """Psi_t(Phi_t(z, e), e) = z to rounding at every step, the first one, from the first tabulated level, included."""
    rng = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, 2, 5, dtype=torch.float64, generator=rng).unbind(0)

    class Told:
        process, shape = PROCESS, None

        def __call__(self, x, t, cond=None):
            return Prediction(x, PROCESS.at(t), {"noise": e})

    times = GRID.times(PROCESS, 50)
    assert PROCESS.at(float(times[-1])).data < 1.0 and float(times[-1]) == float(times[-2])  # A = 1, B = 0
    for t, s in itertools.pairwise(times.tolist()):
        up = invert(Told(), x, solver=ImplicitDDIM(0), grid=[t, s]).latent
        level, before = PROCESS.at(t), PROCESS.at(s)
        want = level.data * (x - before.noise * e) / before.data + level.noise * e
        torch.testing.assert_close(up, want, rtol=0.0, atol=1e-14)
        down = sample(Told(), initial=up, solver=DDIM(), grid=[t, s])
        torch.testing.assert_close(down, x, rtol=0.0, atol=1e-14)


def test_the_correction_is_a_step_of_its_length_down_the_distance():
    x0, e = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    x0.requires_grad_(False)
    free = e.clone().requires_grad_()
    (free - x0).flatten(1).norm(dim=1).sum().backward()
    said = Prediction(torch.zeros_like(e), PROCESS.at(0.5), {"noise": e})
    for length, rms, size in ((0.3, False, 0.3), (0.01, True, 0.01 * 8**0.5)):
        moved = TowardsReference(x0, length, rms).prediction(said, None).noise
        torch.testing.assert_close(moved, e - size * free.grad)
        torch.testing.assert_close((moved - e).flatten(1).norm(dim=1), torch.full((3,), size, dtype=torch.float64))
    assert TowardsReference(x0, 0.0).prediction(said, None) is said
    at_reference = Prediction(said.x_t, said.level, {"noise": x0})
    torch.testing.assert_close(TowardsReference(x0, 1.0).prediction(at_reference, None).noise, x0)  # no 0 / 0


def test_without_correction_it_is_the_plain_fixed_point_and_without_iterations_ddim_inversion():
    net = model()
    x, cond = some(net)
    plain = invert(net, x, solver=ImplicitDDIM(3), cond=cond, steps=20, grid=GRID)
    assert torch.equal(
        invert_dual(net, x, cond, steps=20, grid=GRID, length=0.0, solver=ImplicitDDIM(3)).latent, plain.latent
    )
    times = GRID.times(PROCESS, 20).flip(0)
    y = x
    for s, t in zip(PROCESS.levels(times[:-1]), PROCESS.levels(times[1:]), strict=True):
        e = net(y, t, cond).noise  # what DDIM inversion evaluates: the noise at the arrival's time, of the old state
        y = t.data * (y - s.noise * e) / s.data + t.noise * e
    found = invert_dual(net, x, cond, steps=20, grid=GRID, length=0.0, solver=ImplicitDDIM(0))
    torch.testing.assert_close(found.latent, y, rtol=1e-12, atol=1e-12)


def test_the_round_trip_is_exact_without_the_correction_and_not_with_it():
    """The figures of the specification's toy: 0.03 for DDIM, nothing for the fixed point, worse with rho."""
    net = model()
    x, cond = some(net, 16)
    ways = {"ddim": (ImplicitDDIM(0), 0.0), "exact": (EXACT, 0.0), "near": (EXACT, 0.1), "far": (EXACT, 1.0)}
    error = {}
    for name, (solver, length) in ways.items():
        found = invert_dual(net, x, cond, steps=50, grid=GRID, length=length, solver=solver)
        error[name] = rmse(reconstruct(net, found, cond), x)
    assert error["exact"] < 1e-12
    assert 1e-3 < error["ddim"] < 0.1
    assert error["near"] > 1e-3 and error["far"] > 5.0 * error["near"]


def test_the_corrected_noise_in_the_sampler_too_makes_it_exact():
    net = model()
    x, cond = some(net)
    found = invert_dual(net, x, cond, steps=50, grid=GRID, length=0.5, solver=EXACT)
    again = sample(
        net, cond=cond, solver=DDIM(), initial=found.latent, grid=found.times.flip(0), hooks=[TowardsReference(x, 0.5)]
    )
    torch.testing.assert_close(again, x, rtol=1e-10, atol=1e-10)


# Editing


@pytest.fixture(scope="module")
def inverted():
    net = model()
    x, cond = some(net)
    return net, x, cond, invert_dual(net, x, cond, steps=20, grid=GRID, length=0.0, solver=EXACT)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_with_the_source_for_a_target_nothing_changes(inverted, scale):
    net, x, cond, found = inverted
    torch.testing.assert_close(edit(net, found, cond, cond, scale=scale), x, rtol=1e-9, atol=1e-9)


def test_all_is_kept_at_quantile_one(inverted):
    net, _, cond, found = inverted
    target = {"label": (cond["label"] + 1) % 4}
    kept = edit(net, found, cond, target, quantile=1.0, below=1.1)
    assert torch.equal(kept, found.path[0])
    no_guidance = edit(net, found, cond, target, quantile=1.0, below=0.0)
    torch.testing.assert_close(no_guidance, reconstruct(net, found, cond), rtol=1e-9, atol=1e-9)


def test_a_change_of_class_goes_to_the_other_class(inverted):
    net, x, cond, found = inverted
    target = {"label": (cond["label"] + 1) % 4}
    edited = edit(net, found, cond, target, scale=1.5, quantile=0.0, below=0.0)
    closer = [net.log_prob(v, 0.0, target) > net.log_prob(v, 0.0, cond) for v in (x, edited)]
    assert not closer[0].any() and closer[1].all()


def test_an_edit_is_guided_from_the_source_to_the_target(inverted):
    net, _, cond, found = inverted
    target = {"label": (cond["label"] + 1) % 4}
    way = {"solver": DDIM(), "initial": found.latent, "grid": found.times.flip(0), "cond": target}
    edited = edit(net, found, cond, target, scale=3.0, quantile=0.2, mode="hard", below=0.0)
    guided = Proximal(net, scale=3.0, source=cond, quantile=0.2, mode="hard")
    torch.testing.assert_close(edited, sample(guided, **way), rtol=1e-12, atol=1e-12)
    assert rmse(edited, sample(net, **way)) > 0.1  # not the target's conditions alone
    kept = edit(net, found, cond, target, scale=3.0, quantile=0.2, mode="hard", below=0.5, radius=0)
    wanted = sample(guided, **way, hooks=[KeepPath(found, below=0.5, radius=0)])
    torch.testing.assert_close(kept, wanted, rtol=1e-12, atol=1e-12)


def test_quantile_zero_in_hard_mode_is_plain_guidance(inverted):
    net, x, cond, _ = inverted
    target = {"label": (cond["label"] + 1) % 4}
    level = PROCESS.at(0.5)
    ours = Proximal(net, scale=3.0, source=cond, quantile=0.0, mode="hard")(x, level, target)
    plain = Free(net, scale=3.0, negative=cond)(x, level, target)
    # the smallest difference of each row is what its quantile 0 cuts off
    far = ((ours.noise - plain.noise).abs() > 1e-12).sum(1)
    assert (far <= 1).all()


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_thresholds_are_those_of_each_sample(mode):
    net = model()
    guided = Proximal(net, scale=1.0, source={"label": [0]}, quantile=0.7, mode=mode)
    difference = torch.randn(3, 64, dtype=torch.float64)
    left, q = guided.shrunk(difference)
    assert ((left != 0.0).sum(1) == 19).all()  # 30 % of 64
    for row, limit, kept in zip(difference, q, left, strict=True):
        assert float(row.abs().quantile(0.7)) == pytest.approx(float(limit))
        far = row.abs() > limit
        want = row[far] if mode == "hard" else row[far] - row[far].sign() * limit
        torch.testing.assert_close(kept[far], want)
    alone = guided.shrunk(difference[1:2])[0]
    assert torch.equal(alone, left[1:2])


def test_samples_may_be_of_any_size():
    """torch.quantile takes 16 million numbers at most: a batch of large pictures has more."""
    guided = Proximal(model(), scale=1.0, source={"label": [0]}, quantile=0.5)
    left, q = guided.shrunk(torch.linspace(-1.0, 1.0, 2**24 + 1)[None])
    assert float(q) == pytest.approx(0.5, abs=1e-6) and float(left.max()) == pytest.approx(0.5, abs=1e-6)


def test_the_mask_grows_by_its_radius_in_each_channel():
    mask = torch.zeros(1, 2, 5, 7, dtype=torch.bool)
    mask[0, 0, 2, 3] = True
    grown = dilated(mask, 1)
    want = torch.zeros_like(mask)
    want[0, 0, 1:4, 2:5] = True
    assert torch.equal(grown, want)
    assert torch.equal(dilated(mask, 0), mask)


@pytest.mark.parametrize(("radius", "free"), [(0, 1), (1, 9), (2, 25)])
def test_free_is_what_exceeds_the_threshold_after_it_was_shrunk(radius, free):
    """|d| > q of what the threshold left, that is 2 q of the difference itself in soft mode, and what lies around."""
    level, start, end = PROCESS.at(0.2), torch.zeros(1, 2, 7, 7), torch.ones(1, 2, 7, 7)
    left = torch.zeros(1, 2, 7, 7)
    left[0, 0, 3, 3], left[0, 0, 0, 6], left[0, 1, 3, 3] = -2.5, 1.5, 2.0  # one above the threshold of 2
    said = Prediction(end, level, {"noise": end}, aux={"difference": left, "threshold": torch.tensor([2.0])})
    hook = KeepPath(Inversion(torch.tensor([0.1, 0.2]), [start, start], 1), radius=radius)
    out = hook.after(Step(0, level, PROCESS.at(0.1), end, end, said, None, 1, None), None)
    around = slice(3 - radius, 4 + radius)
    assert float(out.sum()) == free and float(out[0, 0, around, around].sum()) == free


def test_outside_of_the_mask_the_path_is_met_bit_for_bit(inverted):
    net, _, cond, found = inverted
    mask = torch.zeros(64, dtype=torch.bool)
    mask[:10] = True
    target = {"label": (cond["label"] + 1) % 4}
    seen = []

    class Look(KeepPath):
        def after(self, step, run):
            out = super().after(step, run)
            seen.append((step.t.t, step.index, out))
            return out

    guided = Proximal(net, scale=3.0, source=cond)
    hooks = [Look(found, below=0.5, mask=mask)]
    sample(guided, cond=target, solver=DDIM(), initial=found.latent, grid=found.times.flip(0), hooks=hooks)
    for t, index, state in seen:
        same = torch.equal(state[:, 10:], found.path[-2 - index][:, 10:])
        assert same == (t < 0.5)
        assert not torch.equal(state[:, :10], found.path[-2 - index][:, :10])


def test_what_does_not_fit_is_refused(inverted):
    net, x, cond, found = inverted
    with pytest.raises(BadValue, match="needs the conditions of the source"):
        invert_dual(net, x, {}, steps=5)
    with pytest.raises(BadValue, match="length must be >= 0"):
        invert_dual(net, x, cond, steps=5, length=-1.0)
    for reference in (x[0], x[:2], x[:, :1]):
        with pytest.raises(Incompatible, match="the reference is"):
            invert(net, x, solver=ImplicitDDIM(1), cond=cond, steps=5, grid=GRID, hooks=[TowardsReference(reference)])
    with pytest.raises(BadValue, match="quantile"):
        Proximal(net, scale=2.0, source=cond, quantile=1.5)
    with pytest.raises(BadValue, match="unknown mode"):
        Proximal(net, scale=2.0, source=cond, mode="firm")
    with pytest.raises(Incompatible, match=r"grid=found\.times"):
        sample(net, cond=cond, solver=DDIM(), initial=found.latent, grid=GRID, steps=10, hooks=[KeepPath(found)])
    with pytest.raises(Incompatible, match="states are"):
        sample(
            net, cond={"label": cond["label"][:2]}, solver=DDIM(), initial=found.latent[:2], grid=found.times.flip(0),
            hooks=[KeepPath(found)],
        )  # fmt: skip
    with pytest.raises(Incompatible, match="draws noise"):
        invert(net, x, solver=DDIM(eta=1.0), cond=cond, steps=5)


def test_a_pipeline_s_latents_go_there_and_back():
    """On the tiny pipeline of Stable Diffusion's classes: guided by prompts, from latents of its autoencoder."""
    from condiff.interop import wrap
    from tests.interop.tiny import stable_diffusion

    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)  # random weights bend more than trained ones
    sd = wrap(pipe)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    z, source, target = sd.codec.encode(picture), sd.encode(["a round cake"]), sd.encode(["a square cake"])
    found = invert_dual(sd.denoiser, z, source, grid=sd.grid(5), length=0.0, solver=ImplicitDDIM(10, rule="anderson"))
    torch.testing.assert_close(reconstruct(sd.denoiser, found, source), z, rtol=1e-4, atol=1e-4)
    edited = edit(sd.denoiser, found, source, target)
    assert sd.codec.decode(edited).shape == (1, 3, 16, 16) and (edited - z).abs().max() > 1e-4
    by_gradient = invert_dual(
        sd.denoiser, z, source, grid=sd.grid(5), solver=ImplicitDDIM(2, rule="adamw", weight_decay=0.01)
    )
    assert len(by_gradient.path) == 6 and not by_gradient.latent.requires_grad


# With attention control


@pytest.fixture(scope="module")
def pictured():
    """Two pictures of a tiny Stable Diffusion, inverted under their prompts; in double precision."""
    from condiff.interop import wrap
    from tests.interop.tiny import stable_diffusion

    pipe = stable_diffusion()
    pipe.unet.double()
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)  # random weights bend more than trained ones
    sd = wrap(pipe)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source = cat([sd.encode(["a cat"])] * 2)
    found = invert_dual(sd.denoiser, z, source, grid=sd.grid(5), length=0.0, solver=ImplicitDDIM(60))
    return sd, z, found, source, cat([sd.encode(["a dog"])] * 2)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_attention_of_a_source_that_is_the_target_changes_nothing(pictured, scale):
    sd, z, found, source, _ = pictured
    control = sd.attention_edit("a cat", "a cat", blend=("cat", "cat"))
    made = edit(sd.denoiser, found, source, source, scale=scale, attention=control)
    torch.testing.assert_close(made, z, rtol=1e-9, atol=1e-9)


def test_a_blend_or_a_path_that_holds_everything_gives_the_stored_states(pictured):
    sd, z, found, source, target = pictured
    control = sd.attention_edit("a cat", "a dog")
    kept = edit(sd.denoiser, found, source, target, quantile=1.0, below=1.1, attention=control)
    assert torch.equal(kept, found.path[0])
    blended = sd.attention_edit("a cat", "a dog", blend=("cat", "dog"), threshold=1.0, start=0.0)
    made = edit(sd.denoiser, found, source, target, below=1.1, attention=blended)
    torch.testing.assert_close(made, found.path[0], rtol=1e-9, atol=1e-9)
    free = edit(sd.denoiser, found, source, target, attention=control)
    assert (free - z).abs().max() > 1e-3


def test_without_a_share_it_is_the_edit_without_attention(pictured):
    sd, _, found, source, target = pictured
    none = sd.attention_edit("a cat", "a dog", cross=0.0, own=0.0)
    plain = edit(sd.denoiser, found, source, target)
    torch.testing.assert_close(edit(sd.denoiser, found, source, target, attention=none), plain, rtol=1e-9, atol=1e-9)
    some = edit(sd.denoiser, found, source, target, attention=sd.attention_edit("a cat", "a dog"))
    assert (some - plain).abs().max() > 1e-4


def test_several_targets_come_one_after_the_other(pictured):
    sd, _, found, source, target = pictured
    words = ["a dog", "a big cat"]
    told = cat([target, *[sd.encode(["a big cat"])] * 2])
    both = edit(sd.denoiser, found, source, told, attention=sd.attention_edit("a cat", words))
    single = cat([sd.encode([word]) for word in words])  # a row of each serves all pictures
    torch.testing.assert_close(
        edit(sd.denoiser, found, sd.encode(["a cat"]), single, attention=sd.attention_edit("a cat", words)), both
    )
    for i, word in enumerate(words):
        alone = edit(
            sd.denoiser, found, source, told.rows(slice(2 * i, 2 * i + 2)), attention=sd.attention_edit("a cat", word)
        )
        torch.testing.assert_close(both[2 * i : 2 * i + 2], alone, rtol=1e-9, atol=1e-9)


def test_attention_of_a_model_without_words_is_refused(inverted):
    from condiff.interop import attention_edit
    from tests.interop.tiny import tokenizer

    net, _, cond, found = inverted
    with pytest.raises(Incompatible, match="can't be controlled"):
        edit(net, found, cond, cond, attention=attention_edit(tokenizer(), "a", "b"))
