"""Prompt-to-Prompt on tiny pipelines of Stable Diffusion's and XL's classes."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

import condiff as cd
from condiff.conditions import cat
from condiff.errors import BadValue, Incompatible
from condiff.interop import attention_edit, control_attention, edit_in, wrap
from condiff.interop.attention import ControlledProcessor
from condiff.networks import LoRA
from condiff.sampling import DDIM, AttentionEdit, Hook, LocalBlend, beside
from tests.interop.tiny import ddpm, dit, sd3, stable_diffusion, stable_diffusion_xl

SOURCE, TARGET = "a cat", "a dog"
MAKERS = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl}


def sharp(pipe):
    """Maps of random weights are flat; these have peaks, as those of trained ones."""
    for name, parameter in pipe.unet.named_parameters():
        if "attn" in name and "to_q" in name:
            parameter.data *= 20.0
    return pipe


def exact(pipe):
    sharp(pipe).unet.double()
    return wrap(pipe)


@pytest.fixture(scope="module", params=sorted(MAKERS))
def model(request):
    return exact(MAKERS[request.param]())


@pytest.fixture(scope="module")
def sd():
    return exact(stable_diffusion())


def state(model, rows=2, seed=0):
    one = torch.randn(1, *model.denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return one.repeat(rows, 1, 1, 1)


def told(model, prompts):
    """Each encoded alone: the text encoder's rounding depends on what else it reads."""
    return cat([model.encode([prompt]) for prompt in prompts])


def sampled(model, prompts, edit=None, scale=4.0, steps=3, hooks=(), initial=None):
    """Rows with the same start, by guidance in one batched call."""
    initial = state(model, len(prompts)) if initial is None else initial
    how = {"cond": told(model, prompts), "solver": DDIM(), "grid": model.grid(steps), "initial": initial}
    guided = model.guided(scale)
    if edit is None:
        return cd.sample(guided, hooks=list(hooks), **how)
    with edit.on(guided):
        return cd.sample(guided, hooks=[*hooks, edit], **how)


def processors(model):
    return dict(model.pipeline.unet.attn_processors)


@pytest.mark.parametrize("mode", ["refine", "replace"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_the_same_prompt_is_an_identity(model, mode, scale):
    edit = model.attention_edit(SOURCE, SOURCE, mode=mode, cross=1.0, own=1.0, blend=("cat", "cat"))
    out = sampled(model, [SOURCE, SOURCE], edit, scale)
    torch.testing.assert_close(out[0], out[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, sampled(model, [SOURCE, SOURCE], scale=scale), rtol=1e-10, atol=1e-10)


def test_without_a_share_nothing_is_controlled_bit_for_bit(model):
    plain = sampled(model, [SOURCE, TARGET])
    edit = model.attention_edit(SOURCE, TARGET, cross=0.0, own=0.0, keep=True)
    assert torch.equal(sampled(model, [SOURCE, TARGET], edit), plain)
    assert edit.control.sums  # kept all the same
    weighted = model.attention_edit(SOURCE, TARGET, cross=0.0, own=0.0, weights={"dog": 3.0})
    assert torch.equal(sampled(model, [SOURCE, TARGET], weighted), plain)


def test_the_source_is_what_it_is_alone(model):
    edit = model.attention_edit(SOURCE, TARGET, cross=1.0, own=1.0)
    out = sampled(model, [SOURCE, TARGET], edit)
    torch.testing.assert_close(out[:1], sampled(model, [SOURCE]), rtol=1e-10, atol=1e-10)
    assert (out[1] - sampled(model, [TARGET])[0]).abs().max() > 1e-3


def test_weights_of_one_change_nothing_and_others_do(sd):
    plain, same, more = (
        sampled(sd, [SOURCE, TARGET], sd.attention_edit(SOURCE, TARGET, weights=w))
        for w in (None, {"dog": 1.0}, {"dog": 2.0})
    )
    assert torch.equal(plain, same)
    assert torch.equal(plain[0], more[0]) and (plain[1] - more[1]).abs().max() > 1e-6


def test_several_targets_are_what_each_is_alone(sd):
    targets = ["a dog", "a big cat", "cat"]
    options = {"weights": [{"dog": 2.0}, None, None], "cross": [0.5, {"big": 0.2}, 0.8], "own": 0.4}
    options |= {"blend": ("cat", ["dog", ["big", "cat"], None])}
    together = sampled(sd, [SOURCE, *targets], sd.attention_edit(SOURCE, targets, **options), steps=5)
    for i, target in enumerate(targets):
        one = {k: v[i] if isinstance(v, list) else v for k, v in options.items()}
        one["blend"] = None if options["blend"][1][i] is None else ("cat", options["blend"][1][i])
        alone = sampled(sd, [SOURCE, target], sd.attention_edit(SOURCE, target, **one), steps=5)
        torch.testing.assert_close(together[1 + i], alone[1], rtol=1e-10, atol=1e-10)


def test_pictures_beside_each_other_are_what_each_is_alone(sd):
    edits = [
        sd.attention_edit("a cat", "a dog", blend=("cat", "dog")),
        sd.attention_edit("a tree", "a big tree", cross=0.4, weights={"big": 2.0}),
    ]
    starts = torch.cat([state(sd, 1, seed=i) for i in range(2)])
    out = sampled(
        sd, ["a cat", "a tree", "a dog", "a big tree"], beside(edits), steps=5, initial=starts.repeat(2, 1, 1, 1)
    )
    for i, (prompts, edit) in enumerate(zip((["a cat", "a dog"], ["a tree", "a big tree"]), edits, strict=True)):
        alone = sampled(sd, prompts, edit, steps=5, initial=starts[i : i + 1].repeat(2, 1, 1, 1))
        torch.testing.assert_close(out[[i, 2 + i]], alone, rtol=1e-10, atol=1e-10)
    with pytest.raises(BadValue, match="the same settings"):
        beside([edits[0], sd.attention_edit("a", "b", own=0.1)])
    with pytest.raises(BadValue, match="at least one"):
        beside([])
    with pytest.raises(BadValue, match="2 rows of prompts were aligned, got 1"):
        sampled(sd, ["a cat", "a dog"], beside(edits))


class Shares(Hook):
    """What is controlled in each step."""

    def __init__(self, control):
        self.control, self.seen = control, []

    def prediction(self, prediction, run):
        mixed = self.control.mixing
        self.seen.append((self.control.tied, None if mixed is None else (mixed.own[0, 0] == 0.0).tolist()))
        return prediction


def test_shares_are_counted_in_steps(sd):
    edit = sd.attention_edit("a b", "a c", mode="replace", cross={"c": 0.4}, own=0.6)
    look = Shares(edit.control)
    with edit.on(sd.denoiser):
        how = {"solver": DDIM(), "grid": sd.grid(5), "initial": state(sd)}
        cd.sample(sd.guided(4.0), cond=sd.encode(["a b", "a c"]), hooks=[edit, look], **how)
    assert [tied for tied, _ in look.seen] == [True] * 3 + [False] * 2
    others = [i for i in range(16) if i != 2]  # beginning, a, c, end
    controlled = [[] if heard is None else [i for i in range(16) if heard[i]] for _, heard in look.seen]
    assert controlled == [list(range(16))] * 2 + [others] * 2 + [[]]


def test_maps_are_averages_whose_rows_sum_to_one(sd):
    edit = sd.attention_edit("a b", "a cde", mode="replace", cross=1.0, keep=True)
    sampled(sd, ["a b", "a cde"], edit)
    maps = edit.control.maps(16)
    assert maps.shape == (2, 16, 16) and (maps >= 0.0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 16))
    torch.testing.assert_close(maps[1], maps[0] @ edit.alignment[0, 0])
    torch.testing.assert_close(maps[1, :, 2:5], maps[0, :, 2:3].expand(-1, 3) / 3.0)


# Local blend


def test_a_blend_that_holds_everything_gives_the_source(sd):
    edit = sd.attention_edit(SOURCE, TARGET, blend=("cat", "dog"), threshold=1.0, start=0.0)
    out = sampled(sd, [SOURCE, TARGET], edit)
    assert torch.equal(out[0], out[1])
    edit = sd.attention_edit(SOURCE, TARGET, blend=("cat", "dog"), threshold=0.0, start=0.0)
    free = sampled(sd, [SOURCE, TARGET], sd.attention_edit(SOURCE, TARGET))
    assert torch.equal(sampled(sd, [SOURCE, TARGET], edit), free)


def test_the_mask_against_one_place_at_a_time():
    control = cd.networks.AttentionControl(2)
    maps = torch.rand(6, 12, 5, generator=torch.Generator().manual_seed(0)) ** 8  # of 7 x 5: rounded up to 4 x 3
    control.sums, control.counts = {12: maps * 2.0, 35: torch.zeros(6, 35, 5)}, {12: 2, 35: 1}
    source = torch.tensor([[False, True, False, False, False]])
    targets = torch.tensor([[[False, True, False, True, False]], [[False] * 5]])
    mask = LocalBlend(source, targets, threshold=0.8, factor=2).mask(control, torch.Size((6, 4, 7, 5)))
    assert mask.shape == (4, 1, 7, 5)

    def inside(row, words):
        seen = maps[row][:, words].sum(-1).reshape(4, 3)
        grown = torch.zeros(4, 3)
        for i, j in itertools.product(range(4), range(3)):
            grown[i, j] = seen[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max()
        return torch.tensor(
            [[bool(grown[i * 4 // 7, j * 3 // 5] > 0.8 * grown.max()) for j in range(5)] for i in range(7)]
        )

    for row in range(2):
        assert torch.equal(mask[row, 0], inside(2 + row, [1, 3]) | inside(row, [1]))
    assert mask[2:].all()  # no words: left alone
    assert 0 < mask[:2].sum() < 70


def test_outside_of_the_mask_the_state_is_the_source_s(sd):
    edit = sd.attention_edit(SOURCE, TARGET, blend=("cat", "dog"), threshold=0.9, start=0.4)
    edit = replace(edit, blend=replace(edit.blend, radius=0))  # of 4 x 4 places few are outside
    seen = []

    class Look(Hook):
        def after(self, step, run):
            mask = edit.blend.mask(edit.control, step.x_s.shape)
            seen.append((step.index, mask, step.x_s))
            return step.x_s

    with edit.on(sd.denoiser):
        how = {"solver": DDIM(), "grid": sd.grid(5), "initial": state(sd)}
        cd.sample(sd.guided(4.0), cond=sd.encode([SOURCE, TARGET]), hooks=[edit, Look()], **how)
    for index, mask, x in seen:
        outside = ~mask[0, 0]
        assert outside.any() and mask.any()
        assert torch.equal(x[0][:, outside], x[1][:, outside]) == (index >= 2)
        assert not torch.equal(x[0][:, mask[0, 0]], x[1][:, mask[0, 0]])


# In a pipeline's own loop


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_in_a_pipeline_s_own_loop_it_is_the_same(name):
    """diffusers' DDIM with the reference first, ours with the conditions first."""
    model = wrap(sharp(MAKERS[name]()))
    start = state(model).float()
    told = {"cross": 0.5, "own": 0.5, "weights": {"dog": 2.0}, "blend": ("cat", "dog"), "threshold": 0.7}
    edit = model.attention_edit(SOURCE, TARGET, **told)
    ours = sampled(model, [SOURCE, TARGET], edit, steps=4, initial=start)
    pipe = model.pipeline
    before = processors(model)
    with edit_in(pipe, edit, 4) as callback:
        theirs = pipe(
            [SOURCE, TARGET], latents=start, num_inference_steps=4, guidance_scale=4.0, output_type="latent",
            callback_on_step_end=callback,
        ).images  # fmt: skip
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    plain = sampled(model, [SOURCE, TARGET], steps=4, initial=start)
    assert (plain[1] - ours[1]).abs().max() > 0.01
    assert processors(model) == before


# Processors


def test_processors_are_restored_also_after_an_error(sd):
    before = processors(sd)
    edit = sd.attention_edit(SOURCE, TARGET)

    class Stop(Hook):
        def after(self, step, run):
            assert all(isinstance(p, ControlledProcessor) for p in processors(sd).values())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sampled(sd, [SOURCE, TARGET], edit, hooks=[Stop()])
    after = processors(sd)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert not edit.control.attentions and not edit.control.tied and edit.control.mixing is None
    sampled(sd, [SOURCE, TARGET], edit)  # and can be used again


def test_adapters_are_part_of_what_is_controlled(sd):
    """LoRA layers in place of projections are called as they are."""
    lora = exact(stable_diffusion())
    cd.interop.add_lora(lora, LoRA(rank=2))
    for name, parameter in lora.pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    edit = lora.attention_edit(SOURCE, SOURCE, cross=1.0, own=1.0)
    out, plain = (sampled(lora, [SOURCE, SOURCE], e) for e in (edit, None))
    torch.testing.assert_close(out, plain, rtol=1e-10, atol=1e-10)
    assert (plain - sampled(sd, [SOURCE, SOURCE])).abs().max() > 0.01


@pytest.mark.parametrize("make", [ddpm, dit, sd3])
def test_other_networks_are_refused(make):
    other = wrap(make())
    edit = attention_edit(stable_diffusion().tokenizer, SOURCE, TARGET)
    with pytest.raises(Incompatible, match="attention control knows UNet2DConditionModel"), edit.on(other.denoiser):
        pass


def test_other_processors_and_other_calls_are_refused(sd):
    edit = sd.attention_edit(SOURCE, TARGET)
    with pytest.raises(Incompatible, match="no network is under this control"):
        cd.sample(
            sd.guided(4.0), cond=sd.encode([SOURCE, TARGET]), solver=DDIM(), grid=sd.grid(2), initial=state(sd),
            hooks=[edit],
        )  # fmt: skip
    with pytest.raises(BadValue, match="a multiple of 2 rows"):
        sampled(sd, [SOURCE, TARGET, TARGET], edit)
    other, said = sd.attention_edit(SOURCE, TARGET), "this network has ControlledProcessor"
    with edit.on(sd.denoiser), pytest.raises(Incompatible, match=said), other.on(sd.denoiser):
        pass
    pipe = stable_diffusion()
    pipe.enable_attention_slicing()
    with pytest.raises(Incompatible, match="SlicedAttnProcessor"), edit.on(wrap(pipe).denoiser):
        pass
    unet = copy.deepcopy(sd.pipeline.unet)
    edit.control.tied = True
    with control_attention(unet, edit.control):
        edit.begin(2)
        edit.at(0, 10)
        told = {"encoder_hidden_states": sd.encode([SOURCE, TARGET])["prompt"].value.double()}
        with pytest.raises(Incompatible, match="knows no attention masks"):
            unet(state(sd), timestep=1, encoder_attention_mask=torch.ones(2, 16), **told)


def test_what_an_edit_is_told_is_checked(sd):
    for options, said in (
        ({"cross": 1.5}, "cross must lie between 0 and 1"),
        ({"own": -0.1}, "own must lie between 0 and 1"),
        ({"cross": {"dog": 2.0}}, "cross must lie between 0 and 1"),
        ({"blend": ("cat", "dog"), "threshold": 2.0}, "threshold must lie"),
        ({"mode": "swap"}, "unknown mode"),
        ({"weights": {"horse": 2.0}}, "there is no word 'horse' in 'a dog'"),
        ({"blend": ("horse", "dog")}, "there is no word 'horse' in 'a cat'"),
        ({"blend": ("cat", ["dog", "do"])}, "there is no word 'do' in 'a dog'"),
    ):
        with pytest.raises(BadValue, match=said):
            sd.attention_edit(SOURCE, TARGET, **options)
    with pytest.raises(BadValue, match="weights has 1 entries for 2 targets"):
        sd.attention_edit(SOURCE, [TARGET, "a"], weights=[{"dog": 1.0}])
    with pytest.raises(BadValue, match="'a cat' has 2 words and 'a big dog' 3"):
        sd.attention_edit(SOURCE, "a big dog", mode="replace")
    with pytest.raises(BadValue, match="at least one target"):
        sd.attention_edit(SOURCE, [])
    assert isinstance(attention_edit(sd.pipeline.tokenizer, SOURCE, TARGET), AttentionEdit)
