"""Stream batch: the n denoising steps of n frames that follow each other, in one call of the network.

While a frame takes its last step the one behind it takes its last but one, and so on: every tick a frame goes in and
one comes out, n - 1 ticks later. A row has a time, a noise and conditions of its own; the batch always has one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions, as_conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance.anchored import ANCHOR, Anchored, wide
from condiff.process.algebra import combine
from condiff.random import Source, as_source
from condiff.sampling import Consistency, Hook, Run
from condiff.sampling.solvers.linear import Linear, Weights
from condiff.streaming.rings import moved, read_told, repeated, told_state

Told = Mapping[str, Any] | Conditions | None


class Stream:
    """A sampler that a frame of latents goes into and a denoised one comes out of, every tick.

    ``x^0 = data_0 z + noise_0 eps^0`` for the frame that comes in, then ``x^(i+1) = solver(x^i, eps^(i+1))``. The
    noises ``eps^i`` are drawn once, by :meth:`start`, and are the same for all frames. What comes out is what the loop
    (:func:`condiff.sampling.sample`) makes of the frame alone with these noises.

    With a :class:`condiff.guidance.Anchored` the stream gives every frame as its own anchor; with one that has
    ``negative`` conditions it lets the newest frames find theirs, and remembers it.

    Args:
        denoiser: any that treats the rows of a batch independently.
        times: (n + 1,) falling times, the first of them that of the noised input.
        solver: a rule of one evaluation without memory: :class:`Consistency`, :class:`DDIM`, :class:`Overshoot`, ...
        frames: that come in and go out each tick. They share the noises.
        hooks: that act on states, predictions or means.
        shape: of a frame of latents, where the denoiser doesn't say.
        dtype: of the latents.

    Raises:
        BadValue: times that don't fall or end where the solver still adds noise, fewer than one frame a tick, no shape.
        Incompatible: a solver that remembers, a process with an endpoint, guidance with a memory, hooks that act after
            a step or at the start of a trajectory.

    Example:
        >>> stream = Stream(Anchored(model, scale=1.4), [0.6, 0.3, 0.0]).start({"label": [3]}, rng=0)
        >>> for z in latents:
        ...     out = stream.push(z)  # None while the first frames are on their way
    """

    def __init__(
        self,
        denoiser: Denoises,
        times: Sequence[float] | Tensor,
        *,
        solver: Linear = Consistency(),
        frames: int = 1,
        hooks: Sequence[Hook] = (),
        shape: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.times = _falling(times)
        _check_parts(denoiser, solver, hooks)
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise BadValue(f"frames of a tick must be an integer >= 1, got {frames!r}")
        shape = denoiser.shape if shape is None else tuple(shape)
        if shape is None:
            raise BadValue("this denoiser doesn't say the shape of its samples: give shape=")
        self.denoiser, self.solver, self.hooks = denoiser, solver, tuple(hooks)
        self.frames, self.shape, self.dtype = frames, shape, dtype
        self.steps = len(self.times) - 1
        self._plan: list[Weights] = solver.plan(denoiser.process.levels(self.times))
        if float(self._plan[-1].std) != 0.0:
            raise BadValue(f"the last step of a stream adds no noise: end the times at 0, got {self.times.tolist()}")
        self.ticks = 0
        self.calls = 0
        self._ready = False

    @property
    def delay(self) -> int:
        """Ticks from a frame's coming in to its coming out."""
        return self.steps - 1

    # Before the first frame

    def start(self, cond: Told = None, rng: int | torch.Generator | Source | None = None, check: bool = True) -> Stream:
        """Draw the noises and work out everything that stays: levels, coefficients, conditions of all rows.

        Args:
            cond: what all frames are told, one row; see :meth:`tell`.
            rng: where the noises come from.
            check: refuse a denoiser whose rows depend on each other, which two calls tell.

        Raises:
            Incompatible: such a denoiser.
        """
        process, device = self.denoiser.process, device_of(self.denoiser)
        source = as_source(rng)
        shape = (self.steps, *self.shape)
        self.noise = process.noise_law.sample(source, shape, self.dtype, device)
        self._first = process.levels(self.times)[0]
        self._prepare(process, device)
        self.calls = 0
        self._empty()
        self.tell(cond)
        if check:
            self._check_rows()
        return self

    def _prepare(self, process: Any, device: torch.device) -> None:
        each = self.times.to(device).repeat_interleave(self.frames)
        self._from, self._to = process.at(each[: -self.frames]), process.at(each[self.frames :])
        columns = [torch.tensor(c, dtype=torch.float64, device=device) for c in zip(*self._plan, strict=True)]
        self._weights = Weights(*(c.repeat_interleave(self.frames) for c in columns))
        self._spread()

    def _spread(self) -> None:
        """The noise that each row gets at the end of its step; none for the last."""
        later = torch.cat([self.noise[1:], torch.zeros_like(self.noise[:1])])
        self._added = later.repeat_interleave(self.frames, 0)

    def _empty(self) -> None:
        rows, device = self.delay * self.frames, self.noise.device
        self.latents = torch.zeros((rows, *self.shape), dtype=self.dtype, device=device)
        self.anchors = torch.zeros((rows, *self.shape), dtype=wide(self.dtype), device=device)
        self._told: Conditions | None = None
        self._last: tuple[Tensor, Conditions] | None = None
        self.ticks = 0
        self._ready = True

    def check_started(self) -> None:
        """
        Raises:
            BadValue: before :meth:`start`.
        """
        if not self._ready:
            raise BadValue("start(cond) comes before the first frame, and before all that is asked of a stream")

    def tell(self, cond: Told) -> None:
        """What all frames are told from the next tick on, those on their way too: one row.

        Raises:
            BadValue: more than one row.
        """
        self.check_started()
        cond = as_conditions(cond, getattr(self.denoiser, "kinds", None), self.noise.device)
        if cond.batch not in (None, 1):
            raise BadValue(
                f"all frames are told the same, one row, and {cond.batch} came: what a frame alone is told goes with "
                "it, push(z, cond)"
            )
        self._common = repeated(cond, self.steps * self.frames)

    # A tick

    @torch.no_grad()
    def push(self, z: Tensor, cond: Told = None, *, noisy: bool = False) -> Tensor | None:
        """One tick: ``frames`` latents in, as many out, those that came in :attr:`delay` ticks before; None for the
        first ticks, while there are none.

        Args:
            z: (frames, *shape).
            cond: what these frames alone are told, ``frames`` rows of the same names every tick; it goes with them.
            noisy: z is a noisy state at the first time already, such as pure noise to generate from; its anchor is 0.

        Raises:
            BadValue: another shape, conditions of another number of rows or other names than before.
        """
        self.check_started()
        z = self._checked(z)
        told = as_conditions(cond, getattr(self.denoiser, "kinds", None), z.device)
        first, anchor = (z, torch.zeros_like(z)) if noisy else (self._noised(z), z)
        x = torch.cat([first, self.latents])
        self._told = moved(told, self._told, self.delay, self.frames)
        run = self._run(torch.cat([anchor.to(self.anchors.dtype), self.anchors]))
        x_s, prediction, _ = self.solver.step(x, self._weights, self.solver.start(), run)
        assert prediction is not None
        self._keep(x_s, prediction.aux.get(ANCHOR, run.anchors))
        self._last = (z, told)
        self.ticks += 1
        self.calls += run.nfe
        return x_s[-self.frames :] if self.ticks > self.delay else None

    def _noised(self, z: Tensor) -> Tensor:
        return combine((self._first.data, z), (self._first.noise, self.noise[:1].expand_as(z)))

    def _keep(self, x_s: Tensor, anchors: Tensor) -> None:
        kept = self.delay * self.frames
        self.latents, self.anchors = x_s[:kept], anchors[:kept]

    def _run(self, anchors: Tensor) -> _Tick:
        assert self._told is not None
        cond = Conditions({**self._common, **self._told})
        if isinstance(self.denoiser, Anchored):
            cond = cond.replace(**{ANCHOR: Condition(anchors, "map", keep=self._known())})
        return _Tick(self, cond, anchors)

    def _known(self) -> Tensor | None:
        """Which rows have an anchor; None for all."""
        if self.denoiser.negative is None:  # type: ignore[attr-defined]
            return None
        return torch.arange(self.steps * self.frames, device=self.noise.device) >= self.frames

    def drain(self) -> Iterator[Tensor]:
        """The frames that are still on their way. The stream is then empty, and may go on."""
        self.check_started()
        if self._last is not None:
            z, told = self._last
            for _ in range(self.delay):
                out = self.push(z, told)
                if out is not None:
                    yield out
        self._empty()

    def _checked(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise BadType(f"frames of latents are floating-point tensors, got {z!r}"[:120])
        if tuple(z.shape) != (self.frames, *self.shape):
            raise BadValue(
                f"frames of shape {(self.frames, *self.shape)} are wanted in every tick, got {tuple(z.shape)}: a "
                "stream of another size starts anew"
            )
        return z.to(self.noise)

    def _check_rows(self) -> None:
        """Refuse a network with cross-frame attention, batch statistics and the like."""
        total = self.steps * self.frames
        probe = self.noise[torch.arange(total) % self.steps] + torch.linspace(-1.0, 1.0, total).reshape(
            -1, *(1,) * len(self.shape)
        ).to(self.noise)
        other = torch.cat([probe[:1], -probe[1:]])
        if total == 1:
            return
        with torch.no_grad():
            a, b = (self._said(x)[0] for x in (probe, other))
        if float((a - b).abs().max()) > 0.02 * float(a.abs().max()) + 1e-6:
            raise Incompatible(
                f"{type(self.denoiser).__name__} says something else of a frame when the others of its batch change "
                "(batch statistics, attention across frames): its frames can't be of different times"
            )

    def _said(self, x: Tensor) -> Tensor:
        denoiser, level, cond = self.denoiser, self._from, self._common
        while isinstance(denoiser, Anchored):
            denoiser = denoiser.denoiser
        return denoiser(x, level, cond).noise

    # Interrupted

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes from tick to tick, and the noises: tensors by name. What :meth:`tell` told isn't among them.

        A stream that was started with the same parts and told the same goes on from it bit for bit.
        """
        self.check_started()
        state = {"noise": self.noise, "latents": self.latents, "anchors": self.anchors}
        state["ticks"] = torch.tensor([self.ticks, self.calls])
        for name, told in (("told", self._told), ("last_told", self._last and self._last[1])):
            state.update(told_state(name, told))
        return state if self._last is None else {**state, "last": self._last[0]}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`; after :meth:`start`.

        Raises:
            BadValue: of another number of steps or frames, or of another shape; something else than such a state.
        """
        self.check_started()
        if "ticks" not in state:
            raise BadValue(f"the state of a stream has ticks, and here are {', '.join(sorted(state)) or 'nothing'}")
        for name in ("noise", "latents", "anchors"):
            mine, given = getattr(self, name), state.get(name)
            if given is None or given.shape != mine.shape:
                came = "missing" if given is None else tuple(given.shape)
                raise BadValue(f"the state of another stream: its {name} are {came}, here {tuple(mine.shape)}")
            setattr(self, name, given.to(mine).clone())
        self.ticks, self.calls = (int(v) for v in state["ticks"])
        self._told = read_told("told", state, self.noise.device)
        told = read_told("last_told", state, self.noise.device) or Conditions()
        self._last = (state["last"].to(self.noise), told) if "last" in state else None
        self._spread()

    def __repr__(self) -> str:
        times = ", ".join(f"{t:.3g}" for t in self.times.tolist())
        return f"Stream({self.denoiser!r}, times=[{times}], {self.solver!r}, frames={self.frames}, tick {self.ticks})"


class _Tick(Run):
    """One tick as solvers and hooks see it: all steps at once, with the stream's noises."""

    def __init__(self, stream: Stream, cond: Conditions, anchors: Tensor) -> None:
        super().__init__(stream.denoiser, cond, as_source(0), stream.hooks)
        self.solver, self.levels, self.held = stream.solver, (stream._from, stream._to), None
        self.t, self.s, self.steps = stream._from, stream._to, stream.steps
        self.anchors, self._noise = anchors, stream._added

    def draw(self, x: Tensor) -> Tensor:
        return self._noise


def _falling(times: Any) -> Tensor:
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0.0).all()):
        raise BadValue(f"a stream needs two times or more that fall, got {times.tolist()}")
    return times


def _check_parts(denoiser: Any, solver: Any, hooks: Any) -> None:
    if getattr(denoiser.process, "has_source", False):
        raise Incompatible(f"frames come in by noise, and {denoiser.process} has an endpoint")
    if not isinstance(solver, Linear):
        raise Incompatible(
            f"{solver!r} remembers past evaluations or makes several: a stream takes Consistency(), DDIM(), Overshoot()"
        )
    if getattr(denoiser, "step_hooks", ()):
        raise Incompatible(f"{type(denoiser).__name__} acts between steps, which a stream has none of")
    if isinstance(hooks, Hook):
        raise BadType(f"hooks= is a list: [{type(hooks).__name__}(...)]")
    for hook in hooks:
        if any(getattr(type(hook), name) is not getattr(Hook, name) for name in ("start", "before", "after", "drawn")):
            raise Incompatible(f"{type(hook).__name__} acts elsewhere than on predictions and means")
