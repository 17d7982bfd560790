"""Rollouts: chunk after chunk, by three kinds of context."""

import itertools
from functools import partial

import pytest
import torch

from condiff import Denoiser, oracles
from condiff.conditions import Frames, Label
from condiff.errors import BadType, BadValue, Incompatible, NonFinite
from condiff.guidance import Blend, Free
from condiff.networks import DiT, VideoTransformer
from condiff.process import Gaussian, Level, Prediction, ProgressiveNoise, Rectified
from condiff.random import Tape, as_source
from condiff.sampling import DDIM, DDPM, Euler
from condiff.video import AsCondition, Recomputed, Rollout

SHAPE = (16, 1, 4, 4)


def model(**fields):
    torch.manual_seed(0)
    network = VideoTransformer(**{"shape": SHAPE, "width": 16, "depth": 2, "heads": 2, "qk_norm": True, **fields})
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Denoiser(network.eval(), Gaussian(Rectified()), shape=SHAPE)


def roll(denoiser=None, **how):
    options = {"chunk": 3, "max_context": 7, "solver": DDIM(), "steps": 3, **how}
    return Rollout(denoiser or model(), **options)


def first(rows=2, frames=1):
    return torch.randn(rows, frames, *SHAPE[1:], generator=torch.Generator().manual_seed(4))


def test_steps_are_what_generate_makes():
    seen = []
    whole = roll().generate(first(), 7, seed=0, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    one = roll().start(first(), seed=0)
    clips = [first(), *itertools.islice(one, 3)]
    assert torch.equal(whole, torch.cat(clips, 1)[:, :8]) and one.clips == 3
    assert one.nfe == 1 + 3 * (3 + 1) and "7 of at most 7 known" in repr(one)


@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=["ode", "ancestral"])
@pytest.mark.parametrize("perturb", [0.0, 0.1])
def test_context_is_perturbed_once_with_a_cache_and_without(solver, perturb):
    videos = [
        roll(context=context, solver=solver, perturb=perturb).generate(first(), 7, seeds=[3, 4])
        for context in ("cached", "recomputed")
    ]
    torch.testing.assert_close(*videos, rtol=1e-5, atol=1e-5)
    if perturb:
        clean = roll(solver=solver).generate(first(), 7, seeds=[3, 4])
        assert (videos[0][:, 1:] - clean[:, 1:]).abs().max() > 1e-3
        assert torch.equal(videos[0][:, 0], first()[:, 0])  # what is handed out isn't


def test_noise_on_the_context_is_other_noise_than_what_a_chunk_begins_with():
    seen = []

    class Spy:
        """All frames are 0, whatever comes: what it is given is noise."""

        process, shape, kinds = Gaussian(Rectified()), None, {}

        def __call__(self, x, t, cond=None):
            seen.append(x)
            return Prediction(x, self.process.at(t), {"x0": torch.zeros_like(x)})

    how = {"chunk": 2, "max_context": 2, "context": "recomputed", "perturb": 0.25, "steps": 1}
    roll(Spy(), **how).generate(torch.zeros(300, 2, 3), 6, seed=0)
    noise = torch.cat([torch.cat([x[:, :2] / 0.25, x[:, 2:]], 1) for x in seen], 1)  # of 3 chunks behind 2 frames each
    assert noise.shape == (300, 12, 3)
    away = torch.corrcoef(noise.flatten(1).T) - torch.eye(36)
    assert float(away.abs().max()) < 0.3
    torch.testing.assert_close(noise.std(0), torch.ones(12, 3), rtol=0.0, atol=0.2)


@pytest.mark.parametrize("context", ["cached", "recomputed"])
def test_a_row_depends_on_its_own_seed_only(context):
    how = {"context": context, "perturb": 0.05, "solver": DDPM()}
    both = roll(**how).generate(first(), 6, seeds=[8, 9])
    alone = roll(**how).generate(first()[1:], 6, seeds=[9])
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)
    other = roll(**how).generate(first(), 6, seeds=[8, 7])
    torch.testing.assert_close(both[0], other[0], rtol=1e-5, atol=1e-5)
    assert (both[1, 1:] - other[1, 1:]).abs().max() > 0.1


def test_given_frames_may_be_longer_than_the_context():
    frames = first(frames=10)
    cut = roll(context="recomputed", max_context=5).generate(frames, 3, seed=0)
    short = roll(context="recomputed", max_context=5, steps=3)
    assert cut.shape == (2, 13, *SHAPE[1:]) and short.start(frames, seed=0).context.length == 5
    kept = roll(max_context=5).start(frames, seed=0)
    assert (kept.context.length, kept.context.count) == (5, 10)


@pytest.mark.parametrize("positions", ["cyclic", "rotary"])
def test_a_network_of_one_layer_forgets_what_is_dropped_however_long_the_roll(positions):
    """Ten chunks, more than twice around the circle of positions: kept keys are those of the window."""
    denoiser = model(depth=1, positions=positions).double()
    kept, again = (
        roll(denoiser, chunk=4, max_context=9, context=context).generate(first().double(), 40, seed=0)
        for context in ("cached", "recomputed")
    )
    assert kept.shape[1] == 41 and (kept - again).abs().max() < 1e-12 * again.abs().max()


def test_the_last_frames_of_a_chunk_may_be_made_again():
    clips = list(itertools.islice(roll(overlap=1).start(first(), seed=0), 2))
    assert [clip.shape[1] for clip in clips] == [2, 2]
    plain = roll().start(first(), seed=0).advance()
    assert torch.equal(clips[0], plain[:, :2])


def test_guidance_writes_both_branches():
    guided = Free(model(conditions={"label": Label(3)}), scale=2.0)
    one = roll(guided).start(first(), {"label": [0, 1]}, seed=0)
    assert one.context.cache.rows == 4 and one.context.cache.branches == 2
    videos = [roll(guided, context=c).generate(first(), 6, {"label": [0, 1]}, seed=0) for c in ("cached", "recomputed")]
    torch.testing.assert_close(*videos, rtol=1e-5, atol=1e-5)
    part = Free(guided.denoiser, scale=2.0, interval=(0.3, 0.8))
    videos = [roll(part, context=c).generate(first(), 6, {"label": [0, 1]}, seed=0) for c in ("cached", "recomputed")]
    torch.testing.assert_close(*videos, rtol=1e-5, atol=1e-5)
    alone = roll(Free(guided.denoiser, scale=0.0)).generate(first(), 6, {"label": [0, 1]}, seed=0)
    assert (alone - videos[0])[:, 1:].abs().max() > 1e-3


def test_conditions_may_change_from_chunk_to_chunk():
    told = model(conditions={"label": Label(3)})
    one = [roll(told).start(first(), {"label": [0, 0]}, seed=0) for _ in range(2)]
    assert torch.equal(one[0].advance(), one[1].advance())
    assert not torch.equal(one[0].advance(), one[1].advance({"label": [2, 2]}))
    assert one[1].cond["label"].value.tolist() == [2, 2]


def test_any_model_with_a_time_per_frame_has_a_sliding_window():
    """An oracle of clips along a line: the chunk follows the frames before it exactly."""
    slope = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)[:, None]
    clips = (slope * torch.arange(6, dtype=torch.float64))[..., None]
    oracle = oracles.empirical(Gaussian(Rectified()), clips)
    start = clips[[5, 30], :3]
    made = roll(oracle, context="recomputed", max_context=3, steps=20, solver=Euler()).generate(start, 3, seed=0)
    torch.testing.assert_close(made, clips[[5, 30]], rtol=0.0, atol=1e-6)


def test_frames_as_a_condition():
    torch.manual_seed(0)
    network = DiT(
        shape=(3, 1, 4, 4),
        layout="video",
        width=16,
        depth=1,
        heads=2,
        patch=(1, 2, 2),
        conditions={"past": Frames(2, 1)},
    )
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    denoiser = Denoiser(network, Gaussian(Rectified()), shape=(3, 1, 4, 4))

    past = partial(AsCondition, name="past")
    seen = []
    network.bank.register_forward_pre_hook(lambda m, args: seen.append(args[0]["past"]))
    Rollout(denoiser, chunk=3, max_context=2, context=past, solver=DDIM(), steps=1).generate(first(), 6, seed=0)
    assert seen[0].mask.tolist() == [[False, True]] * 2 and torch.equal(seen[0].value[:, 1], first()[:, 0])
    assert seen[1].mask.all() and not torch.equal(seen[1].value[:, 0], seen[1].value[:, 1])


def test_noise_that_runs_from_frame_to_frame():
    process = Gaussian(Rectified())
    level, rng = process.at(1.0), as_source(0)
    x = ProgressiveNoise(2.0).sample(level, (20_000, 3, 1), rng, dtype=torch.float64)[..., 0]
    keep = 2.0 / 5.0**0.5
    expected = torch.tensor([[1.0, keep, keep**2], [keep, 1.0, keep], [keep**2, keep, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0.0, atol=0.04)
    n = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ProgressiveNoise(0.0).sample(level, (2, 3, 1), Tape([n])), n)
    assert isinstance(level, Level) and roll(prior=ProgressiveNoise()).generate(first(), 3, seed=0).shape[1] == 4
    with pytest.raises(BadValue, match="state \\(B, F"):
        ProgressiveNoise().sample(level, (2, 3), rng)
    with pytest.raises(BadValue, match="alpha"):
        ProgressiveNoise(-1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: roll(chunk=8), BadValue, "8 frames can't be written to a cache of 7"),
        (lambda: roll(model(temporal="full")), Incompatible, "sees later ones"),
        (lambda: roll(max_context=14), BadValue, "17 frames, and the network has 16 positions"),
        (lambda: roll(model(positions="sincos"), max_context=14), BadValue, "16 positions"),
        (lambda: roll(oracles.empirical(Gaussian(Rectified()), first())), Incompatible, "VideoTransformer"),
        (lambda: roll(context="condition"), Incompatible, "no condition 'frames'"),
        (lambda: roll(context="cache"), BadValue, "Did you mean 'cached'"),
        (lambda: roll(context=3), BadType, "context="),
        (lambda: roll(overlap=3), BadValue, "lead nowhere"),
        (lambda: roll(chunk=0), BadValue, "chunk must be at least 1"),
        (lambda: roll(chunk=1.5), BadType, "chunk must be an integer"),
        (lambda: roll(perturb=1.0), BadValue, "perturb"),
        (lambda: roll(Blend([model(), model()], [0.5, 0.5])), Incompatible, "Free around one"),
        (lambda: roll(Free(model(), scale=lambda level: 2.0)), Incompatible, "fixed scale"),
    ],
    ids=[
        "long-chunk", "full", "table", "sincos", "oracle", "condition", "name", "type", "overlap", "chunk", "float",
        "perturb", "blend", "scale",
    ],
)  # fmt: skip
def test_rollouts_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_rotary_positions_have_no_end():
    assert roll(model(positions="rotary"), max_context=40).generate(first(), 30, seed=0).isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.advance(), BadValue, "call start"),
        (lambda r: next(iter(r)), BadValue, "call start"),
        (lambda r: r.start(first().long()), BadType, "floats"),
        (lambda r: r.start(first() * float("nan")), NonFinite, "NaN"),
        (lambda r: r.start(first()[:, :0]), BadValue, "at least one frame"),
        (lambda r: r.start(torch.zeros(2, 1, 1, 8, 8)), BadValue, "came to a model of frames"),
        (lambda r: r.start(first(), seeds=[1]), BadValue, "1 seeds came for 2 rows"),
        (lambda r: r.start(first(), seed=0, seeds=[1, 2]), BadValue, "one of seed="),
        (lambda r: r.start(first(), rng=3), BadType, "rng="),
        (lambda r: r.generate(first(), 0), BadValue, "n_frames"),
        (lambda r: r.start(first(), seed=0).context.push(first(3), [r.cond]), BadValue, "need a new one"),
    ],
    ids=["advance", "iterate", "integers", "nan", "none", "size", "seeds", "both", "rng", "frames", "batch"],
)
def test_calls_that_cannot_be(call, error, message):
    with pytest.raises(error, match=message):
        call(roll())


def test_a_window_refuses_rows_of_another_batch():
    window = Recomputed(model(), 4)
    window.push(first(), [])
    with pytest.raises(BadValue, match="keeps its size"):
        window(torch.zeros(3, 3, *SHAPE[1:]), 0.5)
