"""Atomic files and model folders."""

import errno
import json
import os
import stat

import pytest
import torch
from torch import nn

from condiff import files
from condiff.denoiser import Denoiser, EDMPrecondition
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import read_metadata, read_tensors, replacing, seal, unseal, write_json, write_tensors
from condiff.model_files import load_model, load_weights, save_model
from condiff.networks import MLP
from condiff.process import EDM, Gaussian, Rectified


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EACCES, "denied")]
)
def test_what_the_system_refuses_is_explained(tmp_path, monkeypatch, code, said):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(3)})

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_sync", fail)
    with pytest.raises(BadFile, match=f"x.safetensors: .*{said}.*untouched"):
        write_tensors(path, {"a": torch.ones(3)})
    assert torch.equal(read_tensors(path)[0]["a"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


def test_tensors_round_trip(tmp_path):
    shared = torch.randn(4, 6)
    tensors = {"a": shared, "tied": shared, "view": shared.t(), "half": shared.bfloat16(), "n": torch.tensor(3)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, {"step": "3"})
    back, metadata = read_tensors(path)
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert back["half"].dtype == torch.bfloat16
    assert metadata == {"format": "pt", "step": "3"} == read_metadata(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("damage", [lambda b: b[:20], lambda b: b"", lambda b: b[:-1], lambda b: b"{}" + b])
def test_a_file_that_is_not_whole_is_named(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(30)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadFile, match=r"x.safetensors is not a whole safetensors file"):
        read_tensors(path)
    with pytest.raises(BadFile, match="no such file"):
        read_tensors(tmp_path / "y.safetensors")


def test_a_seal_notices_every_change(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "data").write_bytes(b"12345")
    seal(folder, "state.json", {"step": 3, "rate": 0.1})
    assert unseal(folder, "state.json")["rate"] == 0.1
    (folder / "data").write_bytes(b"12346")
    with pytest.raises(BadFile, match="data is truncated or was changed"):
        unseal(folder, "state.json")
    (folder / "data").write_bytes(b"12345")
    text = (folder / "state.json").read_text()
    for old, new in [("3", "4"), ("0.1", "0.2"), ("data", "date")]:
        (folder / "state.json").write_text(text.replace(old, new, 1))
        with pytest.raises(BadFile, match="was changed after it was written"):
            unseal(folder, "state.json")


# Models


def model(width=16, schedule=None, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = MLP(shape=(4,), width=width, depth=2)
        for p in network.parameters():
            nn.init.normal_(p)
        return Denoiser(network, Gaussian(schedule or Rectified()), "velocity", shape=(4,), **kwargs)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def averaged(by):
    return {k: v + by for k, v in model().state_dict().items()}


@pytest.mark.parametrize("precondition", [None, EDMPrecondition(sigma_data=0.3)])
def test_a_model_folder_rebuilds_the_model(tmp_path, precondition):
    made = model(schedule=EDM(), precondition=precondition)
    save_model(tmp_path / "m", made, ema={"0.9": averaged(1.0), "0.99": averaged(2.0)}, extra={"note": "x"}, step=7)
    raw = load_model(tmp_path / "m", "raw")
    assert same(raw, made)
    assert (raw.process, raw.precondition, raw.targets, raw.shape) == (
        made.process,
        made.precondition,
        made.targets,
        made.shape,
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(raw(x, 0.5).x0, made(x, 0.5).x0)
    assert not raw.training
    for name, by in [("ema", 1.0), ("0.9", 1.0), ("0.99", 2.0)]:
        assert all(torch.equal(v, averaged(by)[k]) for k, v in load_model(tmp_path / "m", name).state_dict().items())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["note"] == "x"
    assert read_metadata(tmp_path / "m" / "model.safetensors")["step"] == "7"


def test_denoiser_configurations_round_trip():
    config = json.loads(json.dumps(model().config()))
    again = Denoiser.from_config(config)
    assert again.config() == model().config()
    with pytest.raises(BadValue, match="Did you mean 'process'"):
        Denoiser.from_config({**config, "proces": 1})


def test_own_networks_are_asked_for(tmp_path):
    class Own(nn.Linear):
        def forward(self, x, time, cond):
            return super().forward(x)

    made = Denoiser(Own(4, 4), Gaussian(Rectified()), shape=(4,))
    save_model(tmp_path / "m", made)
    with pytest.raises(BadValue, match="give network="):
        load_model(tmp_path / "m", "raw")
    assert same(load_model(tmp_path / "m", "raw", network=Own(4, 4)), made)


def test_weights_that_are_not_there_are_named(tmp_path):
    save_model(tmp_path / "m", model(), ema={"0.99": averaged(1.0)})
    with pytest.raises(BadValue, match=r"Did you mean '0.99'"):
        load_model(tmp_path / "m", "0.999")
    (tmp_path / "m" / "model-ema.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "checkpoints" / "step-000004").mkdir(parents=True)
    with pytest.raises(BadFile, match=r"no weights in .*there is a checkpoint: .*step-000004"):
        load_model(tmp_path / "m")
    with pytest.raises(BadFile, match="no such folder"):
        load_model(tmp_path / "nowhere")


def test_another_models_weights_are_refused(tmp_path):
    save_model(tmp_path / "wide", model(width=32))
    save_model(tmp_path / "m", model())
    os.replace(tmp_path / "wide" / "model.safetensors", tmp_path / "m" / "model.safetensors")
    with pytest.raises(Incompatible, match=r"another model: network.width is 32 in the file and 16 here"):
        load_model(tmp_path / "m", "raw")
    save_model(tmp_path / "shifted", model(schedule=Rectified(shift=3.0)))
    with pytest.raises(Incompatible, match=r"process.schedule.shift is 3.0 in the file and 1.0 here"):
        load_weights(model(), tmp_path / "shifted" / "model.safetensors")


def test_missing_surplus_and_misshapen_tensors_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = model().state_dict()
    name, *_ = tensors
    for broken, match in [
        ({k: v for k, v in tensors.items() if k != name}, f"missing {name}"),
        ({**tensors, "extra": torch.zeros(1)}, "not in the model: extra"),
        ({**tensors, name: torch.zeros(7)}, rf"{name} is \(7,\) in the file"),
    ]:
        write_tensors(path, broken)
        with pytest.raises(Incompatible, match=match):
            load_weights(model(), path)
