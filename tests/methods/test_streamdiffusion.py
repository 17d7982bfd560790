"""StreamDiffusion on models of ours; the mathematics is in tests/streaming, pipelines in tests/interop."""

import pytest
import torch

import condiff as cd
from condiff.errors import BadType, BadValue
from condiff.guidance import Free
from condiff.methods import streamdiffusion
from condiff.process import Discrete, Gaussian, Rectified
from condiff.sampling import Consistency
from condiff.streaming import SimilarityFilter, Translator


def pictures(count=4, side=8, seed=0):
    return [*(torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0)]


def test_of_a_continuous_process_the_steps_are_even_times():
    assert streamdiffusion.times_of(Gaussian(Rectified()), (5, 20), of=25).tolist() == pytest.approx([0.8, 0.2, 0.0])


@pytest.mark.parametrize("steps", [(45, 32), (32, 32), (32, 50), (-1, 3), (), (1.5,)], ids=str)
def test_steps_that_do_not_rise_or_lie_outside_of_the_schedule(steps):
    with pytest.raises(BadValue, match=r"steps (rise|are whole)"):
        streamdiffusion.times_of(Gaussian(Discrete.stable_diffusion()), steps)


def test_what_guidance_and_prompts_are_refused():
    net = cd.Denoiser(cd.networks.MLP(shape=(1, 8, 8)), Gaussian(Rectified()), shape=(1, 8, 8))
    for kind in ("full", "initialize"):
        with pytest.raises(BadValue, match="needs negative conditions"):
            streamdiffusion.of_model(net, (10,), guidance=kind)
    with pytest.raises(BadValue, match="takes no negative"):
        streamdiffusion.of_model(net, (10,), guidance="self", negative={})
    with pytest.raises(BadValue, match="Did you mean 'self'"):
        streamdiffusion.of_model(net, (10,), guidance="selv")
    with pytest.warns(UserWarning, match="below 1 draws"):
        streamdiffusion.of_model(net, (10,), guidance="self", scale=0.5)
    assert isinstance(streamdiffusion.guided(net, "full", negative={}), Free)
    translator = streamdiffusion.of_model(net, (10,), guidance="none", renoise=False)
    assert translator.stream.solver == Consistency(renoise=False)
    with pytest.raises(BadType, match="is told no prompt"):
        translator.start("a fox")
    with pytest.raises(BadType, match="frames are pictures"):
        streamdiffusion.of_model(net, (10,), guidance="none", shape=(64,))


def own(still=None, steps=(20, 40), told=None):
    torch.manual_seed(0)
    conditions = {} if told is None else {"label": cd.conditions.Label(10)}
    net = cd.networks.MLP(shape=(1, 8, 8), width=16, depth=1, conditions=conditions)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = cd.Denoiser(net.eval(), Gaussian(Rectified()), "velocity", shape=(1, 8, 8))
    return streamdiffusion.of_model(model, steps, guidance="self", scale=1.5, still=still).start(told, seed=0)


def label(k):
    return {"label": torch.tensor([k])}


def test_a_still_scene_has_pictures_at_once_and_follows_a_new_prompt():
    """While frames are on their way they come in, still or not: else the next picture would wait for many skips."""
    steps, frame = (10, 20, 40), pictures(1)[0]
    translator = own(SimilarityFilter(), steps, label(3))
    made = [translator(frame) for _ in range(6)]
    assert [x is None for x in made] == [True, True] + [False] * 4 and translator.stream.calls == 3
    translator.tell(label(8))
    again = [translator(frame) for _ in range(6)]
    fresh = own(None, steps, label(8))
    wanted = [fresh(frame) for _ in range(3)][-1]
    assert translator.stream.calls == 6 and not torch.allclose(made[-1], wanted)
    torch.testing.assert_close(torch.stack(again[2:]), wanted.expand(4, 1, 8, 8), rtol=0.0, atol=1e-5)
    clip = own(SimilarityFilter(), steps, label(3)).clip(iter([frame] * 8))  # of a clip no picture is late
    assert len(list(clip)) == 8


def test_a_clip_follows_a_new_prompt_where_nothing_moves():
    frame, steps = pictures(1)[0], (10, 20, 40)
    translator = own(SimilarityFilter(), steps, label(3))

    def frames():
        yield from [frame] * 4
        translator.tell(label(8))
        yield from [frame] * 4

    made, wanted = list(translator.clip(frames())), list(own(None, steps, label(8)).clip([frame] * 4))
    assert len(made) == 8
    torch.testing.assert_close(torch.stack(made[4:]), torch.stack(wanted), rtol=0.0, atol=1e-5)


def test_a_translator_that_starts_again_forgets_what_was_still():
    """The last frame that was seen, and the draws too."""
    rng = torch.Generator().manual_seed(0)
    frames = [(0.9 * pictures(1)[0] + 0.05 * torch.randn(1, 8, 8, generator=rng)).clamp(-1, 1) for _ in range(12)]
    translator = own(SimilarityFilter())
    first = torch.stack(list(translator.clip(frames)))
    calls = translator.stream.calls
    again = torch.stack(list(translator.start(seed=0).clip(frames)))
    assert torch.equal(again, first) and 4 < translator.stream.calls == calls < 12


@pytest.mark.parametrize("steps", [(40,), (10, 20, 40)], ids=len)
def test_a_clip_with_still_frames_has_a_picture_for_every_frame(steps):
    a, b, c = (torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i)).clamp(-1, 1) for i in range(3))
    frames = [a, a, a, b, c, c]
    plain, still = own(steps=steps), own(SimilarityFilter(max_skip=10), steps)
    wanted, made = torch.stack(list(plain.clip(frames))), torch.stack(list(still.clip(frames)))
    torch.testing.assert_close(made, wanted, rtol=0.0, atol=1e-5)  # equal frames have equal pictures
    assert plain.stream.calls == 6 + len(steps) - 1 and still.stream.calls == 3 + len(steps) - 1


def test_a_still_frame_gives_the_previous_picture_without_a_call():
    translator, frame = own(SimilarityFilter(), (40,)), pictures(1)[0]
    first = translator(frame)
    assert torch.equal(translator(frame), first) and translator.stream.calls == 1


def test_a_clip_after_single_frames_has_its_own_pictures_only():
    frames = pictures(6)
    wanted = torch.stack(list(own(steps=(10, 20, 40)).clip(frames)))
    translator = own(steps=(10, 20, 40))
    assert [translator(frame) for frame in frames[:2]] == [None, None]
    torch.testing.assert_close(torch.stack(list(translator.clip(frames[2:]))), wanted[2:], rtol=0.0, atol=1e-6)


def test_a_translator_goes_on_bit_for_bit():
    frames = pictures(10)
    frames[6] = frames[5]
    one, other = own(SimilarityFilter(seed=1)), own(SimilarityFilter(seed=2))
    for frame in frames[:4]:
        one(frame)
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert all(torch.equal(one(f), other(f)) for f in frames[4:])


def test_a_translator_refuses_other_streams_and_shapes():
    stream = own().stream
    with pytest.raises(BadValue, match="and the stream takes"):
        Translator(stream, shape=(1, 16, 16))
    two = cd.streaming.Stream(stream.denoiser, [0.5, 0.0], frames=2, solver=Consistency())
    with pytest.raises(BadValue, match="one by one"):
        Translator(two, shape=(1, 8, 8))
    fresh = Translator(cd.streaming.Stream(stream.denoiser, [0.5, 0.0]), shape=(1, 8, 8))
    with pytest.raises(BadValue, match="comes before the first frame"):
        fresh(pictures(1)[0])
    with pytest.raises(BadValue, match=r"in \[-1, 1\]"):
        own()(pictures(1)[0] * float("nan"))


def test_the_reproduction_runs(monkeypatch):
    lab = streamdiffusion.Digits
    monkeypatch.setattr(streamdiffusion, "FRAMES", 5)
    monkeypatch.setattr(streamdiffusion, "Digits", lambda slug, budget, steps: lab(slug, budget, steps=2))
    found = streamdiffusion.reproduce("small")
    assert found.slug == "streamdiffusion" and len(found.comparisons) == 7
    figures = found.series
    assert figures["rows a frame, self"] == figures["rows a frame, none"] == [4.0] * 3
    assert max(figures["stream and loop apart"]) < 1e-4
    assert figures["rows a frame, initialize"] == [5.0] * 3 and figures["rows a frame, full"] == [8.0] * 3
