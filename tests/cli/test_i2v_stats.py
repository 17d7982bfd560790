"""``condiff i2v-stats`` and a late start of ``condiff sample``, from the terminal."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import run

from condiff.data import DataMoments, digits


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clips" / name / f"{i}.png")
    return tmp_path / "clips"


def test_statistics_of_a_folder(capsys, folder, tmp_path):
    out = tmp_path / "stats.safetensors"
    said = run(capsys, "i2v-stats", folder, "--frames", 4, "--out", out)
    assert "3 samples of shape (4, 3, 16, 24)" in said.out and str(out) in said.out
    stats = DataMoments.load(out)
    x = np.stack(
        [np.stack([np.asarray(Image.open(folder / n / f"{i}.png")) for i in range(4)]) for n in ("a", "b", "c")]
    )
    x = torch.from_numpy(x).double().movedim(-1, 2) / 127.5 - 1.0
    torch.testing.assert_close(stats.mean, x.mean(0), rtol=0, atol=1e-6)
    assert stats.var == pytest.approx(float((x - x.mean(0)).square().mean()), rel=1e-6) and stats.count == 3


def test_json_size_and_hop(capsys, folder, tmp_path):
    out = tmp_path / "s.safetensors"
    said = run(capsys, "i2v-stats", folder, "--frames", 3, "--hop", 3, "--size", 8, 12, "--out", out, "--json")
    told = json.loads(said.out)
    assert told["shape"] == [3, 3, 8, 12] and told["count"] == 6 and "clips of 3 frames" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "9"], "6 frames, and 9 are needed"),
        (["--frames", "0"], "frames must be at least 1"),
        (["--out", "stats.pt"], "must end in .safetensors"),
        (["--size", "1", "2", "3"], "HEIGHT WIDTH or one number"),
        (["--fps", "3", "--stride", "2"], "stride=, or fps="),
        (["--vae", "nowhere"], "no autoencoder"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_bad_words(capsys, folder, words, message):
    words = words if "--frames" in words else [*words, "--frames", "4"]
    assert message in run(capsys, "i2v-stats", folder, *words, code=2).err


def test_one_clip_and_no_folder(capsys, folder, tmp_path):
    assert (
        "at least two"
        in run(capsys, "i2v-stats", folder / "a", "--frames", 4, "--out", tmp_path / "s.safetensors", code=2).err
    )
    assert "no such folder" in run(capsys, "i2v-stats", tmp_path / "x", "--frames", 4, code=2).err


def test_nothing_is_overwritten(capsys, folder, tmp_path):
    out = tmp_path / "s.safetensors"
    out.write_text("mine")
    assert "exists already" in run(capsys, "i2v-stats", folder, "--frames", 4, "--out", out, code=2).err
    run(capsys, "i2v-stats", folder, "--frames", 4, "--out", out, "--overwrite")
    assert DataMoments.load(out).count == 3


def test_statistics_of_latents(capsys, folder, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "layers_per_block": 1}
    vae = diffusers.AutoencoderKLTemporalDecoder(**sizes, scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "svd" / "vae")
    out = tmp_path / "s.safetensors"
    run(capsys, "i2v-stats", folder, "--frames", 4, "--vae", tmp_path / "svd", "--out", out)
    stats = DataMoments.load(out)
    assert stats.mean.shape == (4, 4, 8, 12)  # (F, C, h, w)
    pixels = [torch.from_numpy(np.array(Image.open(folder / n / "0.png"))).movedim(-1, 0) for n in "abc"]
    with torch.no_grad():
        z = [0.5 * vae.eval().encode(v[None].float() / 127.5 - 1.0).latent_dist.mean for v in pixels]
    torch.testing.assert_close(stats.mean[0], torch.cat(z).double().mean(0), rtol=1e-4, atol=1e-5)
    odd = run(
        capsys,
        "i2v-stats",
        folder,
        "--frames",
        4,
        "--size",
        7,
        9,
        "--vae",
        tmp_path / "svd",
        "--out",
        tmp_path / "t.safetensors",
        code=2,
    )
    assert "multiples of 2" in odd.err


def test_a_run_is_sampled_from_a_late_start(capsys, tmp_path):
    tiny = ["--set", "network.width=16", "--set", "network.depth=1", "--set", "network.heads=2"]
    run(capsys, "train", "digits", "--out", tmp_path / "run", "--method", "ddpm", "--steps", 2, *tiny)
    DataMoments.of(digits("train"), batch=512).save(tmp_path / "stats.safetensors")
    words = ["sample", tmp_path / "run", "--num", 2, "--steps", 4, "--label", 3, "--json", "--overwrite"]
    made = {}
    for name, more in {
        "plain": [],
        "late": ["--start", 0.9],
        "init": ["--start", 0.9, "--init", tmp_path / "stats.safetensors"],
    }.items():
        told = json.loads(run(capsys, *words, *more, "--out", tmp_path / f"{name}.npy").out)
        assert told["nfe"] == 4 and told["start"] == (None if name == "plain" else 0.9)
        made[name] = np.load(tmp_path / f"{name}.npy")
    assert not np.array_equal(made["plain"], made["late"]) and not np.array_equal(made["late"], made["init"])
    assert "starts at a time in (0, 1]" in run(capsys, *words, "--start", 1.5, code=2).err
    DataMoments(mean=torch.zeros(1, 4, 4), var=1.0).save(tmp_path / "other.safetensors")
    wrong = run(capsys, *words, "--init", tmp_path / "other.safetensors", code=2)
    assert "doesn't fit a state" in wrong.err
