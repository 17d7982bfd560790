"""Paired rows in wrapped pipelines: joint attention in diffusers' own blocks, and UniCon on Stable Diffusion."""

import pytest
import tiny
import torch

import condiff as cd
from condiff.aligned import Aligned
from condiff.conditions import cat
from condiff.errors import Incompatible
from condiff.interop import add_lora, wrap
from condiff.methods import unicon
from condiff.methods.companions import UniCon
from condiff.networks import LoRA, Pairing, Tie, add_pair, remove_pair
from condiff.networks.pairing import Pair, sites_of

PIPELINES = {
    "stable_diffusion": (tiny.stable_diffusion, ["a fox", "a red fox"]),
    "stable_diffusion_xl": (tiny.stable_diffusion_xl, ["a fox", "a red fox"]),
    "dit": (tiny.dit, [1, 2]),
}


def stir(module):
    rng = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        if "lora_B" in name or "post" in name:
            torch.nn.init.normal_(p, std=0.3, generator=rng)


def stacked(model, told, seed=0):
    """A batch of 2 x 2 rows, its level and conditions."""
    x = torch.randn(4, *model.denoiser.shape, generator=torch.Generator().manual_seed(seed))
    level = model.denoiser.process.at(torch.tensor([0.2, 0.5, 0.8, 0.35], dtype=torch.float64))
    cond = model.encode(told)
    return x, level, cat([cond, cond])


@pytest.fixture(params=PIPELINES)
def wrapped(request):
    make, told = PIPELINES[request.param]
    return wrap(make()), told


def test_a_new_pair_changes_nothing_and_switched_off_it_is_the_base(wrapped):
    model, told = wrapped
    one, batch = model.denoiser, stacked(model, told)
    base = one(*batch).x0
    for name, own in (("pair", False), ("depth", True)):
        add_pair(one.network, name, rank=2, own=own)
        pairing = Pairing(2, [Pair(0, 1, adapter=name)], own={1: name} if own else {})
        assert (one(*batch, pairing=pairing).x0 - base).abs().max() == 0.0
    stir(one)
    assert torch.equal(one(*batch).x0, base)  # the plain pipeline stays what it was
    assert torch.equal(one(*batch, pairing=Pairing(2, [Pair(0, 1)], 0.0)).x0, base)
    assert (one(*batch, pairing=Pairing(2, [Pair(0, 1)])).x0 - base).abs().max() > 0.01
    own = one(*batch, pairing=Pairing(2, [], own={1: "depth"})).x0
    assert torch.equal(own[:2], base[:2]) and (own[2:] - base[2:]).abs().max() > 0.01
    remove_pair(one.network, "depth")


def test_pairs_are_independent_and_weights_add_up(wrapped):
    model, told = wrapped
    one, (x, level, cond) = model.denoiser, stacked(model, told)
    add_pair(one.network, "pair", rank=2)
    stir(one)
    pairing = Pairing(2, [Pair(0, 1)])
    said = one(x, level, cond, pairing=pairing).x0
    half = Pair(0, 1, (0.5, 0.5))
    assert torch.equal(one(x, level, cond, pairing=Pairing(2, [half, half])).x0, said)
    other = x.clone()
    other[3] += 1.0
    changed = one(other, level, cond, pairing=pairing).x0
    assert torch.equal(changed[[0, 2]], said[[0, 2]]) and (changed[1] - said[1]).abs().max() > 1e-3
    order = torch.tensor([1, 0, 3, 2])
    turned = one(x[order], level.rows(order), cond.rows(order), pairing=pairing).x0
    torch.testing.assert_close(turned, said[order], rtol=1e-4, atol=1e-4)


def test_the_joint_attention_is_the_equation():
    """One block of Stable Diffusion's against its own words: updates follow the tokens that go in."""
    model = wrap(tiny.stable_diffusion())
    add_pair(model.denoiser.network, "pair", rank=2, post="shared")
    stir(model.denoiser)
    site = next(s for s in sites_of(model.denoiser.network).values() if not s.crosses)
    (attention,), part = site._attention, site.exchanges["pair"]
    h = torch.randn(4, 6, site.width)

    def project(name, tokens, side):
        low = getattr(part, side)[name]
        return site.layers()[name](tokens) + tokens @ low.lora_A.weight.T @ low.lora_B.weight.T

    def cross(mine, side, theirs, other):
        q, k, v = project("to_q", mine, side), project("to_k", theirs, other), project("to_v", theirs, other)
        q, k, v = (a.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for a in (q, k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return project("to_out_0", mixed, side) @ part.post.linear.weight.T

    x, y = h[:2], h[2:]
    wanted = attention(h) + torch.cat([0.5 * cross(x, "first", y, "second"), 2.0 * cross(y, "second", x, "first")])
    said = attention(h, pairing=Pairing(2, [Pair(0, 1, (0.5, 2.0))]))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)


def test_it_goes_together_with_a_lora_of_the_whole_network():
    model = wrap(tiny.stable_diffusion())
    add_lora(model, LoRA(rank=2))
    add_pair(model.denoiser.network, "pair", rank=2)
    stir(model.denoiser)
    batch = stacked(model, ["a fox", "a red fox"])
    off = model.denoiser(*batch).x0
    assert torch.equal(model.denoiser(*batch, pairing=Pairing(2, [Pair(0, 1)], 0.0)).x0, off)
    assert (model.denoiser(*batch, pairing=Pairing(2, [Pair(0, 1)])).x0 - off).abs().max() > 0.01


def test_networks_that_cant_be_paired_are_refused():
    for pipe in (tiny.sd3(), tiny.ddpm()):
        with pytest.raises(Incompatible, match="can't be paired"):
            add_pair(wrap(pipe).denoiser.network, "pair")


# UniCon on Stable Diffusion


def pictures(seed=0):
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def trained(tmp_path, pipe):
    """Joined, a few steps trained on latents of pairs with prompts, and saved."""
    sd = wrap(pipe)
    model = unicon.join(sd.denoiser, ("image", "depth"), rank=2)
    told = {"image.prompt": sd.encode(["a fox"])["prompt"], "depth.prompt": sd.encode(["depth map, a fox"])["prompt"]}
    with torch.no_grad():
        z = sd.codec.encode(pictures())
    cond = {name: entry.value.expand(2, -1, -1) for name, entry in told.items()}
    rows = cd.data.TensorData(z, {"depth": z.flip(-1), **cond}, kinds={"depth": "map"}, range="keep")
    data = cd.data.AsVariables(rows, image="x", depth="depth")
    objective = unicon.objective(model, dropped=("prompt",))
    run = cd.train(model, data, objective, steps=2, batch=2, lr=0.01, quiet=True, run_dir=tmp_path / "run")
    pair = UniCon(run.ema, sd, trigger="depth map, ")
    pair.save(tmp_path / "depth")
    stored = cd.files.read_tensors(tmp_path / "run" / "model.safetensors")[0]
    assert stored and all("lora_" in name or "post" in name for name in stored)
    return pair


def test_train_save_load_and_sample(tmp_path):
    pair = trained(tmp_path, tiny.stable_diffusion())
    again = UniCon.load(wrap(tiny.stable_diffusion()), tmp_path / "depth", ("image", "depth"), "depth map, ")
    options = {"steps": 3, "scale": 3.0, "hearing": 1.0, "seed": 1}
    made = pair.sample(["a fox", "a fox"], given={"depth": pictures(1)}, **options)
    same = again.sample(["a fox", "a fox"], given={"depth": pictures(1)}, **options)
    assert made["image"].shape == (2, 3, 16, 16)
    torch.testing.assert_close(same["image"], made["image"], rtol=1e-4, atol=1e-4)
    assert again.estimate(pictures(), ["a fox", "a fox"], steps=3).shape == (2, 3, 16, 16)
    assert set(again.joint(["a fox"], steps=3)) == {"image", "depth"}
    held = again.sample(["a fox"] * 2, given={"depth": pictures(1)}, hold={"depth": 0.5}, steps=3)
    assert held["image"].isfinite().all()


def test_untrained_it_draws_what_the_pipeline_draws():
    """With the tie at its start the pictures are those of the pipeline's own guidance and scheduler."""
    pipe = tiny.stable_diffusion()
    sd = wrap(pipe)
    pair = UniCon(unicon.join(sd.denoiser, ("image", "depth"), rank=2).eval(), sd)
    model, cond = pair.model, pair._told(["a fox"])
    start = torch.randn(1, *sd.denoiser.shape, generator=torch.Generator().manual_seed(0))
    guided = cd.guidance.Free(model, scale=3.0)
    grid = {name: sd.grid(4) for name in ("image", "depth")}
    made = cd.sample(guided, initial={"image": start, "depth": start}, cond=cond, solver=cd.DDIM(), grid=grid)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe("a fox", latents=start, **options).images
    torch.testing.assert_close(made["image"], theirs, rtol=1e-4, atol=1e-4)


def test_the_companions_prompt_begins_with_the_trigger():
    sd = wrap(tiny.stable_diffusion())
    pair = UniCon(Aligned(sd.denoiser, ("image", "depth")), sd, trigger="depth map, ")
    told = pair._told(["a fox"])
    assert torch.equal(told["prompt"].value, sd.encode(["a fox"])["prompt"].value)
    assert torch.equal(told["depth.prompt"].value, sd.encode(["depth map, a fox"])["prompt"].value)


def test_another_width_is_refused(tmp_path):
    unicon_of = trained(tmp_path, tiny.stable_diffusion())
    assert unicon_of.model.ties == (Tie("image", "depth", adapter="depth", own=True),)
    with pytest.raises(Incompatible, match="another network"):
        UniCon.load(wrap(tiny.dit()), tmp_path / "depth", ("image", "depth"))
