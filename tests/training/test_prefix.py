"""Training behind prefixes: what is compared, what is told, and that all shards draw one length."""

import pytest
import torch

from condiff import Denoiser, Denoising
from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks import VideoTransformer
from condiff.prefixed import Prefixed
from condiff.process import Gaussian, Prediction, Rectified
from condiff.random import PerSample, Shard, as_source
from condiff.training import Batch, Independent, PerFrame, PrefixDenoising, PrefixLengths

PROCESS = Gaussian(Rectified())


class Spy:
    """A denoiser that remembers what it was asked, and answers with its input."""

    process, shape, kinds = PROCESS, None, {}

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, cond=None, **options):
        level = self.process.at(t)
        self.calls.append((x_t, level.t, cond, options))
        return Prediction(x_t, level, {"velocity": x_t})


def clips(rows=4, frames=9):
    return torch.arange(1.0, frames + 1)[None, :, None].expand(rows, frames, 2).clone()


def objective(**how):
    return PrefixDenoising(**{"lengths": PrefixLengths(given=1, chunk=4, frames=9), "perturb": 0.0, **how})


@pytest.mark.parametrize("seed", range(6))
def test_the_prefix_is_clean_is_told_zero_and_is_not_compared(seed):
    spy = Spy()
    losses = objective()(spy, {"x": clips()}, rng=seed)
    ((x_t, times, _, _),) = spy.calls
    prefix = int((times[0] == 0.0).sum())
    assert prefix in (1, 5) and x_t.shape[1] == prefix + 4 and (times[:, :prefix] == 0.0).all()
    assert (times[:, prefix:] == times[:, prefix : prefix + 1]).all() and len(times[:, -1].unique()) == 4
    assert (x_t[:, 1:prefix] - x_t[:, : prefix - 1] == 1.0).all()  # neighbouring frames of the clip, as they are
    truth = PROCESS.forward(clips()[:, :4], times[:, prefix:], noise=torch.zeros(4, 4, 2)).velocity
    assert losses.per_sample.shape == (4,) and truth.shape == (4, 4, 2)
    # x0 of the frames behind follows from the start of the window
    start = x_t[:, 0, 0] - 1.0
    x0 = (torch.arange(prefix + 1.0, prefix + 5.0) + start[:, None])[..., None]
    t = times[:, prefix:, None].float()
    noise = (x_t[:, prefix:] - (1.0 - t) * x0) / t
    expected = (x_t[:, prefix:] - (noise - x0)).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.per_sample, expected, rtol=1e-4, atol=1e-4)


def test_a_perturbed_prefix_is_still_told_that_it_is_clean():
    spies = [Spy(), Spy()]
    for spy, perturb in zip(spies, (0.0, 0.3), strict=True):
        objective(perturb=perturb)(spy, {"x": clips()}, rng=0)
    (clean, times, *_), (noisy, again, *_) = (spy.calls[0] for spy in spies)
    prefix = int((times[0] == 0.0).sum())
    assert torch.equal(times, again) and torch.equal(clean[:, prefix:], noisy[:, prefix:])
    away = noisy[:, :prefix] - 0.7 * clean[:, :prefix]
    assert 0.1 < float(away.std() / 0.3) < 2.0


def test_every_frame_has_noise_of_its_own():
    """Those of the prefix among each other, and other noise than what is to be found."""
    spy, prefix, seed = Spy(), 1, 0
    while prefix == 1:
        seed += 1
        objective(perturb=0.3)(spy, {"x": torch.zeros(200, 9, 2)}, rng=seed)
        x, times, *_ = spy.calls[-1]
        prefix = int((times[0] == 0.0).sum())
    noise = torch.cat([x[:, :prefix] / 0.3, x[:, prefix:] / times[:, prefix:, None].float()], dim=1)  # x0 = 0
    away = torch.corrcoef(noise.flatten(1).T) - torch.eye(2 * noise.shape[1])
    assert float(away.abs().max()) < 0.35
    torch.testing.assert_close(noise.std(0), torch.ones(noise.shape[1:]), rtol=0.0, atol=0.2)


def test_all_shards_of_a_batch_draw_one_length_and_window():
    whole, parts = Spy(), [Spy(), Spy()]
    objective()(whole, {"x": clips()}, rng=3)
    for i, spy in enumerate(parts):
        objective()(spy, {"x": clips()[2 * i : 2 * i + 2]}, rng=Shard(as_source(3), 2 * i, 2 * i + 2, 4))
    assert torch.equal(whole.calls[0][0], torch.cat([spy.calls[0][0] for spy in parts]))
    with pytest.raises(BadType, match="one seed"):
        objective()(Spy(), {"x": clips()}, rng=PerSample(range(4)))


def test_lengths_are_even_and_the_last_chunk_may_be_short():
    lengths = PrefixLengths(given=1, chunk=4, frames=8)
    assert [lengths.draw(u) for u in (0.0, 0.49, 0.5, 0.999)] == [1, 1, 5, 5]
    spy, seen = Spy(), set()
    for seed in range(12):
        PrefixDenoising(lengths=lengths, perturb=0.0)(spy, {"x": clips(frames=8)}, rng=seed)
        seen.add(spy.calls[-1][0].shape[1])
    assert seen == {5, 8}


def test_a_network_over_frames_is_told_the_prefix_and_where_the_circle_begins():
    torch.manual_seed(0)
    network = VideoTransformer(shape=(5, 1, 4, 4), width=16, depth=1, heads=2)
    seen = []
    network.register_forward_pre_hook(lambda m, args, options: seen.append(options), with_kwargs=True)
    denoiser = Denoiser(network, PROCESS, shape=(5, 1, 4, 4))
    chosen = PrefixDenoising(lengths=PrefixLengths(given=1, chunk=4, frames=5))
    for seed in range(40):
        chosen(denoiser, {"x": torch.zeros(2, 7, 1, 4, 4)}, rng=seed)
    assert {options["prefix"] for options in seen} == {1} and {options["first"] for options in seen} == set(range(5))


def test_the_condition_that_the_prefix_stands_for_is_left_out():
    spy = Spy()
    cond = Conditions(
        {"first": Condition(clips()[:, :1], "frames"), "label": Condition(torch.zeros(4).long(), "label")}
    )
    objective()(spy, Batch(clips(), cond), rng=0)
    assert list(spy.calls[0][2]) == ["label"]


@pytest.mark.parametrize("seed", range(8))
def test_masks_follow_the_window(seed):
    """Of clips longer than what is learnt from, each frame keeps its own weight; the prefix's don't count."""
    mask = torch.rand(4, 12, 1, generator=torch.Generator().manual_seed(1))
    spy = Spy()
    losses = objective()(spy, {"x": clips(frames=12), "mask": mask}, rng=seed)
    ((x_t, times, _, _),) = spy.calls
    prefix, start = int((times[0] == 0.0).sum()), int(x_t[0, 0, 0]) - 1
    behind = slice(start + prefix, start + prefix + 4)
    t, x0 = times[:, prefix:, None].float(), clips(frames=12)[:, behind]
    error = (x_t[:, prefix:] - (x_t[:, prefix:] - x0) / t).square().mean(2)  # velocity = (x_t - x0) / t
    weight = mask[:, behind, 0]
    torch.testing.assert_close(losses.per_sample, (error * weight).sum(1) / weight.sum(1), rtol=1e-4, atol=1e-4)


def test_what_prefixes_refuse():
    for how in ({"given": 0}, {"chunk": 0}, {"frames": 1}):
        with pytest.raises(BadValue):
            PrefixLengths(**how)
    for how in ({"perturb": 1.0}, {"clean": -0.1}):
        with pytest.raises(BadValue, match="is a time"):
            PrefixDenoising(**how)
    for base in (Denoising(antithetic=True), Denoising(coupling=Independent()), Denoising(times=PerFrame())):
        with pytest.raises(Incompatible, match="one time a row"):
            PrefixDenoising(base=base)
    with pytest.raises(BadValue, match="clips of 8 frames came where 9"):
        objective()(Spy(), {"x": clips(frames=8)}, rng=0)
    with pytest.raises(BadType, match="clips are floats"):
        objective()(Spy(), {"x": torch.zeros(4, 9)}, rng=0)


def test_a_denoiser_behind_frames_answers_for_what_follows():
    spy = Spy()
    behind = Prefixed(spy, clips(2, 3), clean=0.1)
    said = behind(torch.ones(4, 2, 2), 0.5)
    x, t, _, options = spy.calls[0]
    assert x.shape == (4, 5, 2) and t[0].tolist() == [0.1, 0.1, 0.1, 0.5, 0.5] and options == {}
    assert said.x_t.shape == (4, 2, 2) and said.level.t == 0.5 and torch.equal(x[:2], x[2:])
    with pytest.raises(BadValue, match="keeps its size"):
        behind(torch.ones(3, 2, 2), 0.5)
    with pytest.raises(BadValue, match="don't follow"):
        behind(torch.ones(2, 2, 3), 0.5)
