"""Parts inside of what drives a sampler over frames, and guidance of tokens: what one would try across methods."""

import pytest
import torch

from condiff import Denoiser
from condiff.conditions import Condition, GuidanceScale, Label
from condiff.errors import Incompatible
from condiff.guidance import Distilled, Free, Superpose
from condiff.methods.composition_models import Told, ToldScale
from condiff.networks import LoRA, VideoTransformer, attach_lora
from condiff.process import Absorbing, Cosine, Gaussian, Rectified, oracles
from condiff.random import Tape
from condiff.sampling import DDIM, DDPM, Consistency, Overshoot, TokenAncestral, sample
from condiff.streaming import Stream
from condiff.video import Rollout

KINDS = {"label": "label"}
LABEL = {"label": torch.tensor([1])}


def told():
    return Told(Gaussian(Cosine()), ("x0",), KINDS, dims=4)


@pytest.mark.parametrize("solver", [DDIM(), Consistency(), Overshoot()], ids=["ddim", "consistency", "overshoot"])
def test_a_student_that_is_told_its_scale_streams_as_it_samples(solver):
    """One call a tick, and what comes out is what the loop makes of the frame alone: of two calls a step, too."""
    times, student = [0.8, 0.5, 0.2, 0.0], Distilled(ToldScale(told()), scale=1.5)
    stream = Stream(student, times, solver=solver, dtype=torch.float64).start(LABEL, rng=0)
    z = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = torch.cat([*(x for frame in z if (x := stream.push(frame)) is not None), *stream.drain()])
    for frame, out in zip(z, made, strict=True):
        x = student.process.forward(frame, 0.8, noise=stream.noise[:1]).x_t
        for model in (student, Free(told(), 1.5)):
            tape = Tape([*stream.noise[1:, None], torch.zeros_like(frame)])
            alone = sample(model, initial=x, cond=LABEL, grid=times, solver=solver, rng=tape)
            torch.testing.assert_close(out[None], alone, rtol=1e-12, atol=1e-12)


def test_a_superposition_keeps_densities_which_a_stream_cannot():
    student = Distilled(ToldScale(told()), scale=1.5)
    with pytest.raises(Incompatible, match="acts between steps"):
        Stream(Superpose(student, [LABEL, {"label": [0]}]), [0.5, 0.0])


SHAPE = (10, 1, 4, 4)


def clips(**conditions):
    torch.manual_seed(0)
    net = VideoTransformer(shape=SHAPE, width=16, depth=2, heads=2, qk_norm=True, conditions=conditions)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Denoiser(net.eval(), Gaussian(Rectified()), shape=SHAPE)


def rolled(model, context, cond=None):
    roll = Rollout(model, chunk=2, max_context=5, solver=DDIM(), steps=3, context=context)
    first = torch.randn(2, 1, *SHAPE[1:], generator=torch.Generator().manual_seed(4))
    return roll.generate(first, 6, cond, seeds=[1, 2])


def test_low_rank_updates_roll_out_cached_as_recomputed():
    model = clips(label=Label(4))
    plain, labels = rolled(model, "cached", {"label": [1, 3]}), {"label": torch.tensor([1, 3])}
    attach_lora(model, LoRA(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    for guided in (model, Free(model, 2.0)):
        cached, again = (rolled(guided, context, labels) for context in ("cached", "recomputed"))
        torch.testing.assert_close(cached, again, rtol=1e-4, atol=1e-4)
        assert float((cached - plain).abs().max()) > 0.01, "the update does something"


def test_a_told_scale_rolls_out_as_a_condition():
    """A wrapper's own conditions can't be cached, and the refusal says how a scale is told instead."""
    model = clips(label=Label(4), guidance=GuidanceScale(1.0, 4.0))
    with pytest.raises(Incompatible, match="among the conditions"):
        rolled(Distilled(model, scale=2.0), "cached", {"label": [1, 3]})
    cond = {"label": torch.tensor([1, 3]), "guidance": Condition(torch.full((2,), 2.0), "scalar")}
    cached, again = (rolled(model, context, cond) for context in ("cached", "recomputed"))
    torch.testing.assert_close(cached, again, rtol=1e-4, atol=1e-4)
    other = rolled(model, "cached", {**cond, "guidance": Condition(torch.full((2,), 3.0), "scalar")})
    assert float((other - cached).abs().max()) > 1e-3, "the scale is told"


def test_guided_tokens_have_the_law_of_the_powers():
    """Positions that are independent under each label: guided, each has ``p(v | label)^w p(v)^(1 - w)``, normalised,
    whatever is revealed when."""
    laws = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], [[0.1, 0.3, 0.6], [0.2, 0.2, 0.6]]], dtype=torch.float64)
    process = Absorbing(3)
    probs = torch.einsum("ki,kj->kij", laws[:, 0], laws[:, 1])
    model = oracles.tokens(process, probs, torch.tensor([0.5, 0.5]))
    x = sample(Free(model, 1.8), solver=TokenAncestral(), steps=4, cond={"label": [0] * 4000}, num=4000, seed=0)
    free = laws.mean(0)  # of the first position before the second is seen, which says nothing of the label
    wanted = laws[0] ** 1.8 * free**-0.8
    wanted = wanted / wanted.sum(1, keepdim=True)
    for i in range(2):
        drawn = torch.bincount(x[:, i], minlength=3).double() / len(x)
        torch.testing.assert_close(drawn, wanted[i], rtol=0, atol=0.025)


def test_superposed_students_are_one_student():
    """Two of the same share evenly, and leave the sampler as it is."""
    student = Distilled(ToldScale(told()), scale=1.5)
    how = {"solver": DDPM(), "steps": 50, "num": 3, "seed": 0, "cond": {"label": torch.tensor([1, 1, 0])}}
    for mode in ("and", "or", "average"):
        both = Superpose([student, student], mode=mode)
        torch.testing.assert_close(sample(both, **how), sample(student, **how), rtol=1e-4, atol=1e-4)
