"""The report page of a run: one HTML file with everything inside, readable offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What each figure of metrics.json means, and which way is better.
MEANING = {
    "class_accuracy": "share of samples that a classifier of real data assigns to the class asked for (higher)",
    "frechet": "Fréchet distance to held-out data in classifier features (lower)",
    "frechet_floor": "the same between training and held-out data: what a perfect model would show",
    "precision": "share of samples inside the held-out data's neighbourhoods (higher)",
    "recall": "share of held-out data inside the samples' neighbourhoods (higher)",
    "density": "how many held-out neighbourhoods a sample lies in; about 1 for a perfect model",
    "coverage": "share of held-out samples with a generated neighbour (higher)",
    "nn_ratio": "distance of samples to their nearest training sample, over that of held-out data; "
    "well below 1 means memorisation",
    "memorised_fraction": "share of samples closer to a training sample than almost any held-out one is",
    "energy": "energy distance to held-out data in pixels (lower)",
    "sliced_wasserstein": "sliced Wasserstein distance to held-out data in pixels (lower)",
    "psnr": "peak signal-to-noise ratio to the true partner, in dB (higher)",
    "ssim": "structural similarity to the true partner (higher)",
    "train_seconds": "seconds of training",
    "sample_seconds": "seconds of drawing the evaluation's samples",
    "nfe": "network calls a sample",
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c2733}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #dde3ea}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #eef1f4;
vertical-align:top}td.n{font-variant-numeric:tabular-nums;text-align:right;white-space:nowrap}
img{max-width:100%;border:1px solid #e4e9ee;border-radius:4px}pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;
border-radius:4px;font-size:13px}.dim{color:#66727f}
@media (prefers-color-scheme:dark){body{background:#14191f;color:#dbe2ea}pre{background:#1d242c}
td,th{border-color:#2a333d}h2{border-color:#2a333d}.dim{color:#93a0ad}}
"""


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _table(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(key)}</code></td><td class=n>{_number(value)}</td>"
        f"<td class=dim>{html.escape(MEANING.get(key, ''))}</td></tr>"
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return f"<table><tr><th>metric<th>value<th>what it says</tr>{''.join(rows)}</table>"


def write(
    path: Path,
    *,
    title: str,
    subtitle: str,
    metrics: Mapping[str, Any],
    pictures: Sequence[tuple[str, Path]],
    data: str,
    config: str,
    commands: Sequence[str],
) -> Path:
    """Write the page.

    Args:
        pictures: (heading, PNG file) in order; files that don't exist are left out.
        data: what was understood of the data.
        config: the configuration as text.
        commands: what to type next.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1><p class=dim>{html.escape(subtitle)}</p>",
        "<h2>Results</h2>",
        _table(metrics),
    ]
    for heading, picture in pictures:
        if picture.exists():
            parts.append(f"<h2>{html.escape(heading)}</h2>{_image(picture, heading)}")
    for heading, text in (("Data", data), ("Configuration", config), ("Next", "\n".join(commands))):
        parts.append(f"<h2>{heading}</h2><pre>{html.escape(text)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path
