"""The catalogue: every method's facts, readable without importing torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from condiff.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Facts about one method; its code is the module ``condiff.methods.<slug with underscores>``."""

    slug: str
    title: str
    arxiv: str
    family: str
    summary: str
    bibtex: str

    @property
    def module(self) -> str:
        return "condiff.methods." + self.slug.replace("-", "_")

    def verdict(self) -> dict[str, Any] | None:
        """The stored outcome of its reproduction, or None when it hasn't been run."""
        path = resources.files("condiff.methods").joinpath("verdicts", f"{self.slug}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def as_dict(self) -> dict[str, Any]:
        """What ``condiff methods --json`` prints."""
        facts = asdict(self)
        del facts["bibtex"]
        return {**facts, "verdict": self.verdict()}


_ENTRIES = (
    Entry(
        slug="ddpm",
        title="Denoising Diffusion Probabilistic Models",
        arxiv="2006.11239",
        family="baseline",
        summary="noise prediction on a discrete variance-preserving path, ancestral sampling",
        bibtex="""@inproceedings{ho2020ddpm,
  title = {Denoising Diffusion Probabilistic Models},
  author = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020},
  eprint = {2006.11239},
  archivePrefix = {arXiv}
}""",
    ),
    Entry(
        slug="edm",
        title="Elucidating the Design Space of Diffusion-Based Generative Models",
        arxiv="2206.00364",
        family="baseline",
        summary="preconditioned denoiser over sigma, log-normal noise levels, second-order Heun sampling",
        bibtex="""@inproceedings{karras2022edm,
  title = {Elucidating the Design Space of Diffusion-Based Generative Models},
  author = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022},
  eprint = {2206.00364},
  archivePrefix = {arXiv}
}""",
    ),
    Entry(
        slug="flow-matching",
        title="Flow Matching for Generative Modeling",
        arxiv="2210.02747",
        family="baseline",
        summary="velocity regression on straight paths between noise and data, few Euler steps",
        bibtex="""@inproceedings{lipman2023flow,
  title = {Flow Matching for Generative Modeling},
  author = {Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matthew},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2210.02747},
  archivePrefix = {arXiv}
}""",
    ),
    Entry(
        slug="cfg",
        title="Classifier-Free Diffusion Guidance",
        arxiv="2207.12598",
        family="baseline",
        summary="one network trained with and without its condition; their difference, scaled, steers sampling",
        bibtex="""@article{ho2022classifierfree,
  title = {Classifier-Free Diffusion Guidance},
  author = {Ho, Jonathan and Salimans, Tim},
  journal = {arXiv preprint arXiv:2207.12598},
  year = {2022},
  eprint = {2207.12598},
  archivePrefix = {arXiv}
}""",
    ),
)

ENTRIES = {entry.slug: entry for entry in _ENTRIES}


def find(slug: str) -> Entry:
    """The entry of a slug.

    Raises:
        BadValue: an unknown slug, with the nearest ones.
    """
    if slug not in ENTRIES:
        raise unknown("method", slug, ENTRIES)
    return ENTRIES[slug]
