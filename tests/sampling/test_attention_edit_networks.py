"""Attention control of our own networks: a DiT and a UNet that attend to the tokens of a text."""

import pytest
import torch
from pretend import Pretend

import condiff as cd
from condiff.conditions.alignment import refined
from condiff.errors import Incompatible
from condiff.sampling import DDIM, AttentionEdit, LocalBlend

LENGTH = 6
SOURCE, TARGET = [1, 2, 3, 4, 0, 0], [1, 2, 5, 3, 4, 0]


def randomised(net):
    rng = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return net.double().eval()


def make(name, **options):
    told = {"text": cd.conditions.Tokens(vocab=8, length=LENGTH)}
    if name == "dit":
        return cd.networks.DiT(shape=(2, 8, 8), width=16, depth=2, heads=2, patch=2, conditions=told, **options)
    return cd.networks.UNet(
        shape=(2, 8, 8),
        width=8,
        multipliers=(1, 2),
        layers=1,
        head_width=4,
        attention_levels=(1,),
        conditions=told,
        **options,
    )


def model(net):
    process = cd.process.Gaussian(cd.process.Discrete.stable_diffusion())
    return cd.Denoiser(randomised(net), process, target="noise", shape=(2, 8, 8))


@pytest.fixture(scope="module", params=["dit", "unet"])
def denoiser(request):
    return model(make(request.param))


def edit_of(source, target, **options):
    ends = [tokens.index(0) if 0 in tokens else LENGTH for tokens in (source, target)]
    matrix, heard = refined(source[: ends[0]], target[: ends[1]], LENGTH)
    return AttentionEdit(matrix[None, None], heard[None, None], **options)


def sampled(denoiser, tokens, edit=None, scale=3.0):
    start = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    how = {"cond": {"text": torch.tensor(tokens)}, "solver": DDIM(), "steps": 4, "grid": cd.sampling.Spaced("leading")}
    guided = cd.guidance.Free(denoiser, scale=scale)
    if edit is None:
        return cd.sample(guided, initial=start.repeat(len(tokens), 1, 1, 1), **how)
    with edit.on(guided):
        return cd.sample(guided, initial=start.repeat(len(tokens), 1, 1, 1), hooks=[edit], **how)


def test_the_same_text_is_an_identity_and_a_share_of_none_nothing(denoiser):
    words = torch.tensor([[True, *[False] * 5]])
    same = edit_of(SOURCE, SOURCE, cross=1.0, own=1.0, blend=LocalBlend(words, words[None]))
    out = sampled(denoiser, [SOURCE, SOURCE], same)
    torch.testing.assert_close(out[0], out[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, sampled(denoiser, [SOURCE, SOURCE]), rtol=1e-10, atol=1e-10)
    none = edit_of(SOURCE, TARGET, cross=0.0, own=0.0, keep=True)
    assert torch.equal(sampled(denoiser, [SOURCE, TARGET], none), sampled(denoiser, [SOURCE, TARGET]))
    torch.testing.assert_close(none.control.maps(16).sum(-1), torch.ones(2, 16))


def test_control_brings_a_target_nearer_to_its_source(denoiser):
    plain = sampled(denoiser, [SOURCE, TARGET])
    shares = (0.0, 0.5, 1.0)
    made = [sampled(denoiser, [SOURCE, TARGET], edit_of(SOURCE, TARGET, cross=s, own=s)) for s in shares]
    gaps = [float((x[1] - x[0]).square().mean()) for x in made]
    assert torch.equal(made[0], plain) and len(set(gaps)) == 3
    for x in made:
        torch.testing.assert_close(x[0], plain[0], rtol=1e-10, atol=1e-10)


def test_attentions_are_restored_after_an_error(denoiser):
    edit = edit_of(SOURCE, TARGET)
    with pytest.raises(RuntimeError, match="stop"), edit.on(denoiser):
        raise RuntimeError("stop")
    assert not any("attend" in vars(part) for part in denoiser.network.modules())
    with edit.on(denoiser), pytest.raises(Incompatible, match="already"), edit_of(SOURCE, TARGET).on(denoiser):
        pass


def test_on_an_accelerator_nothing_mixes_devices_and_no_layer_waits():
    words = torch.tensor([[False, True, *[False] * 4]])
    edit = edit_of(SOURCE, TARGET, blend=LocalBlend(words, words[None]), weights=torch.full((1, 1, LENGTH), 2.0))
    kernel = lambda q, k, v, mask: torch.softmax(q.flatten(2) @ k.flatten(2).mT, -1) @ v.flatten(2)
    with edit.control.over(1):
        edit.begin(2)
        edit.at(0, 5)
        with Pretend() as device:
            q, k, v, x = (
                torch.linspace(-1, 1, 96).reshape(shape).to("meta")
                for shape in ((4, 4, 2, 3), *[(4, 6, 2, 2)] * 2, (6, 1, 4, 4))
            )
            k = torch.cat([k, k[..., :1]], -1)
            for cross, keys in ((True, k), (False, q)):
                out = edit.control.attend(q, keys, v if cross else q, None, kernel, cross)
            out = edit.blended(x[:2], 4, 5)
    assert out.raw.isfinite().all() and not device.reads and edit.control.nbytes


def test_networks_without_words_are_refused():
    edit = edit_of(SOURCE, TARGET)
    label = {"label": cd.conditions.Label(3)}
    bare = cd.networks.DiT(shape=(2, 8, 8), width=16, depth=1, heads=2, patch=2, conditions=label)
    mlp = cd.networks.MLP(shape=(2,), width=8, depth=1)
    for net, said in (
        (bare, "attends to no condition"),
        (make("dit", tokens="joint"), "tokens='joint' can't be controlled"),
        (mlp, "attention of MLP can't be controlled"),
    ):
        with pytest.raises(Incompatible, match=said), edit.on(net):
            pass
    paired = make("dit")
    cd.networks.add_pair(paired, "pair", rank=2)
    with pytest.raises(Incompatible, match="controlled or paired already"), edit.on(paired):
        pass
