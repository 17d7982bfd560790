"""Classification: which classes are confused, and whether a stated probability is one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, NonFinite
from condiff.typing import Float, Int

TOLERANCE = 1e-4  # of the sum of a row of probabilities


class Calibration(NamedTuple):
    """Accuracy against confidence, by bins of confidence.

    error: expected calibration error ``sum_m (n_m / n) |accuracy_m - confidence_m|`` (Naeini 2015; Guo 2017, eq. 5).
    worst: the largest of those differences over bins that aren't empty.
    accuracy, confidence: means of each bin (bins,), NaN in an empty one.
    counts: predictions in each bin (bins,).
    edges: of the bins (bins + 1,).
    """

    error: float
    worst: float
    accuracy: Tensor
    confidence: Tensor
    counts: Tensor
    edges: Tensor


def calibration(
    probabilities: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], bins: int = 15
) -> Calibration:
    """How far the confidence of the most likely class is from how often it is right.

    Args:
        probabilities: of every class; rows sum to 1.
        labels: true classes.
        bins: of equal width over [0, 1], each ``(low, high]``.

    Raises:
        BadType: labels that aren't integers. BadValue: shapes that don't match, rows that aren't probabilities, labels
            out of range.
    """
    if bins < 1:
        raise BadValue(f"calibration needs bins >= 1, got {bins}")
    p, labels = _probabilities(probabilities), _labels(labels, probabilities)
    confidence, predicted = p.max(dim=1)
    right = (predicted == labels).double()
    edges = torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence.clamp(max=1.0), edges) - 1).clamp(0, bins - 1)  # (low, high]
    counts = torch.bincount(index, minlength=bins)
    mean = [torch.bincount(index, v, minlength=bins) / counts.double() for v in (right, confidence)]
    gaps = (mean[0] - mean[1]).abs().nan_to_num(0.0)
    error = float((counts.double() / len(p) * gaps).sum())
    return Calibration(error, float(gaps.max()), mean[0], mean[1], counts, edges)


def confusion(predicted: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], classes: int) -> Int[Tensor, "k k"]:
    """Counts (classes, classes): true class by row, predicted class by column.

    Raises:
        BadValue: lengths that differ, classes out of range.
    """
    if predicted.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise BadValue(f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} must be of one batch")
    both = torch.cat([predicted, labels])
    if int(both.min()) < 0 or int(both.max()) >= classes:
        raise BadValue(f"classes from {int(both.min())} to {int(both.max())} don't lie in [0, {classes - 1}]")
    flat = labels.cpu().long() * classes + predicted.cpu().long()
    return torch.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def mean_class_accuracy(table: Int[Tensor, "k k"]) -> float:
    """The accuracy of each class, averaged over the classes that there are, from a table of :func:`confusion`."""
    counts = table.sum(1)
    if int(counts.sum()) == 0:
        raise BadValue("a table without any sample has no accuracy")
    seen = counts > 0
    return float((table.diagonal()[seen].double() / counts[seen]).mean())


def text_score(errors: Float[Tensor, "pairs 2 2"]) -> float:
    """Share of pairs of two images and two captions where for both images the right caption fits better (Thrush 2022).

    Args:
        errors: (P, image, caption), lower for a better fit; caption i belongs to image i.

    Raises:
        BadValue: another shape, or no pairs. NonFinite: an error that isn't a number.
    """
    if errors.ndim != 3 or errors.shape[1:] != (2, 2) or len(errors) == 0:
        raise BadValue(f"errors of pairs have shape (P, 2, 2), got {tuple(errors.shape)}")
    if not bool(torch.isfinite(errors).all()):
        raise NonFinite("the errors of pairs hold NaN or infinity")
    right = (errors[:, 0, 0] < errors[:, 0, 1]) & (errors[:, 1, 1] < errors[:, 1, 0])
    return float(right.double().mean())


def _probabilities(p: Tensor) -> Tensor:
    if p.ndim != 2 or len(p) == 0:
        raise BadValue(f"probabilities have shape (B, classes), got {tuple(p.shape)}")
    p = p.detach().double().cpu()
    if not bool(torch.isfinite(p).all()):
        raise NonFinite("the probabilities hold NaN or infinity")
    if float(p.min()) < 0.0 or float((p.sum(1) - 1.0).abs().max()) > TOLERANCE:
        raise BadValue("probabilities must be >= 0 and sum to 1 in every row: are these logits?")
    return p


def _labels(labels: Tensor, p: Tensor) -> Tensor:
    if labels.dtype.is_floating_point:
        raise BadType(f"labels are integers, got {labels.dtype}")
    if labels.shape != p.shape[:1]:
        raise BadValue(f"{len(p)} rows of probabilities need as many labels, got {tuple(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= p.shape[1]:
        raise BadValue(f"labels from {int(labels.min())} to {int(labels.max())} don't lie in [0, {p.shape[1] - 1}]")
    return labels.detach().long().cpu()
