"""Ca2-VDM: a cache written once is the same as recomputing, and why."""

import pytest
import torch

from condiff import Denoiser
from condiff.conditions import Condition, Label, Tokens
from condiff.data import bouncing_ball
from condiff.errors import BadValue
from condiff.guidance import Free
from condiff.methods import Facts, ca2_vdm
from condiff.methods.rolling import rollout
from condiff.networks import VideoTransformer
from condiff.networks.video_transformer import position_ids
from condiff.process import Discrete, Gaussian
from condiff.sampling import DDPM, Spaced
from condiff.training import PrefixLengths
from condiff.video import Rollout

SHAPE = (13, 2, 8, 8)


def net(size=0.15, dtype=torch.float64, **fields):
    """A causal network with random weights, so that every part of it matters."""
    options = {"shape": SHAPE, "width": 32, "depth": 3, "heads": 4, "qk_norm": True, **fields}
    network = VideoTransformer(**options)
    g = torch.Generator().manual_seed(1)
    for p in network.parameters():
        p.data = p.data + size * torch.randn(p.shape, generator=g)
    return network.to(dtype).eval().requires_grad_(False)


def clip(frames=9, rows=2, seed=2, dtype=torch.float64):
    return torch.randn(rows, frames, *SHAPE[1:], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def times(frames, prefix, t, rows=2, told=0.0):
    out = torch.full((rows, frames), t)
    out[:, :prefix] = told
    return out


def told(dtype=torch.float64):
    text = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return {"label": torch.tensor([0, 2]), "text": Condition(text, "tokens")}


def cached(network, x, prefix, t, pieces, cond=None, max_frames=12):
    """The chunk behind a prefix that was written in pieces."""
    cache, start = network.new_cache(max_frames), 0
    for n in pieces:
        network.write(x[:, start : start + n], torch.zeros(len(x)), cond, cache)
        start += n
    return network(x[:, prefix:], torch.full((len(x),), t), cond, cache=cache)


PARTS = [
    {},
    {"temporal": "block"},
    {"positions": "rotary"},
    {"positions": "sincos", "flag": True},
    {"positions": "none", "reference": 0},
    {"depth": 1, "reference": 2},
    {"conditions": {"label": Label(3), "text": Tokens(dim=5)}, "learned_variance": True},
]
NAMES = ["causal", "block", "rotary", "flag", "no-reference", "one-layer", "told"]


@pytest.mark.parametrize("fields", PARTS, ids=NAMES)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["double", "single"])
def test_a_cache_is_the_same_as_all_frames_at_once(fields, dtype, most):
    """Item 1: the difference on the chunk, relative to the output's maximum."""
    network, x = net(dtype=dtype, **fields), clip(dtype=dtype)
    cond = told(dtype) if "conditions" in fields else None
    full = network(x, times(9, 5, 0.7), cond, prefix=5)
    fast = cached(network, x, 5, 0.7, (5,), cond)
    if isinstance(full, tuple):
        full, fast = (torch.cat([value, aux["variance"]], 2) for value, aux in (full, fast))
    full = full[:, 5:]
    assert full.abs().max() > 0.5
    assert (fast - full).abs().max() < most * full.abs().max()


def kept(network, x, t, prefix_told):
    """Keys along time of the prefix's frames, in a pass over all frames."""
    seen = []
    hook = network.stack[-1].temporal.qkv.register_forward_hook(lambda m, i, out: seen.append(out))
    network(x, times(9, 5, t, told=prefix_told), prefix=5)
    hook.remove()
    return seen[0].unflatten(0, (2, -1))[:, :, :5, 32:]


def test_a_prefix_is_the_same_for_all_times_because_it_is_told_zero():
    """Item 2."""
    network, x = net(), clip()
    noisy = [torch.cat([x[:, :5], clip(4, seed=s)], 1) for s in (7, 8)]
    shared = [kept(network, z, t, 0.0) for z, t in zip(noisy, (0.7, 0.1), strict=True)]
    own = [kept(network, z, t, t) for z, t in zip(noisy, (0.7, 0.1), strict=True)]
    assert (shared[0] - shared[1]).abs().max() < 1e-12
    assert (own[0] - own[1]).abs().max() > 0.1


@pytest.mark.parametrize("fields", PARTS[:5], ids=NAMES[:5])
@pytest.mark.parametrize("pieces", [(1, 4), (1, 1, 1, 2), (2, 3)], ids=str)
def test_writing_in_pieces_is_writing_at_once(fields, pieces):
    """Item 3: both queues, also with pieces shorter than the reference is long."""
    network, x = net(**fields), clip()
    whole = cached(network, x, 5, 0.7, (5,))
    assert (cached(network, x, 5, 0.7, pieces) - whole).abs().max() < 1e-10 * whole.abs().max()


@pytest.mark.parametrize("prefix", [1, 2])
def test_prefixes_shorter_than_the_reference_count_their_first_frame_again(prefix):
    """Item 3."""
    network, x = net(), clip(prefix + 4)
    full = network(x, times(prefix + 4, prefix, 0.7), prefix=prefix)[:, prefix:]
    fast = cached(network, x, prefix, 0.7, (1,) * prefix)
    assert (fast - full).abs().max() < 1e-10 * full.abs().max()


@pytest.mark.parametrize(("depth", "same"), [(1, True), (2, False), (4, False)])
def test_dropped_frames_live_on_in_deep_keys(depth, same):
    """Item 3: what is left after eviction is what a shorter window gives with one layer only."""
    network, x = net(depth=depth, positions="rotary"), clip()
    cut = cached(network, x, 5, 0.7, (1, 2, 2), max_frames=3)
    window = network(x[:, 2:], times(7, 3, 0.7), prefix=3)[:, 3:]
    assert ((cut - window).abs().max() < 1e-12) == same
    if not same:
        assert (cut - window).abs().max() > 1e-4


@pytest.mark.parametrize("fields", PARTS[:5], ids=NAMES[:5])
def test_later_frames_never_change_earlier_ones(fields):
    """Item 4. Inside a chunk too, unless attention there goes both ways by choice."""
    network, x = net(**fields), clip()
    before = network(x, times(9, 5, 0.7), prefix=5)
    for frame in range(1, 9):
        other = x.clone()
        other[:, frame] += 1.0
        after = network(other, times(9, 5, 0.7), prefix=5)
        alone = min(frame, 5) if fields.get("temporal") == "block" else frame
        assert (after[:, :alone] - before[:, :alone]).abs().max() < 1e-12
        assert (after[:, frame] - before[:, frame]).abs().max() > 1e-3


def test_lengths_of_prefixes_and_positions_in_a_circle():
    """Item 5."""
    assert PrefixLengths(given=1, chunk=8, frames=33).choices == (1, 9, 17, 25)
    assert PrefixLengths(given=1, chunk=16, frames=65).choices == (1, 17, 33, 49)
    assert PrefixLengths(given=1, chunk=8, frames=30).choices == (1, 9, 17, 25)
    assert position_ids(27, 8, 33).tolist() == [27, 28, 29, 30, 31, 32, 0, 1]
    assert net().position_starts(13) == 13 and net().position_starts(9) == 1
    assert net(positions="rotary").position_starts(13) == 1


def test_new_parts_leave_a_trained_network_as_it_was():
    """Item 6: attention to the reference and the flag start at nothing."""
    old = net(reference=0)
    new = VideoTransformer(shape=SHAPE, width=32, depth=3, heads=4, qk_norm=True, reference=3, flag=True).double()
    missing = new.load_state_dict(old.state_dict(), strict=False).missing_keys
    assert missing and all(".reference." in name or ".flag." in name for name in missing)
    x = clip()
    assert torch.equal(new(x, times(9, 5, 0.7), prefix=5), old(x, times(9, 5, 0.7), prefix=5))


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["plain", "guided"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float64, 1e-11)], ids=["single", "double"])
def test_videos_of_a_whole_sampler_are_equal(scale, dtype, most):
    """Item 7: ten ancestral steps, three chunks, fixed noise; the difference relative to the maximum."""
    network = net(0.05, dtype, conditions={"label": Label(3)})
    model = Denoiser(network, Gaussian(Discrete.ddpm()), "v", shape=SHAPE)
    model = model if scale == 1.0 else Free(model, scale=scale)
    videos = [
        Rollout(
            model, chunk=4, max_context=9, context=context, solver=DDPM(), grid=Spaced("linspace"), steps=10
        ).generate(clip(1, dtype=dtype), 12, {"label": [0, 2]}, seeds=[5, 6])
        for context in ("cached", "recomputed")
    ]
    assert videos[0].shape == (2, 13, *SHAPE[1:]) and videos[0].dtype == dtype
    assert (videos[0] - videos[1]).abs().max() < most * videos[1].abs().max()


@pytest.mark.parametrize("scale", [0.5, 7.5])
def test_variances_of_guided_steps_are_those_under_the_conditions(scale):
    network = net(conditions={"label": Label(3)}, learned_variance=True)
    model, cond = Denoiser(network, Gaussian(Discrete.ddpm()), "noise", shape=SHAPE), {"label": [0, 2]}
    told, other = model(clip(4), 0.7, cond), model(clip(4), 0.7)
    guided = Free(model, scale=scale)(clip(4), 0.7, cond)
    torch.testing.assert_close(guided.aux["variance"], told.aux["variance"], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(other.aux["variance"], told.aux["variance"])
    torch.testing.assert_close(guided.noise, other.noise + scale * (told.noise - other.noise), rtol=1e-9, atol=1e-9)


def test_the_recipe_is_the_papers_on_clips():
    data = bouncing_ball(4, frames=13, side=16, given=1)
    recipe = ca2_vdm.recipe(Facts.of(data))
    assert recipe.objective.lengths.choices == (1, 5, 9) and recipe.network.conditions == {}
    assert recipe.objective.base.variance.weight == pytest.approx(1e-3 / 0.6931471805599453)
    network, objective = recipe.network, recipe.objective
    assert network.flag and network.learned_variance and recipe.target == "noise"
    assert (network.temporal, network.positions, network.reference) == ("causal", "cyclic", 3)
    assert (objective.perturb, objective.clean, recipe.sampler.steps) == (0.05, 0.0, 100)
    denoiser = recipe.denoiser(0)
    losses = recipe.objective(denoiser, data.batch([0, 1]), rng=0)
    losses.loss.backward()
    assert set(losses.parts) == {"noise", "variance"}
    roll = rollout(denoiser, recipe, steps=2)
    video = roll.generate(data.batch([0, 1])["cond"]["first"], 5, seed=0)
    assert video.shape == (2, 6, 1, 16, 16) and roll.max_context == 9


def test_data_that_are_no_clips_are_refused():
    with pytest.raises(BadValue, match="condiff train video"):
        ca2_vdm.recipe(Facts((1, 8, 8)))
    with pytest.raises(BadValue, match="none behind"):
        ca2_vdm.recipe(Facts((1, 1, 8, 8)))


@pytest.mark.parametrize(("frames", "given"), [(9, 1), (13, 1), (17, 1), (17, 4), (18, 1), (33, 1), (3, 2)])
def test_clips_of_any_length_fit_into_the_positions_that_were_learnt(frames, given):
    """Nothing that training accepts is refused by the rollout afterwards."""
    recipe = ca2_vdm.recipe(Facts.of(bouncing_ball(2, frames=frames, side=16, given=given)))
    roll = rollout(recipe.denoiser(seed=0), recipe, steps=2)
    lengths = recipe.objective.lengths
    assert roll.chunk + roll.max_context <= frames
    assert roll.max_context in lengths.choices
    assert roll.chunk >= min(8, (frames - given) / 3) / 2
    if frames == 17 and given == 1:
        assert lengths.choices == (1, 5, 9, 13)


def test_a_chunk_that_clips_cut_short_is_not_counted_into_the_context():
    recipe = ca2_vdm.recipe(Facts.of(bouncing_ball(2, frames=17, side=16, given=1)), chunk=6)
    assert recipe.objective.lengths.choices == (1, 7, 13)
    assert rollout(recipe.denoiser(seed=0), recipe, steps=2).max_context == 7
