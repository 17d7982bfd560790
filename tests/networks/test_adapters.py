"""LoRA through peft: what changes, what is stored, and that files go in both directions."""

import copy
import json
import shutil

import peft
import pytest
import torch

import condiff as cd
from condiff.config import from_config, to_config
from condiff.errors import BadFile, BadType, BadValue, Incompatible
from condiff.files import read_tensors
from condiff.model_files import load_weights
from condiff.networks import (
    LoRA,
    attach_lora,
    detach_lora,
    keep_trained,
    load_lora,
    lora_names,
    lora_state,
    save_lora,
    scale_lora,
)


def network(seed=0, width=16):
    torch.manual_seed(seed)
    net = cd.networks.DiT(shape=(1, 8, 8), width=width, depth=2, heads=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def stir(net):
    """Give the updates, which start at 0, some values."""
    for name, p in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))


INPUT = (torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9]))


def adapted(**lora):
    net = network()
    layers = attach_lora(net, LoRA(**{"rank": 2, **lora}))
    stir(net)
    return net, layers


def test_nothing_changes_until_it_is_trained():
    net, plain = network(), network()(*INPUT)
    layers = attach_lora(net, LoRA(rank=2))
    assert layers == ["stack.0.attn.qkv", "stack.0.attn.out", "stack.1.attn.qkv", "stack.1.attn.out"]
    assert torch.equal(net(*INPUT), plain)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    stir(net)
    assert (net(*INPUT) - plain).abs().max() > 0.1


def test_the_update_is_the_low_rank_product():
    net, _ = adapted(alpha=3.0)
    layer, state = net.stack[0].attn.qkv, lora_state(net)
    a, b = (state[f"stack.0.attn.qkv.lora_{half}.weight"] for half in "AB")
    x = torch.randn(5, 16)
    torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + 1.5 * x @ a.T @ b.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_have_adapters_in_single(tmp_path, dtype):
    """Steps of AdamW are far below what half precision can add to a weight."""
    net, other = network().to(dtype), network().to(dtype)
    attach_lora(net, LoRA(rank=2))
    save_lora(net, tmp_path)
    load_lora(other, tmp_path)
    for half in (net, other):
        adapters = {name: p for name, p in half.named_parameters() if "lora_" in name}
        assert adapters and all(p.dtype == torch.float32 for p in adapters.values())
    said = net(INPUT[0].to(dtype), INPUT[1])
    assert said.dtype == dtype and torch.equal(said, network().to(dtype)(INPUT[0].to(dtype), INPUT[1]))


def test_scale_merge_and_detach():
    net, _ = adapted()
    said, plain = net(*INPUT), network()(*INPUT)
    scale_lora(net, 0.0)
    assert torch.equal(net(*INPUT), plain)
    scale_lora(net, 1.0)
    merged = copy.deepcopy(net)
    detach_lora(merged, merge=True)
    assert lora_names(merged) == [] and set(merged.state_dict()) == set(network().state_dict())
    torch.testing.assert_close(merged(*INPUT), said, rtol=1e-5, atol=1e-5)
    detach_lora(net)
    assert torch.equal(net(*INPUT), plain)


def test_files_go_to_peft_and_back(tmp_path):
    net, _ = adapted(alpha=5.0)
    save_lora(net, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(network(), tmp_path / "ours").eval()
    assert torch.equal(theirs(*INPUT), net(*INPUT))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = network()
    load_lora(ours, tmp_path / "theirs")
    assert torch.equal(ours(*INPUT), net(*INPUT))
    assert any(p.requires_grad for p in ours.parameters())


def test_the_seed_makes_the_start():
    starts = []
    for seed in (0, 0, 1):
        net = network()
        attach_lora(net, LoRA(rank=2), seed=seed)
        starts.append(lora_state(net)["stack.0.attn.qkv.lora_A.weight"])
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_runs_train_and_store_the_adapter_alone(tmp_path):
    net = network()
    denoiser = cd.Denoiser(net, cd.process.Gaussian(cd.process.Rectified()), shape=(1, 8, 8))
    attach_lora(net, LoRA(rank=2))
    keep_trained(denoiser)
    before = {name: p.clone() for name, p in net.named_parameters()}
    data = cd.data.TensorData(torch.randn(32, 1, 8, 8).clamp(-1, 1), range="keep")
    run = cd.train(denoiser, data, steps=3, batch=8, lr=0.01, run_dir=tmp_path / "run", quiet=True)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora_" in name for name in changed)
    for file in ("model.safetensors", "model-ema.safetensors"):
        stored, _ = read_tensors(tmp_path / "run" / file)
        assert len(stored) == 8 and all("lora_" in name for name in stored)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*3")
    assert all("lora_" in name for name in read_tensors(checkpoint / "model.safetensors")[0])
    fresh = cd.Denoiser(network(), denoiser.process, shape=(1, 8, 8))
    attach_lora(fresh.network, LoRA(rank=2))
    load_weights(keep_trained(fresh), tmp_path / "run" / "model-ema.safetensors")
    assert torch.equal(fresh.network(*INPUT), run.ema.network(*INPUT))


def test_a_resumed_run_of_an_adapter_is_the_undisturbed_one(tmp_path):
    def run(folder, resume=False):
        net = network()
        denoiser = cd.Denoiser(net, cd.process.Gaussian(cd.process.Rectified()), shape=(1, 8, 8))
        attach_lora(net, LoRA(rank=2))
        keep_trained(denoiser)
        data = cd.data.TensorData(INPUT[0].repeat(4, 1, 1, 1).clamp(-1, 1), range="keep")
        config = cd.TrainConfig(steps=4, batch=4, save_every=2, lr=0.01)
        cd.Trainer(denoiser, data, None, config, folder, resume=resume, quiet=True).fit()
        return lora_state(net)

    whole = run(tmp_path / "run")
    (last,) = (tmp_path / "run" / "checkpoints").glob("step-*4")
    shutil.rmtree(last)
    again = run(tmp_path / "run", resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_configuration_round_trip():
    lora = LoRA(rank=3, alpha=6.0, targets=("feed_forward.fc1",))
    assert from_config(json.loads(json.dumps(to_config(lora)))) == lora
    net = network()
    assert attach_lora(net, lora) == [f"stack.{i}.feed_forward.fc1" for i in range(2)]
    net = network()
    assert "embed" in attach_lora(net, LoRA(targets=()))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LoRA(rank=0), BadValue, "rank must be at least 1"),
        (lambda: LoRA(rank=1.5), BadType, "integer"),
        (lambda: LoRA(alpha=0.0), BadValue, "alpha"),
        (lambda: LoRA(dropout=1.0), BadValue, "dropout"),
        (lambda: attach_lora(network(), LoRA(targets=("query",))), BadValue, "no linear layer"),
        (lambda: attach_lora(adapted()[0]), BadValue, "already"),
        (lambda: detach_lora(network()), BadValue, "no adapter"),
        (lambda: scale_lora(adapted()[0], 1.0, "other"), BadValue, "unknown adapter 'other'"),
        (lambda: keep_trained(network().requires_grad_(False)), BadValue, "nothing"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_adapters_of_other_networks_are_refused(tmp_path):
    net, _ = adapted()
    save_lora(net, tmp_path / "a")
    wide = network(width=32)
    with pytest.raises(Incompatible, match="width is 32"):
        load_lora(wide, tmp_path / "a")
    assert lora_names(wide) == []  # untouched
    with pytest.raises(Incompatible, match="which MLP has not"):
        load_lora(cd.networks.MLP(shape=(4,), width=8), tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(BadFile, match="IA3"):
        load_lora(network(), tmp_path / "a")
    with pytest.raises(BadFile):
        load_lora(network(), tmp_path / "nothing")


def test_a_second_adapter_acts_beside_the_first_and_alone_is_trained():
    net, layers = adapted()
    first = net(*INPUT)
    assert attach_lora(net, LoRA(rank=3), name="second", seed=1) == layers
    assert torch.equal(net(*INPUT), first)
    stir(net)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained and all(".second." in name for name in trained)
    both = net(*INPUT)
    scale_lora(net, 0.0, "default")
    alone = net(*INPUT)
    scale_lora(net, 0.0, "second")
    assert torch.equal(net(*INPUT), network()(*INPUT))
    assert (both - first).abs().max() > 1e-3 and (both - alone).abs().max() > 1e-3
