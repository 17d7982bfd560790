"""Hooks and inpainting: each does what it says, to the bit where it can."""

import itertools

import pytest
import torch

from condiff.errors import BadType, BadValue
from condiff.guidance import Classifier, gradient
from condiff.process import Cosine, Gaussian, Prediction, Rectified
from condiff.process.algebra import row_quantile
from condiff.process.oracles import gaussian, mixture
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    ClipX0,
    Displace,
    DynamicThreshold,
    Euler,
    Hook,
    Inpaint,
    MeanShift,
    Record,
    Uniform,
    X0Replace,
    repaint_grid,
    sample,
    trajectory,
)

PROCESS = Gaussian(Cosine())


def oracle():
    return mixture(PROCESS, torch.linspace(-2.0, 2.0, 24).reshape(2, 3, 4), stds=0.6, labels=[0, 1])


def noise(n=3, shape=(3, 4)):
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_hooks_are_called_in_order_at_their_places():
    calls = []

    class Spy(Hook):
        def __init__(self, name):
            self.name = name

        def before(self, x, run):
            calls.append(("before", self.name, run.index))
            return x

        def prediction(self, prediction, run):
            calls.append(("prediction", self.name, run.index))
            return prediction

        def mean(self, mean, std, prediction, run):
            calls.append(("mean", self.name, run.index))
            return mean

        def after(self, step, run):
            calls.append(("after", self.name, run.index))
            return step.x_s

    sample(oracle(), solver=DDIM(eta=1.0), steps=2, num=1, seed=0, hooks=[Spy("a"), Spy("b")])
    places = ("before", "prediction", "mean", "after")
    assert calls == [(place, name, i) for i in range(2) for place in places for name in ("a", "b")]


def test_a_displaced_state_is_what_the_step_starts_from():
    x = noise()
    shift = Displace(lambda x, run: torch.full_like(x, 0.5) if run.index == 0 else torch.zeros_like(x))
    for solver in (Euler(), DDIM()):
        moved = sample(oracle(), solver=solver, steps=3, initial=x, hooks=[shift])
        torch.testing.assert_close(moved, sample(oracle(), solver=solver, steps=3, initial=x + 0.5), rtol=0, atol=0)
    with pytest.raises(BadValue, match="displacement of shape"):
        sample(oracle(), solver=DDIM(), steps=1, initial=x, hooks=[Displace(lambda x, run: x[0])])


def test_clipping_keeps_the_state_and_changes_the_noise():
    x = noise()
    steps = list(trajectory(oracle(), x, solver=DDIM(), steps=4, hooks=[ClipX0(-1.0, 0.5)]))
    for step in steps:
        p = step.prediction
        assert p.x0.max() <= 0.5 and p.x0.min() >= -1.0
        torch.testing.assert_close(p.level.data * p.x0 + p.level.noise * p.noise, step.x_t)
    torch.testing.assert_close(steps[-1].x_s, steps[-1].prediction.x0)
    wide = sample(oracle(), solver=DDIM(), steps=4, initial=x, hooks=[ClipX0(-1e3, 1e3)])
    torch.testing.assert_close(wide, sample(oracle(), solver=DDIM(), steps=4, initial=x))


class Fixed:
    """Says x0, whatever the state."""

    process, kinds = PROCESS, None

    def __init__(self, x0):
        self.x0, self.shape = x0, tuple(x0.shape[1:])

    def __call__(self, x, t, cond=None):
        return Prediction(x, self.process.at(t), {"x0": self.x0})


def test_dynamic_thresholding_is_per_sample():
    x0 = noise(3, (5, 40))
    x0 = x0 * torch.tensor([0.1, 1.0, 4.0])[:, None, None]
    hook = DynamicThreshold(quantile=0.9)
    out = sample(Fixed(x0), solver=DDIM(), grid=[0.5, 0.0], initial=noise(3, (5, 40)), hooks=[hook])
    torch.testing.assert_close(out[0], x0[0], rtol=1e-14, atol=1e-14)
    for i in (1, 2):
        s = torch.quantile(x0[i].abs().flatten(), 0.9)
        assert s > 1.0
        torch.testing.assert_close(out[i], x0[i].clamp(-s, s) / s)


@pytest.mark.parametrize("q", [0.001, 0.25, 0.5, 0.995, 1.0])
def test_row_quantile_is_torch_quantile(q):
    x = noise(4, (37,))
    torch.testing.assert_close(row_quantile(x, q), torch.quantile(x, q, dim=1))


def test_x0_replacement_projects():
    """A projection onto an observation holds at the end exactly."""
    h = torch.ones(4, dtype=torch.float64) / 2.0
    hook = X0Replace(lambda x0, run: x0 - ((x0 @ h) - 0.3)[..., None] * h)
    out = sample(oracle(), solver=DDIM(eta=1.0), steps=5, num=3, seed=0, dtype=torch.float64, hooks=[hook])
    torch.testing.assert_close(out @ h, torch.full((3, 3), 0.3, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    with pytest.raises(BadValue, match="must have the shape"):
        sample(oracle(), solver=DDIM(), steps=1, num=3, seed=0, hooks=[X0Replace(lambda x0, run: x0[0])])


def test_mean_shift_is_std_squared_times_the_gradient():
    model = oracle()

    def log_prob(u, level, cond):
        return model.class_log_prob(u, level)[:, 1]

    x, z = noise(), noise().flip(0)

    def one(hooks):
        return next(trajectory(model, x, solver=DDIM(eta=1.0), grid=[0.7, 0.5], rng=Tape([z]), hooks=hooks))

    plain, shifted = one([]), one([MeanShift(gradient(log_prob), scale=2.0)])
    t, s = PROCESS.at(0.7), PROCESS.at(0.5)
    std = PROCESS.posterior_std(t, s)
    wanted = 2.0 * std**2 * (Classifier(model, log_prob)(x, t).score - model(x, t).score)
    torch.testing.assert_close(shifted.x_s - plain.x_s, wanted)
    extra = one([MeanShift(gradient(log_prob), scale=2.0, extra=lambda variance, run: 0.5)])
    torch.testing.assert_close(extra.x_s - plain.x_s, wanted * (1.0 + 0.5 / std**2))
    mean = plain.x_s - std * z
    at_mean = one([MeanShift(gradient(log_prob), at="mean")])
    torch.testing.assert_close(at_mean.x_s - plain.x_s, std**2 * gradient(log_prob)(mean, t, {}))
    at_x0 = one([MeanShift(gradient(log_prob), at="x0")])
    torch.testing.assert_close(at_x0.x_s - plain.x_s, std**2 * gradient(log_prob)(model(x, t).x0, t, {}))
    with pytest.raises(BadValue, match="'x_t', 'mean' or 'x0'"):
        MeanShift(gradient(log_prob), at="score")


def test_record_begins_anew_with_each_run():
    record = Record(lambda step: step.prediction.x0)
    for _ in range(2):
        out = sample(oracle(), solver=DDIM(), steps=6, num=2, seed=0, hooks=[record])
        assert len(record.values) == 6
        torch.testing.assert_close(record.values[-1], out)


# Held and known parts


@pytest.mark.parametrize("solver", [Euler(), DDIM(), DDIM(eta=1.0)])
def test_held_parts_come_back_bit_for_bit(solver):
    x = noise()
    held = torch.zeros(3, 3, 4, dtype=torch.bool)
    held[:, 1], held[0, 2, 3] = True, True
    for step in trajectory(oracle(), x, solver=solver, steps=5, rng=0, held=held):
        assert torch.equal(step.x_s[held], x[held])
        assert not torch.equal(step.x_s[~held], x[~held])


@pytest.mark.parametrize("kind", ["fresh", "fixed"])
def test_known_values_come_back_bit_for_bit(kind):
    known, mask = noise(1), torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    hook = Inpaint(known, mask, noise=kind)
    out = sample(oracle(), solver=DDIM(eta=1.0), steps=5, num=4, seed=0, dtype=torch.float64, hooks=[hook])
    assert torch.equal(out[:, mask], known.expand(4, 3, 4)[:, mask])
    assert (out[:, ~mask].std(0) > 0.01).all()


def test_known_part_has_the_forward_law_at_every_level():
    """With noise given, the known part at s is exactly data known + noise z."""
    known, mask = noise(2), torch.ones(2, 3, 4, dtype=torch.bool)
    z = [noise(2) + i for i in range(3)]
    steps = trajectory(
        oracle(), noise(2), solver=DDIM(), grid=[0.9, 0.6, 0.3], rng=Tape(z), hooks=[Inpaint(known, mask)]
    )
    for step, draw in zip(steps, z[1:], strict=True):
        torch.testing.assert_close(step.x_s, step.s.data * known + step.s.noise * draw)
    fixed = trajectory(
        oracle(),
        noise(2),
        solver=DDIM(),
        grid=[0.9, 0.6, 0.3],
        rng=Tape(z[:1]),
        hooks=[Inpaint(known, mask, "fixed")],
    )
    for step in fixed:
        torch.testing.assert_close(step.x_s, step.s.data * known + step.s.noise * z[0])


def brute_force(steps, jump, repeats):
    """The schedule as RePaint's loop: after each stretch, back up and down again."""
    down_to = [i for i in range(steps - jump, -1, -jump)][::-1]
    at = {steps - i: repeats - 1 for i in range(0, steps - jump + 1, jump)}
    assert len(down_to) == len(at)
    i, out = 0, [0]
    while i < steps:
        i += 1
        out.append(i)
        while i == out[-1] and at.get(i, 0) > 0:
            at[i] -= 1
            out += list(range(i - 1, i - jump - 1, -1)) + list(range(i - jump + 1, i + 1))
    return out


@pytest.mark.parametrize(("steps", "jump", "repeats"), [(6, 2, 3), (7, 3, 2), (5, 1, 4), (5, 5, 2), (4, 3, 1)])
def test_repaint_grid(steps, jump, repeats):
    times = Uniform().times(PROCESS, steps)
    grid = repaint_grid(times, jump, repeats)
    torch.testing.assert_close(grid, times[brute_force(steps, jump, repeats)], rtol=0, atol=0)
    pairs = list(itertools.pairwise(grid.tolist()))
    assert sum(b < a for a, b in pairs) == steps + (steps // jump) * jump * (repeats - 1)


def test_repaint_agrees_better_with_more_repeats():
    """Correlated Gaussian, two of six coordinates known: all maps are affine, so a run without noise is the mean.

    The published figures of replacement with N repeats a level are far from the posterior for N = 1; here the mean of
    the unknown part must come nearer with each repeat.
    """
    cov = 0.7 ** (torch.arange(6)[:, None] - torch.arange(6)).abs().double()
    model = gaussian(PROCESS, torch.zeros(6), cov)
    seen, y = [2, 5], torch.tensor([1.0, -1.0], dtype=torch.float64)
    hidden = [0, 1, 3, 4]
    wanted = cov[hidden][:, seen] @ torch.linalg.solve(cov[seen][:, seen], y)
    known, mask = torch.zeros(1, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.bool)
    known[0, seen], mask[seen] = y, True
    errors = []
    for repeats in (1, 3, 10):
        grid = repaint_grid(Uniform().times(PROCESS, 50), jump=1, repeats=repeats)
        zeros = Tape(torch.zeros(1, 6, dtype=torch.float64) for _ in range(4000))
        out = sample(
            model,
            solver=DDIM(eta=1.0),
            grid=grid,
            initial=torch.zeros(1, 6, dtype=torch.float64),
            rng=zeros,
            hooks=[Inpaint(known, mask)],
        )
        errors.append(float((out[0, hidden] - wanted).abs().max()))
    assert errors[0] > 1.5 * errors[1] > 2.0 * errors[2], errors


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ClipX0(1.0, -1.0), BadValue, "low < high"),
        (lambda: DynamicThreshold(quantile=1.5), BadValue, "quantile"),
        (lambda: Inpaint(noise(), torch.ones(3, 4)), BadType, "booleans"),
        (lambda: Inpaint(noise(), torch.ones(3, 4, dtype=torch.bool), "new"), BadValue, "'fresh' or 'fixed'"),
        (lambda: repaint_grid([0.0, 1.0], 1, 1), BadValue, "decreasing"),
        (lambda: repaint_grid([1.0, 0.5, 0.0], 3, 1), BadValue, "jump"),
        (lambda: repaint_grid([1.0, 0.5, 0.0], 1, 0), BadValue, "repeats"),
    ],
)
def test_bad_options_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_mask_of_another_shape_is_refused():
    hook = Inpaint(noise(1), torch.ones(5, dtype=torch.bool))
    with pytest.raises(BadValue, match="mask of shape"):
        sample(oracle(), solver=DDIM(), steps=1, num=2, seed=0, hooks=[hook])
    hook = Inpaint(noise(7), torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(BadValue, match="known of shape"):
        sample(oracle(), solver=DDIM(), steps=1, num=2, seed=0, hooks=[hook])


def test_hooks_work_on_other_paths():
    model = gaussian(Gaussian(Rectified()), torch.zeros(3, 4), std=1.0)
    out = sample(model, solver=Euler(), steps=3, num=2, seed=0, hooks=[ClipX0(-0.1, 0.1)])
    assert out.abs().max() <= 0.1 + 1e-6
