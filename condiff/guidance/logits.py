"""What a classifier of clean images says of a label: one number a sample, to be guided by at any place.

A classifier's logits read as energies: ``l_y`` is an unnormalised ``log p(x, y)``, ``log sum exp l`` a marginal
``log p(x)``. With a temperature for each (Ma 2024, EluCD)::

    S_y(u) = joint l_y(u) - log sum_i exp(marginal l_i(u))

``joint = marginal = 1`` is ``log p(y | u)``, whose gradient vanishes once the classifier is sure; a smaller marginal
temperature keeps pushing towards the class, and 0 leaves the joint direction alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from condiff.conditions import Conditions
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.process import Level
from condiff.typing import Float, Int


def tempered(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], joint: float = 1.0, marginal: float = 1.0
) -> Float[Tensor, " batch"]:
    """``joint l_y - log sum_i exp(marginal l_i)``, with the gradient

    ``joint grad l_y - marginal sum_i softmax(marginal l)_i grad l_i``.

    Raises:
        BadValue: logits that aren't (B, K), labels of another number or outside [0, K).
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise BadValue(f"a classifier gives logits (B, K), got {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1]:
        raise BadValue(f"{logits.shape[0]} samples need as many labels, got {tuple(labels.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise BadValue(f"labels lie in [0, {logits.shape[1] - 1}], got {int(labels.min())} .. {int(labels.max())}")
    picked = joint * logits.gather(1, labels[:, None])[:, 0]
    if marginal == 0.0:  # a constant, also where other logits aren't finite
        return picked - math.log(logits.shape[1])
    return picked - (marginal * logits).logsumexp(1)


@dataclass(frozen=True, eq=False)
@checked
class ClassScore:
    """:func:`tempered` of a classifier of clean samples, as ``score(u, level, cond) -> (B,)``.

    It serves at all three places where guidance acts: of the score or noise (:class:`Energy` with ``-score``), of the
    posterior mean (``MeanShift(gradient(score))``), of the state (``Nudge(gradient(score))``).

    Args:
        classifier: any differentiable function of (B, ...) to logits (B, K). A module must be in evaluation mode; its
            input is cast to the dtype of its parameters.
        labels: (B,) integers, one for all, or None for the condition named ``condition``; where that is flagged
            absent there is no guidance.
        joint, marginal: temperatures of the label's logit and of the sum over labels.
        preprocess: from samples in the model's range to what the classifier was trained on; nothing by default.
        decode: from latents to samples, for a model of latents: ``wrapped.codec.decode``.
        condition: name of the condition that holds the labels.

    Raises:
        Incompatible: a classifier in training mode; one of samples with other channels than the state has.
        BadValue: as :func:`tempered`.

    Example:
        >>> score = ClassScore(resnet, joint=1.0, marginal=0.5)
        >>> hook = MeanShift(gradient(score), at="x0", extra=SineBoost(0.3))
    """

    classifier: Callable[[Tensor], Tensor] = field(repr=False)
    labels: Tensor | int | None = None
    joint: float = 1.0
    marginal: float = 1.0
    preprocess: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    condition: str = "label"

    def __post_init__(self) -> None:
        if not callable(self.classifier):
            raise BadType(f"a classifier is a function of samples, got {self.classifier!r}")
        if not (math.isfinite(self.joint) and math.isfinite(self.marginal)) or self.marginal < 0.0:
            raise BadValue(f"needs finite temperatures, marginal >= 0, got {self.joint} and {self.marginal}")
        if isinstance(self.labels, Tensor) and (self.labels.ndim != 1 or self.labels.dtype.is_floating_point):
            raise BadValue(f"labels are integers (B,), got {self.labels.dtype} {tuple(self.labels.shape)}")
        self._check_mode()

    def __call__(self, u: Tensor, level: Level, cond: Conditions) -> Tensor:
        self._check_mode()
        labels, keep = self._labels(u, cond)
        score = tempered(self.logits(u), labels, self.joint, self.marginal)
        return score if keep is None else torch.where(keep.to(u.device), score, 0.0)

    def logits(self, u: Tensor) -> Tensor:
        """What the classifier says of the samples ``u``, (B, K)."""
        x = u if self.decode is None else self.decode(u)
        x = x if self.preprocess is None else self.preprocess(x)
        if isinstance(self.classifier, nn.Module):
            self._check_channels(x)
            dtype = next((p.dtype for p in self.classifier.parameters()), x.dtype)
            x = x.to(dtype)
        logits = self.classifier(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(u):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadValue(f"a classifier gives logits (B, K) for {len(u)} samples, got {got}")
        return logits

    def _labels(self, u: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.labels, int):
            return torch.full(u.shape[:1], self.labels, device=u.device), None
        if self.labels is not None:
            if len(self.labels) != len(u):
                raise BadValue(f"{len(u)} samples need as many labels, got {len(self.labels)}")
            return self.labels.to(u.device), None
        if self.condition not in cond:
            raise unknown("condition (or give labels=)", self.condition, cond)
        entry = cond[self.condition]
        if entry.kind != "label":
            raise BadValue(f"the condition {self.condition!r} is a {entry.kind!r}, not a label: give labels=")
        return entry.value.to(u.device), entry.keep

    def _check_mode(self) -> None:
        if isinstance(self.classifier, nn.Module) and self.classifier.training:
            raise Incompatible(
                "the classifier is in training mode, where its output depends on the batch: call classifier.eval()"
            )

    def _check_channels(self, x: Tensor) -> None:
        """A classifier of images that is shown something else, such as latents."""
        first = next((m for m in self.classifier.modules() if isinstance(m, nn.Conv2d)), None)  # type: ignore[attr-defined]
        if first is not None and (x.ndim != 4 or x.shape[1] != first.in_channels):
            raise Incompatible(
                f"the classifier looks at images (B, {first.in_channels}, H, W), and was shown {tuple(x.shape)}: a "
                "model of latents needs decode=, such as its codec's; another difference preprocess="
            )
