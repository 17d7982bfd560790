"""The stream batch against the loop that takes each frame alone, with the same noises."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import condiff as cd
from condiff.conditions import Condition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import ANCHOR, Anchored, Free, residual_noise
from condiff.process import Discrete, Gaussian, Prediction
from condiff.random import Tape
from condiff.sampling import Boundary, Consistency, DPMSolverPP, Inpaint, Overshoot, sample, trajectory
from condiff.streaming import Stream

PROCESS = Gaussian(Discrete.stable_diffusion())
STEPS = {1: (30,), 2: (32, 45), 4: (0, 16, 32, 45)}
SHAPE = (2, 4, 4)
KINDS = ("none", "self", "initialize", "full")


class Stub(nn.Module):
    """A network in float64 whose rows are independent; counts its rows."""

    kinds: ClassVar = {"label": "label"}
    shape = SHAPE

    def __init__(self, process=PROCESS):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        n = torch.Size(SHAPE).numel()
        self.register_buffer("w", torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5)
        self.register_buffer("table", torch.randn(5, n, generator=generator, dtype=torch.float64))
        self.process, self.rows = process, 0

    def forward(self, x, t, cond=None):
        self.rows += len(x)
        level = self.process.at(t)
        time = torch.as_tensor(level.t, dtype=torch.float64).reshape(-1, 1)
        entry = cond["label"]
        label = torch.where(entry.kept()[:, None], self.table[entry.value], 0.0)
        e = torch.tanh(x.flatten(1) @ self.w + label + torch.cos(3.0 * time))
        return Prediction(x, level, {"noise": e.reshape(x.shape)})


def times_of(n):
    return PROCESS.schedule.at_index(torch.tensor([*(999 - 20 * j for j in STEPS[n]), -1]))


def guided(net, kind, scale=1.7, delta=0.9):
    if kind == "none":
        return net
    if kind == "full":
        return Free(net, scale=scale)
    return Anchored(net, scale=scale, delta=delta, negative={} if kind == "initialize" else None)


def told(kind, z, label):
    cond = {"label": torch.tensor([label])}
    return {**cond, ANCHOR: Condition(z, "map")} if kind == "self" else cond


def alone(denoiser, kind, z, noise, times, label=3, solver=Consistency(), hooks=()):
    """One frame through the loop, with the stream's noises."""
    x = PROCESS.forward(z, float(times[0]), noise=noise[:1]).x_t
    tape = Tape([*noise[1:, None], torch.zeros_like(z)])
    return sample(
        denoiser, initial=x, cond=told(kind, z, label), grid=times, solver=solver, rng=tape, hooks=hooks, dtype=x.dtype
    )


def frames(count=6, seed=0):
    return torch.randn(count, 1, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream_of(kind="none", n=2, net=None, label=3, **how):
    stream = Stream(guided(net or Stub(), kind), times_of(n), dtype=torch.float64, **how)
    return stream.start({"label": torch.tensor([label])}, rng=0)


@pytest.mark.parametrize("renoise", [True, False], ids=["renoised", "clean"])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_what_the_loop_makes_of_the_frame_alone(kind, n, renoise):
    solver, hooks, z = Consistency(renoise=renoise), [Boundary()], frames()
    stream = stream_of(kind, n, solver=solver, hooks=hooks)
    out = [stream.push(frame) for frame in z]
    assert [x is None for x in out] == [k < n - 1 for k in range(6)]
    made = torch.cat([*(x for x in out if x is not None), *stream.drain()])
    assert len(made) == 6
    wanted = torch.cat(
        [alone(stream.denoiser, kind, frame, stream.noise, times_of(n), solver=solver, hooks=hooks) for frame in z]
    )
    bound = 2e-15 if kind in ("none", "full") else 1.4e-14
    assert float((made - wanted).abs().max()) <= bound * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_two_frames_a_tick_are_the_frames_one_by_one(kind):
    z, one, two = frames(8), stream_of(kind, 4), stream_of(kind, 4, frames=2)
    assert torch.equal(one.noise, two.noise)
    by_one = torch.cat([*(x for f in z if (x := one.push(f)) is not None), *one.drain()])
    by_two = torch.cat([*(x for f in z.reshape(4, 2, *SHAPE) if (x := two.push(f)) is not None), *two.drain()])
    torch.testing.assert_close(by_two, by_one, rtol=0.0, atol=1.4e-14 * float(by_one.abs().max()))


@pytest.mark.parametrize("solver", [cd.DDIM(), cd.DDIM(eta=0.7), Overshoot()], ids=["ddim", "ddim-eta", "overshoot"])
def test_other_solvers_of_one_evaluation(solver):
    z, stream = frames(), stream_of("self", 4, solver=solver)
    made = torch.cat([*(x for f in z if (x := stream.push(f)) is not None), *stream.drain()])
    wanted = torch.cat([alone(stream.denoiser, "self", f, stream.noise, times_of(4), solver=solver) for f in z])
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-13)


# Anchored guidance


@pytest.mark.parametrize("renoise", [True, False], ids=["renoised", "clean"])
@pytest.mark.parametrize("boundary", [False, True], ids=["plain", "boundary"])
def test_the_residual_follows_the_recursion_of_the_paper(renoise, boundary):
    """R_0 = eps_0, R' = eps' + (data' / noise') (c_out (noise R - noise e) / data + c_skip noise R), without eps' where
    no noise is added; with c_skip = 0 this is the definition, with the true ones up to c_skip."""
    times, z, net = times_of(4), frames(1)[0], Stub()
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = PROCESS.forward(z, float(times[0]), noise=noise[:1]).x_t
    hooks = [Boundary()] if boundary else []
    steps = trajectory(
        Anchored(net, scale=1.7), x, cond=told("self", z, 3), grid=times, solver=Consistency(renoise=renoise),
        rng=Tape([*noise[1:, None]]), hooks=hooks,
    )  # fmt: skip
    levels, r = PROCESS.levels(times), noise[:1]
    for i, step in enumerate(steps):
        a, b = levels[i].data, levels[i].noise
        true = residual_noise(step.x_t, levels[i], z)
        bound = 2e-6 if boundary else 1e-13
        assert float((true - r).abs().max()) <= max(bound * float(true.abs().max()), 1e-13)
        if i == 3:
            break
        e = 1.7 * net(step.x_t, levels[i], cd.conditions.as_conditions(told("none", z, 3))).noise - 0.7 * true
        skip, out = Boundary().weights(levels[i]) if boundary else (0.0, 1.0)
        r = (levels[i + 1].data / levels[i + 1].noise) * (out * (b * r - b * e) / a + skip * b * r)
        r = r + noise[i + 1] if renoise else r


def test_of_the_first_negative_the_residual_follows_the_recursion():
    times, z, net = times_of(4), frames(1)[0], Stub()
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = PROCESS.forward(z, float(times[0]), noise=noise[:1]).x_t
    levels = PROCESS.levels(times)
    label = cd.conditions.as_conditions(told("none", z, 3))
    r = net(x, levels[0], label.drop()).noise
    for i in range(4):
        e = 1.7 * net(x, levels[i], label).noise - 0.7 * r
        x0 = (x - levels[i].noise * e) / levels[i].data
        if i < 3:
            r = noise[i + 1] + (levels[i + 1].data / levels[i + 1].noise) * levels[i].noise * (r - e) / levels[i].data
            x = levels[i + 1].data * x0 + levels[i + 1].noise * noise[i + 1]
    made = alone(Anchored(net, scale=1.7, negative={}), "initialize", z, noise, times)
    torch.testing.assert_close(made, x0, rtol=1e-11, atol=1e-12)


def test_a_scale_of_1_is_no_guidance_and_a_delta_of_0_scales_the_noise():
    z, label = frames(1)[0], cd.conditions.as_conditions(told("self", frames(1)[0], 3))
    level, plain = PROCESS.at(0.5), Stub()
    bare = cd.conditions.as_conditions(told("none", z, 3))
    ec = plain(z, level, bare).noise
    for kind in KINDS:
        assert torch.equal(guided(plain, kind, scale=1.0)(z, level, label if kind == "self" else bare).noise, ec)
    torch.testing.assert_close(
        Anchored(plain, scale=1.7, delta=0.0)(z, level, label).noise, 1.7 * ec, rtol=1e-15, atol=0
    )


def test_the_first_step_of_initialize_is_that_of_full_guidance():
    z, level, cond = frames(1)[0], PROCESS.at(0.999), cd.conditions.as_conditions(told("none", None, 3))
    once = Anchored(Stub(), scale=1.7, negative={})(z, level, cond).noise
    torch.testing.assert_close(once, Free(Stub(), scale=1.7)(z, level, cond).noise, rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("kind", ["self", "initialize"])
def test_a_flow_may_begin_at_pure_noise(kind):
    """Where the noise says nothing of x0, x0 itself is led away from the anchor: the limit of what is done below."""
    model = cd.oracles.gaussian(Gaussian(cd.process.Rectified()), torch.ones(SHAPE, dtype=torch.float64), std=0.5)
    negative = {} if kind == "initialize" else None

    def made(first):
        stream = Stream(Anchored(model, scale=1.4, negative=negative), [first, 0.5, 0.0], dtype=torch.float64)
        stream.start(rng=0)
        return torch.cat([*(x for z in frames(4) if (x := stream.push(z)) is not None), *stream.drain()])

    torch.testing.assert_close(made(1.0), made(1.0 - 1e-7), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", ["self", "initialize"])
def test_residual_guidance_in_the_loop_with_any_solver(kind):
    net, z = Stub(), frames(3).flatten(0, 1)
    guide = guided(net, kind)
    cond = {"label": torch.tensor([1, 2, 3])} | ({ANCHOR: Condition(z, "map")} if kind == "self" else {})
    out = sample(guide, cond=cond, solver=DPMSolverPP(), grid=times_of(4), initial=z, rng=0)
    assert torch.isfinite(out).all()
    assert net.rows == 3 * (4 + (kind == "initialize"))
    again = sample(guide, cond=cond, solver=DPMSolverPP(), grid=times_of(4), initial=z, rng=0)
    assert torch.equal(out, again)  # nothing is left of the trajectory before


def test_residuals_stay_in_float32_where_states_are_half():
    level, z = PROCESS.at(0.1), frames(1)[0].half()
    assert residual_noise(z, level, z).dtype == torch.float32


def test_anchors_that_are_missing_or_of_another_shape_and_scales_below_1():
    z, level = frames(1)[0], PROCESS.at(0.5)
    with pytest.raises(BadValue, match="needs the condition 'anchor'"):
        Anchored(Stub(), scale=2.0)(z, level, {"label": [3]})
    with pytest.raises(BadValue, match="an anchor of shape"):
        Anchored(Stub(), scale=2.0)(z, level, told("self", z[..., :2], 3))
    with pytest.warns(UserWarning, match="below 1 draws the answer to the anchor"):
        Anchored(Stub(), scale=0.5)
    with pytest.raises(Incompatible, match="has an endpoint"):
        Anchored(Stub(cd.process.Interpolant()), scale=2.0)


# Rows


@pytest.mark.parametrize(("kind", "rows"), [("none", 4), ("self", 4), ("initialize", 5), ("full", 8)])
def test_rows_of_the_network_in_a_tick(kind, rows):
    net = Stub()
    stream = stream_of(kind, 4, net)
    for frame in frames(7):
        net.rows = 0
        stream.push(frame)
        assert net.rows == rows
    assert stream.calls == 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_prompt_holds_for_all_rows_at_once(kind):
    z, stream = frames(6), stream_of(kind, 2)
    out = [stream.push(frame) for frame in z[:3]]
    stream.tell({"label": torch.tensor([1])})
    out += [stream.push(frame) for frame in z[3:]]
    assert {x.shape for x in out[1:]} == {(1, *SHAPE)}
    old, new = (
        torch.cat([alone(stream.denoiser, kind, f, stream.noise, times_of(2), label) for f in z]) for label in (3, 1)
    )
    near = lambda a, b: float((a - b).abs().max()) < 1e-12
    assert near(out[2], old[1:2]) and near(out[4], new[3:4])
    assert not near(out[3], old[2:3]) and not near(out[3], new[2:3])  # first step under the old, second under the new


def test_what_a_frame_alone_is_told_goes_with_it():
    z, stream = frames(6), Stream(Stub(), times_of(4), dtype=torch.float64).start(rng=0, check=False)
    out = [stream.push(f, {"label": torch.tensor([k % 5])}) for k, f in enumerate(z)]
    made = torch.cat([*(x for x in out if x is not None), *stream.drain()])
    wanted = torch.cat([alone(Stub(), "none", f, stream.noise, times_of(4), k % 5) for k, f in enumerate(z)])
    torch.testing.assert_close(made, wanted, rtol=0.0, atol=1e-13)
    with pytest.raises(BadValue, match="same names in every tick"):
        stream.push(z[0], {"label": torch.tensor([1])})
        stream.push(z[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_two_frames_of_a_tick_are_told_goes_with_each(kind):
    z, labels = frames(10).reshape(5, 2, *SHAPE), torch.arange(10).reshape(5, 2) % 5
    stream = Stream(guided(Stub(), kind), times_of(4), frames=2, dtype=torch.float64).start(rng=0, check=False)
    for k in range(2):
        stream.push(z[k], {"label": labels[k]})
    other = Stream(guided(Stub(), kind), times_of(4), frames=2, dtype=torch.float64).start(rng=1, check=False)
    other.load_state_dict({k: v.clone() for k, v in stream.state_dict().items()})
    for one in (stream, other):
        out = [one.push(z[k], {"label": labels[k]}) for k in range(2, 5)]
        made = torch.cat([*(x for x in out if x is not None), *one.drain()])
        wanted = torch.cat(
            [
                alone(one.denoiser, kind, frame[None], one.noise, times_of(4), int(label))
                for frame, label in zip(z.flatten(0, 1), labels.flatten(), strict=True)
            ]
        )
        torch.testing.assert_close(made, wanted, rtol=0.0, atol=1.4e-14 * float(wanted.abs().max()))


def test_of_one_step_the_residual_is_the_noise_of_every_frame():
    stream, z = stream_of("self", 1), frames(3)
    level = PROCESS.levels(times_of(1))[0]
    for frame in z:
        x = PROCESS.forward(frame, level, noise=stream.noise).x_t
        e = 1.7 * Stub()(x, level, cd.conditions.as_conditions(told("none", None, 3))).noise - 0.7 * 0.9 * stream.noise
        torch.testing.assert_close(stream.push(frame), (x - level.noise * e) / level.data, rtol=0.0, atol=1e-13)


def test_pure_noise_comes_in_with_zeros_as_its_anchor():
    stream, z = stream_of("self", 2), frames(2)
    stream.push(z[0], noisy=True)
    made = stream.push(z[1], noisy=True)
    wanted = sample(
        stream.denoiser, initial=z[0], cond=told("self", torch.zeros_like(z[0]), 3), grid=times_of(2),
        solver=Consistency(), rng=Tape([stream.noise[1:]]),
    )  # fmt: skip
    torch.testing.assert_close(made, wanted, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_bit_for_bit(kind):
    z, stream = frames(8), stream_of(kind, 4)
    for frame in z[:3]:
        stream.push(frame)
    state = {k: v.clone() for k, v in stream.state_dict().items()}
    wanted = [*(stream.push(f) for f in z[3:]), *stream.drain()]
    other = Stream(guided(Stub(), kind), times_of(4), dtype=torch.float64).start({"label": torch.tensor([3])}, rng=9)
    other.load_state_dict(state)
    assert all(
        torch.equal(a, b) for a, b in zip([*(other.push(f) for f in z[3:]), *other.drain()], wanted, strict=True)
    )


def test_a_state_holds_what_frames_alone_are_told():
    z, make = frames(6), lambda seed: Stream(Stub(), times_of(4), dtype=torch.float64).start(rng=seed, check=False)
    one, other = make(0), make(1)
    cond = [{"label": torch.tensor([k % 5])} for k in range(6)]
    for k in range(4):
        one.push(z[k], cond[k])
    other.load_state_dict(one.state_dict())
    for k in (4, 5):
        assert torch.equal(one.push(z[k], cond[k]), other.push(z[k], cond[k]))
    assert all(torch.equal(a, b) for a, b in zip(one.drain(), other.drain(), strict=True))
    with pytest.raises(BadValue, match="the state of another stream"):
        stream_of("none", 2).load_state_dict(one.state_dict())


def test_fewer_frames_than_steps_come_out_too():
    stream, z = stream_of("none", 4), frames(2)
    assert [stream.push(f) for f in z] == [None, None]
    made = torch.cat(list(stream.drain()))
    wanted = torch.cat([alone(Stub(), "none", f, stream.noise, times_of(4)) for f in z])
    torch.testing.assert_close(made, wanted, rtol=0.0, atol=1e-13)
    assert stream.ticks == 0 and list(stream.drain()) == []


# What is refused


class Coupled(Stub):
    """A network with batch statistics."""

    def forward(self, x, t, cond=None):
        return super().forward(x - x.mean(0, keepdim=True), t, cond)


def test_what_a_stream_refuses():
    times = times_of(2)
    with pytest.raises(Incompatible, match="when the others of its batch change"):
        stream_of("none", 2, Coupled())
    with pytest.raises(BadValue, match="two times or more that fall"):
        Stream(Stub(), [0.3, 0.5, 0.0])
    with pytest.raises(BadValue, match="end the times at 0"):
        Stream(Stub(), [0.5, 0.1])
    with pytest.raises(Incompatible, match="remembers past evaluations"):
        Stream(Stub(), times, solver=DPMSolverPP())
    with pytest.raises(Incompatible, match="acts elsewhere than on predictions"):
        Stream(Stub(), times, hooks=[Inpaint(known=torch.zeros(SHAPE), mask=torch.ones(SHAPE) > 0)])
    with pytest.raises(BadValue, match="integer >= 1"):
        Stream(Stub(), times, frames=0)
    for call in (
        lambda s: s.push(frames(1)[0]),
        lambda s: s.tell({"label": torch.tensor([1])}),
        lambda s: list(s.drain()),
        lambda s: s.state_dict(),
        lambda s: s.load_state_dict({}),
    ):
        with pytest.raises(BadValue, match=r"start\(cond\) comes before"):
            call(Stream(Stub(), times))
    with pytest.raises(BadValue, match="the state of a stream has ticks, and here are x"):
        stream_of("none", 2).load_state_dict({"x": torch.zeros(1)})
    stream = stream_of("none", 2)
    with pytest.raises(BadValue, match="another size starts anew"):
        stream.push(torch.zeros(1, 2, 8, 8, dtype=torch.float64))
    with pytest.raises(BadType, match="floating-point"):
        stream.push(torch.zeros(1, *SHAPE, dtype=torch.long))
    with pytest.raises(BadValue, match="the same, one row, and 2 came"):
        stream.tell({"label": torch.tensor([1, 2])})
    assert "tick 0" in repr(stream)
