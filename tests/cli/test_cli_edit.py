"""``condiff edit``: digits of one class as another, pictures of a pipeline by prompts, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from condiff.cli.main import main
from tests.cli.terminal import TINY, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit") / "digits"
    assert main(["train", "digits", "--out", str(folder), "--steps", "200", *TINY]) == 0
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "three.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    return path


def test_a_digit_becomes_another_and_the_way_back_is_told(trained, picture, tmp_path, capsys):
    out = tmp_path / "eight.png"
    words = ("--source", 3, "--target", 8, "--steps", 10)
    said = json.loads(run(capsys, "edit", trained, picture, *words, "--out", out, "--json").out)
    assert out.is_file() and json.loads(out.with_suffix(".json").read_text())["target"] == "8"
    plain = json.loads(
        run(capsys, "edit", trained, picture, *words, "--iterations", 0, "--out", tmp_path / "b.png", "--json").out
    )
    assert said["round_trip_psnr"][0] > plain["round_trip_psnr"][0] + 10.0  # exact against DDIM inversion
    assert plain["calls"] < said["calls"] <= 11 * plain["calls"] and said["changed_rms"][0] > 0.0
    assert "already" in run(capsys, "edit", trained, picture, *words, "--out", out, code=2).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source", "3", "--target", "3"], "nothing would change"),
        (["--source", "3", "--target", "cat"], "unknown class"),
        (["--source", "3", "--target", "8", "--out", "x.jpg"], "must end in .png"),
        (["--source", "3", "--target", "8", "--quantile", "2"], "quantile"),
        (["--source", "3", "--target", "8", "--keep-below", "3"], "from 0 to 1"),
    ],
)
def test_what_is_refused(trained, picture, capsys, words, said):
    assert said in run(capsys, "edit", trained, picture, *words, code=2).err


def test_what_is_there_already_stays(trained, picture, tmp_path, capsys):
    (tmp_path / "eight.json").write_text("mine")
    words = ("--source", 3, "--target", 8, "--steps", 2, "--iterations", 1, "--out", tmp_path / "eight.png")
    assert "eight.json exists already" in run(capsys, "edit", trained, picture, *words, code=2).err
    assert (tmp_path / "eight.json").read_text() == "mine" and not (tmp_path / "eight.png").exists()
    run(capsys, "edit", trained, picture, *words, "--overwrite")
    assert json.loads((tmp_path / "eight.json").read_text())["pictures"] == 1


def test_more_steps_than_there_are_hundredths(trained, picture, tmp_path, capsys):
    words = ("--source", 3, "--target", 8, "--steps", 200, "--iterations", 0, "--out", tmp_path / "b.png", "--json")
    assert json.loads(run(capsys, "edit", trained, picture, *words).out)["calls"] in (197, 198)


def test_many_pictures_go_through_in_parts(trained, tmp_path, capsys, monkeypatch):
    """Each is what it is alone, whatever else is edited with it."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    words = ("--source", 3, "--target", 8, "--steps", 3, "--iterations", 2)
    whole, parts = (
        (monkeypatch.setattr("condiff.methods.editing.AT_ONCE", n),
         json.loads(run(capsys, "edit", trained, folder, *words, "--out", tmp_path / f"{n}.png", "--json").out))[1]
        for n in (16, 2)
    )  # fmt: skip
    assert whole["pictures"] == parts["pictures"] == 5
    assert whole["changed_rms"] == pytest.approx(parts["changed_rms"], abs=2e-3)
    assert whole["round_trip_psnr"] == pytest.approx(parts["round_trip_psnr"], abs=0.5)
    assert whole["calls"] == parts["calls"]


def test_pickled_weights_of_a_pipeline_are_refused(tmp_path, picture, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd", safe_serialization=False)
    assert list((tmp_path / "sd").rglob("*.bin"))
    words = ("--source", "a", "--target", "b", "--steps", 2, "--out", tmp_path / "b.png")
    assert "can't be loaded" in run(capsys, "edit", tmp_path / "sd", picture, *words, code=2).err


def test_an_empty_prompt_of_the_source_is_remarked_on(tmp_path, picture, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    words = ("--source", "", "--target", "a square cake", "--steps", 2, "--iterations", 1, "--out", tmp_path / "b.png")
    assert "--source is empty" in run(capsys, "edit", tmp_path / "sd", picture, *words).out


def test_pictures_of_a_pipeline_by_prompts(tmp_path, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    Image.fromarray(np.full((20, 30, 3), 128, dtype=np.uint8)).save(tmp_path / "cake.png")
    words = ("--source", "a round cake", "--target", "a square cake", "--steps", 3, "--iterations", 1)
    run(capsys, "edit", tmp_path / "sd", tmp_path / "cake.png", *words, "--out", tmp_path / "square.png")
    assert (tmp_path / "square.png").read_bytes().startswith(b"\x89PNG")


def test_a_pipeline_whose_grid_begins_at_pure_noise(tmp_path, capsys):
    """Nothing leads back from there: the inversion ends before."""
    from tests.interop.tiny import sd3

    sd3(t5=True).save_pretrained(tmp_path / "sd3")
    Image.fromarray(np.full((20, 30, 3), 128, dtype=np.uint8)).save(tmp_path / "cake.png")
    words = ("--source", "a round cake", "--target", "a square cake", "--steps", 3, "--iterations", 4)
    run(capsys, "edit", tmp_path / "sd3", tmp_path / "cake.png", *words, "--out", tmp_path / "square.png")
    assert json.loads((tmp_path / "square.json").read_text())["calls"] > 3


# Prompts, word by word


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    from tests.interop.tiny import stable_diffusion

    folder = tmp_path_factory.mktemp("edit") / "sd"
    stable_diffusion().save_pretrained(folder)
    return folder


def cakes(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


CAKE = ("--source", "a red cake", "--target", "a big cake", "--steps", 3, "--iterations", 0)


def test_attention_is_controlled_unless_told_otherwise(pipeline, tmp_path, capsys):
    cakes(tmp_path, "cake.png")
    made = {}
    for name, words in {
        "default": (),
        "published": ("--cross-attention", 0.8, "--self-attention", 0.6, "--align", "refine"),
        "none": ("--cross-attention", 0, "--self-attention", 0),
        "words": ("--blend-words", "cake", "cake", "--blend-threshold", 1, "--blend-from", 0),
        "replaced": ("--align", "replace"),
        "weighted": ("--weight", "big=4", "--weight", "cake=0.5"),
    }.items():
        out = ("--out", tmp_path / f"{name}.png", "--json")
        made[name] = json.loads(run(capsys, "edit", pipeline, tmp_path / "cake.png", *CAKE, *words, *out).out)
    assert made["default"]["attention"] == {"cross": 0.8, "own": 0.6} and made["none"]["attention"] is None
    pixels = {name: (tmp_path / f"{name}.png").read_bytes() for name in made}
    assert pixels["default"] == pixels["published"] and len(set(pixels.values())) == len(made) - 1
    assert len({one["round_trip_psnr"][0] for one in made.values()}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--blend-words", "cake", "dog"], "there is no word 'dog' in 'a big cake'"),
        (["--blend-words", "dog", "cake"], "there is no word 'dog' in 'a red cake'"),
        (["--weight", "dog=2"], "there is no word 'dog'"),
        (["--weight", "cake"], "WORD=NUMBER"),
        (["--weight", "=2"], "WORD=NUMBER"),
        (["--cross-attention", "1.2"], "--cross-attention must lie between 0 and 1"),
        (["--blend-threshold", "-1"], "--blend-threshold must lie between 0 and 1"),
        (["--align", "swap"], "unknown mode"),
        (["--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_words_that_cannot_be_followed_are_refused(pipeline, tmp_path, capsys, words, said):
    cakes(tmp_path, "cake.png")
    out = ("--out", tmp_path / "b.png")
    assert said in run(capsys, "edit", pipeline, tmp_path / "cake.png", *CAKE, *words, *out, code=2).err
    assert not (tmp_path / "b.png").exists()


def test_classes_have_no_words(trained, picture, capsys):
    for words in (("--blend-words", "3", "8"), ("--weight", "8=2"), ("--self-attention", 0.5)):
        said = run(capsys, "edit", trained, picture, "--source", 3, "--target", 8, *words, code=2).err
        assert "attention is controlled where prompts are told" in said
    assert "--source and --target" in run(capsys, "edit", trained, picture, "--source", 3, code=2).err


# Lists

BENCH = {
    "000": {
        "image_path": "0_random/a.png", "original_prompt": "a [red] cake", "editing_prompt": "a [big] cake",
        "editing_instruction": "make it big", "blended_word": "cake cake", "mask": [0, 4],
    },
    "001": {
        "image_path": "0_random/b.png", "original_prompt": "a cat", "editing_prompt": "a cat [on ice]",
        "blended_word": "",
    },
    "002": {"image_path": "1/c.png", "original_prompt": "an [old] hat", "editing_prompt": "a hat", "blended_word": ""},
}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    cakes(tmp_path / "annotation_images", *(entry["image_path"] for entry in BENCH.values()))
    path = tmp_path / "mapping_file.json"
    path.write_text(json.dumps(BENCH))
    return path


def test_a_list_in_the_format_of_pie_bench(pipeline, bench, tmp_path, capsys):
    words = ("--steps", 3, "--iterations", 0, "--json")
    out = tmp_path / "edited"
    said = json.loads(run(capsys, "edit", pipeline, bench, *words, "--out", out).out)
    assert said["made"] == said["pictures"] == 3 and sorted(said["edits"]) == ["000", "001", "002"]
    assert said["edits"]["000"]["edit"] == {"source": "a red cake", "target": "a big cake", "blend": ["cake", "cake"]}
    assert said["edits"]["001"]["edit"] == {"source": "a cat", "target": "a cat on ice", "blend": None}
    for key, entry in BENCH.items():
        with Image.open(out / f"{key}.png") as made:
            assert made.size == (16, 16)
        plain = lambda text: text.replace("[", "").replace("]", "")
        blend = ("--blend-words", *entry["blended_word"].split()) if entry["blended_word"] else ()
        alone = json.loads(
            run(
                capsys, "edit", pipeline, tmp_path / "annotation_images" / entry["image_path"], "--source",
                plain(entry["original_prompt"]), "--target", plain(entry["editing_prompt"]), *blend, *words,
                "--out", tmp_path / f"{key}.png",
            ).out
        )  # fmt: skip
        together = said["edits"][key]
        assert together["changed_rms"] == pytest.approx(alone["changed_rms"][0], abs=2e-3)
        assert together["round_trip_psnr"] == pytest.approx(alone["round_trip_psnr"][0], abs=0.1)


def test_a_list_goes_on_where_it_stopped(pipeline, bench, tmp_path, capsys):
    words, out = ("--steps", 2, "--iterations", 0, "--batch", 1), tmp_path / "edited"
    again = lambda *more, code=0: run(capsys, "edit", pipeline, bench, *words, *more, "--out", out, code=code)
    assert "3 edits made" in again().out
    kept = (out / "001.png").read_bytes()
    (out / "000.png").unlink()
    assert "1 edits made, 3 in" in again().out and (out / "001.png").read_bytes() == kept
    changed = BENCH | {"001": BENCH["001"] | {"editing_prompt": "a dog"}}
    bench.write_text(json.dumps(changed))
    assert "1 edits made" in again().out and (out / "001.png").read_bytes() != kept
    assert "0 edits made" in again().out
    assert "made otherwise" in again("--guidance", 3, code=2).err
    assert "3 edits made" in again("--guidance", 3, "--overwrite").out


def test_lists_that_cannot_be_done_are_refused_at_once(pipeline, bench, tmp_path, capsys):
    out = ("--out", tmp_path / "edited")
    said = lambda *more: run(capsys, "edit", pipeline, bench, *out, *more, code=2).err

    def listed(**changes):
        bench.write_text(json.dumps({k: {**e, **changes.get(f"e{k}", {})} for k, e in BENCH.items()}))
        return said()

    assert "leave --source out" in said("--source", "a")
    wrong = listed(e000={"blended_word": "cake pie"}, e002={"blended_word": "coat hat"})
    assert "2 edits can't be done" in wrong and "000: there is no word 'pie'" in wrong and "002: there is no" in wrong
    assert "'001' is a word of each prompt" in listed(e001={"blended_word": "cat"})
    assert "c2.png" in listed(e002={"image_path": "c2.png"})
    assert "001: source and target are both 'a cat'" in listed(e001={"editing_prompt": "a [cat]"})
    assert "'001' has no editing_prompt" in listed(e001={"editing_prompt": None})
    for text, wanted in (
        ("[]", "holds no edits"),
        ("3", "holds no edits"),
        ("{", "not valid JSON"),
        ("[1]", "entry 0"),
    ):
        bench.write_text(text)
        assert wanted in said()
    bench.write_text(json.dumps([BENCH["000"], BENCH["000"] | {"editing_prompt": "a pie"}]))
    assert "several edits of the name 'a'" in said()
    bench.write_text(json.dumps({"..": BENCH["000"]}))
    assert "needs a name" in said()
    bench.write_text(json.dumps(BENCH))
    assert "is a folder" in run(capsys, "edit", pipeline, bench, "--out", tmp_path / "x.png", code=2).err
    assert not (tmp_path / "edited").exists()


def test_a_list_of_classes_for_a_run(trained, picture, tmp_path, capsys):
    entries = [{"image_path": "three.png", "original_prompt": "3", "editing_prompt": str(n)} for n in (5, 8)]
    (tmp_path / "edits.json").write_text(json.dumps({str(i): entry for i, entry in enumerate(entries)}))
    words = ("--steps", 3, "--iterations", 1, "--out", tmp_path / "edited", "--json")
    said = json.loads(run(capsys, "edit", trained, tmp_path / "edits.json", *words).out)
    assert [one["edit"]["target"] for one in said["edits"].values()] == ["5", "8"]
    assert (tmp_path / "edited" / "0.png").read_bytes() != (tmp_path / "edited" / "1.png").read_bytes()
