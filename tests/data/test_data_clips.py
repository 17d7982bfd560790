"""Clips from folders of frames, animated pictures and video files; moments of data in a file."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from condiff.data import Clips, DataMoments, Framing, TensorData, clips, video
from condiff.data.clips import Window
from condiff.data.video_files import Footage, footage
from condiff.errors import BadFile, BadType, BadValue, Incompatible, MissingExtra
from condiff.files import write_tensors
from condiff.process import EDM, Cosine, Discrete, Gaussian, Moments, Rectified
from condiff.random import as_source

F64 = torch.float64


def picture(value, size=(6, 8)):
    return Image.fromarray(np.full((*size, 3), value, dtype=np.uint8))


def folder_of_frames(path, values, size=(6, 8)):
    path.mkdir(parents=True)
    for i, value in enumerate(values):
        picture(value, size).save(path / f"frame{i + 1}.png")


def level(x):
    """The grey level (0 to 255) of each frame."""
    return ((x.mean(dim=tuple(range(1, x.ndim))) + 1.0) * 127.5).round().int().tolist()


@pytest.fixture
def root(tmp_path):
    folder_of_frames(tmp_path / "a", range(0, 120, 10))  # frame10 comes after frame9, not after frame1
    folder_of_frames(tmp_path / "deep" / "b", range(100, 112))
    frames = [picture(v) for v in range(0, 240, 20)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    (tmp_path / "notes.txt").write_text("no clip")
    return tmp_path


def test_folders_and_animations_are_clips_in_order(root):
    data = clips(root, 4)
    assert len(data) == 3 and data.shape == (4, 3, 6, 8) and data.kinds == {}
    x = data.batch([0, 1, 2])["x"]
    assert x.dtype == torch.float32 and x.shape == (3, 4, 3, 6, 8)
    assert [level(clip) for clip in x] == [[0, 10, 20, 30], [0, 20, 40, 60], [100, 101, 102, 103]]
    assert "1 other files" in data.describe() and "clips of 4 frames" in data.describe()


def test_stride_hop_and_rate(root):
    assert level(clips(root, 3, stride=4)[0]["x"]) == [0, 40, 80]
    hopped = clips(root, 4, hop=4)
    assert len(hopped) == 9 and level(hopped[1]["x"]) == [40, 50, 60, 70]
    (root / "c.gif").rename(root.parent / "c.gif")
    alone = root.parent / "only"
    alone.mkdir()
    (root.parent / "c.gif").rename(alone / "c.gif")
    assert footage(alone / "c.gif").rate == pytest.approx(10.0)
    assert level(clips(alone, 4, fps=5.0)[0]["x"]) == [0, 40, 80, 120]
    with pytest.raises(BadValue, match="frames would repeat"):
        clips(alone, 4, fps=20.0)
    with pytest.raises(BadValue, match="doesn't say how many frames"):
        clips(root, 4, fps=5.0)


@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"stride": 4}])
def test_no_frame_of_a_recording_is_in_two_clips(tmp_path, how):
    """Else what is held out of one recording would have been trained on."""
    for i in range(40):
        picture(i).save(tmp_path / f"frame{i:02d}.png")
    data = video(tmp_path, frames=4, given=1, **how)
    seen = [i for window in data.windows for i in window.indices]
    assert len(set(seen)) == len(seen) and len(data) == 40 // (4 * how.get("stride", 1))


def test_one_size_for_all(root):
    folder_of_frames(root / "large", range(12), size=(12, 16))
    with pytest.raises(BadValue, match="2 sizes"):
        clips(root, 4)
    data = clips(root, 4, size=(3, 4), channels=1)
    assert data.shape == (4, 1, 3, 4) and data.batch(range(4))["x"].shape == (4, 4, 1, 3, 4)


def test_what_cannot_be_used_is_named(root):
    folder_of_frames(root / "short", range(2))
    with pytest.raises(BadFile, match=r"(?s)1 of 4 clips.*skip_bad=True.*short: 2 frames, and 4 are needed"):
        clips(root, 4)
    data = clips(root, 4, skip_bad=True)
    assert len(data) == 3 and any(r.name == "short" for r in data.refused)
    (root / "a" / "frame2.png").write_bytes(b"nothing")
    with pytest.raises(BadFile, match="frame2"):
        clips(root, 4, skip_bad=True).batch([0])


def test_frames_of_two_sizes_in_one_clip(root):
    picture(5, (5, 5)).save(root / "a" / "frame3.png")
    with pytest.raises(BadFile, match="several sizes"):
        clips(root, 4, size=6).batch([0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": 0}, BadValue, "frames must be at least 1"),
        ({"frames": 2.0}, BadType, "frames must be an integer"),
        ({"frames": 2, "stride": 0}, BadValue, "stride"),
        ({"frames": 2, "hop": True}, BadType, "hop"),
        ({"frames": 2, "stride": 2, "fps": 5.0}, BadValue, "stride=, or fps="),
        ({"frames": 2, "crop": "random"}, BadValue, "random crops"),
    ],
)
def test_bad_options(root, options, error, message):
    with pytest.raises(error, match=message):
        clips(root, **options)


def test_nothing_to_read(tmp_path):
    with pytest.raises(BadFile, match="no such folder"):
        clips(tmp_path / "nowhere", 2)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(BadFile, match="no clips in"):
        clips(tmp_path, 2)


def test_a_video_file_without_a_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    for module in ("av", "imageio", "imageio.v3"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match="pip install av"):
        clips(tmp_path, 2)


def test_a_video_file_is_decoded(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is optional: it reads video files")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for value in range(0, 200, 10):
            frame = av.VideoFrame.from_image(picture(value, (48, 64)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert footage(path).count == 20 and footage(path).rate == pytest.approx(10.0)
    got = level(clips(tmp_path, 4, fps=5.0)[0]["x"])
    assert max(abs(a - b) for a, b in zip(got, [0, 20, 40, 60], strict=True)) <= 3
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadFile, match=r"a\.mp4"):
        clips(tmp_path, 4)


def test_the_fingerprint_is_the_pixels(root):
    first = clips(root, 4).fingerprint()
    assert clips(root, 4, cache=0).fingerprint() == first
    picture(7).save(root / "a" / "frame2.png")
    assert clips(root, 4).fingerprint() != first


def test_the_fingerprint_of_what_is_in_memory_decodes_nothing(root, monkeypatch):
    data = clips(root, frames=2, size=8)
    before = clips(root, frames=2, size=8).fingerprint()
    data.batch(range(len(data)))
    left = data._budget
    monkeypatch.setattr(data, "_decode", lambda i: pytest.fail("decoded again"))
    assert data.fingerprint() == before and data._budget == left


def test_clips_need_a_framing_that_repeats():
    window = Window(Footage(None, 3), (0, 1))
    for framing in (Framing(), Framing(size=(2, 2), channels=3, flip=True)):
        with pytest.raises(BadValue, match="neither flips"):
            Clips([window], framing)


# Moments


def test_streamed_moments_are_those_of_two_passes():
    x = 3.0 + torch.rand(101, 4, 3, 2) * torch.linspace(0.1, 4.0, 24).reshape(4, 3, 2)
    got = DataMoments.of(TensorData(x, range="keep"), batch=7)
    mean = x.double().mean(0)
    var = (x.double() - mean).square().mean()
    torch.testing.assert_close(got.mean, mean, rtol=1e-10, atol=0)
    assert got.var == pytest.approx(float(var), rel=1e-10) and got.count == 101
    encoded = DataMoments.of(TensorData(x, range="keep"), encode=lambda v: 0.5 * v[:, :2], batch=7)
    torch.testing.assert_close(encoded.mean, 0.5 * mean[:2], rtol=1e-6, atol=0)


def test_a_late_start_has_the_moments_of_the_marginal():
    """Those of x_M, to Monte-Carlo error, on a variance-preserving, an exploding and a straight path."""
    n, x0 = 40_000, torch.tensor([[1.0, -2.0], [2.0, 0.0], [0.0, 0.5]], dtype=F64)
    stats = DataMoments.of(TensorData(x0, range="keep"))
    data = x0[as_source(1).integers(3, (n,))]
    for process, t in (
        (Gaussian(Discrete.stable_diffusion()), 0.7),
        (Gaussian(EDM()), 0.5),
        (Gaussian(Rectified()), 0.9),
    ):
        true = process.forward(data, t, rng=2).x_t
        level = process.at(t)
        made = stats.prior().sample(level, (n, 2), as_source(3), dtype=F64)
        scale = float(true.std())
        assert float((made.mean(0) - true.mean(0)).abs().max()) < 6.0 * scale / n**0.5
        spread = [(v - v.mean(0)).square().mean() for v in (made, true)]
        assert float(spread[0] / spread[1]) == pytest.approx(1.0, abs=0.03)


def test_moments_survive_their_file(tmp_path):
    stats = DataMoments(mean=torch.randn(3, 2, 4, 4), var=0.7, count=12)
    stats.save(tmp_path / "stats.safetensors", fps=3)
    again = DataMoments.load(tmp_path / "stats.safetensors")
    assert torch.equal(again.mean, stats.mean) and (again.var, again.count, again.scale) == (0.7, 12, 1.0)


def test_released_layouts():
    mean = torch.randn(1, 4, 5, 2, 3)  # (1, C, F, H, W)
    crafter = DataMoments.released({"Expectation_X0": mean, "Tr_Cov_d": torch.tensor(0.9)})
    assert crafter.mean.shape == (5, 4, 2, 3) and crafter.var == pytest.approx(0.9)
    torch.testing.assert_close(crafter.mean[2, 3], mean[0, 3, 2].double())
    svd = DataMoments.released({"Expectation_x_0": mean[0].movedim(1, 0), "trCov_d": torch.tensor([0.9])})
    assert torch.equal(svd.mean, crafter.mean)


def test_released_files(tmp_path):
    tensors = {"Expectation_x_0": torch.randn(5, 4, 2, 3), "trCov_d": torch.tensor(0.3)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    np.savez(tmp_path / "a.npz", **{k: v.numpy() for k, v in tensors.items()})
    for name in ("a.safetensors", "a.npz"):
        torch.testing.assert_close(DataMoments.load(tmp_path / name).mean, tensors["Expectation_x_0"].double())
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(BadFile, match="is a pickle"):
        DataMoments.load(tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", mean=np.array([object()]))
    with pytest.raises(BadFile, match=r"b\.npz"):
        DataMoments.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"mean": torch.zeros(2), "var": torch.tensor(-1.0)}, BadValue, "variance of statistics"),
        ({"mean": torch.zeros(2), "var": torch.tensor(torch.nan)}, BadValue, "variance of statistics"),
        ({"mean": torch.tensor([0.0, torch.nan]), "var": torch.tensor(1.0)}, BadValue, "NaN"),
        ({"mean": torch.zeros(2, dtype=torch.long), "var": torch.tensor(1.0)}, BadType, "floats"),
        ({"mean": torch.zeros(2), "var": torch.zeros(2)}, BadFile, "one number"),
        ({"other": torch.zeros(2)}, BadFile, "hold other, not mean/var or Expectation_X0"),
        ({"Expectation_X0": torch.zeros(2, 3), "Tr_Cov_d": torch.tensor(1.0)}, BadFile, "5 axes"),
    ],
)
def test_statistics_that_cannot_be(tmp_path, tensors, error, message):
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(error, match=message):
        DataMoments.load(tmp_path / "a.safetensors")


def test_moments_of_one_sample_are_refused():
    with pytest.raises(BadValue, match="at least two"):
        DataMoments.of(TensorData(torch.zeros(1, 3)))


def test_moments_of_a_multiple_of_the_data_are_not_taken_for_the_datas():
    level = DataMoments(mean=torch.ones(3), var=0.5, scale=0.07)  # alpha_M x0 of some level
    with pytest.raises(Incompatible, match=r"moments of 0\.07 x0"):
        level.prior()
    with pytest.raises(Incompatible, match=r"moments of 0\.07 x0"):
        level.start(2, 1.0, 0)
    shrunk = DataMoments(mean=torch.ones(3), var=0.5).prior(data_scale=0.7)
    assert float(shrunk.mean[0]) == pytest.approx(0.7) and shrunk.var == pytest.approx(0.49 * 0.5)


def test_another_shape_than_the_latents_is_refused():
    prior = DataMoments(mean=torch.zeros(4, 3, 1, 1), var=0.5).prior()
    level = Gaussian(Cosine()).at(0.9)
    with pytest.raises(BadValue, match="doesn't fit a state"):  # it would broadcast
        prior.sample(level, (2, 4, 3, 8, 8), as_source(0))
    with pytest.raises(BadValue, match="doesn't fit a state"):
        prior.log_prob(torch.zeros(2, 4, 3, 8, 8), level)
    with pytest.raises(BadValue, match="NaN"):
        Moments(mean=torch.tensor([torch.nan]))
