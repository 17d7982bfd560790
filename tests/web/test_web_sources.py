"""What is made and shown of each kind of run, and that it equals `condiff sample`."""

import base64
import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from served import make, open_run

from condiff.cli.main import main
from condiff.errors import BadFile, BadValue, CondiffError, Incompatible
from condiff.methods.drawing import draw_samples
from condiff.sampling import Hook
from condiff.web import Limits, Settings
from condiff.web.views import MASK


def pixels(url):
    """The picture in a data URL as an array."""
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as picture:
        return np.asarray(picture)


def sampled(folder, tmp_path, words, *more):
    """What `condiff sample` writes."""
    out = tmp_path / "cli.npz"
    assert main(["sample", str(folder), *words.split(), *more, "--out", str(out)]) == 0
    return np.load(out)


def stored(source, made):
    """What a page downloads."""
    return np.load(io.BytesIO(source.files(made)["npz"]("{}")))


SAME = [
    ({"num": 10}, "--num 10"),
    (
        {"num": 5, "labels": ("3", "7"), "solver": "ddpm", "steps": 6, "guidance": 2.5, "seed": 11},
        "--num 5 --label 3 --label 7 --solver ddpm --steps 6 --guidance 2.5 --seed 11",
    ),
    ({"num": 3, "solver": "unipc", "steps": 4, "guidance": 1.0}, "--num 3 --solver unipc --steps 4 --guidance 1"),
]


@pytest.mark.parametrize(("settings", "words"), SAME)
def test_samples_are_those_of_the_command_line_bit_for_bit(digits, tmp_path, settings, words):
    source = open_run(digits)
    made, heard = make(source, **settings)
    theirs = sampled(digits, tmp_path, words)
    ours = stored(source, made)
    assert np.array_equal(ours["x"], theirs["x"]) and np.array_equal(ours["label"], theirs["label"])
    assert [m["index"] for m in heard] == list(range(1, made.settings.steps + 1))


def test_the_picture_is_that_of_the_command_line_with_the_settings_inside(digits, tmp_path):
    source = open_run(digits)
    made, _ = make(source, num=4, labels=("2",), seed=5)
    assert (
        main(["sample", str(digits), "--num", "4", "--label", "2", "--seed", "5", "--out", str(tmp_path / "a.png")])
        == 0
    )
    with (
        Image.open(io.BytesIO(source.files(made)["png"]('{"some": 1}'))) as ours,
        Image.open(tmp_path / "a.png") as theirs,
    ):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert json.loads(ours.text["condiff"]) == {"some": 1}


def test_steps_show_what_the_model_believes(digits):
    source = open_run(digits)
    made, heard = make(source, num=2, steps=5)
    views = [m["view"] for m in heard]
    assert all(v["kind"] == "picture" and pixels(v["items"][0]).shape == (8, 8) for v in views)
    assert views[0]["items"] != views[-1]["items"]
    assert views[-1] == source.viewer(made.x)  # Euler's last step ends where the model believes
    believed: list = []

    class Looking(Hook):
        def after(self, step, run):
            believed.append(source.viewer(step.prediction.x0))
            return step.x_s

    recipe = source.run.recipe
    sampler = replace(recipe.sampler, steps=5, hooks=(Looking(),))
    draw_samples(source.model, recipe, source.run.heldout, num=2, sampler=sampler)
    assert views == believed


def test_slow_views_take_a_quarter_of_the_time_at_most(digits, monkeypatch):
    source = open_run(digits)
    monkeypatch.setattr("condiff.web.watching.QUICK", 0.0)
    clock = iter(range(10_000))  # a second passes each time that it is read: views are as slow as steps
    monkeypatch.setattr("condiff.web.watching.time.perf_counter", lambda: float(next(clock)))
    _, heard = make(source, num=1, steps=40)
    shown = [m["index"] for m in heard if m["view"] is not None]
    assert len(heard) == 40 and shown[0] == 1 and 4 <= len(shown) <= 20
    assert max(b - a for a, b in pairwise(shown)) <= 6


def test_text(text, tmp_path):
    source = open_run(text)
    made, heard = make(source, num=3, prefix="the ", suffix=" log.", seed=2, steps=6, temperature=0.8)
    theirs = sampled(
        text, tmp_path, "--num 3 --seed 2 --steps 6 --temperature 0.8 --prefix", "the ", "--suffix", " log."
    )
    assert np.array_equal(stored(source, made)["x"], theirs["x"])
    views = [m["view"]["items"] for m in heard]
    assert views[0][0].startswith("the ") and MASK in views[0][0] and MASK not in views[-1][0]
    said = source.files(made)["txt"]("{}").decode()
    assert said.count("the ") >= 3 and said.count("-" * 40) == 2
    assert {"prefix", "suffix", "temperature", "top_k", "top_p"} <= set(source.about()["takes"])


def test_pictures_that_are_given(pairs, tmp_path):
    source = open_run(pairs)
    (condition,) = source.about()["conditions"]
    assert condition["input"] == "picture" and condition["shape"] == [3, 8, 8]
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(buffer, "PNG")
    (tmp_path / "given.png").write_bytes(buffer.getvalue())
    picture, size = source.uploads.add(buffer.getvalue())
    assert size == (20, 20)
    made, _ = make(source, num=2, steps=3, conditions={condition["name"]: {"picture": picture}})
    theirs = sampled(pairs, tmp_path, "--num 2 --steps 3 --condition", str(tmp_path / "given.png"))
    assert np.array_equal(stored(source, made)["x"], theirs["x"])
    shown = source.shown_beside(made)
    assert list(shown["beside"]) == [condition["name"]] and shown["names"] == ["1", "2"]


def test_held_out_pictures_are_shown_beside_the_truth(pairs):
    source = open_run(pairs)
    made, _ = make(source, num=2, steps=2)
    beside = source.shown_beside(made)["beside"]
    assert len(beside) == 2 and len(beside["true"]["items"]) == 2
    assert np.array_equal(pixels(beside["true"]["items"][0]), pixels(source.viewer(made.drawing.truth)["items"][0]))


def test_numbers_that_are_given(series, tmp_path):
    source = open_run(series)
    asked = {c["name"]: c for c in source.about()["conditions"]}
    assert asked["height"]["input"] == asked["spectrum"]["input"] == "numbers"
    assert 1.0 <= asked["height"]["low"] < asked["height"]["high"] <= 3.0
    made, heard = make(source, num=2, steps=3, conditions={"height": 2.5, "spectrum": [0.1, 0.4, 0.2]})
    given = ["--condition", "height=2.5", "--condition", "spectrum=[0.1,0.4,0.2]"]
    assert np.array_equal(stored(source, made)["x"], sampled(series, tmp_path, "--num 2 --steps 3", *given)["x"])
    view = heard[-1]["view"]
    assert view["kind"] == "curve" and np.asarray(view["items"]).shape == (2, 2, 16)
    restored = source.data.restore(made.x).transpose(1, 2)
    assert np.allclose(source.viewer(made.x)["items"], restored, rtol=1e-5)
    assert source.files(made)["png"]("{}").startswith(b"\x89PNG")


def test_points_and_volumes(points, volumes):
    source = open_run(points)
    made, _ = make(source, num=5, steps=2)
    view = source.viewer(made.x)
    assert view["kind"] == "point" and len(view["items"]) == 5 and len(view["items"][0]) == 2
    assert list(source.files(made)) == ["npz"] and source.about()["takes"] == ["num", "seed", "solver", "steps"]
    source = open_run(volumes)
    made, heard = make(source, num=2)
    assert pixels(heard[-1]["view"]["items"][0]).shape == (16, 16) and set(source.files(made)) == {"npz", "png"}
    assert {c["input"] for c in source.about()["conditions"]} == {None}
    assert set(source.shown_beside(made)["beside"]) == {"t1", "t2", "true"}


def test_clips_from_a_picture(balls, tmp_path):
    source = open_run(balls)
    (condition,) = source.about()["conditions"]
    assert condition["input"] == "picture" and condition["shape"] == [1, 16, 16]
    Image.fromarray(np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))).save(tmp_path / "first.png")
    picture, _ = source.uploads.add((tmp_path / "first.png").read_bytes())
    made, heard = make(source, num=2, seed=3, conditions={condition["name"]: {"picture": picture}})
    theirs = sampled(balls, tmp_path, "--num 2 --seed 3 --condition", str(tmp_path / "first.png"))
    assert np.array_equal(stored(source, made)["x"], theirs["x"])
    assert all(m["first"] == 0 and len(m["view"]["items"]) == 2 for m in heard)  # chunk by chunk
    with Image.open(io.BytesIO(base64.b64decode(source.viewer(made.x)["items"][0].split(",")[1]))) as moving:
        assert moving.n_frames == made.x.shape[1] == 7
    assert {"gif", "npz", "png"} <= set(source.files(made)) and source.files(made)["gif"]("{}").startswith(b"GIF")


def test_windows_of_series(load, tmp_path):
    source = open_run(load)
    made, heard = make(source, num=3)
    assert np.array_equal(stored(source, made)["x"], sampled(load, tmp_path, "--num 3")["x"])
    assert np.asarray(heard[-1]["view"]["items"]).shape[:2] == (3, 1)
    assert list(source.files(made)) == ["csv", "png", "npz"] and b"\n" in source.files(made)["csv"]("{}")


def test_what_a_run_does_not_take_is_refused(digits, text, series):
    for folder, settings, words in [
        (digits, {"prompt": "a fox"}, "takes no prompt"),
        (digits, {"prefix": "x", "top_k": 3}, "takes no prefix and no top_k"),
        (digits, {"conditions": {"height": 1.0}}, "takes no conditions"),
        (digits, {"labels": ("11",)}, "unknown class '11'"),
        (digits, {"solver": "eulr"}, "Did you mean 'euler'"),
        (digits, {"solver": "confidence"}, "token solvers need"),
        (text, {"prefix": "THE"}, "not in this alphabet"),
        (series, {"conditions": {"heigth": 1.0}}, "Did you mean 'height'"),
        (series, {"conditions": {"height": [1.0, 2.0]}}, "shape"),
        (series, {"conditions": {"height": {"picture": "x"}}}, "is numbers"),
    ]:
        with pytest.raises(CondiffError, match=words):
            make(open_run(folder), **settings)


def test_too_much_at_once_is_refused(digits):
    source = open_run(digits, numbers=64 * 4)
    with pytest.raises(BadValue, match="at most 4 samples of 1 x 8 x 8"):
        make(source, num=5)
    assert len(make(source, num=4, steps=1)[0].x) == 4


def test_a_picture_that_is_gone_is_asked_for_again(pairs):
    source = open_run(pairs)
    with pytest.raises(BadValue, match="choose it again"):
        make(source, conditions={"degraded": {"picture": "0" * 64}})


def test_settings_that_were_used_make_the_same_samples(digits):
    source = open_run(digits)
    made, _ = make(source, num=3, labels=("1",), seed=9)
    again, _ = make(source, **Settings(**{**made.settings.as_json(), "labels": ("1",)}).__dict__)
    assert np.array_equal(again.x, made.x) and made.settings.steps == 25 and made.settings.guidance == 1.5


def test_runs_that_are_not_there():
    with pytest.raises(BadFile):
        open_run(__import__("pathlib").Path("/nowhere"))
    with pytest.raises(BadValue, match="num must be at least 1"):
        Limits(num=0)
    assert issubclass(Incompatible, CondiffError)
