"""What a checkpoint is: told from headers and small files, here and on a (fake) Hub, and never by loading pickles."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import save_file

from condiff.errors import BadFile, BadValue
from condiff.interop.repository import HubRepository, read_header
from condiff.methods.inspection import describe
from tests.fake_hub import serving
from tests.interop import tiny


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    tiny.stable_diffusion(prediction_type="v_prediction").save_pretrained(folder / "sd")
    tiny.sd3().save_pretrained(folder / "sd3")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path) as hub:
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_pipeline_tells_its_parts_and_its_law(pipelines):
    facts = describe(pipelines / "sd")
    assert facts["kind"] == "diffusers pipeline" and facts["pipeline"] == "StableDiffusionPipeline"
    assert facts["parts"]["unet"].startswith("UNet2DConditionModel, ")
    assert facts["model"]["predicts"] == "v" and "scaled_linear" in facts["model"]["process"]
    assert describe(pipelines / "sd3")["model"]["predicts"] == "velocity"


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"_class_name": "UNet2DModel"}, "no scheduler 'UNet2DModel'"),
        ({"_class_name": "NoSuchScheduler"}, "no scheduler"),
        ({}, "no scheduler None"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "odd"}, "odd"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}, "not known"),
    ],
)
def test_a_scheduler_that_cannot_be_built_is_told_so(tmp_path, scheduler, said):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert said in describe(tmp_path)["model"]["process"]


@pytest.mark.parametrize("content", ["null", "[1]", "3"])
@pytest.mark.parametrize("name", ["model_index.json", "adapter_config.json", "config.json"])
def test_configurations_that_hold_no_object(hub, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    hub.repos["someone/odd"] = {name: content.encode()}
    for place in (tmp_path, "someone/odd"):
        with pytest.raises(BadFile, match="describes nothing"):
            describe(place)


def test_a_part_tells_its_class_and_parameters(pipelines):
    facts = describe(pipelines / "sd" / "unet")
    assert facts["class"] == "UNet2DConditionModel"
    own = tiny.stable_diffusion(prediction_type="v_prediction").unet
    assert facts["parameters"] == sum(p.numel() for p in own.parameters())


def test_a_header_is_read_without_its_tensors(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert header.shapes == {"a": (3, 4), "b": (5,)} and header.parameters == 17
    assert header.dtypes == ("BF16", "F32")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:40])
    with pytest.raises(BadFile, match="not a whole safetensors file"):
        describe(tmp_path / "half.safetensors")


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_a_lora_tells_its_rank_and_layers(tmp_path, style):
    down, up = {"peft": ("lora_A.weight", "lora_B.weight"), "kohya": ("lora_down.weight", "lora_up.weight")}[style]
    layers = ["unet.mid.attn.to_q", "unet.mid.attn.to_v"]
    tensors = {f"{layer}.{down}": torch.zeros(4, 8) for layer in layers}
    tensors |= {f"{layer}.{up}": torch.zeros(8, 4) for layer in layers}
    save_file(tensors, tmp_path / "adapter.safetensors")
    facts = describe(tmp_path / "adapter.safetensors")
    assert facts["kind"] == "LoRA" and facts["ranks"] == [4] and facts["layers"] == 2
    assert facts["modules"] == ["to_q", "to_v"] and facts["parts"] == {"unet": 4}


def test_a_lora_of_flat_names(tmp_path):
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    layers = [f"{block}_attn1_to_q", f"{block}_attn2_to_k", "lora_te_text_model_encoder_layers_3_self_attn_q_proj"]
    tensors = {f"{layer}.{part}.weight": torch.zeros(4, 4) for layer in layers for part in ("lora_down", "lora_up")}
    save_file(tensors, tmp_path / "adapter.safetensors")
    facts = describe(tmp_path / "adapter.safetensors")
    assert facts["modules"] == ["attn1_to_q", "attn2_to_k", "self_attn_q_proj"]
    assert facts["parts"] == {"lora_unet": 4, "lora_te": 2}


def test_a_scheduler_tells_its_process_in_a_line(tmp_path):
    CogVideoXDDIMScheduler(snr_shift_scale=3.0, prediction_type="v_prediction").save_pretrained(tmp_path)
    facts = describe(tmp_path)
    assert facts["kind"] == "a scheduler" and facts["predicts"] == "v" and len(facts["process"]) < 150


def test_a_network_of_continuous_levels_predicts_v(tmp_path):
    levels = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_max": 700.0}
    EulerDiscreteScheduler(**levels).save_pretrained(tmp_path)
    assert describe(tmp_path)["predicts"] == "v" and "EDM" in describe(tmp_path)["process"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "Stable Diffusion 1"),
        ("something.else", "weights"),
    ],
)
def test_single_files_are_told_by_their_names(tmp_path, name, kind):
    save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
    assert describe(tmp_path / "model.safetensors")["kind"].startswith(kind)


def test_pickles_are_named_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save(Bomb(), tmp_path / "model.ckpt")
    with pytest.raises(BadFile, match="a pickle can run code"):
        describe(tmp_path / "model.ckpt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "model.ckpt").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadFile, match=r"pytorch_model.bin and no \.safetensors"):
        describe(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_repository_is_told_without_its_weights(hub, pipelines):
    hub.repos["someone/model"] = files_of(pipelines / "sd") | {"unet/old.bin": b"pickle"}
    facts = describe("someone/model")
    here = describe(pipelines / "sd")
    assert facts["place"] == "someone/model" and "old.bin" in facts["refused"]
    assert {k: facts[k] for k in ("pipeline", "parts", "model", "safetensors")} == {
        k: here[k] for k in ("pipeline", "parts", "model", "safetensors")
    }
    assert all(name.endswith(".json") for name in hub.downloaded)  # no weights came along


def test_the_weights_of_a_repository_are_told_by_their_header(hub, tmp_path):
    save_file({"x.lora_A.weight": torch.zeros(2, 5)}, tmp_path / "w.safetensors")
    hub.repos["someone/adapter"] = {"w.safetensors": (tmp_path / "w.safetensors").read_bytes()}
    assert describe("someone/adapter")["ranks"] == [2]


def test_a_repository_is_listed_once(hub):
    hub.repos["someone/configs"] = {"a.json": b"[1]", "b.json": b"[2]"}
    place = HubRepository("someone/configs")
    assert list(place.files()) == ["a.json", "b.json"] and place.json("a.json") == [1] and place.json("b.json") == [2]
    assert hub.listed == 1


def test_what_is_not_there_is_said(hub, tmp_path):
    with pytest.raises(BadFile, match="no repository nobody/nothing"):
        describe("nobody/nothing")
    with pytest.raises(BadFile, match="no such file or folder"):
        describe(tmp_path / "nothing")
    with pytest.raises(BadValue, match="owner/name"):
        HubRepository("no-owner")


def test_without_a_connection_the_line_says_so(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(BadFile, match="the Hub could not be"):
        describe("someone/model")


def test_a_run_tells_its_parameters_and_each_thing_once(tmp_path, capsys):
    from tests.cli.terminal import TINY, run

    run(capsys, "train", "digits", "--out", tmp_path / "run", "--steps", 3, *TINY)
    facts = describe(tmp_path / "run")
    model = read_header(tmp_path / "run" / "model.safetensors")
    assert facts["parameters"] == model.parameters > 0 and facts["finished"]
    assert "recipe" in facts and "denoiser" not in facts


def test_a_shared_run_tells_each_thing_once_too(hub, tmp_path):
    config = {"format": 1, "recipe": {"method": "cfg"}, "denoiser": {"part": "Denoiser"}, "data": {"name": "digits"}}
    hub.repos["someone/run"] = {"config.json": json.dumps(config).encode()}
    assert set(describe("someone/run")) == {"run", "recipe", "data"}
