"""Every network: shapes, rows, starts, walks, configurations, precision, compilation, refusals."""

import json

import pytest
import torch
from nets import BUILD, inputs, make, stir

from condiff.conditions import Conditions, Label, Tokens
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue
from condiff.networks import MLP, DiT, DiTConfig, MLPConfig, Network, UNet, UNetConfig

EVERY = pytest.mark.parametrize("name", list(BUILD))


@EVERY
def test_output_has_the_samples_shape_and_all_weights_learn(name):
    net = make(name)
    x, t, cond = inputs(net)
    cond = Conditions({n: c for n, c in cond.items()}).map(lambda v: v)
    keep = torch.tensor([True, False, True])
    for n in cond:
        cond = cond.keeping(n, keep)
    out = net(x, t, cond)
    assert out.shape == x.shape
    out.square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []


@EVERY
def test_targets_lie_side_by_side_and_the_variance_is_aux(name):
    net = make(name, outputs=2, learned_variance=True)
    x, t, cond = inputs(net)
    out, aux = net(x, t, cond)
    assert out.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    assert aux["variance"].shape == x.shape
    first, second = out.chunk(2, dim=1)
    assert not torch.equal(first, second)


def test_each_target_is_what_its_own_rows_of_the_output_layer_say():
    one, two = make("dit-video"), make("dit-video", outputs=2)
    volume = 4  # of a patch
    state = {k: v for k, v in one.state_dict().items() if not k.startswith("output")}
    two.load_state_dict(state, strict=False)
    with torch.no_grad():
        for k in ("weight", "bias"):
            getattr(one.output, k).copy_(getattr(two.output, k)[2 * volume :])
    x, t, cond = inputs(one)
    torch.testing.assert_close(two(x, t, cond).chunk(2, dim=1)[1], one(x, t, cond))


@EVERY
def test_rows_do_not_see_their_neighbours(name):
    net = make(name).double()
    x, t, cond = inputs(net, batch=4, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], cond.rows(slice(i, i + 1))) for i in range(4)])
    torch.testing.assert_close(net(x, t, cond), alone, rtol=1e-10, atol=1e-10)


@EVERY
def test_a_fresh_network_says_zero(name):
    net = BUILD[name]()
    assert net(*inputs(net)).abs().max() == 0


@pytest.mark.parametrize("name", ["dit-image", "dit-cross", "mlp"])
def test_fresh_blocks_are_the_identity(name):
    net = BUILD[name]()
    x, t, cond = inputs(net)
    start = net.begin(x, t, cond).x.clone()
    for _, hidden in net.blocks(x, t, cond):
        torch.testing.assert_close(hidden.x, start, rtol=0, atol=0)


@EVERY
def test_the_walk_is_the_forward(name):
    net = make(name)
    args = inputs(net)
    walked = list(net.blocks(*args))
    assert torch.equal(net.head(walked[-1][1]), net(*args))
    names = [where for where, _ in walked]
    assert all(net.get_submodule(where) is not None for where in names)
    assert names == [n for n, _ in net.layers()]


def test_the_walk_can_be_changed_and_left():
    net = make("dit-image")
    args = inputs(net)
    outputs = []
    for _, hidden in net.blocks(*args):
        outputs.append(net.head(hidden))  # an early exit
        hidden.x = torch.zeros_like(hidden.x)
    assert len(outputs) == 2 and not torch.equal(outputs[0], outputs[1])
    zero = net.head(hidden)
    assert torch.equal(zero[..., :2, :2], zero[..., 2:, 2:4])  # every token is the same


def test_a_unets_head_reads_only_its_last_level():
    net = make("unet-image")
    walk = net.blocks(*inputs(net))
    for where, hidden in walk:
        if where == "middle.0":
            with pytest.raises(BadValue, match="last level"):
                net.head(hidden)


@EVERY
def test_configurations_round_trip(name):
    net = BUILD[name]()
    assert isinstance(net, Network)
    stored = json.loads(json.dumps(to_config(net.config)))
    again = from_config(stored).build()
    assert again.config == net.config
    again.load_state_dict(net.state_dict())
    assert net.condition_kinds == {n: s.kind for n, s in net.config.conditions.items()}


@EVERY
def test_bfloat16_autocast_and_recomputation(name):
    net = make(name)
    args = inputs(net)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(*args).float()
    exact = net(*args)
    assert (low - exact).norm() < 0.05 * exact.norm()
    exact.square().sum().backward()
    wanted = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    again = make(name, checkpoint=True).train()
    again.load_state_dict(net.state_dict())
    again(*args).square().sum().backward()
    got = [p.grad for p in again.parameters() if p.grad is not None]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["mlp", "dit-image", "dit-joint", "dit-video", "unet-image"])
def test_compiles_without_a_graph_break(name):
    net = make(name)
    x, t, cond = inputs(net)
    cond = cond.keeping("label", torch.tensor([True, False, True]))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, cond), net(x, t, cond))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["dit-video", "unet-video", "dit-series"])
def test_a_constant_time_per_frame_is_one_time(name):
    net = make(name).double()
    x, t, cond = inputs(net, dtype=torch.float64)
    frames = x.shape[1]
    same = net(x, t[:, None].repeat(1, frames), cond)
    torch.testing.assert_close(same, net(x, t, cond), rtol=1e-10, atol=1e-10)
    other = t[:, None].repeat(1, frames).index_fill(1, torch.tensor([1]), 0.9)
    assert not torch.allclose(net(x, other, cond), same)


def test_a_constant_time_per_token_is_one_time():
    net = make("dit-image").double()
    x, t, cond = inputs(net, dtype=torch.float64)
    same = net(x, t[:, None].repeat(1, 6), cond)
    torch.testing.assert_close(same, net(x, t, cond), rtol=1e-10, atol=1e-10)


def test_time_reaches_only_its_frame_before_tokens_mix():
    """With attention shut off by a mask, a frame's output depends on its own time alone."""
    net = make("dit-video").double()
    x, t, cond = inputs(net, dtype=torch.float64)
    times = t[:, None].repeat(1, 3)
    tokens = torch.arange(12) // 4
    own = tokens[:, None] == tokens[None, :]
    base = net(x, times, cond, mask=own)
    times[:, 2] = 0.5
    moved = net(x, times, cond, mask=own)
    torch.testing.assert_close(moved[:, :2], base[:, :2], rtol=0, atol=0)
    assert not torch.allclose(moved[:, 2], base[:, 2])


def test_other_sizes():
    dit = make("dit-image")
    assert dit(torch.randn(2, 2, 8, 8), torch.rand(2)).shape == (2, 2, 8, 8)
    unet = make("unet-image")
    assert unet(torch.randn(2, 1, 11, 7), torch.rand(2)).shape == (2, 1, 11, 7)
    with pytest.raises(BadValue, match="don't divide"):
        dit(torch.randn(2, 2, 5, 6), torch.rand(2))


def test_channels_last_changes_nothing_but_memory():
    one, two = make("unet-image", channels_last=False), make("unet-image")
    two.load_state_dict(one.state_dict())
    args = inputs(one)
    torch.testing.assert_close(one(*args), two(*args), rtol=1e-4, atol=1e-4)
    assert two.input.weight.is_contiguous(memory_format=torch.channels_last)


def test_equal_parameters_with_diffusers_unet():
    import diffusers

    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=11,
    )
    ours = UNet(shape=(3, 8, 8), width=32, multipliers=(1, 2), attention_levels=(1,), conditions={"label": Label(10)})
    # diffusers leaves out the group norm before the middle attention under scale_shift
    assert count(ours) == count(theirs) + ours.middle[0].attention.norm.weight.numel() * 2


def test_equal_parameters_with_diffusers_dit():
    import diffusers

    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=3, num_layers=3, sample_size=8, num_embeds_ada_norm=10
    )
    ours = DiT(shape=(3, 8, 8), width=32, depth=3, heads=2, conditions={"label": Label(10)})
    per_block = count(ours.time) + count(ours.bank)  # there each block embeds time and label anew
    assert count(ours) + 2 * per_block == count(theirs)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_bad_inputs_are_refused_at_the_door():
    net = make("dit-image")
    x, t, _ = inputs(net)
    for state, time, said in [
        (x[:, :1], t, "came to a network of image samples"),
        (x[0], t, "came to a network of image samples"),
        (x, t[:2], "one entry per row"),
        (x, t[:, None, None].expand(3, 6, 1), "times of image samples"),
        (x, t[:, None].expand(3, 5), "times of"),
    ]:
        with pytest.raises(BadValue, match=said):
            net(state, time)
    with pytest.raises(BadType, match="floats"):
        net(x, torch.zeros(3, dtype=torch.long))
    with pytest.raises(BadValue, match="positions of shape"):
        net(x, t, positions=torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: DiT(shape=(1, 8, 8), width=10, heads=4), "divide the width"),
        (lambda: DiT(shape=(1, 7, 8)), "don't divide"),
        (lambda: DiT(shape=(1, 8, 8), positions="sinus"), "Did you mean 'sincos'"),
        (lambda: DiT(shape=(1, 8, 8), tokens="join"), "Did you mean 'joint'"),
        (lambda: DiT(shape=(8,)), "use an MLP"),
        (lambda: DiT(shape=(1, 8, 8), layout="video"), "video samples have 4 axes"),
        (lambda: DiT(shape=(1, 8, 8), depth=0), "must be positive"),
        (lambda: UNet(shape=(1, 8, 8), attention_levels=(3,)), "levels are 0"),
        (lambda: UNet(shape=(1, 8, 8), strides=(2,)), "3 levels have 2 transitions"),
        (lambda: UNet(shape=(1, 8, 8), strides=(2, (2, 2, 2))), "one for each of 2 axes"),
        (lambda: UNet(shape=(1, 8, 8), width=40, head_width=32), "don't fill a level"),
        (lambda: UNet(shape=(1, 8, 8), skip="concatenate"), "Did you mean 'concat'"),
        (lambda: MLP(shape=(2,), depth=0), "at least 1"),
        (lambda: MLP(shape=(2,), conditions={"text": Tokens(4)}), "takes no tokens"),
    ],
)
def test_bad_configurations_are_refused(build, said):
    with pytest.raises(BadValue, match=said):
        build()


def test_configuration_or_fields():
    assert DiT(DiTConfig(shape=(1, 4, 4), width=8)).config == DiT(shape=(1, 4, 4), width=8).config
    with pytest.raises(BadType, match="either a DiTConfig or its fields"):
        DiT(DiTConfig(shape=(1, 4, 4)), width=8)
    with pytest.raises(BadType, match="either"):
        UNet(MLPConfig(shape=(2,)))
    assert UNetConfig(shape=[1, 4, 4], strides=[[2, 1], 2]).strides == ((2, 1), 2)


def test_a_layers_feed_forward_can_be_another_module():
    class Twice(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc, self.aux = torch.nn.Linear(width, width), {}

        def forward(self, x):
            self.aux = {"balance": x.square().mean()}
            return self.fc(x)

    config = DiTConfig(shape=(1, 4, 4), width=16, depth=3, heads=2)
    net = stir(config.build(feed_forward=lambda i, width, hidden: Twice(width) if i == 1 else None))
    out, aux = net(torch.randn(2, 1, 4, 4), torch.rand(2))
    assert out.shape == (2, 1, 4, 4) and list(aux) == ["stack.1.balance"]
    assert isinstance(net.stack[1].feed_forward, Twice) and not isinstance(net.stack[0].feed_forward, Twice)
