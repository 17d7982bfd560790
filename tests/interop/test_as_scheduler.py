"""Solvers inside diffusers' pipelines: they step as diffusers' schedulers, and as our own loop, do."""

import json

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from tiny import CLOSE, PROMPTS, dit, latents, sd3, stable_diffusion

from condiff.errors import BadType, BadValue, Incompatible
from condiff.interop import as_scheduler, wrap
from condiff.process.level import Level
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    Adaptive,
    Consistency,
    DPMSolverPP,
    Euler,
    Heun,
    ImplicitDDIM,
    JointSolver,
    Karras,
    Overshoot,
    PredictorCorrector,
    RungeKutta,
    UniPC,
    sample,
)


def run(pipe, steps=6, **options):
    options = {"num_inference_steps": steps, "guidance_scale": 4.0, "latents": latents(), **options}
    return pipe(PROMPTS, output_type="latent", **options).images


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (DDIMScheduler, DDIM()),
        (DPMSolverMultistepScheduler, DPMSolverPP(2)),
        (UniPCMultistepScheduler, UniPC(2)),
    ],
    ids=["ddim", "dpm++", "unipc"],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_solver_steps_as_its_scheduler(theirs, ours, prediction):
    pipe = stable_diffusion(prediction_type=prediction)
    pipe.scheduler = theirs.from_config(pipe.scheduler.config)
    want = run(pipe, 8)
    pipe.scheduler = as_scheduler(ours, pipe)
    torch.testing.assert_close(run(pipe, 8), want, **CLOSE)


SEVERAL = [Heun(), RungeKutta("rk4"), RungeKutta("midpoint"), DPMSolverPP(3), Euler()]


@pytest.mark.parametrize("solver", SEVERAL, ids=repr)
@pytest.mark.parametrize("grid", [None, Karras()], ids=["own", "karras"])
def test_rules_of_several_evaluations_step_as_in_our_loop(solver, grid):
    pipe = stable_diffusion()
    sd = wrap(pipe)
    where = {"grid": sd.grid(5)} if grid is None else {"grid": grid, "steps": 5}
    want = sample(sd.guided(4.0), cond=sd.encode(PROMPTS), solver=solver, initial=latents(), **where)
    pipe.scheduler = as_scheduler(solver, pipe, grid)
    torch.testing.assert_close(run(pipe, 5), want, **CLOSE)


@pytest.mark.parametrize("solver", [Overshoot(), Consistency(), PredictorCorrector(DDIM())], ids=repr)
def test_rules_that_add_noise_of_their_own_step_as_in_our_loop(solver):
    pipe = stable_diffusion()
    sd, seeded = wrap(pipe), lambda: torch.Generator().manual_seed(5)
    how = {"cond": sd.encode(PROMPTS), "solver": solver, "initial": latents(), "grid": sd.grid(5)}
    want = sample(sd.guided(4.0), rng=seeded(), **how)
    pipe.scheduler = as_scheduler(solver, pipe)
    torch.testing.assert_close(run(pipe, 5, generator=seeded()), want, **CLOSE)


def test_no_evaluation_is_made_twice(monkeypatch):
    pipe, calls = stable_diffusion(), []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: (calls.append(float(a[1])), forward(*a, **k))[1])
    pipe.scheduler = as_scheduler(RungeKutta("rk4"), pipe)
    run(pipe, 3)
    assert len(calls) == len(pipe.scheduler.timesteps) == 12 and pipe.scheduler.order == 4
    assert calls == pytest.approx(pipe.scheduler.timesteps.tolist())


def test_heun_announces_as_many_evaluations_as_diffusers():
    pipe = stable_diffusion()
    pipe.scheduler.register_to_config(set_alpha_to_one=True)  # to clean latents, where no slope is taken
    scheduler = as_scheduler(Heun(), pipe)
    scheduler.set_timesteps(6)
    theirs = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    theirs.set_timesteps(6)
    assert len(scheduler.timesteps) == len(theirs.timesteps) == 11


@pytest.mark.parametrize("solver", [DDIM(), UniPC(2), Heun()], ids=repr)
def test_flow_models(solver):
    pipe = sd3()
    sd = wrap(pipe)
    want = sample(sd.guided(4.0), cond=sd.encode(PROMPTS), solver=solver, grid=sd.grid(6), initial=latents())
    pipe.scheduler = as_scheduler(solver, pipe)
    torch.testing.assert_close(run(pipe, 6), want, **CLOSE)


def test_a_network_that_predicts_variances_too():
    pipe = dit()
    net = wrap(pipe)
    generator = lambda: torch.Generator().manual_seed(0)
    want = pipe([1, 2], num_inference_steps=5, guidance_scale=1.0, generator=generator(), output_type="np").images
    pipe.scheduler = as_scheduler(DDIM(), pipe)
    got = pipe([1, 2], num_inference_steps=5, guidance_scale=1.0, generator=generator(), output_type="np").images
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), **CLOSE)
    assert net.denoiser.shape == (4, 8, 8)


def test_noise_comes_from_the_generators_of_the_pipeline():
    pipe = stable_diffusion()
    pipe.scheduler = as_scheduler(DDPM(), pipe)
    seeds = lambda *n: [torch.Generator().manual_seed(i) for i in n]
    both = run(pipe, generator=seeds(1, 2))
    torch.testing.assert_close(run(pipe, generator=seeds(1, 2)), both)
    other = run(pipe, generator=seeds(1, 3))
    torch.testing.assert_close(other[0], both[0], **CLOSE)
    assert (other[1] - both[1]).abs().max() > 0.1


def test_without_a_generator_it_draws_from_torchs_own_as_pipelines_do():
    pipe = stable_diffusion()
    pipe.scheduler = as_scheduler(DDPM(), pipe)
    made = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(run(pipe, 3))
    assert torch.equal(made[0], made[1]) and (made[0] - made[2]).abs().max() > 0.1


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_listed_timesteps_end_where_the_scheduler_ends(final):
    pipe = stable_diffusion()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, final_sigmas_type=final, algorithm_type="dpmsolver++", solver_order=1
    )
    steps = {"timesteps": [901, 501, 101, 1], "num_inference_steps": None}
    want = run(pipe, **steps)
    pipe.scheduler = as_scheduler(DDIM(), pipe)
    torch.testing.assert_close(run(pipe, **steps), want, **CLOSE)
    with pytest.raises(BadValue, match="timesteps decrease"):
        pipe.scheduler.set_timesteps(timesteps=[101, 501])


def test_draws_are_kept_while_a_step_waits():
    """The stochastic Heun of SDE evaluates twice with one draw: as in our loop, given the same numbers."""
    pipe = stable_diffusion()
    sd = wrap(pipe)
    solver = SDE()
    want = sample(
        sd.guided(4.0), cond=sd.encode(PROMPTS), solver=solver, grid=sd.grid(4), initial=latents(),
        rng=torch.Generator().manual_seed(5),
    )  # fmt: skip
    pipe.scheduler = as_scheduler(solver, pipe)
    torch.testing.assert_close(run(pipe, 4, generator=torch.Generator().manual_seed(5)), want, **CLOSE)


@pytest.mark.parametrize("solver", [DDIM(), UniPC(2), Heun()], ids=repr)
def test_pictures_to_pictures_begin_late(solver, monkeypatch):
    """strength=0.5 of 8 steps begins with the fifth: the same as our loop from there, on the noised latents."""
    base = stable_diffusion()
    pipe = AutoPipelineForImage2Image.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pipe.scheduler = as_scheduler(solver, base)
    noised, add_noise = [], pipe.scheduler.add_noise
    monkeypatch.setattr(pipe.scheduler, "add_noise", lambda *a: (noised.append(add_noise(*a)), noised[-1])[1])
    made = pipe(
        PROMPTS, image=picture, strength=0.5, num_inference_steps=8, guidance_scale=4.0, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    assert made.shape == (2, 4, 8, 8) and torch.isfinite(made).all()
    scheduler = pipe.scheduler
    scheduler.set_timesteps(8)
    sd = wrap(base)
    grid = sd.grid(8)[4:]
    want = sample(sd.guided(4.0), cond=sd.encode(PROMPTS), solver=solver, grid=grid, initial=noised[0])
    torch.testing.assert_close(made, want, **CLOSE)
    x0, noise = latents(seed=4), latents(seed=5)
    order = scheduler.order
    start = scheduler.add_noise(x0, noise, scheduler.timesteps[4 * order : 4 * order + 1])
    level = sd.denoiser.process.at(float(grid[0]))
    torch.testing.assert_close(start, level.data * x0 + level.noise * noise)
    assert isinstance(level, Level)


def test_a_step_is_found_by_its_timestep_alone():
    """Heun asks twice for the same timestep: at the end of a step and at the start of the next."""
    pipe = stable_diffusion()
    announced, found = (as_scheduler(Heun(), pipe) for _ in range(2))
    states = []
    for scheduler in (announced, found):
        scheduler.set_timesteps(6)
        x = latents()
        if scheduler is announced:
            scheduler.set_begin_index(4)
        for t in scheduler.timesteps[4:]:
            x = scheduler.step(0.1 * scheduler.scale_model_input(x, t), t, x).prev_sample
        states.append(x)
    assert torch.equal(*states)


def test_a_pipeline_keeps_its_solver_when_it_is_saved(tmp_path):
    pipe = stable_diffusion()
    pipe.scheduler = as_scheduler(DPMSolverPP(3), pipe, Karras())
    want = run(pipe, 4)
    pipe.save_pretrained(tmp_path / "pipe")
    stored = json.loads((tmp_path / "pipe" / "scheduler" / "scheduler_config.json").read_text())
    assert stored["solver"]["part"] == "sampling.DPMSolverPP" and stored["num_train_timesteps"] == 1000
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path / "pipe", safety_checker=None, requires_safety_checker=False
    )
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.solver == DPMSolverPP(3) and again.scheduler.grid == Karras()
    torch.testing.assert_close(run(again, 4), want, **CLOSE)


def test_a_scheduler_of_a_scheduler_is_one():
    pipe = stable_diffusion()
    once = as_scheduler(DDIM(), pipe)
    pipe.scheduler = as_scheduler(UniPC(), once)
    assert type(pipe.scheduler.like) is DDIMScheduler
    assert len(pipe.scheduler) == 1000


def test_what_does_not_fit_is_refused():
    pipe = stable_diffusion()
    with pytest.raises(BadType, match="takes a solver"):
        as_scheduler("ddim", pipe)
    with pytest.raises(BadType, match="scheduler is wanted"):
        as_scheduler(DDIM(), object())
    with pytest.raises(Incompatible, match="chooses them on the way"):
        as_scheduler(Adaptive(), pipe)
    with pytest.raises(Incompatible, match="the other way"):
        as_scheduler(ImplicitDDIM(), pipe)
    with pytest.raises(Incompatible, match="needs a Joint process"):
        as_scheduler(JointSolver(DDIM()), pipe)
    scheduler = as_scheduler(Heun(), pipe)
    x = latents()
    with pytest.raises(BadValue, match="set_timesteps comes before"):
        scheduler.step(x, 999, x)
    with pytest.raises(BadValue, match="give one of"):
        scheduler.set_timesteps()
    scheduler.set_timesteps(4)
    with pytest.raises(BadValue, match="is none of"):
        scheduler.step(x, 3, x)
    displaced = as_scheduler(Heun(churn=10.0), pipe)
    displaced.set_timesteps(4)
    with pytest.raises(Incompatible, match="displaces the first state"):
        displaced.step(x, displaced.timesteps[0], x)
    done = as_scheduler(DDIM(), pipe)
    done.set_timesteps(1)
    done.step(x, done.timesteps[0], x)
    with pytest.raises(BadValue, match="at its end"):
        done.step(x, done.timesteps[0], x)
