"""Pictures: labelled sample grids, curves and bars, written as PNG files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condiff.errors import BadValue, require_extra
from condiff.typing import Float, Tensor

CHANNELS = (1, 3, 4)  # grey, colours, colours with opacity


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures (C, H, W) of a number of channels that a PNG file has."""
    return len(shape) == 3 and shape[0] in CHANNELS


def to_uint8(x: Float[Tensor, "batch channels height width"]) -> np.ndarray:
    """Images in [-1, 1] as (B, H, W, C) bytes; values beyond the range are cut off, as a screen does.

    Raises:
        BadValue: another number of dimensions, or of channels than 1, 3 or 4.
    """
    if x.ndim != 4 or x.shape[1] not in CHANNELS:
        raise BadValue(f"a picture needs images (B, 1 | 3 | 4, H, W), got {tuple(x.shape)}")
    pixels = (x.detach().float().cpu().clamp(-1.0, 1.0) + 1.0) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def picture(x: Float[Tensor, "channels height width"], path: str | Path) -> None:
    """Write one image."""
    image = require_extra("PIL.Image", "train")
    pixels = to_uint8(x[None])[0]
    image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def grid(
    x: Float[Tensor, "batch channels height width"],
    path: str | Path,
    *,
    labels: Sequence[Any] | None = None,
    columns: int | None = None,
    cell: int = 64,
) -> Path:
    """Write a grid of images, each with its label above it.

    Args:
        x: (B, C, H, W) in [-1, 1].
        labels: one caption an image.
        columns: images a row; about the square root of their number by default.
        cell: smallest side of a cell in pixels; small images are enlarged by a whole factor, unsmoothed.

    Raises:
        BadValue: no images, or as many labels as images isn't so.
    """
    image = require_extra("PIL.Image", "train")
    draw_module = require_extra("PIL.ImageDraw", "train")
    pixels = to_uint8(x)
    if len(pixels) == 0:
        raise BadValue("no images to draw")
    if labels is not None and len(labels) != len(pixels):
        raise BadValue(f"{len(labels)} labels for {len(pixels)} images")
    columns = columns or int(np.ceil(np.sqrt(len(pixels))))
    zoom = max(1, -(-cell // max(pixels.shape[1:3])))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = pixels.shape[1:3]
    gap, caption = 4, 14 if labels is not None else 0
    rows = -(-len(pixels) // columns)
    size = (columns * (width + gap) + gap, rows * (height + caption + gap) + gap)
    canvas = image.new("RGB", size, (250, 250, 250))
    pen = draw_module.Draw(canvas)
    for i, picture in enumerate(pixels):
        left, top = gap + (i % columns) * (width + gap), gap + (i // columns) * (height + caption + gap)
        if labels is not None:
            pen.text((left + 1, top), str(labels[i]), fill=(70, 70, 70))
        picture = picture[..., 0] if picture.shape[-1] == 1 else picture
        canvas.paste(image.fromarray(picture), (left, top + caption))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
    return path


def _pyplot() -> Any:
    require_extra("matplotlib", "train").use("Agg")
    return require_extra("matplotlib.pyplot", "train")


def curves(series: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, x_label: str = "step") -> Path:
    """One panel a group, one line a series: ``{"loss": {"x": [...], "train": [...]}}``."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(series), figsize=(4.2 * len(series), 3.1), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], series.items(), strict=True):
        for name, values in lines.items():
            if name != "x":
                axis.plot(lines["x"], values, label=name, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel(x_label)
        axis.grid(alpha=0.25)
        if len(lines) > 2:
            axis.legend(frameon=False, fontsize=8)
    path = Path(path)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def series(
    x: Float[Tensor, "batch length channels"],
    path: str | Path,
    *,
    labels: Sequence[Any] | None = None,
    real: Float[Tensor, "rows length channels"] | None = None,
    columns: int = 5,
    note: str = "",
) -> Path:
    """A grid of small panels, a line a channel; ``real`` series have the last row of panels, in grey.

    ``note`` stands below: what the axes are.

    Raises:
        BadValue: no series, or as many labels as series isn't so.
    """
    if len(x) == 0 or (labels is not None and len(labels) != len(x)):
        raise BadValue(f"{len(x)} series and {len(labels or ())} labels: nothing to draw, or not a label each")
    plt, columns = _pyplot(), min(columns, len(x))
    rows = -(-len(x) // columns)
    shown = [(values, None if labels is None else str(labels[i]), None) for i, values in enumerate(x)]
    shown += [(None, None, None)] * (rows * columns - len(x))
    shown += [(values, "real", "#7a8794") for values in (real[:columns] if real is not None else ())]
    rows = -(-len(shown) // columns)
    size = (2.4 * columns, 1.5 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (values, title, colour) in zip(axes.flat, shown, strict=False):
        if values is None:
            axis.set_axis_off()
            continue
        axis.plot(values.detach().cpu().float().numpy(), linewidth=1.0, color=colour)
        axis.set_title(title or "", fontsize=8)
        axis.tick_params(labelsize=6)
    figure.supxlabel(note, fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)
    return Path(path)


FAN = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of a fan


def fans(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]],
    path: str | Path,
    *,
    truth: Sequence[np.ndarray] | None = None,
    columns: int = 3,
    origin: str = "the first forecast",
) -> Path:
    """Forecasts: what was before, and the quantiles :data:`FAN` of what comes.

    Args:
        panels: title, past (n,), quantiles (5, H) of each.
        truth: what came, (H,) each, drawn over the fans.
        origin: what step 0 is.

    Raises:
        BadValue: nothing to draw.
    """
    if not panels:
        raise BadValue("no forecasts to draw")
    plt, columns = _pyplot(), min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (3.8 * columns, 2.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for i, (axis, (title, past, fan)) in enumerate(zip(axes.flat, panels, strict=False)):
        steps = np.arange(fan.shape[1])
        axis.plot(np.arange(-len(past), 0), past, color="#4a5561", linewidth=1.0)
        for low, high, opacity in ((0, 4, 0.2), (1, 3, 0.35)):
            axis.fill_between(steps, fan[low], fan[high], color="#2f6fab", alpha=opacity, linewidth=0)
        axis.plot(steps, fan[2], color="#2f6fab", linewidth=1.3)
        if truth is not None:
            axis.plot(steps, truth[i], color="#c0392b", linewidth=1.0, linestyle="--")
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel(f"steps from {origin}; median, middle 50 % and 90 % of the sample paths", fontsize=8)
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)
    return Path(path)


def bars(
    rows: Sequence[tuple[str, str, Sequence[float], str, Sequence[float]]], path: str | Path, *, title: str
) -> Path:
    """One panel a comparison, four in a row: two bars (means), every seed as a dot."""
    plt = _pyplot()
    across = min(len(rows), 4)
    down = math.ceil(len(rows) / across)
    size = (3.4 * across, 3.5 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, (name, base_name, base, ours_name, ours) in zip(axes.flat, rows, strict=False):
        for i, (label, values, colour) in enumerate(((base_name, base, "#9aa5b1"), (ours_name, ours, "#2f6fab"))):
            axis.bar(i, np.mean(values), color=colour, width=0.6, label=label)
            axis.plot([i] * len(values), values, "o", color="black", markersize=4)
        axis.set_xticks([0, 1], [textwrap.fill(word, 22) for word in (base_name, ours_name)], fontsize=8)
        axis.set_title(textwrap.fill(name, 42), fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)
    return Path(path)


def reliability(calibrations: Mapping[str, Any], path: str | Path) -> Path:
    """Reliability diagrams, a panel each: accuracy by confidence, beside the diagonal of a calibrated classifier.

    Args:
        calibrations: results of :func:`condiff.metrics.calibration`, by name. Bars are paler with fewer predictions.

    Raises:
        BadValue: none.
    """
    if not calibrations:
        raise BadValue("no calibrations to draw")
    plt = _pyplot()
    size = (3.2 * len(calibrations), 3.3)
    figure, axes = plt.subplots(1, len(calibrations), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, (name, one) in zip(axes[0], calibrations.items(), strict=True):
        edges, share = one.edges.numpy(), (one.counts / one.counts.max()).numpy()
        for left, right, accuracy, weight in zip(edges[:-1], edges[1:], one.accuracy.tolist(), share, strict=True):
            if weight > 0.0:
                axis.bar(left, accuracy, right - left, align="edge", color="#2f6fab", alpha=0.1 + 0.9 * weight)
        axis.plot([0, 1], [0, 1], color="#c0392b", linewidth=1.0)
        axis.set(title=f"{name}\ncalibration error {one.error:.3f}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        axis.title.set_fontsize(9)
    axes[0][0].set_ylabel("accuracy")
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)
    return Path(path)


def smooth(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """A running average that starts unbiased, for curves that a person looks at."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1.0 - keep) * value, keep * weight + (1.0 - keep)
        out.append(total / weight)
    return out
