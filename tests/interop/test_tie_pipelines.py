"""``condiff tie`` and ``condiff companions`` on pretrained pipelines: from folders to folders."""

import json

import pytest
import tiny
import torch

from condiff.data import pairs
from condiff.files import read_tensors
from condiff.methods.tied_bases import Where, base_of
from condiff.methods.unicon import UniCon, join
from tests.cli.terminal import noise_pictures, run

PIPES = {
    "stable_diffusion": tiny.stable_diffusion,
    "sd3": lambda: tiny.sd3(t5=True),
    "flux": tiny.flux,
    "dit": tiny.dit,
}


def pictures(folder, seed, count=3):
    return noise_pictures(folder, seed, count, side=20)


def tied(capsys, root, name, *words):
    pipe = PIPES[name]()
    pipe.save_pretrained(root / "pipe")
    data = ["--data", pictures(root / "photos", 0), "--data", pictures(root / "depth", 1), "--name", "depth"]
    size = [] if name == "dit" else ["--size", 16, 16]
    how = ["--rank", 2, "--steps", 2, "--batch", 2, "--device", "cpu", "--json", *size, *words]
    made = json.loads(run(capsys, "tie", root / "pipe", *data, *how, "--out", root / "run").out)
    assert (made["step"], made["pairs"]) == (2, 3)
    return root / "run"


@pytest.mark.parametrize("name", PIPES)
def test_tied_to_a_pipeline_and_drawn_in_every_direction(capsys, tmp_path, name):
    prompt = "1" if name == "dit" else "a fox"
    half = ["--dtype", "bfloat16", "--recompute"] if name == "flux" else []
    folder = tied(capsys, tmp_path, name, "--prompt", prompt, *half)
    about = json.loads((folder / "config.json").read_text())["tie"]
    assert about["pipeline"] == str(tmp_path / "pipe") and about["name"] == "depth"
    stored, _ = read_tensors(folder / "model.safetensors")
    assert all(("lora_" in key or "post" in key) and v.dtype == torch.float32 for key, v in stored.items())
    new, steps = pictures(tmp_path / "new", 2, count=2), ["--steps", 2, "--device", "cpu"]
    told = ["--prompt", prompt, "--scale", 2]
    run(capsys, "companions", folder, "--known", f"depth={new}", *told, *steps, "--out", tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a" / "image").iterdir()) == ["p0.png", "p1.png"]
    one = f"image={new / 'p1.png'}"
    run(capsys, "companions", folder, "--known", one, *steps, "--out", tmp_path / "b.png")  # no prompt at all
    coarse = ["--known", f"depth={new}", "--hold", "depth=0.5", "--hearing", 1]
    run(capsys, "companions", folder, *coarse, *told, *steps, "--out", tmp_path / "c", "--batch", 1)
    both = json.loads(
        run(capsys, "companions", folder, "--num", 3, *told, *steps, "--out", tmp_path / "d", "--json").out
    )
    assert both["num"] == 3 and len(list((tmp_path / "d" / "depth").iterdir())) == 3
    assert "condiff companions" in run(capsys, "sample", folder, code=2).err


def test_captions_and_triggers_are_what_is_told(tmp_path):
    """Each picture has its own prompt, and its companion's begins with the trigger; drops are of both variables."""
    tiny.stable_diffusion().save_pretrained(tmp_path / "pipe")
    base = base_of(str(tmp_path / "pipe"), Where(device="cpu", size=(16, 16)))
    data = pairs(pictures(tmp_path / "b", 1), pictures(tmp_path / "a", 0), (16, 16), condition="depth", channels=3)
    pair = UniCon(join(base.denoiser, ("image", "depth"), rank=2), base.source, "depth, ")
    rows = base.rows(data, "depth", ["a", "b", "a"], pair)
    batch = rows.batch(torch.tensor([2, 1]))
    assert batch["x"]["image"].shape == batch["x"]["depth"].shape == (2, *base.denoiser.shape)
    wanted = base.source.encode(["a", "b"])["prompt"].value
    torch.testing.assert_close(batch["cond"]["image.prompt"], wanted)
    wanted = base.source.encode(["depth, a", "depth, b"])["prompt"].value
    torch.testing.assert_close(batch["cond"]["depth.prompt"], wanted)
    assert base.dropped == ("prompt",)


def test_captions_of_files(capsys, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    for i in range(3):
        (words / f"p{i}.txt").write_text(f"fox {i}\n")
    folder = tied(capsys, tmp_path, "stable_diffusion", "--captions", words, "--trigger", "depth, ")
    assert json.loads((folder / "config.json").read_text())["tie"]["trigger"] == "depth, "
    (words / "p1.txt").unlink()
    data = ["--data", tmp_path / "photos", "--data", tmp_path / "depth", "--size", 16, 16, "--device", "cpu"]
    out = ["--out", tmp_path / "other"]
    lost = run(capsys, "tie", tmp_path / "pipe", *data, "--captions", words, *out, code=2).err
    assert "1 of 3 pictures have no caption" in lost and "p1.txt" in lost
    both = ["--captions", words, "--prompt", "a fox"]
    assert "one of them" in run(capsys, "tie", tmp_path / "pipe", *data, *both, *out, code=2).err


def test_refusals(capsys, tmp_path):
    data = ["--data", pictures(tmp_path / "a", 0), "--data", pictures(tmp_path / "b", 1), "--device", "cpu"]
    tiny.ddpm().save_pretrained(tmp_path / "ddpm")
    out = ["--out", tmp_path / "out"]
    assert "isn't a pipeline of pictures" in run(capsys, "tie", tmp_path / "ddpm", *data, *out, code=2).err
    tiny.dit().save_pretrained(tmp_path / "dit")
    assert "unknown classes" in run(capsys, "tie", tmp_path / "dit", *data, "--prompt", "a fox", *out, code=2).err
