"""Guidance inside diffusers' modular pipelines: the same latents as in our loop, and as of diffusers' own guiders."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from tiny import CLOSE, latents, stable_diffusion_xl

from condiff.errors import BadType, Incompatible
from condiff.guidance import Free
from condiff.interop import as_guider, as_scheduler, wrap
from condiff.sampling import DDIM, UniPC, sample

PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")


@pytest.fixture
def pair():
    """The tiny pipeline and a modular one of the same parts."""
    plain = stable_diffusion_xl()
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    modular.update_components(**{name: getattr(plain, name) for name in PARTS})
    modular.set_progress_bar_config(disable=True)
    return plain, modular


def run(pipe, steps=6):
    return pipe(
        prompt="a red fox", num_inference_steps=steps, height=16, width=16, latents=latents((1, 4, 8, 8)),
        output_type="latent",
        output="images",
    )  # fmt: skip


def test_plain_guidance_is_that_of_diffusers(pair):
    plain, modular = pair
    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.5))
    want = run(modular)
    modular.update_components(guider=as_guider(lambda model: Free(model, scale=4.0), plain))
    plain_scale = run(modular)
    assert (plain_scale - want).abs().max() > 1e-2  # the one below isn't equal by chance
    modular.update_components(guider=as_guider(lambda model: Free(model, scale=4.0, rescale=0.5), plain))
    close = run(modular)
    torch.testing.assert_close(close, want, rtol=2e-2, atol=2e-2)  # diffusers divides by n - 1 within its deviation


@pytest.mark.parametrize(
    "guidance",
    [
        lambda model: Free(model, scale=4.0),
        lambda model: Free(model, scale=4.0, interval=(0.3, 0.7), rescale=0.7),
        lambda model: Free(model, scale=lambda level: 1.0 + 5.0 * level.t),
        lambda model: Free(Free(model, scale=2.0), scale=1.5),
        lambda model: Free(model, scale=0.0),
    ],
    ids=["constant", "interval", "function", "nested", "reference-only"],
)
def test_latents_are_those_of_our_loop(pair, guidance):
    plain, modular = pair
    xl = wrap(plain, size=(16, 16))
    want = sample(
        guidance(xl.denoiser),
        cond=xl.encode(["a red fox"]),
        solver=DDIM(),
        grid=xl.grid(6),
        initial=latents((1, 4, 8, 8)),
    )
    modular.update_components(guider=as_guider(guidance, plain))
    torch.testing.assert_close(run(modular), want, **CLOSE)


def test_outside_of_the_interval_the_network_is_called_once(pair, monkeypatch):
    plain, modular = pair
    calls, forward = [], modular.unet.forward
    monkeypatch.setattr(modular.unet, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    modular.update_components(guider=as_guider(lambda model: Free(model, scale=4.0, interval=(0.0, 0.5)), plain))
    run(modular, 6)
    grid = wrap(plain, size=(16, 16)).grid(6)[:-1]
    assert len(calls) == sum(2 if t <= 0.5 else 1 for t in grid.tolist()) < 12


def test_solver_and_guidance_together(pair):
    plain, modular = pair
    xl = wrap(plain, size=(16, 16))
    how = {"cond": xl.encode(["a red fox"]), "solver": UniPC(2), "grid": xl.grid(6), "initial": latents((1, 4, 8, 8))}
    want = sample(Free(xl.denoiser, scale=4.0), **how)
    modular.update_components(
        scheduler=as_scheduler(UniPC(2), plain), guider=as_guider(lambda model: Free(model, scale=4.0), plain)
    )
    torch.testing.assert_close(run(modular), want, **CLOSE)


def test_disabled_it_is_the_conditional_model(pair):
    """As diffusers' own: the pipeline above enables its guider again."""
    guider = as_guider(lambda model: Free(model, scale=4.0), pair[0])
    guider.set_state(0, 6, torch.tensor(500))
    assert guider.num_conditions == 2
    guider.disable()
    x = latents((1, 4, 8, 8))
    assert guider.num_conditions == 1 and guider.forward(pred_cond=x).pred is x
    assert guider.new().num_conditions == 2


def test_guidance_that_needs_the_state_is_refused(pair):
    plain, modular = pair

    class Clipped:
        def __init__(self, model):
            self.model, self.process = model, model.process

        def __call__(self, x_t, level, cond):
            said = self.model(x_t, level, cond)
            return said.set("x0", said.x0.clamp(-1.0, 1.0))

    modular.update_components(guider=as_guider(Clipped, plain))
    with pytest.raises(Incompatible, match="needs the state"):
        run(modular)
    with pytest.raises(BadType, match="scheduler is wanted"):
        as_guider(lambda model: Free(model, scale=2.0), object())
