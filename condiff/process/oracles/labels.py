"""Class labels of an oracle's parts, and reading the conditions that oracles understand.

Oracles live below the conditions' room, so they read entries by their attributes: ``value``, ``keep``, ``kind``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.process import algebra


def as_labels(labels: Any, count: int) -> Tensor | None:
    """One integer class per part, (count,).

    Raises:
        BadValue: another shape, or negative labels.
        BadType: labels that aren't integers.
    """
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise BadType(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (count,) or int(labels.min()) < 0:
        raise BadValue(f"labels must be {count} integers >= 0, got {labels.tolist()}")
    return labels.long()


def as_log_weights(weights: Any, count: int) -> Tensor:
    """Normalised log-weights in float64, (count,); equal ones for None.

    Raises:
        BadValue: another shape, negative weights, or all zero.
    """
    if weights is None:
        return torch.zeros(count, dtype=torch.float64).log_softmax(0)
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape != (count,) or not bool((weights >= 0.0).all()) or not float(weights.sum()) > 0.0:
        raise BadValue(f"weights must be {count} numbers >= 0, not all 0, got shape {tuple(weights.shape)}")
    return torch.log(weights / weights.sum())


def entry_of_kind(cond: Mapping[str, Any] | None, kind: str) -> Any:
    """The first entry of a kind, None when there is none."""
    if cond is None:
        return None
    return next((c for c in cond.values() if getattr(c, "kind", None) == kind), None)


Label = tuple[Tensor, Tensor]  # classes (B,), keep flags (B,)


def read_label(cond: Mapping[str, Any] | None, device: Any = "cpu") -> Label | None:
    """The entry 'label' as classes (B,) and keep flags (B,), None when there is none."""
    entry = None if cond is None else cond.get("label")
    if entry is None:
        return None
    y = torch.as_tensor(getattr(entry, "value", entry), device=device).reshape(-1)
    keep = getattr(entry, "keep", None)
    return y, torch.ones_like(y, dtype=torch.bool) if keep is None else keep.to(device)


def label_weights(log_weights: Tensor, labels: Tensor | None, label: Label | None) -> Tensor:
    """``log p(k | label)`` per row, (B, K), or ``log p(k)`` as (1, K) when there is no label.

    Rows whose keep flag is False take the marginal.

    Raises:
        BadValue: a label of an oracle without classes, or a class without parts.
    """
    if label is None:
        return log_weights[None]
    if labels is None:
        raise BadValue("the condition 'label' came to an oracle without classes: give labels= when making it")
    y, keep = label
    restricted = log_weights + torch.where(labels == y[:, None], 0.0, -torch.inf).double()
    total = restricted.logsumexp(-1, keepdim=True)
    lost = keep & torch.isneginf(total[:, 0])
    if not algebra.holds(~lost):
        raise BadValue(
            f"no part of this oracle has the label {int(y[lost][0])}; it knows {sorted(set(labels.tolist()))}"
        )
    return torch.where(keep[:, None], restricted - torch.where(keep[:, None], total, 0.0), log_weights)


def class_logsumexp(log_joint: Tensor, labels: Tensor) -> Tensor:
    """(B, K) log-joint with parts -> (B, classes) summed within each class; -inf for classes without parts."""
    classes = torch.arange(int(labels.max()) + 1, device=labels.device)
    member = torch.where(labels == classes[:, None], 0.0, -torch.inf).double()  # (classes, K)
    present = member.amax(-1) == 0.0
    # logsumexp over an all -inf row has a nan gradient, so empty classes are computed as 0 and then overwritten
    member = torch.where(present[:, None], member, 0.0)
    out = (log_joint[:, None, :] + member).logsumexp(-1)
    return torch.where(present, out, -torch.inf)


def pick(log_weights: Tensor, u: Tensor) -> Tensor:
    """Indices drawn by inverse CDF: log-weights (B, K) or (1, K), uniforms u (B,) -> (B,)."""
    cdf = log_weights.exp().cumsum(-1).expand(u.shape[0], -1)
    return torch.searchsorted((cdf / cdf[:, -1:]).contiguous(), u[:, None].contiguous(), right=True)[:, 0]
