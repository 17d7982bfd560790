"""Pipelines of the real classes as sources of the web application, and from their folders."""

import io

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from test_wrap_controls import painted
from tiny import controlled, ddpm, dit, sd3, stable_diffusion
from tiny_video import stable_video_diffusion, wan

import condiff as cd
from condiff.errors import BadFile, BadValue, CondiffError
from condiff.interop import load_pipeline
from condiff.web import Limits, Settings, Uploads, open_source
from condiff.web.pipeline_source import PipelineSource
from condiff.web.worker import Job


def served(pipe, **size):
    return PipelineSource(pipe, "some/tiny", Uploads(Limits()), Limits(), **size)


def make(source, **settings):
    heard = []
    return source.make(Settings(**settings), Job(Settings(**settings), heard.append)), heard


def test_prompts():
    pipe = stable_diffusion()
    source = served(pipe)
    about = source.about()
    assert {"prompt", "negative", "guidance"} <= set(about["takes"]) and about["own"]["guidance"] == 7.5
    made, heard = make(source, prompt="a fox", negative="a dog", steps=4, num=2, seed=3, guidance=4.0, solver="ddim")
    wrapped = cd.interop.wrap(pipe)
    z = cd.sample(
        wrapped.guided(4.0, ["a dog"]),
        cond=wrapped.encode(["a fox"] * 2),
        solver=cd.DDIM(),
        grid=wrapped.grid(4),
        seeds=[3, 4],
    )
    with torch.no_grad():
        assert torch.equal(made.x, wrapped.codec.decode(z))
    assert [m["index"] for m in heard] == [1, 2, 3, 4] and len(heard[0]["view"]["items"]) == 2
    assert list(source.files(made)) == ["npz", "png"] and made.facts["nfe"] == 4
    with Image.open(io.BytesIO(source.files(made)["png"]("{}"))) as picture:
        assert picture.text == {"condiff": "{}"}


def test_classes_by_name_and_number():
    source = served(dit())
    assert source.about()["classes"] == [f"class {i}" for i in range(7)]
    made, _ = make(source, labels=("class 2", "5"), num=3, steps=2)
    assert made.drawing.names == ["class 2", "class 5", "class 2"] and made.settings.guidance == 4.0
    with pytest.raises(BadValue, match="Did you mean"):
        make(source, labels=("clas 2",))


def test_without_conditions():
    source = served(ddpm())
    assert source.about()["takes"] == ["num", "seed", "solver", "steps"] and source.shape == (3, 8, 8)
    made, _ = make(source, num=2, steps=3)
    assert made.x.shape == (2, 3, 8, 8) and made.settings.guidance is None
    with pytest.raises(BadValue, match="takes no prompt"):
        make(source, prompt="a fox")


def test_flow_models():
    made, _ = make(served(sd3()), prompt="a fox", steps=2, solver="euler")
    assert made.x.shape[1] == 3


def test_clips_from_words_and_from_a_picture():
    source = served(wan(), size=(16, 16), frames=5)
    made, heard = make(source, prompt="a fox", steps=2)
    assert made.x.ndim == 5 and tuple(made.x.shape[1:]) == source.shape and list(source.files(made)) == ["npz"]
    assert heard[0]["view"]["items"][0].startswith("data:image/png")
    source = served(stable_video_diffusion(), size=(16, 16), frames=2)
    with pytest.raises(BadValue, match="choose one"):
        make(source, steps=2)
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(buffer, "PNG")
    picture, _ = source.uploads.add(buffer.getvalue())
    made, _ = make(source, steps=2, conditions={"image": {"picture": picture}})
    assert made.x.ndim == 5


def test_from_a_folder(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "sd", safe_serialization=True)
    source = open_source(str(tmp_path / "sd"), Uploads(Limits()), Limits())
    assert source.about()["title"] == "StableDiffusionPipeline" and source.about()["name"] == "sd"
    assert len(make(source, prompt="a fox", steps=1)[0].x) == 1


def test_pickled_weights_and_other_folders_are_refused(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "sd", safe_serialization=False)
    with pytest.raises(BadFile, match="can't be loaded"):
        load_pipeline(str(tmp_path / "sd"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CondiffError):
        open_source(str(tmp_path), Uploads(Limits()), Limits())


def uploaded(source, colour=99, size=(40, 30), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return {"picture": source.uploads.add(buffer.getvalue())[0]}


def test_a_clip_is_guided_as_its_pipeline_guides():
    """By a scale for each frame, unless one is given."""
    source = served(stable_video_diffusion(), size=(16, 16), frames=2)
    assert source.about()["own"]["guidance"] is None
    image = uploaded(source)
    made, _ = make(source, steps=2, conditions={"image": image})
    model = source.wrapped
    told = source.uploads.read(image["picture"], source._framing(3))
    cond = model.encode([*told.clamp(-1, 1)], rng=0)
    z = cd.sample(model.guided(), cond=cond, solver=cd.UniPC(), grid=model.grid(2), seeds=[0])
    with torch.no_grad():
        torch.testing.assert_close(made.x, model.codec.decode(z))
    flat, _ = make(source, steps=2, conditions={"image": image}, guidance=1.0)
    assert not torch.allclose(flat.x, made.x) and made.settings.guidance is None


def test_pixels_are_clipped_as_the_scheduler_does():
    pipe = ddpm()
    pipe.scheduler = DDPMScheduler(clip_sample=True)
    made, _ = make(served(pipe), num=2, steps=3, solver="ddim")
    assert made.x.abs().max() <= 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_controls_are_chosen(count):
    pipe = controlled(StableDiffusionControlNetPipeline, stable_diffusion(), count)
    source = served(pipe)
    names = ["control", "control_2"][:count]
    about = source.about()
    assert [one["name"] for one in about["conditions"]] == names and about["own"]["guidance"] == 7.5
    given = {name: uploaded(source, 60 * (i + 1)) for i, name in enumerate(names)}
    made, _ = make(source, prompt="a fox", steps=2, conditions=given)
    model = source.wrapped
    images = [source.uploads.read(one["picture"], source._framing(3)) for one in given.values()]
    cond = model.encode(["a fox"], control=images if count > 1 else images[0])
    z = cd.sample(model.guided(), cond=cond, solver=cd.UniPC(), grid=model.grid(2), seeds=[0])
    with torch.no_grad():
        assert torch.equal(made.x, model.codec.decode(z))
    with pytest.raises(BadValue, match="one for each of 'control'"):
        make(source, prompt="a fox", steps=2)


def test_what_is_painted_in_is_chosen():
    source = served(painted())
    assert [(one["name"], one["shape"][0]) for one in source.about()["conditions"]] == [("image", 3), ("mask", 1)]
    image, mask = uploaded(source), uploaded(source, 255, mode="L")
    made, _ = make(source, prompt="a fox", steps=2, num=2, conditions={"image": image, "mask": mask})
    assert made.x.shape == (2, 3, 16, 16)
    black, _ = make(source, prompt="a fox", steps=2, num=2, conditions={"image": image, "mask": uploaded(source, 0)})
    assert not torch.equal(black.x, made.x)
    with pytest.raises(BadValue, match="'image' and 'mask'"):
        make(source, prompt="a fox", steps=2, conditions={"image": image})


def test_half_precision_from_a_folder(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "sd", safe_serialization=True)
    source = open_source(str(tmp_path / "sd"), Uploads(Limits()), Limits(), device="cpu", dtype="bfloat16")
    assert source.wrapped.pipeline.unet.dtype == torch.bfloat16
    made, _ = make(source, prompt="a fox", steps=2)
    assert made.x.dtype == torch.float32 and torch.isfinite(made.x).all()
    with pytest.raises(BadValue, match="unknown dtype 'half'"):
        open_source(str(tmp_path / "sd"), Uploads(Limits()), Limits(), dtype="half")


@pytest.mark.parametrize("error", ["ConnectError", "LocalEntryNotFoundError", None])
def test_a_hub_that_is_not_reached(monkeypatch, error):
    """Diffusers' own words, several lines about caches, hide that."""

    def fail(*_, **__):
        told = OSError("word " * 200)
        raise told from (None if error is None else type(error, (OSError,), {})())

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", fail)
    with pytest.raises(BadFile) as raised:
        load_pipeline("someone/model")
    if error is None:
        assert str(raised.value).endswith("word ...")
    else:
        assert str(raised.value) == "the Hub could not be reached for someone/model, and not all of it is stored here"


def test_words_that_are_not_read_are_told():
    """CLIP reads 16 tokens here, of which two are its own; T5 reads more."""
    source, words = served(stable_diffusion()), "abcdefghijklmnopqrst"
    made, _ = make(source, prompt=words, steps=1)
    assert made.facts["note"] == "Of the prompt's 22 tokens, the model reads the first 16."
    made, _ = make(source, prompt="a fox", negative=words, steps=1)
    assert made.facts["note"].startswith("Of the negative prompt's 22 tokens")
    assert "note" not in make(source, prompt=words[:14], steps=1)[0].facts
    assert "note" not in make(served(sd3(t5=True)), prompt=words, steps=1)[0].facts
