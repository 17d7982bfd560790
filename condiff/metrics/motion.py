"""Motion of clips, and how much of it a model keeps at each noise level: the diagnosis of conditional image leakage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import as_conditions
from condiff.errors import BadValue
from condiff.random import as_source
from condiff.typing import Float

Measure = Callable[[Tensor], Tensor]


def motion(x: Float[Tensor, "batch frames *shape"]) -> Float[Tensor, "batch"]:
    """``mean |x_(f+1) - x_f|`` over frames and all other axes: (B,) float64, 0 for a still clip.

    It grows with texture and contrast as well, so compare it between clips of one kind only; an optical flow's mean
    length (RAFT, Farneback) is a better measure where there is one.

    Raises:
        BadValue: fewer than two frames.
    """
    if x.ndim < 3 or x.shape[1] < 2:
        raise BadValue(f"motion needs clips (B, F, ...) of at least two frames, got {tuple(x.shape)}")
    return x.double().diff(dim=1).abs().flatten(1).mean(1)


class Leakage(NamedTuple):
    """A curve of motion against time, from :func:`leakage`.

    times: (T,) float64.
    ratio: (T,) motion of the one-step prediction over the motion of the truth, both averaged over the clips.
    each: (T, B) the motion of each clip's prediction.
    """

    times: Tensor
    ratio: Tensor
    each: Tensor


@torch.no_grad()
def leakage(
    denoiser: Any,
    x: Float[Tensor, "batch frames *shape"],
    times: Sequence[float],
    cond: Any = None,
    *,
    measure: Measure = motion,
    transform: Any = None,
    rng: Any = 0,
) -> Leakage:
    """``motion(x0_hat) / motion(x0)`` against t: true clips noised to t, and denoised in one step with their condition.

    A model that leaks copies a still condition wherever the noisy clip tells it little: the ratio falls far below 1
    while t < 1 (Zhao 2024, arXiv 2406.15735, figure 2). Near t = 1 it falls for every model, since x0_hat is an
    average over all motions that are possible; what tells is the same curve for another condition, a corrupted one
    (``transform``) or none, or another model's.

    Args:
        denoiser: any denoiser.
        x: clean clips.
        times: in [0, 1].
        cond: their conditions.
        measure: motion of clips (B,), such as an optical flow's mean length of decoded clips.
        transform: what is done to the conditions, as in training, such as ``Corrupt("image", TimeNoise())``.
        rng: of the noise, which is the same at all times.

    Raises:
        BadValue: no times, or clips that don't move.
    """
    if len(times) == 0:
        raise BadValue("give at least one time")
    source, moved = as_source(rng), measure(x).double()
    if not float(moved.mean()) > 0.0:
        raise BadValue("these clips don't move: nothing to compare with")
    noise = denoiser.process.noise_law.sample(source, x.shape, x.dtype, x.device)
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    rows = []
    for t in times:
        told = cond if transform is None else transform(cond, torch.full((len(x),), float(t)), source, True)
        truth = denoiser.process.forward(x, float(t), source=told.source, noise=noise)
        rows.append(measure(denoiser(truth.x_t, truth.level, told).x0).double())
    each = torch.stack(rows)
    return Leakage(torch.tensor(list(times), dtype=torch.float64), each.mean(1) / moved.mean(), each)
