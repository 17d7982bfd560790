"""The scripts that run real checkpoints, on tiny pipelines saved in a folder."""

import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
from test_wrap_controls import painted
from tiny import controlled, ddpm, dit, flux, sd3, stable_diffusion, stable_diffusion_xl
from tiny_video import cogvideox, stable_video_diffusion, wan

from condiff.interop import wrap

FOLDER = Path(__file__).parents[2] / "examples" / "pretrained"
VIDEO = ["--size", "32", "16", "--frames", "9", "--length", "12"]


def photo(folder, name="photo.png", height=16, width=16, mode="RGB"):
    path = folder / name
    Image.new(mode, (width, height), 200 if mode == "L" else (200, 90, 10)).save(path)
    return str(path)


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"pretrained_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = {
    "ddpm": (ddpm, lambda _: ["--num", "2", "--solver", "dpm++"]),
    "stable_diffusion": (stable_diffusion, lambda _: ["--prompt", "a fox", "two cats", "--negative", "dull"]),
    "stable_diffusion_xl": (stable_diffusion_xl, lambda _: ["--solver", "ddim", "--scale", "4"]),
    "stable_diffusion_3": (lambda: sd3(t5=True), lambda _: ["--size", "16", "16"]),
    "dit": (dit, lambda _: ["--label", "3", "5"]),
    "flux": (flux, lambda _: ["--size", "16", "24", "--length", "12"]),
    "inpainting": (painted, lambda folder: ["--image", photo(folder), "--mask", photo(folder, "mask.png", mode="L")]),
    "stable_video_diffusion": (
        stable_video_diffusion,
        lambda folder: ["--image", photo(folder), "--size", "16", "16", "--frames", "3"],
    ),
    "cogvideox": (cogvideox, lambda _: [*VIDEO, "--negative", "dull"]),
    "wan": (wan, lambda _: VIDEO),
}


@pytest.mark.parametrize("name", CASES)
def test_a_script_samples_a_saved_pipeline(name, tmp_path, monkeypatch, capsys):
    make, options = CASES[name]
    make().save_pretrained(tmp_path / "pipe", safe_serialization=True)
    frames = {"stable_video_diffusion": 3, "cogvideox": 9, "wan": 9}.get(name)
    out = tmp_path / ("out.gif" if frames else "out.png")
    argv = ["--checkpoint", tmp_path / "pipe", "--steps", "3", "--device", "cpu", "--out", out, *options(tmp_path)]
    script(name, monkeypatch).main([str(a) for a in argv])
    with Image.open(out) as made:
        assert made.size[0] >= 8 and getattr(made, "n_frames", 1) == (frames or 1)
    assert "wrote" in capsys.readouterr().out


def test_the_script_with_controlnets(tmp_path, monkeypatch):
    pipe = controlled(StableDiffusionControlNetPipeline, stable_diffusion(), 2)
    stable_diffusion().save_pretrained(tmp_path / "pipe", safe_serialization=True)
    for i, net in enumerate(pipe.controlnet.nets):
        net.save_pretrained(tmp_path / f"net{i}", safe_serialization=True)
    nets, control = [str(tmp_path / f"net{i}") for i in range(2)], photo(tmp_path)
    main = script("controlnet", monkeypatch).main
    argv = ["--checkpoint", tmp_path / "pipe", "--steps", "3", "--device", "cpu", "--until", "0.3"]
    argv = [str(a) for a in argv]
    main([*argv, "--controlnet", nets[0], "--control", control, "--out", str(tmp_path / "one.png")])
    main([*argv, "--controlnet", *nets, "--control", control, control, "--out", str(tmp_path / "two.png")])
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_every_script_is_run_here_and_compiles():
    names = {path.stem for path in FOLDER.glob("*.py")} - {"common"}
    assert names == {*CASES, "controlnet"}


def test_a_saved_pipeline_says_the_same(tmp_path):
    """Tokenizers and schedulers come back as they were."""
    pipe = wan()
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    again = type(pipe).from_pretrained(tmp_path)
    words = [wrap(p, size=(32, 16), frames=9, length=12).encode(["a fox"])["prompt"].value for p in (pipe, again)]
    torch.testing.assert_close(*words)
