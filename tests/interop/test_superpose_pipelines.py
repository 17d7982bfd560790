"""Superposition of prompts, classes and networks of pipelines of the real classes."""

import pytest
import torch
from tiny import dit, sd3, stable_diffusion

from condiff.errors import Incompatible
from condiff.guidance import Free, Given, Superpose
from condiff.interop import wrap
from condiff.process import Moments
from condiff.sampling import DDIM, DDPM, ItoDensity, ito_likelihood, sample, trajectory

PROMPTS = ["a cat", "a dog in the rain"]


def each(wrapped, told):
    """Conditions of one row for each prompt or class."""
    return [wrapped.encode([one]) for one in told]


def start(wrapped, num=2, seed=0):
    return torch.randn(num, *wrapped.denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(both):
    return float((both.log_prob[:, 0] - both.log_prob[:, 1]).abs().max())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_two_prompts_of_stable_diffusion_stay_equally_likely(kind):
    sd = wrap(stable_diffusion(prediction_type=kind))
    calls = []
    sd.denoiser.network.net.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    both = Superpose(sd.denoiser, each(sd, PROMPTS), mode="and", scale=7.5)
    times = sd.grid(50)
    level = sd.denoiser.process.at(float(times[0]))
    worst, before = 0.0, None
    for step in trajectory(both, level.noise * start(sd), solver=DDPM(), grid=times, rng=0):
        worst, before = max(worst, gap(both)), step
    assert worst < 1e-8 and calls == [6] * 50  # two prompts and the empty one, two rows each, in one call
    assert torch.isfinite(before.x_s).all() and bool((both.log_prob != 0.0).all())
    assert sd.codec.decode(before.x_s.float()).shape[:2] == (2, 3)


@torch.no_grad()
def test_the_average_is_what_a_pipeline_says_of_both_prompts():
    sd = wrap(stable_diffusion())
    conds = each(sd, PROMPTS)
    x = start(sd).float()
    many = [{k: c.map(lambda v: v.expand(2, *v.shape[1:])) for k, c in cond.items()} for cond in conds]
    empty = {k: c.map(lambda v: v.expand(2, *v.shape[1:])) for k, c in sd.encode([""]).items()}
    a, b, none = (sd.denoiser(x, 0.5, c).noise for c in (*many, empty))
    said = Superpose(sd.denoiser, conds, mode="average", scale=7.5)(x, 0.5).noise
    torch.testing.assert_close(said, none + 7.5 * (0.5 * (a + b) - none), rtol=1e-4, atol=1e-5)
    negative = Superpose(sd.denoiser, conds, mode="average", scale=7.5, reference=sd.encode(["ugly"]))(x, 0.5).noise
    assert not torch.allclose(said, negative)


@torch.no_grad()
def test_either_prompt_and_its_log_density():
    sd = wrap(stable_diffusion())
    either = Superpose(sd.denoiser, each(sd, PROMPTS), mode="or", temperature=1e6)
    density = ItoDensity(parts=True, prior=0.0)
    sample(either, num=2, solver=DDIM(eta=1.0), grid=sd.grid(50), seed=0, hooks=[density])
    assert either.weights.sum(1).tolist() == [1.0, 1.0] and set(either.weights.flatten().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(density.log_prob, either.log_prob, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_classes_of_a_transformer_and_prompts_of_a_flow():
    for wrapped, told in ((wrap(dit()), [1, 4]), (wrap(sd3()), PROMPTS)):
        both = Superpose(wrapped.denoiser, each(wrapped, told), mode="and", scale=2.0)
        for _ in trajectory(both, start(wrapped, 1), solver=DDPM(), grid=wrapped.grid(50), rng=0):
            assert gap(both) < 1e-6
        assert torch.isfinite(both.log_prob).all()


@torch.no_grad()
def test_two_networks_on_the_same_latents():
    """As two LoRAs of one model are: each with its own prompt."""
    first, second = wrap(stable_diffusion()), wrap(stable_diffusion())
    for p in second.denoiser.network.net.parameters():
        p.mul_(1.1)
    models = [Given(w.denoiser, w.encode([p])) for w, p in zip((first, second), PROMPTS, strict=True)]
    both = Superpose(models, mode="and", scale=5.0, reference=Given(first.denoiser, first.encode([""])))
    for _ in trajectory(both, start(first, 1), solver=DDPM(), grid=first.grid(50), rng=0):
        assert gap(both) < 1e-8


def test_an_ode_by_hutchinson_through_the_network():
    sd = wrap(stable_diffusion())
    both = Superpose(sd.denoiser, each(sd, PROMPTS), mode="and", scale=3.0, divergence="hutchinson")
    with torch.no_grad():
        x = sample(both, num=1, solver=DDIM(), grid=sd.grid(50), seed=0)
    assert torch.isfinite(x).all() and not x.requires_grad and torch.isfinite(both.log_prob).all()


@torch.no_grad()
def test_log_density_of_latents_under_prompts():
    sd = wrap(stable_diffusion())
    z = start(sd).float()
    found = ito_likelihood(sd.denoiser, z, sd.encode(PROMPTS), grid=sd.grid(20), paths=2, rng=0, prior=Moments(var=1.0))
    assert found.log_prob.shape == (2,) and torch.isfinite(found.log_prob).all() and found.nfe == 40


def test_pipelines_that_do_not_go_together():
    sd, flow = wrap(stable_diffusion()), wrap(sd3())
    with pytest.raises(Incompatible, match="different processes"):
        Superpose([sd.denoiser, flow.denoiser])
    wider = wrap(stable_diffusion(), size=(32, 32))
    assert wider.denoiser.shape != sd.denoiser.shape
    with pytest.raises(Incompatible, match="differ in shape"):
        Superpose([sd.denoiser, wider.denoiser])
    other = stable_diffusion()
    other.vae.register_to_config(scaling_factor=0.13025)
    with pytest.raises(Incompatible, match=r"scaled by 0\.13025 and latents of AutoencoderKL scaled by 0\.18215"):
        Superpose([sd.denoiser, Free(wrap(other).denoiser, scale=2.0)])
    with pytest.raises(Incompatible, match="adds 0 times the noise"):
        sample(Superpose(sd.denoiser, each(sd, PROMPTS)), num=1, solver=DDIM(), grid=sd.grid(50), seed=0)
