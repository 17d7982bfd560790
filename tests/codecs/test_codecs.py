"""Codecs: both ways, statistics, references, warping."""

import pytest
import torch

import condiff as cd
from condiff import codecs
from condiff.codecs import Autoencoder, Identity, pad_to_multiple, warp
from condiff.errors import BadType, BadValue


class Haar(codecs.Codec):
    """An orthogonal codec of one's own: averages and differences of neighbours."""

    def __init__(self):
        super().__init__(2)

    def analysis(self, x, ref=None):
        return torch.stack([x[..., ::2] + x[..., 1::2], x[..., ::2] - x[..., 1::2]], 1).squeeze(2) / 2**0.5

    def synthesis(self, raw, side=None):
        pair = torch.stack([raw[:, 0] + raw[:, 1], raw[:, 0] - raw[:, 1]], -1) / 2**0.5
        return pair.flatten(1)[:, None]

    def latent_shape(self, shape):
        return (2, shape[-1] // 2)


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_identity_gives_back_what_it_got():
    x, codec = some(2, 3, 4, 4), Identity()
    assert torch.equal(codec(x), x)
    assert codec.latent_shape((3, 4, 4)) == (3, 4, 4)


def test_statistics_are_those_of_the_latents_and_cancel():
    codec, x = Haar(), 3.0 + 2.0 * some(512, 1, 8).double()
    plain = codec.encode(x)
    codec.standardise(x.split(100))
    z = codec.encode(x)
    by_channel = plain.movedim(1, 0).flatten(1)
    torch.testing.assert_close(codec.shift.double(), by_channel.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z.movedim(1, 0).flatten(1).std(1), torch.ones(2).double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codec.decode(z), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [[], [torch.ones(4, 1, 8)]], ids=["none", "constant"])
def test_statistics_of_nothing_are_refused(samples):
    with pytest.raises(BadValue, match=r"no samples|must be finite and vary"):
        Haar().standardise(samples)


@pytest.mark.parametrize("shape", [(2, 16), (3, 16, 8), (1, 8, 4, 8)], ids=["signal", "image", "volume"])
def test_an_autoencoder_has_the_shape_that_it_says(shape):
    codec = Autoencoder(shape=shape, channels=5, width=8, multipliers=(1, 2, 2))
    x = some(2, *shape)
    z = codec.encode(x)
    assert z.shape[1:] == codec.latent_shape(shape) == (5, *(n // 4 for n in shape[1:]))
    assert codec.decode(z).shape == x.shape


def test_an_autoencoder_starts_as_the_mean_of_its_references():
    codec, ref = Autoencoder(shape=(3, 8, 8), width=8, multipliers=(1, 2), references=2), some(2, 2, 3, 8, 8)
    torch.testing.assert_close(codec.decode(some(2, 4, 4, 4), ref), ref.mean(1))


def test_a_side_worked_out_once_decodes_the_same():
    codec, ref = trained_looking(references=2), some(2, 2, 3, 8, 8)
    z = some(2, 4, 4, 4)
    assert torch.equal(codec.decode(z, ref), codec.decode(z, side=codec.side(ref)))


def trained_looking(**fields):
    """Random weights everywhere, so that nothing is hidden by a layer that starts at 0."""
    codec = Autoencoder(shape=(3, 8, 8), width=8, multipliers=(1, 2), **fields)
    generator = torch.Generator().manual_seed(1)
    for parameter in codec.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return codec


def test_the_decoder_sees_the_references_and_the_latent():
    codec, ref, z = trained_looking(references=2), some(1, 2, 3, 8, 8), some(1, 4, 4, 4)
    out = codec.decode(z, ref)
    assert not torch.allclose(out, codec.decode(z, ref.flip(1)), atol=1e-3)
    assert not torch.allclose(out, codec.decode(z + 1.0, ref), atol=1e-3)


def test_the_decoder_sees_the_activations_of_the_references_at_every_level():
    codec, ref, z = trained_looking(references=2), some(1, 2, 3, 8, 8), some(1, 4, 4, 4)
    side, out = codec.side(ref), codec.decode(z, ref)
    for n in range(2):
        for level in range(2):
            features = [[h.clone() for h in levels] for levels in side.features]
            features[n][level] = torch.zeros_like(features[n][level])
            assert not torch.allclose(out, codec.decode(z, side=side._replace(features=features)), atol=1e-3)


def test_an_autoencoder_learns_to_use_its_references():
    """The middle of two frames that are the same is that frame, whatever the latent: learnt in a few steps."""
    codec = Autoencoder(shape=(1, 8, 8), channels=1, width=8, multipliers=(1, 2), references=2)
    optimizer = torch.optim.Adam(codec.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        x = some(16, 1, 8, 8, seed=step)
        ref = torch.stack([x + 1.0, torch.zeros_like(x)], 1)  # the second says nothing
        loss = (codec(x, ref) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_references_are_warped_by_a_given_flow():
    """A flow that brings a shifted reference back: the samples and the activations of one that wasn't shifted."""
    codec = trained_looking(references=2)
    ref = some(1, 2, 3, 8, 8)
    shifted = ref.roll(2, dims=-1)
    flow = torch.zeros(1, 2, 2, 8, 8)
    flow[:, :, 0] = 2.0
    codec.flow = lambda _: flow
    warped, still = codec.side(shifted), codec.side(ref)
    torch.testing.assert_close(warped.samples[0][..., :6], ref[:, 0, ..., :6], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        warped.features[0][0][..., 2:4, 2:4],
        codec.encoder.features(shifted[:, 0])[0][..., 2:4, 4:6],
        rtol=1e-4,
        atol=1e-4,
    )
    assert len(still.features[0]) == 2


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (6, 1)])
def test_no_flow_is_the_identity(size):
    x = some(2, 3, *size)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, *size)), x, rtol=1e-5, atol=1e-5)


def test_a_flow_of_whole_pixels_is_a_shift_and_of_another_size_is_resized():
    x = some(1, 2, 6, 8)
    right, down = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 3, 4)
    right[:, 0], down[:, 1] = 3.0, 1.0  # of a grid half as fine: two pixels
    torch.testing.assert_close(warp(x, right)[..., :5], x[..., 3:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warp(x, right)[..., 5:], x[..., -1:].expand(-1, -1, -1, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warp(x, down)[..., :4, :], x[..., 2:, :], rtol=1e-5, atol=1e-5)


def test_padding_reflects_and_says_how_to_crop():
    x = some(2, 3, 5, 7)
    padded, (h, w) = pad_to_multiple(x, 4)
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[..., :h, :w], x)
    torch.testing.assert_close(padded[..., 5, :7], x[..., 3, :])
    torch.testing.assert_close(pad_to_multiple(x[..., :1, :1], 4)[0], x[..., :1, :1].expand(-1, -1, 4, 4))
    assert pad_to_multiple(padded, 4)[0].shape == padded.shape


def test_configurations_are_stored_and_build_the_same_codec():
    codec = Autoencoder(shape=(3, 8, 8), width=8, multipliers=(1, 2), references=1)
    stored = cd.config.to_config(codec.config)
    assert cd.config.from_config(stored) == codec.config
    assert cd.config.from_config(stored).build().config == codec.config


def test_bad_input_is_refused():
    codec = Autoencoder(shape=(3, 8, 8), width=8, multipliers=(1, 2), references=2)
    z, ref = some(1, 4, 4, 4), some(1, 2, 3, 8, 8)
    with pytest.raises(BadValue, match="multiples of 2"):
        codec.encode(some(1, 3, 7, 8))
    with pytest.raises(BadValue, match="autoencoder of samples"):
        codec.encode(some(1, 1, 8, 8))
    with pytest.raises(BadType, match="floating point"):
        codec.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(BadValue, match="give ref= or side="):
        codec.decode(z)
    with pytest.raises(BadValue, match="not both"):
        codec.decode(z, ref, codec.side(ref))
    with pytest.raises(BadValue, match="references are"):
        codec.decode(z, ref[:, :1])
    with pytest.raises(BadValue, match="doesn't fit references"):
        codec.decode(some(1, 4, 2, 2), ref)
    with pytest.raises(BadValue, match="a flow warps"):
        Autoencoder(shape=(3, 8, 8), flow=lambda ref: ref)
    with pytest.raises(BadValue, match="is \\(B, 2, H, W\\)"):
        warp(some(1, 3, 8, 8), torch.zeros(1, 8, 8, 2))
    with pytest.raises(BadValue, match="at least 1"):
        Autoencoder(shape=(3, 8, 8), width=0)
