"""Queues of keys and values, and the video transformer that fills them."""

import pytest
import torch

from condiff import Denoiser
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks import FrameCache, KVQueue, VideoTransformer, VideoTransformerConfig
from condiff.networks.space_time_blocks import Plan, SpaceTimeBlock, frame_mask
from condiff.process import Gaussian, Rectified

SHAPE = (8, 1, 4, 4)


def pair(start, n, axis=2):
    """Keys and values that count frames."""
    values = torch.arange(float(start), start + n)
    shape = [1, 1, 1, 1, 1]
    shape[axis] = n
    return values.reshape(shape).expand(*[2 if i == 0 else s for i, s in enumerate(shape)]), -values.reshape(shape)


def fill(cache, *pieces):
    start = cache.count
    for n in pieces:
        cache.open(2, n)
        for layer in range(cache.layers):
            cache.stage(layer, pair(start, n), pair(start, n, axis=1) if cache.reference else None)
        cache.commit(2, n)
        start += n
    return cache


def held(cache):
    return cache.read(0, 2)[0][0].flatten().tolist()


def newest(cache):
    return cache.read_reference(0, 2)[0][0].flatten().tolist()


def net(**fields):
    torch.manual_seed(0)
    return VideoTransformer(**{"shape": SHAPE, "width": 16, "depth": 2, "heads": 2, **fields}).eval()


def test_a_queue_appends_evicts_and_takes_back():
    queue = KVQueue(2, axis=1)
    for layer in range(2):
        queue.append(layer, torch.arange(3.0)[None, :, None], torch.zeros(1, 3, 1))
        queue.append(layer, torch.arange(3.0, 5.0)[None, :, None], torch.zeros(1, 2, 1))
    assert queue.length == 5 and queue.nbytes == 2 * 2 * 5 * 4
    queue.evict(4)
    queue.truncate(2)
    assert queue.read(1)[0].flatten().tolist() == [1.0, 2.0]
    assert queue.nbytes == 2 * 2 * 2 * 4 and queue.read(0)[0].untyped_storage().nbytes() == 8  # nothing else is kept
    queue.clear()
    with pytest.raises(BadValue, match="empty"):
        queue.read(0)


def test_frames_are_counted_apart_from_those_that_are_held():
    cache = fill(FrameCache(2, 4), 1, 2, 3)
    assert (cache.length, cache.count) == (4, 6) and held(cache) == [2.0, 3.0, 4.0, 5.0]
    cache.truncate(3)
    assert (cache.length, cache.count) == (1, 3) and held(cache) == [2.0]
    cache.clear()
    assert (cache.length, cache.count, cache.nbytes, cache.rows) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((1,), [0, 0, 0]),
        ((1, 1), [0, 0, 1]),
        ((2,), [0, 0, 1]),
        ((5,), [2, 3, 4]),
        ((1, 1, 1, 1), [1, 2, 3]),
        ((4, 1), [2, 3, 4]),
    ],
    ids=str,
)
def test_the_reference_is_a_queue_that_begins_full(pieces, expected):
    """As indices that are cut off at 0 in training: frames P - 3 ... P - 1."""
    assert newest(fill(FrameCache(2, 9, reference=3), *pieces)) == expected


def test_it_holds_no_more_memory_than_it_says():
    """Keys and values are parts of a projection's output, whose queries nobody needs any more."""
    network = VideoTransformer(shape=(9, 1, 8, 8), width=32, depth=2, heads=2, max_frames=20)
    cache = network.new_cache(9)
    with torch.no_grad():
        for frames in (5, 2, 4):
            network.write(torch.randn(2, frames, 1, 8, 8), torch.zeros(2), None, cache)
            pairs = [pair for queue in (cache.temporal, cache.reference_queue) for pair in map(queue.read, range(2))]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for pair in pairs for t in pair}
            assert sum(storages.values()) == cache.nbytes


def test_a_pass_that_broke_off_leaves_the_cache_as_it_was():
    cache = fill(FrameCache(2, 4), 2)
    cache.open(2, 1)
    cache.stage(0, pair(2, 1), None)
    with pytest.raises(BadValue, match="only 1 of 2 layers"):
        cache.commit(2, 1)
    with pytest.raises(BadValue, match="layer 0 was written after 1"):
        cache.stage(0, pair(2, 1), None)
    assert held(cache) == [0.0, 1.0]
    assert held(fill(cache, 1)) == [0.0, 1.0, 2.0]


def test_what_a_cache_refuses():
    cache = FrameCache(2, 4, branches=2)
    with pytest.raises(BadValue, match="write the given frames before"):
        cache.check_read(2)
    with pytest.raises(BadValue, match="5 frames can't be written to a cache of 4"):
        cache.open(2, 5)
    with pytest.raises(BadValue, match="3 rows can't be the 2 branches"):
        cache.open(3, 1)
    fill(cache, 1)
    with pytest.raises(BadValue, match="need a new one"):
        cache.open(4, 1)
    cache.check_read(2)
    cache.check_read(1)  # the first branch alone
    with pytest.raises(BadValue, match="keeps its size"):
        cache.check_read(4)
    with pytest.raises(BadValue, match="can't be taken back"):
        cache.truncate(2)
    with pytest.raises(Incompatible, match="no older frames"):
        fill(FrameCache(1, 4, reference=2), 2).truncate(1)
    for bad in ({"max_frames": 0}, {"reference": -1}, {"branches": 0}):
        with pytest.raises(BadValue):
            FrameCache(2, **bad)
    with pytest.raises(BadType):
        FrameCache(2, 4.0)


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({}, ["100", "110", "111"]),
        ({"past": 2}, ["11100", "11110", "11111"]),
        ({"prefix": 2, "temporal": "block"}, ["100", "110", "111"]),
        ({"prefix": 1, "temporal": "block"}, ["100", "111", "111"]),
    ],
    ids=str,
)
def test_masks_along_time(how, rows):
    mask = frame_mask(3, **how)
    assert ["".join(str(int(v)) for v in row) for row in mask] == rows


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_is_its_equation(index):
    """Frames [prefix of 4 | target of 2]. Positions enter the temporal attention of the first block alone; neither it
    nor the reference's input is normalised, and one gate acts on all three."""
    torch.manual_seed(0)
    block = SpaceTimeBlock(8, 2, 16, index=index, reference=3, flag=False, cross=False)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    frames, sites, prefix = 6, 5, 4
    x, c, added = torch.randn(2, frames * sites, 8), torch.randn(2, frames, 8), torch.randn(frames, 8)
    mask = frame_mask(frames, prefix=prefix)
    said = block(x, c, Plan(frames, sites, prefix, mask, added, None, None), None, None)

    shift1, scale1, gate1, shift2, scale2, gate2 = (v[:, :, None] for v in block.modulation(c).chunk(6, dim=-1))
    norm = lambda v: torch.nn.functional.layer_norm(v, (8,), eps=1e-6)
    h = x.unflatten(1, (frames, sites))
    h = h + gate1 * block.attn((norm(h) * (1 + scale1) + shift1).flatten(0, 1)).unflatten(0, (2, frames))

    def seen(f):
        own = [f] if f < prefix else [1, 2, 3]
        q, (_, k, v) = block.reference.queries(h[:, f]), block.reference.split(h[:, own].flatten(1, 2))
        return block.reference.out(block.reference.attend(q, k, v))

    h = h + gate1 * torch.stack([seen(f) for f in range(frames)], 1)
    along = (h + added[:, None] if index == 0 else h).transpose(1, 2).flatten(0, 1)
    along = block.temporal(along, mask=torch.ones(frames, frames, dtype=torch.bool).tril()[None, None])
    h = h + gate1 * along.unflatten(0, (2, sites)).transpose(1, 2)
    h = h + gate2 * block.feed_forward(norm(h) * (1 + scale2) + shift2)
    torch.testing.assert_close(said, h.flatten(1, 2), rtol=1e-4, atol=1e-5)


def test_no_mask_where_all_is_seen():
    for how in ({"temporal": "full"}, {"temporal": "block"}):
        assert frame_mask(3, **how) is None
    assert frame_mask(1, 4) is None


def test_a_config_builds_the_network_again():
    config = VideoTransformerConfig(shape=SHAPE, width=16, depth=1, heads=2, temporal="block", positions="rotary")
    assert config.build().config == config and config.table == 8
    assert [name for name, _ in net().blocks(torch.zeros(1, 3, *SHAPE[1:]), torch.zeros(1))] == ["stack.0", "stack.1"]


def test_other_lengths_and_sizes_are_taken():
    network = net(positions="rotary")
    assert network(torch.zeros(2, 11, 1, 8, 6), torch.zeros(2)).shape == (2, 11, 1, 8, 6)
    denoiser = Denoiser(network, Gaussian(Rectified()), shape=SHAPE)
    assert denoiser(torch.zeros(2, 3, *SHAPE[1:]), 0.5).velocity.shape == (2, 3, *SHAPE[1:])
    with pytest.raises(BadValue, match="came to a denoiser"):
        denoiser(torch.zeros(2, 3, 1, 8, 8), 0.5)


def test_recomputed_activations_change_nothing():
    x, gradients = torch.randn(2, 4, *SHAPE[1:], generator=torch.Generator().manual_seed(0)), []
    for checkpoint in (False, True):
        network = net(checkpoint=checkpoint).train()
        for parameter in network.parameters():
            parameter.data += 0.02
        network(x, torch.full((2, 4), 0.3), prefix=2).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("fields", "call", "error", "message"),
    [
        ({}, lambda n, x: n(x, torch.zeros(2, 3)), BadValue, "times of 4 frames"),
        ({}, lambda n, x: n(x, torch.zeros(2), prefix=5), BadValue, "at most all of 4"),
        ({}, lambda n, x: n(x, torch.zeros(2), prefix=1.0), BadType, "number of frames"),
        ({}, lambda n, x: n(x, torch.zeros(2), cache=n.new_cache(4)), BadValue, "write the given frames"),
        ({}, lambda n, x: n(x, torch.zeros(2), cache=FrameCache(5, 4)), BadValue, "another network"),
        ({}, lambda n, x: n(x, torch.zeros(2), cache=n.new_cache(4), prefix=1), BadValue, "leave prefix="),
        ({}, lambda n, x: n.write(x, torch.zeros(2), None, n.new_cache(3)), BadValue, "can't be written"),
        ({"temporal": "full"}, lambda n, x: n.new_cache(4), Incompatible, "sees later ones"),
        ({"max_frames": 3}, lambda n, x: n(x, torch.zeros(2)), BadValue, "3 positions"),
        ({"positions": "sincos"}, lambda n, x: n(x, torch.zeros(2), first=6), BadValue, "frame 9 is wanted"),
        ({}, lambda n, x: n(torch.zeros(2, 4, 1, 5, 4), torch.zeros(2)), BadValue, "don't divide"),
    ],
    ids=[
        "times", "prefix", "prefix-type", "empty", "other-network", "both", "too-long", "full", "table", "past-table",
        "patch",
    ],
)  # fmt: skip
def test_calls_that_cannot_be(fields, call, error, message):
    with pytest.raises(error, match=message):
        call(net(**fields), torch.zeros(2, 4, *SHAPE[1:]))


def test_configurations_that_cannot_be():
    for fields, message in (
        ({"patch": (2, 2, 2)}, "spans one frame"),
        ({"temporal": "both"}, "temporal"),
        ({"positions": "learned"}, "positions"),
        ({"reference": -1}, "reference"),
        ({"max_frames": 0}, "max_frames"),
    ):
        with pytest.raises(BadValue, match=message):
            VideoTransformerConfig(shape=SHAPE, **fields)
