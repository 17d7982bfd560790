"""UniCon on wrapped pipelines: trained by our trainer, saved, loaded, and sampled in every direction."""

import pytest
import tiny
import torch
from pairable import PIPELINES, read, stir, told_of

import condiff as cd
from condiff.aligned import Aligned
from condiff.errors import BadValue, Incompatible
from condiff.interop import wrap
from condiff.methods import unicon
from condiff.methods.companions import UniCon
from condiff.networks import Tie

VARIABLES = ("image", "depth")


@pytest.fixture(params=PIPELINES)
def name(request):
    return request.param


def pictures(model, seed=0):
    height, width = model.family.size
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def rows_of(model, told):
    """Latents of two pictures and of their mirrored companions, with prompts of their own and what both are told."""
    cond, other = told_of(model, told), told_of(model, told[::-1])
    with torch.no_grad():
        z = model.codec.encode(pictures(model))
    scales = {n: entry.value for n, entry in cond.items() if entry.kind == "scalar"}
    own = {f"{v}.{n}": part[n].value for v, part in zip(VARIABLES, (cond, other), strict=True) for n in part}
    told = {n: value for n, value in own.items() if n.split(".")[1] not in scales}
    kinds = {"depth": "map", **{n: cond[n.split(".")[-1]].kind for n in (*told, *scales)}}
    rows = cd.data.TensorData(z, {"depth": z.flip(-1), **told, **scales}, kinds=kinds, range="keep")
    return cd.data.AsVariables(rows, image="x", depth="depth"), {n.split(".")[1] for n in told} - {"size"}


def trained(name, folder, steps=2):
    """Joined, a few steps trained on latents of pairs, and saved."""
    model, told = read(name)
    tied = unicon.join(model.denoiser, VARIABLES, rank=2)
    frozen = {n: p.clone() for n, p in tied.named_parameters() if not p.requires_grad}
    data, dropped = rows_of(model, told)
    objective = unicon.objective(tied, dropped=sorted(dropped))
    run = cd.train(tied, data, objective, steps=steps, batch=2, lr=0.01, quiet=True, run_dir=folder / "run")
    for n, p in run.ema.named_parameters():
        assert n not in frozen or torch.equal(p, frozen[n])
    pair = UniCon(run.ema, model)
    pair.save(folder / "depth")
    return pair, told


def test_train_save_load_and_sample_in_every_direction(name, tmp_path):
    pair, told = trained(name, tmp_path)
    stored = cd.files.read_tensors(tmp_path / "run" / "model.safetensors")[0]
    assert stored and all("lora_" in key or "post" in key for key in stored)
    again = UniCon.load(read(name)[0], tmp_path / "depth", VARIABLES)
    options = {"steps": 3, "scale": 3.0, "hearing": 1.0, "seed": 1}
    given = pictures(pair.source, 1)
    made = pair.sample(told, given={"depth": given}, **options)
    same = again.sample(told, given={"depth": given}, **options)
    assert made["image"].shape == given.shape
    torch.testing.assert_close(same["image"], made["image"], rtol=1e-4, atol=1e-4)
    found = again.estimate(given, told, steps=3)
    assert found.shape == given.shape and found.isfinite().all()
    both = again.joint(told, steps=3)
    assert set(both) == set(VARIABLES) and all(v.isfinite().all() for v in both.values())
    held = again.sample(told, given={"depth": given}, hold={"depth": 0.5}, steps=4)
    anew = again.sample(told, given={"image": given}, start={"image": 0.5}, steps=4)
    assert held["image"].isfinite().all() and anew["depth"].isfinite().all()


def test_a_trained_tie_is_heard_and_a_new_one_is_not(name, tmp_path):
    """What is given changes the picture, by the tie alone; with the same noise and prompts."""
    model, told = read(name)
    new = UniCon(unicon.join(model.denoiser, VARIABLES, rank=2).eval(), model)
    some, other = ({"depth": pictures(model, seed)} for seed in (1, 2))
    options = {"steps": 3, "scale": 2.0}
    a, b = (new.sample(told, given=given, **options)["image"] for given in (some, other))
    assert torch.equal(a, b)
    stir(new.model)
    a, b = (new.sample(told, given=given, **options)["image"] for given in (some, other))
    assert (a - b).abs().max() > 1e-3


def test_untrained_it_draws_what_the_pipelines_guidance_draws(name):
    """With the tie at its start, pictures are those of the wrapped pipeline alone, on its own grid."""
    model, told = read(name)
    pair = UniCon(unicon.join(model.denoiser, VARIABLES, rank=2).eval(), model)
    start = torch.randn(2, *model.denoiser.shape, generator=torch.Generator().manual_seed(0))
    scale = 1.0 if name == "flux_schnell" else 3.0  # that pipeline has no guidance
    one = model.denoiser if scale == 1.0 else model.guided(scale)
    alone = cd.sample(one, initial=start, cond=model.encode(told), solver=cd.DDIM(), grid=model.grid(4))
    grid = dict.fromkeys(VARIABLES, model.grid(4))
    options = {"cond": pair.told(told), "solver": cd.DDIM(), "grid": grid}
    made = cd.sample(unicon.guided(pair.model, scale), initial=dict.fromkeys(VARIABLES, start), **options)
    for z in made.values():
        torch.testing.assert_close(z, alone, rtol=1e-4, atol=1e-4)


def test_a_pair_of_pictures_depends_on_its_own_seed(name):
    model, told = read(name)
    pair = UniCon(unicon.join(model.denoiser, VARIABLES, rank=2).eval(), model)
    stir(pair.model)
    whole = pair.joint(told, steps=3, seeds=[4, 5])
    for row in (0, 1):
        alone = pair.joint(told[row : row + 1], steps=3, seeds=[4 + row])
        for variable in VARIABLES:
            torch.testing.assert_close(alone[variable][0], whole[variable][row], rtol=1e-4, atol=1e-4)


def test_untrained_it_draws_what_the_pipeline_draws():
    """Also beside the pipeline's own loop, scheduler and guidance."""
    pipe = tiny.stable_diffusion()
    sd = wrap(pipe)
    pair = UniCon(unicon.join(sd.denoiser, VARIABLES, rank=2).eval(), sd)
    model, cond = pair.model, pair.told(["a fox"])
    start = torch.randn(1, *sd.denoiser.shape, generator=torch.Generator().manual_seed(0))
    guided = cd.guidance.Free(model, scale=3.0)
    grid = {name: sd.grid(4) for name in VARIABLES}
    made = cd.sample(guided, initial={"image": start, "depth": start}, cond=cond, solver=cd.DDIM(), grid=grid)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe("a fox", latents=start, **options).images
    torch.testing.assert_close(made["image"], theirs, rtol=1e-4, atol=1e-4)


def test_the_companions_prompt_begins_with_the_trigger():
    sd = wrap(tiny.stable_diffusion())
    pair = UniCon(Aligned(sd.denoiser, VARIABLES), sd, trigger="depth map, ")
    told = pair.told(["a fox"])
    assert torch.equal(told["prompt"].value, sd.encode(["a fox"])["prompt"].value)
    assert torch.equal(told["depth.prompt"].value, sd.encode(["depth map, a fox"])["prompt"].value)


def test_a_told_guidance_is_the_scale():
    model, told = read("flux_dev")
    pair = UniCon(unicon.join(model.denoiser, VARIABLES, rank=2).eval(), model)
    with pytest.raises(BadValue, match="scale="):
        pair.sample(told_of(model, told), steps=2)
    weak, strong = (pair.joint(told, scale=scale, steps=2)["image"] for scale in (1.0, 4.0))
    assert (weak - strong).abs().max() > 1e-4


def test_another_network_is_refused(tmp_path):
    pair, _ = trained("stable_diffusion", tmp_path)
    assert pair.model.ties == (Tie("image", "depth", adapter="depth", own=True),)
    for other in ("dit", "sd3", "flux_dev"):
        with pytest.raises(Incompatible, match="another network"):
            UniCon.load(read(other)[0], tmp_path / "depth", VARIABLES)
