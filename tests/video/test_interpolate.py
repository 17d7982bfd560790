"""Frame interpolation: halving, both sides, padding, seeds, codecs, files, refusals."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import condiff as cd
from condiff.codecs import Autoencoder
from condiff.denoiser import Correction, Denoiser
from condiff.errors import BadFile, BadType, BadValue, Incompatible
from condiff.process import Bridge, Prediction
from condiff.sampling import DDIM, DDPM
from condiff.video import Interpolator, between, histogram_distance, interpolate_files, scene_cuts, write_frames


def smooth(*shape, seed=0):
    """Random pictures in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


class Mean:
    """Says that the middle is the mean of the frames, plus a bit that depends on the side."""

    def __init__(self, tilt=0.0):
        self.process, self.shape, self.tilt = Bridge.bbdm(), None, tilt
        self.kinds = {"frames": "frames", "side": "scalar"}
        self.rows = []

    def __call__(self, x_t, t, cond=None):
        side = cond["side"].value.reshape(-1, *(1,) * (x_t.ndim - 1))
        self.rows.append(len(x_t))
        x0 = cond["frames"].value.mean(1) + self.tilt * side
        return Prediction(x_t, self.process.at(t), {"x0": x0}, source=cond.source)


def net(shape=(3, 8, 8), **fields):
    """A small network that does something."""
    inner = cd.networks.UNetConfig(
        shape=shape,
        width=8,
        multipliers=(1, 2),
        layers=1,
        groups=4,
        conditions={"frames": cd.conditions.Frames(2, shape[0])},
    )
    network = cd.networks.TwoSided(network=inner)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return Denoiser(network, Bridge.bbdm(), "x0", Correction(), shape=shape)


def test_halving_puts_frames_evenly_between():
    """On a line, with the middle as the mean: 1, 3, 7 new frames evenly spaced, the given ones untouched."""
    frames = torch.tensor([[0.0], [8.0], [24.0]])
    made = between(frames, 3, lambda a, b, places: 0.5 * (a + b))
    torch.testing.assert_close(made[:, 0], torch.cat([torch.arange(0.0, 8.0), torch.arange(8.0, 25.0, 2.0)]))


def test_places_name_each_new_frame_by_its_pair():
    seen = []
    between(torch.zeros(3, 1), 2, lambda a, b, places: seen.append(places) or a)
    assert seen == [[(0, 0, 0), (1, 0, 0)], [(0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1)]]


def test_frames_in_between_and_their_order():
    a, b = smooth(2, 3, 8, 8)
    made = Interpolator(Mean())(a, b, n=3, steps=5)
    expected = torch.stack([0.75 * a + 0.25 * b, 0.5 * a + 0.5 * b, 0.25 * a + 0.75 * b])
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_the_sides_and_their_mean():
    a, b = smooth(2, 3, 8, 8)
    made = {side: Interpolator(Mean(tilt=0.1))(a, b, side=side, steps=5) for side in ("prev", "next", "mean")}
    torch.testing.assert_close(made["next"] - made["prev"], torch.full((1, 3, 8, 8), 0.2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["mean"], 0.5 * (made["prev"] + made["next"]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sampling_starts_at_the_side_and_follows_the_bridge():
    """The loop by hand, with the network at (1 + side t) / 2."""
    model, frames = net(), smooth(1, 2, 3, 8, 8)
    for side, place in (("prev", 0), ("next", 1)):
        got = Interpolator(model, solver=DDIM(0.0)).middle(frames[:, 0], frames[:, 1], side=side, steps=4)
        x = e = frames[:, place]
        sign = 2.0 * place - 1.0
        m = [0.001 + 0.998 * i / 999 for i in (999, 499, 1, 0)] + [0.0]
        for t, s in itertools.pairwise(m):
            told = {"frames": cd.Condition(frames, "frames")}
            out = model.network.network(x, torch.tensor([0.5 * (1.0 + sign * t)]), cd.Conditions(told))
            x0 = x - out
            ratio = ((s - s * s) / (t - t * t)) ** 0.5
            x = (1 - s) * x0 + s * e + ratio * (x - (1 - t) * x0 - t * e)
        torch.testing.assert_close(got, x.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_a_frame_depends_on_its_seed_and_place_only():
    model, frames = net(), smooth(4, 3, 8, 8)
    whole = Interpolator(model, batch=16, cut=None).clip(frames, 4, steps=3, seed=7)
    small = Interpolator(model, batch=2, cut=None).clip(frames, 4, steps=3, seed=7)
    first = Interpolator(model, batch=1, cut=None)(frames[0], frames[1], n=3, steps=3, seed=7)
    other = Interpolator(model, cut=None).clip(frames, 4, steps=3, seed=8)
    torch.testing.assert_close(whole, small, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[1:4], first, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[::4], frames)
    assert not torch.allclose(whole, other, atol=1e-2)
    assert whole.shape == (13, 3, 8, 8)


def test_every_new_frame_has_noise_of_its_own():
    maker, seen = Interpolator(Mean(), batch=2, cut=None), []
    inner = maker.middle
    maker.middle = lambda before, after, seeds, **options: seen.extend(seeds) or inner(before, after, **options)
    maker.clip(smooth(3, 3, 4, 4), 4, steps=3, seed=1)
    assert len(seen) == len(set(seen)) == 6


def test_gaps_are_filled_in_batches():
    model = Mean()
    Interpolator(model, batch=3, cut=None).clip(smooth(5, 3, 4, 4), 2, steps=3)
    assert set(model.rows) == {3, 1}


def test_any_size_through_a_codec_that_sees_the_neighbours():
    """Sides that the codec can't halve twice are padded and cropped; a fresh codec gives the mean of its references."""
    codec = Autoencoder(shape=(3, 16, 16), channels=3, width=8, multipliers=(1, 2, 2), references=2)
    a, b = smooth(2, 3, 10, 13)
    made = Interpolator(Mean(), codec)(a, b, steps=3)
    assert made.shape == (1, 3, 10, 13)
    torch.testing.assert_close(made[0], 0.5 * (a + b), rtol=1e-5, atol=1e-5)


def test_a_diffusers_autoencoder_is_a_codec():
    diffusers = pytest.importorskip("diffusers")
    from condiff.interop.vae import VAE

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    codec = VAE(vae)
    a, b = smooth(2, 3, 12, 15)
    made = Interpolator(Mean(), codec)(a, b, steps=3)
    with torch.no_grad():
        pad = lambda x: cd.codecs.pad_to_multiple(x[None], 2)[0]
        latent = 0.5 * (codec.encode(pad(a)) + codec.encode(pad(b)))
        expected = codec.decode(latent)[..., :12, :15].clamp(-1, 1)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_a_unet_takes_frames_of_another_size(tmp_path):
    maker = Interpolator(net())
    maker.save_pretrained(tmp_path)
    made = Interpolator.from_pretrained(tmp_path, "raw")(*smooth(2, 3, 12, 10), steps=3)
    assert made.shape == (1, 3, 12, 10)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    codec = Autoencoder(shape=(3, 16, 16), channels=3, width=8, multipliers=(1, 2), references=2)
    codec.standardise([smooth(8, 3, 16, 16)])
    maker = Interpolator(net(shape=(3, 8, 8)), codec)
    maker.save_pretrained(tmp_path)
    again = Interpolator.from_pretrained(tmp_path, "raw")
    frames = smooth(2, 3, 16, 16, seed=5)
    torch.testing.assert_close(again(*frames, steps=3), maker(*frames, steps=3))
    assert torch.equal(again.codec.scale, codec.scale)
    with pytest.raises(BadFile, match="does not describe a codec"):
        cd.model_files.load_codec(tmp_path)
    with pytest.raises(Incompatible, match="does not fit"):
        cd.model_files.load_codec(tmp_path / "codec", Autoencoder(shape=(3, 16, 16)))


def test_other_processes_and_solvers():
    """Ancestral steps don't read the endpoint; a model from noise is told the frames and starts at noise."""
    a, b = smooth(2, 3, 8, 8)
    made = Interpolator(Mean(), solver=DDPM())(a, b, steps=5)
    torch.testing.assert_close(made[0], 0.5 * (a + b), rtol=1e-5, atol=1e-5)

    class FromNoise(Mean):
        def __call__(self, x_t, t, cond=None):
            return Prediction(x_t, self.process.at(t), {"x0": cond["frames"].value.mean(1)})

    for schedule in (cd.process.Rectified(), cd.process.Discrete.ddpm()):
        model = FromNoise()
        model.process, model.kinds = cd.process.Gaussian(schedule), {"frames": "frames"}
        torch.testing.assert_close(Interpolator(model)(a, b, steps=5)[0], 0.5 * (a + b), rtol=1e-4, atol=1e-4)


# Scene cuts


def test_histogram_distances():
    a = smooth(1, 3, 16, 16)
    torch.testing.assert_close(histogram_distance(a, a.roll(3, -1)), torch.zeros(1), rtol=0, atol=1e-6)
    black, white = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)
    torch.testing.assert_close(histogram_distance(black, white), torch.ones(1))
    half = torch.cat([black, white], -1)
    torch.testing.assert_close(histogram_distance(half, torch.cat([black, black], -1)), torch.full((1,), 0.5))
    assert float(histogram_distance(a, a + 0.002)) < 0.05


def test_a_cut_is_warned_of():
    frames = torch.cat([torch.full((2, 3, 4, 4), -0.9), torch.full((2, 3, 4, 4), 0.9)])
    assert scene_cuts(frames) == [1]
    with pytest.warns(UserWarning, match="between the frames 1 and 2"):
        Interpolator(Mean()).clip(frames, 2, steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Interpolator(Mean(), cut=None).clip(frames, 2, steps=3)
        Interpolator(Mean()).clip(smooth(3, 3, 16, 16), 2, steps=3)


# Files


def test_from_pictures_to_a_folder_and_an_animation(tmp_path):
    Interpolator(net()).save_pretrained(tmp_path / "model")
    write_frames(smooth(3, 3, 8, 8), tmp_path / "clip")
    names = sorted(p.name for p in (tmp_path / "clip").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    options = {"steps": 3, "weights": "raw"}
    made = interpolate_files([tmp_path / "clip"], tmp_path / "model", tmp_path / "out", factor=4, **options)
    assert (made["given"], made["frames"]) == (3, 9)
    given, out = cd.data.read_frames(tmp_path / "clip"), cd.data.read_frames(tmp_path / "out")
    assert out.shape == (9, 3, 8, 8)
    assert torch.equal(out[::4], given)
    two = [tmp_path / "clip" / names[0], tmp_path / "clip" / names[1]]
    made = interpolate_files(two, tmp_path / "model", tmp_path / "two.gif", rate=10.0, **options)
    with Image.open(tmp_path / "two.gif") as animation:
        assert animation.n_frames == 3 and animation.info["duration"] == 100
    with pytest.raises(BadFile, match="exists already"):
        interpolate_files(two, tmp_path / "model", tmp_path / "two.gif", **options)
    with pytest.raises(BadValue, match="ends in"):
        interpolate_files(two, tmp_path / "model", tmp_path / "two.txt", **options)


def test_files_that_do_not_fit(tmp_path):
    Interpolator(net()).save_pretrained(tmp_path / "model")
    for name, size in (("a", 8), ("b", 9)):
        Image.fromarray(np.zeros((size, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
    two = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(BadValue, match="different sizes"):
        interpolate_files(two, tmp_path / "model", tmp_path / "out", weights="raw")
    with pytest.raises(BadFile, match="no such file"):
        interpolate_files([two[0], tmp_path / "c.png"], tmp_path / "model", tmp_path / "out", weights="raw")
    with pytest.raises(BadValue, match="at least two frames"):
        interpolate_files(two[:1], tmp_path / "model", tmp_path / "out", weights="raw")
    assert not (tmp_path / "out").exists()


# Refusals


def test_bad_frames_are_refused():
    maker, a = Interpolator(Mean()), smooth(3, 8, 8)
    with pytest.raises(BadValue, match="must have one shape"):
        maker(a, smooth(3, 8, 9))
    with pytest.raises(BadValue, match="must have one shape"):
        maker(a, smooth(1, 8, 8))
    with pytest.raises(BadType, match="floats of one dtype"):
        maker(a, a.double())
    with pytest.raises(BadType, match="floats of one dtype"):
        maker((a * 100).byte(), (a * 100).byte())
    with pytest.raises(BadValue, match=r"lie in \[-1, 1\], frame 1"):
        maker(a, a + 2.0)
    with pytest.raises(BadValue, match="lie in"):
        maker(a, a * float("nan"))
    with pytest.raises(BadValue, match="at least two frames, got 1"):
        maker.clip(a[None])


@pytest.mark.parametrize("n", [0, 2, 4, 5, 6])
def test_numbers_of_frames_that_no_halving_gives_are_refused(n):
    with pytest.raises(BadValue, match="the factor is 2, 4, 8"):
        Interpolator(Mean())(*smooth(2, 3, 8, 8), n=n)


def test_bad_options_are_refused():
    a, b = smooth(2, 3, 8, 8)
    with pytest.raises(BadValue, match="needs 3 to 1000 steps"):
        Interpolator(Mean())(a, b, steps=2)
    with pytest.raises(BadValue, match=r"lies in \[0, 1\], got 1.5"):
        Interpolator(Mean(), solver=DDIM(eta=1.5))
    with pytest.raises(BadValue, match="eta"):
        Interpolator(Mean(), solver=DDIM(eta=-0.1))
    with pytest.raises(BadValue, match="unknown side 'nxt'"):
        Interpolator(Mean())(a, b, side="nxt")
    with pytest.raises(BadType, match="factor must be an integer"):
        Interpolator(Mean()).clip(torch.stack([a, b]), 2.0)
    with pytest.raises(BadValue, match="batch"):
        Interpolator(Mean(), batch=0)
    with pytest.raises(BadValue, match="threshold"):
        scene_cuts(torch.stack([a, b]), 0.0)
    model = Mean()
    model.kinds = {"label": "label"}
    with pytest.raises(Incompatible, match="train on triplets"):
        Interpolator(model)


def test_on_an_accelerator():
    """Nothing mixes devices, in the network, the codec, the bridge or the warping."""
    from pretend import Pretend, here

    codec = Autoencoder(shape=(3, 8, 8), channels=3, width=8, multipliers=(1, 2), references=2)
    codec.flow = lambda ref: torch.ones_like(ref[:, :, :2])
    frames = smooth(3, 3, 16, 16)
    for maker in (Interpolator(net(), codec, batch=2, cut=None), Interpolator(net(shape=(3, 16, 16)), cut=None)):
        expected = maker.clip(frames, 2, steps=3, side="mean", seed=1)
        with Pretend():
            maker.denoiser.to("meta"), maker.codec.to("meta")
            got = maker.clip(frames.to("meta"), 2, steps=3, side="mean", seed=1)
        torch.testing.assert_close(here(got), expected, rtol=1e-5, atol=1e-5)
