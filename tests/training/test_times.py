"""Time laws: their distributions, stratification, shards."""

import math

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.process import EDM, Cosine, Gaussian, Rectified
from condiff.random import PerSample, Shard, as_source
from condiff.training import DiscreteTimes, EDMLogNormal, LogitNormal, PerFrame, Stratified, UniformTimes

PROCESS = Gaussian(Rectified())
LAWS = [
    UniformTimes(low=0.1, high=0.7),
    LogitNormal(mean=-0.5, std=0.8),
    EDMLogNormal(mean=-1.0),
    DiscreteTimes(grid=10),
]


def middle(count):
    """Evenly spaced uniform numbers: expectations over them are exact to the order of the midpoint rule."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_logit_normal_has_its_density():
    """Esser 2024, eq. 19: logit(t) is normal; and the median is sigmoid(mean)."""
    t = LogitNormal(mean=0.3, std=0.7).law(middle(200_001), PROCESS)
    logit = torch.log(t) - torch.log1p(-t)
    torch.testing.assert_close(logit.mean(), torch.tensor(0.3, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(logit.std(), torch.tensor(0.7, dtype=torch.float64), atol=1e-3, rtol=0)
    assert t[100_000].item() == pytest.approx(1 / (1 + math.exp(-0.3)))


@pytest.mark.parametrize("schedule", [EDM(), Rectified(), Cosine()])
def test_edm_law_is_normal_in_log_sigma(schedule):
    process = Gaussian(schedule)
    level = process.at(EDMLogNormal(mean=-1.2, std=1.2).law(middle(100_001), process))
    log_sigma = torch.log(level.noise / level.data)
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=1e-2)


def test_edm_law_needs_a_log_snr():
    from condiff.process import Bridge

    with pytest.raises(Incompatible, match="log-SNR"):
        EDMLogNormal().sample(Bridge(), (4, 2), as_source(0))


def test_grids():
    t = DiscreteTimes(grid=4).law(middle(4), PROCESS)
    assert t.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert DiscreteTimes(grid=(0.2, 0.9)).law(torch.tensor([0.0, 0.49, 0.5, 1.0 - 1e-16]), PROCESS).tolist() == [
        0.2,
        0.2,
        0.9,
        0.9,
    ]


@pytest.mark.parametrize("law", LAWS)
def test_stratified_rows_lie_in_their_parts(law):
    t = Stratified(base=law).sample(PROCESS, (16, 3), as_source(0))
    edges = law.law(torch.arange(17, dtype=torch.float64) / 16, PROCESS)
    assert (t >= edges[:-1]).all()
    assert (t <= edges[1:]).all()


def test_stratified_is_unbiased_and_steadier():
    f = lambda t: (t**2).mean()
    plain = torch.stack([f(UniformTimes().sample(PROCESS, (16,), as_source(i))) for i in range(400)])
    spread = torch.stack([f(Stratified().sample(PROCESS, (16,), as_source(i))) for i in range(400)])
    assert spread.mean().item() == pytest.approx(1 / 3, abs=4 * spread.std().item() / 20)
    assert spread.std() < plain.std() / 8


@pytest.mark.parametrize("law", [*LAWS, *(Stratified(base=law) for law in LAWS)])
def test_shards_see_the_numbers_of_the_whole(law):
    whole = law.sample(PROCESS, (8, 2), as_source(5))
    parts = [law.sample(PROCESS, (4, 2), Shard(as_source(5), i, i + 4, 8)) for i in (0, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_seeds_per_sample():
    one = LogitNormal().sample(PROCESS, (3, 2), PerSample([4, 5, 6]))
    assert LogitNormal().sample(PROCESS, (1, 2), PerSample([5]))[0] == one[1]


def test_frames_have_times_of_their_own():
    t = PerFrame(base=LogitNormal()).sample(PROCESS, (2, 5, 3), as_source(0))
    assert t.shape == (2, 5)
    assert t.unique().numel() == 10
    with pytest.raises(BadValue, match=r"\(B, F, ...\)"):
        PerFrame().sample(PROCESS, (2,), as_source(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformTimes(low=0.5, high=0.5),
        lambda: UniformTimes(high=1.5),
        lambda: LogitNormal(std=0.0),
        lambda: LogitNormal(mean=math.nan),
        lambda: EDMLogNormal(std=-1.0),
        lambda: DiscreteTimes(grid=0),
        lambda: DiscreteTimes(grid=()),
        lambda: DiscreteTimes(grid=(0.5, 1.5)),
        lambda: Stratified(base=PerFrame()),
        lambda: PerFrame(base=Stratified()),
    ],
)
def test_bad_laws_are_refused(make):
    with pytest.raises((BadValue, Incompatible)):
        make()
