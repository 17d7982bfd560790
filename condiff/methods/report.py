"""The report page of a run: one HTML file with everything inside, readable offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What each figure of metrics.json means, and which way is better.
MEANING = {
    "crps": "weighted quantile loss of forecasts of the series' ends (lower; see crps_seasonal_naive)",
    "crps_seasonal_naive": "the same of seasonal naive forecasts",
    "linear_predictive_score": "error of a linear forecaster that was fitted on new series (lower)",
    "class_accuracy": "share of samples that a classifier of real data assigns to the class asked for (higher)",
    "frechet": "Fréchet distance to held-out data in features (lower)",
    "kernel": "kernel distance to held-out data in features (lower)",
    "energy": "energy distance to held-out data in features (lower)",
    "sliced_wasserstein": "sliced Wasserstein distance to held-out data in features (lower)",
    "precision": "share of samples inside the held-out data's neighbourhoods (higher)",
    "recall": "share of held-out data inside the samples' neighbourhoods (higher)",
    "density": "in how many held-out neighbourhoods a sample lies, over what real data would show (about 1)",
    "coverage": "share of held-out samples with a generated neighbour (higher)",
    "nn_ratio": "distance of samples to their nearest training sample, over that of held-out data; "
    "well below 1 means memorisation",
    "nearer": "chance that a sample lies nearer to training data than a held-out one does; 0.5 is ideal, 1 is copying",
    "memorised_fraction": "share of samples closer to training data than 99 % of held-out ones are; 0.01 is ideal",
    "psnr": "peak signal-to-noise ratio to the true partner, in dB (higher)",
    "motion": "mean change from frame to frame, of samples and of real clips (as near as can be)",
    "ssim": "structural similarity to the true partner (higher)",
    "bits_per_character": "bound on the likelihood of held-out text (lower)",
    "bits_per_token": "the same for each token (lower)",
    "bigram_bits_per_character": "the same of a model that knows pairs of tokens only",
    "bigram_bits_per_token": "the same for each token",
    "perplexity": "of held-out tokens, from the bound (lower)",
    "entropy": "of the tokens' frequencies, in bits; below the text's where samples repeat themselves",
    "samples": "how many were drawn for this table",
    "nfe": "network calls a sample",
    "sample_seconds": "seconds of drawing them",
    "train_seconds": "seconds of training",
}
FEW = {"samples", "nfe", "sample_seconds", "train_seconds", "psnr", "ssim"}  # figures that any number of samples has

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
    data, kind = base64.b64encode(path.read_bytes()).decode(), path.suffix.removeprefix(".")
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">'


def _shown(path: Path, heading: str) -> str:
    """A picture, or a text as it is."""
    if path.suffix == ".txt":
        return f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>"
    return _image(path, heading)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _table(metrics: Mapping[str, Any]) -> str:
    rows = []
    for key, value in metrics.items():
        if key not in MEANING or isinstance(value, bool | str):
            continue
        floor = _number(metrics[key + "_floor"]) if key + "_floor" in metrics else ""
        rows.append(
            f"<tr><td><code>{html.escape(key)}</code></td><td class=n>{_number(value)}</td><td class=n>{floor}</td>"
            f"<td class=dim>{html.escape(MEANING[key])}</td></tr>"
        )
    head = "<tr><th>metric<th>samples<th>real data<th>what it says</tr>"
    note = ""
    if any(key.endswith("_floor") for key in metrics):
        note = "Real data: the same figure for real samples in place of generated ones."
    elif set(metrics) <= FEW:
        note = "Too few held-out samples, or drawn ones, for distances between distributions."
    return f"<table>{head}{''.join(rows)}</table>{note and f'<p class=dim>{note}</p>'}"


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
        pictures: (heading, PNG, GIF or text file) in order; files that don't exist are left out.
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
            parts.append(f"<h2>{html.escape(heading)}</h2>{_shown(picture, heading)}")
    for heading, text in (("Data", data), ("Configuration", config), ("Next", "\n".join(commands))):
        parts.append(f"<h2>{heading}</h2><pre>{html.escape(text)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    path.write_text(page, encoding="utf-8")
    return path
