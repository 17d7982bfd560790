"""Derivatives of what a denoiser says: along the state and the time, and divergences. Guided denoisers included.

* :func:`jvp`: the directional derivative of one quantity, ``J_x dx + J_t dt``, in forward mode: one evaluation
  that costs two to three times as much as a plain one (more for small batches), without a graph. For networks that
  know whole-numbered times only, the part along t is a difference quotient between neighbouring levels.
* :func:`divergence`: ``tr J_x``, exact (one backward pass per dimension) or Hutchinson's estimate ``e . J e`` with
  E[e e^T] = 1 (one per probe).
* :func:`value_gradient`: the gradient of a value per sample, such as an energy, worked out under ``no_grad`` too.

Fused attention kernels have no forward-mode derivative. :func:`plain_kernels`, which :func:`jvp` uses, switches
condiff's networks and torch's ``scaled_dot_product_attention`` to kernels that have one, with the same numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from condiff.conditions import Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible, NonFinite, unknown
from condiff.networks.attention import use_attention
from condiff.process.algebra import finite
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.prediction import KINDS
from condiff.process.table import table_size
from condiff.random import Source
from condiff.typing import Float, Tensor

PROBES = ("rademacher", "normal")
Cond = Mapping[str, Any] | Conditions | None


class Along(NamedTuple):
    """A quantity and its derivative along a direction, both of the state's shape."""

    value: Tensor
    derivative: Tensor


def jvp(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    t: Time,
    cond: Cond = None,
    *,
    kind: str = "velocity",
    dx: Float[Tensor, "batch *shape"] | None = None,
    dt: float | Tensor | None = None,
    between: tuple[float, float] | None = None,
) -> Along:
    """A quantity at ``(x, t)`` and its derivative ``J_x dx + J_t dt``.

    Args:
        denoiser: of one continuous state.
        x: the state (B, ...).
        t: its time, one or (B,).
        kind: the quantity, ``"noise"``, ``"velocity"``, ``"x0"``, ...
        dx: direction of the state; None for none.
        dt: direction of the time, a number or (B,); None for none.
        between: two times around t. The derivative in t is then the difference quotient between them (two more
            evaluations) instead of forward mode; see :func:`neighbours`.

    Raises:
        BadValue: no direction, shapes that don't match, an unknown quantity, times that aren't around t.
        Incompatible: a joint state or tokens; a model without forward-mode derivative; one that knows whole-numbered
            times only, asked for a derivative in t without ``between``; inference mode.

    Example:
        >>> step = denoiser(x, 0.5, cond).velocity
        >>> acceleration = jvp(denoiser, x, 0.5, cond, dx=step, dt=1.0).derivative
    """
    _check(denoiser, x, kind, dx, dt)
    level = denoiser.process.at(t)
    quotient = between is not None and dt is not None
    if dt is not None and not quotient and whole_times(denoiser, x, level, cond):
        raise Incompatible(
            f"the network tells the whole-numbered times of {denoiser.process} only apart, so it has no derivative in "
            "t: give between=neighbours(process, t) for a difference quotient"
        )
    out = _forward_mode(denoiser, x, level, cond, kind, dx, None if quotient else dt)
    if between is None or dt is None:
        return out
    return Along(out.value, out.derivative + _times(dt, _quotient(denoiser, x, level, cond, kind, between)))


def _check(denoiser: Denoises, x: Tensor, kind: str, dx: Tensor | None, dt: Any) -> None:
    if not isinstance(denoiser.process, Process):
        raise Incompatible(f"these derivatives are of one continuous state, not of {denoiser.process}")
    if kind not in KINDS:
        raise unknown("prediction", kind, KINDS)
    if not x.dtype.is_floating_point:
        raise BadType(f"x must be a floating point tensor, got {x.dtype}")
    if dx is None and dt is None:
        raise BadValue("give a direction: dx=, of the state's shape, dt=, or both")
    if dx is not None and dx.shape != x.shape:
        raise BadValue(f"dx of shape {tuple(dx.shape)} must have the state's, {tuple(x.shape)}")
    if isinstance(dt, Tensor) and dt.shape not in ((), x.shape[:1]):
        raise BadValue(f"dt is a number or one per row, ({len(x)},), got shape {tuple(dt.shape)}")
    if torch.is_inference_mode_enabled():
        raise Incompatible("torch.inference_mode() has no forward-mode derivatives; use torch.no_grad()")


@cache
def _load() -> None:
    """torch loads its derivatives of decompositions on first use, with a warning about itself that isn't ours."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def _forward_mode(denoiser: Any, x: Tensor, level: Level, cond: Cond, kind: str, dx: Any, dt: Any) -> Along:
    _load()
    with forward_ad.dual_level(), plain_kernels(denoiser), _explained():
        state = x if dx is None else forward_ad.make_dual(x, dx.to(x))
        value, tangent = forward_ad.unpack_dual(denoiser(state, _dual_time(level, dt, x), cond).to(kind))
    return Along(value, torch.zeros_like(value) if tangent is None else tangent)


def _dual_time(level: Level, dt: Any, x: Tensor) -> Time:
    if dt is None:
        return level
    t = torch.as_tensor(level.t, dtype=torch.float64, device=x.device).expand(x.shape[:1]).clone()
    return forward_ad.make_dual(t, torch.as_tensor(dt, dtype=torch.float64, device=x.device).expand(t.shape).clone())


def _quotient(denoiser: Any, x: Tensor, level: Level, cond: Cond, kind: str, between: tuple[float, float]) -> Tensor:
    """``(q(hi) - q(lo)) / (hi - lo)`` at the same x."""
    lo, hi = between
    t = torch.as_tensor(level.t)
    if not (0.0 <= lo < hi <= 1.0 and lo <= float(t.min()) and float(t.max()) <= hi):
        raise BadValue(f"between= takes two times around t = {level.t}, the lower first, got {between}")
    process = denoiser.process
    above, below = (denoiser(x, process.at(float(s)), cond).to(kind) for s in (hi, lo))
    return (above - below) / (hi - lo)


def _times(dt: float | Tensor, x: Tensor) -> Tensor:
    return x * dt.to(x).reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(dt, Tensor) else x * dt


# Time


def neighbours(process: Process, t: float) -> tuple[float, float]:
    """The numbered levels of a table next to t, one below and one above it: where a difference quotient in t is taken.

    At an end of the table (t = 1 or its first level) t itself takes the place of the missing one.

    Raises:
        Incompatible: a process without a table; any two times around t do there.
    """
    steps = table_size(process)
    if steps is None:
        raise Incompatible(f"{process} has no numbered levels: give any two times around t")
    place = t * steps
    near = round(place)
    on = abs(place - near) < 1e-6
    lo, hi = (near - 1, near + 1) if on else (math.floor(place), math.ceil(place))
    lo, hi = max(lo, 1), min(hi, steps)
    return min(lo / steps, t), max(hi / steps, t)


_WHOLE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # of denoisers that were asked before


def whole_times(denoiser: Denoises, x: Float[Tensor, "batch *shape"], t: Time, cond: Cond = None) -> bool:
    """Whether a model on a table rounds the time it is told: the same output a quarter of a level further, another one
    at the next level. (One that isn't told the time at all says the same at both.) Three evaluations, once a denoiser.
    """
    try:
        if denoiser not in _WHOLE:
            _WHOLE[denoiser] = _rounds(denoiser, x, t, cond)
        return _WHOLE[denoiser]
    except TypeError:  # one that can't be remembered
        return _rounds(denoiser, x, t, cond)


@torch.no_grad()
def _rounds(denoiser: Denoises, x: Tensor, t: Time, cond: Cond) -> bool:
    steps = table_size(denoiser.process)
    if steps is None or steps < 2:
        return False
    place = round(float(torch.as_tensor(denoiser.process.at(t).t).flatten()[0]) * steps)
    node = min(max(place, 1), steps - 1)
    try:
        here, soon, later = (
            denoiser(x, denoiser.process.at((node + part) / steps), cond).values for part in (0.0, 0.25, 1.0)
        )
    except (RuntimeError, IndexError) as error:
        if "indices" not in str(error):
            raise
        return True  # an embedding table, which takes whole numbers only
    same = all(torch.equal(here[k], soon[k]) for k in here)
    return same and not all(torch.equal(here[k], later[k]) for k in here)


# Kernels


def modules(denoiser: Any) -> Iterator[nn.Module]:
    """The networks inside a denoiser: itself, those of the members of a guided one, those it holds."""
    seen: set[int] = set()
    waiting = [denoiser]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            yield part
        elif isinstance(part, Sequence | Mapping) and not isinstance(part, str):
            waiting += part.values() if isinstance(part, Mapping) else part
        elif hasattr(part, "process"):
            waiting += vars(part).values() if hasattr(part, "__dict__") else []
            waiting += getattr(part, "members", ())


class _Contiguous(TorchFunctionMode):
    """torch's group normalisation has a forward-mode derivative for contiguous activations only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.group_norm and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def plain_kernels(denoiser: Any) -> Iterator[None]:
    """``with plain_kernels(denoiser):`` attention (and group normalisation) by kernels with forward-mode derivatives,
    for condiff's networks and for all that call torch's ``scaled_dot_product_attention``, as diffusers' models do."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_Contiguous())
        for module in modules(denoiser):
            stack.enter_context(use_attention(module, "plain"))
        yield


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if "forward AD" not in str(error) and "forward mode" not in str(error) and "jvp" not in str(error):
            raise
        raise Incompatible(
            "the model uses an operation without forward-mode derivative, usually a fused attention kernel "
            "(flash-attn, xFormers, SageAttention): switch it to torch's own, model.set_attention_backend('native') or "
            "model.set_attn_processor(AttnProcessor()) in diffusers, attn_implementation='eager' in transformers. "
            f"torch says: {str(error).splitlines()[0]}"
        ) from error


# Graphs


def without_graph(x: Tensor) -> Tensor:
    """``x.detach()`` that keeps the forward-mode tangent, so that derivatives go through what is differentiated inside
    a denoiser (guidance by gradients)."""
    primal, tangent = forward_ad.unpack_dual(x)
    return x.detach() if tangent is None else forward_ad.make_dual(primal.detach(), tangent.detach())


def as_leaf(x: Tensor) -> Tensor:
    """``x.detach().requires_grad_()`` that keeps the forward-mode tangent."""
    primal, tangent = forward_ad.unpack_dual(x)
    leaf = primal.detach().requires_grad_()
    return leaf if tangent is None else forward_ad.make_dual(leaf, tangent.detach())


def value_gradient(x: Tensor, fn: Callable[[Tensor], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """``(d sum(value) / dx, extra)`` for ``fn(x) -> (value (B,), extra)``.

    Raises:
        Incompatible: in inference mode, where torch can't differentiate.
        BadValue: values that aren't (B,), or don't depend on x.
        NonFinite: a gradient with NaN or infinity.
    """
    if torch.is_inference_mode_enabled():
        raise Incompatible("guidance by gradients can't run in torch.inference_mode(); use torch.no_grad()")
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        u = x if outer and x.requires_grad else as_leaf(x)
        value, extra = fn(u)
        if value.shape != x.shape[:1]:
            raise BadValue(f"an energy must give one value per sample, {tuple(x.shape[:1])}, got {tuple(value.shape)}")
        if not value.requires_grad:
            raise BadValue("the energy does not depend on its input (or was computed without gradients)")
        (grad,) = torch.autograd.grad(value.sum(), u, create_graph=outer, allow_unused=True)
    if grad is None:
        raise BadValue("the energy does not depend on its input")
    if not finite(grad):
        raise NonFinite("the gradient of the energy is not finite; is a logarithm or a norm taken at 0?")
    return grad, extra


# Divergence


def draw_probes(probes: int | Tensor, probe: str, x: Float[Tensor, "batch *shape"], rng: Source) -> Tensor:
    """(P, B, ...) with unit second moment: ``"rademacher"`` signs or ``"normal"`` draws, or given ones as they are.

    Raises:
        BadValue: fewer than one, another shape, an unknown law.
    """
    if isinstance(probes, Tensor):
        if probes.shape[1:] != x.shape:
            raise BadValue(f"given probes must be (P, {', '.join(map(str, x.shape))}), got {tuple(probes.shape)}")
        return probes.to(x)
    if probes < 1:
        raise BadValue(f"probes must be at least 1, got {probes}")
    if probe == "normal":
        return torch.stack([rng.normal(x.shape, x.dtype, x.device) for _ in range(probes)])
    if probe != "rademacher":
        raise unknown("probe", probe, PROBES)
    return torch.stack([2.0 * rng.bernoulli(0.5, x.shape, x.device).to(x) - 1.0 for _ in range(probes)])


def divergence(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    t: Time,
    cond: Cond = None,
    *,
    kind: str = "velocity",
    probes: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """A quantity at ``(x, t)``, and its divergence: (B, 1) exact, or (B, P) by the given probes; float64.

    Rows must not see each other (batch normalisation in training mode would).

    Args:
        kind: the quantity.
        probes: (P, B, ...), from :func:`draw_probes`; None for the exact one by a backward pass per dimension.
        chunk: backward passes at once; 1 for networks whose backward pass can't be vectorised.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = denoiser(x, t, cond).to(kind)
        return value.detach(), exact(value, x, chunk) if probes is None else hutchinson(value, x, probes, chunk)


def exact(value: Tensor, x: Tensor, chunk: int = 64) -> Tensor:
    """``sum_i d value_i / d x_i``, (B, 1) float64, by D backward passes, ``chunk`` at once."""
    batch, dims = x.shape[0], x[0].numel()
    total = torch.zeros(batch, dtype=torch.float64, device=x.device)
    for start in range(0, dims, chunk):
        index = torch.arange(start, min(start + chunk, dims), device=x.device)
        basis = torch.zeros(len(index), dims, dtype=x.dtype, device=x.device)
        basis[torch.arange(len(index)), index] = 1.0
        basis = basis[:, None].expand(-1, batch, -1).reshape(len(index), *x.shape)
        rows = backward(value, x, basis, batched=chunk > 1).reshape(len(index), batch, dims)
        total += rows.gather(2, index[:, None, None].expand(-1, batch, 1)).double().sum((0, 2))
    return total[:, None]


def hutchinson(value: Tensor, x: Tensor, probes: Tensor, chunk: int = 64) -> Tensor:
    """``e . J e`` per probe, (B, P) float64."""
    rows = torch.cat([backward(value, x, e, batched=len(e) > 1) for e in probes.split(chunk)])
    return (rows * probes).flatten(2).double().sum(2).T


def backward(value: Tensor, x: Tensor, vectors: Tensor, batched: bool) -> Tensor:
    """``v^T J`` for each of the vectors (N, B, ...)."""
    if batched:
        (rows,) = torch.autograd.grad(value, x, vectors, retain_graph=True, is_grads_batched=True)
        return rows
    return torch.stack([torch.autograd.grad(value, x, v, retain_graph=True)[0] for v in vectors])
