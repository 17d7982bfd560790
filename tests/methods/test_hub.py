"""Runs to the (fake) Hub and back: whole, without paths, data or checkpoints, and never over something."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from condiff.errors import BadFile, BadValue
from condiff.methods.hub import pull, push, without_paths
from tests.cli.terminal import TINY, run
from tests.fake_hub import serving


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from condiff.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert main(["train", "digits", "--out", str(folder), "--steps", "20", *TINY]) == 0
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path) as hub:
        yield hub


def test_a_run_goes_up_and_comes_back_and_samples_the_same(hub, trained, tmp_path, capsys):
    run(capsys, "push", trained, "me/digits", "--private")
    assert "me/digits" in hub.private
    shared = hub.repos["me/digits"]
    assert {"config.json", "model.safetensors", "README.md", "samples.png"} <= set(shared)
    assert not any("checkpoint" in name or name.endswith((".jsonl", ".bin")) for name in shared)
    back = tmp_path / "back"
    run(capsys, "pull", "me/digits", "--out", back)
    mine, theirs = load_file(trained / "model.safetensors"), load_file(back / "model.safetensors")
    assert mine.keys() == theirs.keys() and all((mine[k] == theirs[k]).all() for k in mine)
    drawn = []
    for folder in (trained, back):
        run(capsys, "sample", folder, "--num", 3, "--seed", 5, "--out", tmp_path / f"{folder.name}.npz")
        drawn.append(np.load(tmp_path / f"{folder.name}.npz")["x"])
    assert (drawn[0] == drawn[1]).all()
    assert not list(back.rglob(".cache"))


def test_the_card_says_what_it_is(hub, trained):
    push(trained, "me/card")
    card = hub.repos["me/card"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: condiff\n") and "condiff pull me/card" in card and "@" in card
    assert "flow-matching on digits" in card


def test_paths_stay_at_home():
    config = {
        "request": {"source": "images", "paths": ["/home/me/secret/cells"], "options": {"labels": "/home/me/l.csv"}}
    }
    assert without_paths(config)["request"] == {"source": "images", "paths": ["cells"], "options": {"labels": "l.csv"}}


def test_paths_stay_at_home_wherever_they_are_and_names_stay_whole():
    request = {"source": "images", "paths": ["../cells"], "options": {"labels": "../l.csv", "target": "mg/dl", "n": 3}}
    extra = {"from": ["/home/me/teacher", "C:\\Users\\me\\one"], "note": "a / b"}
    got = without_paths({"request": request, "extra": extra, "remembered": {"classes": ["/m/01"]}})
    assert got["request"] == {
        "source": "images",
        "paths": ["cells"],
        "options": {"labels": "l.csv", "target": "mg/dl", "n": 3},
    }
    assert got["extra"] == {"from": ["teacher", "one"], "note": "a / b"}
    assert got["remembered"] == {"classes": ["/m/01"]}
    assert without_paths({"request": {"source": "hub", "paths": ["me/cells"]}})["request"]["paths"] == ["me/cells"]


def test_a_run_that_needs_another_one_is_not_shared(hub, trained, tmp_path):
    tied = tmp_path / "tied"
    tied.mkdir()
    (tied / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    config = json.loads((trained / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie": {"run": str(trained), "name": "edges"}}))
    with pytest.raises(BadFile, match="is tied to another run"):
        push(tied, "me/tied")
    assert "me/tied" not in hub.repos


def test_what_is_left_of_an_earlier_run_goes(hub, trained):
    """Files that a run may have, and this one hasn't: they'd be taken for a part of it."""
    old = {
        "config.json": b"{}",
        "model-ema-0.9.safetensors": b"old",
        "tokenizer.json": b"{}",
        "unet/a.safetensors": b"",
    }
    hub.repos["me/again"] = {**old, "notes.txt": b"mine"}
    push(trained, "me/again", overwrite=True)
    now = hub.repos["me/again"]
    assert "model-ema-0.9.safetensors" not in now and "tokenizer.json" not in now
    assert now["notes.txt"] == b"mine" and "unet/a.safetensors" in now and now["config.json"] != b"{}"


def test_nothing_is_written_outside_of_the_new_folder(hub, trained, tmp_path):
    push(trained, "me/odd")
    hub.repos["me/odd"]["../../outside.safetensors"] = b"x"
    hub.repos["me/odd"]["deep/inside.safetensors"] = b"x"
    back = pull("me/odd", tmp_path / "a" / "b" / "back")
    assert not list(tmp_path.rglob("outside.safetensors")) and not list(back.rglob("inside.safetensors"))
    assert (back / "model.safetensors").is_file()


def test_nothing_is_overwritten(hub, trained, tmp_path):
    hub.repos["me/other"] = {"precious.txt": b"mine"}
    with pytest.raises(BadFile, match=r"holds precious\.txt already"):
        push(trained, "me/other")
    assert hub.repos["me/other"] == {"precious.txt": b"mine"}
    push(trained, "me/other", overwrite=True)
    assert hub.repos["me/other"]["precious.txt"] == b"mine" and "config.json" in hub.repos["me/other"]
    (tmp_path / "there").mkdir()
    with pytest.raises(BadFile, match="exists already"):
        pull("me/other", tmp_path / "there")


def test_only_runs_are_shared_and_fetched(hub, tmp_path):
    with pytest.raises(BadFile, match=r"not a finished run: it has no config\.json"):
        push(tmp_path, "me/nothing")
    assert "me/nothing" not in hub.repos
    hub.repos["someone/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(BadFile, match="is not a run of condiff"):
        pull("someone/pickled", tmp_path / "new")
    with pytest.raises(BadFile, match="no repository"):
        pull("someone/missing", tmp_path / "new")
    with pytest.raises(BadValue, match="owner/name"):
        pull("just-a-name", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pickles_do_not_come_along(hub, trained, tmp_path):
    push(trained, "me/mixed")
    hub.repos["me/mixed"]["optimizer.pt"] = b"pickle"
    pull("me/mixed", tmp_path / "new")
    assert not (tmp_path / "new" / "optimizer.pt").exists()
    assert json.loads((tmp_path / "new" / "config.json").read_text())["request"]["source"] == "digits"
