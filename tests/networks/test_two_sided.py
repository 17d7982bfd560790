"""Two intervals of time on one axis."""

import pytest
import torch

import condiff as cd
from condiff.conditions import Condition, Conditions, Frames
from condiff.errors import BadType, BadValue
from condiff.networks import MLPConfig, TwoSided, TwoSidedConfig, UNetConfig


@pytest.fixture
def net():
    told = {"frames": Frames(2, 4)}
    network = TwoSided(network=MLPConfig(shape=(4,), width=16, depth=1, conditions=told))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def told(side):
    return {"side": torch.as_tensor(side), "frames": Condition(torch.ones(len(side), 2, 4), "frames")}


def test_it_is_the_network_inside_on_the_doubled_axis(net):
    x, time, side = torch.randn(3, 4), torch.tensor([0.1, 0.5, 1.0]), [-1.0, 1.0, -1.0]
    rest = Conditions({"frames": told(side)["frames"]})
    inside = net.network(x, torch.tensor([0.45, 0.75, 0.0]), rest)
    torch.testing.assert_close(net(x, time, told(side)), inside)


def test_the_sides_meet_at_the_data_and_nowhere_else(net):
    x = torch.randn(2, 4)[:1].expand(2, 4)
    same = net(x, torch.zeros(2), told([-1.0, 1.0]))
    torch.testing.assert_close(same[0], same[1])
    apart = net(x, torch.full((2,), 0.3), told([-1.0, 1.0]))
    assert not torch.allclose(apart[0], apart[1], atol=1e-3)


def test_times_per_frame_take_the_side_of_their_row():
    inner = cd.networks.DiTConfig(shape=(3, 1, 4, 4), layout="video", width=16, depth=1, heads=2, patch=(1, 2, 2))
    network = TwoSided(network=inner)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, time = torch.randn(2, 3, 1, 4, 4), torch.rand(2, 3)
    got = network(x, time, {"side": torch.tensor([-1.0, 1.0])})
    place = torch.stack([0.5 - 0.5 * time[0], 0.5 + 0.5 * time[1]])
    torch.testing.assert_close(got, network.network(x, place))


def test_it_is_a_network_like_others(net):
    stored = cd.config.to_config(net.config)
    assert cd.config.from_config(stored) == net.config
    assert net.config.shape == (4,) and net.config.outputs == 1
    assert net.condition_kinds == {"frames": "frames", "side": "scalar"}
    unet = TwoSidedConfig(network=UNetConfig(shape=(1, 8, 8), width=8, groups=4)).build()
    assert unet.any_size and not net.any_size
    assert cd.Denoiser(unet, cd.process.Bridge(), "x0").kinds == {"side": "scalar"}


def test_bad_sides_are_refused(net):
    x, time = torch.randn(2, 4), torch.zeros(2)
    with pytest.raises(BadValue, match="told a side for every row"):
        net(x, time, {"frames": told([1.0, 1.0])["frames"]})
    with pytest.raises(BadValue, match="told a side for every row"):
        net(x, time, Conditions({"side": Condition(torch.ones(2), "scalar", torch.tensor([True, False]))}))
    with pytest.raises(BadValue, match="-1 or 1, got"):
        net(x, time, told([1.0, 0.5]))
    with pytest.raises(BadValue, match="for 2 rows"):
        net(x, time, {"side": torch.ones(3)})
    with pytest.raises(BadType, match="takes a configuration"):
        TwoSided(network=net)
    with pytest.raises(BadValue, match="of its own"):
        TwoSided(network=MLPConfig(shape=(4,), conditions={"side": cd.conditions.Scalar()}))
