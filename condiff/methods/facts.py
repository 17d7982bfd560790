"""Facts: what a method needs to know of a data set to make a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from condiff.codecs import Codec
from condiff.conditions import Dropout, Endpoint, Map, Spec
from condiff.data import Data
from condiff.errors import BadValue
from condiff.methods.kinds import Kind, kind_of
from condiff.methods.recipe import embedding_for
from condiff.training import TrainConfig

MOST_NUMBERS = 2**28  # of examples that are looked at: a gigabyte


@dataclass(frozen=True)
class Facts:
    """What a method needs to know of a data set to make a recipe.

    Args:
        shape: of one sample.
        embeddings: how each condition is embedded.
        std: standard deviation of the values.
        count: number of samples.
        examples: some of the samples, at most 4096 and evenly spread, for what is measured on data; None when unknown.
        vocab: number of tokens of samples that are ids; None for values.
        classes: of samples that hold classes: name -> how many there are.
        kind: of the data, which knows its default network and training; by default what the shape says.
    """

    shape: Any  # (D,), (C, H, W), ...; a dictionary of such over the variables of a joint state
    embeddings: Mapping[str, Spec] = field(default_factory=dict)
    std: float = 0.5
    count: int = 0
    examples: Any = field(default=None, repr=False, compare=False)
    vocab: int | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    kind: Kind | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, data: Data) -> Facts:
        """The facts of a data set; up to 4096 samples, evenly spread over it, give the standard deviation."""
        kind = kind_of(data)
        few = min(len(data), 4096, max(1, MOST_NUMBERS // kind.numbers(data)))
        some = data.batch(torch.linspace(0, len(data) - 1, few, dtype=torch.float64).long())
        classes = len(data.classes) or None
        embeddings = {
            name: embedding_for(data.kinds.get(name, "label"), value, classes) for name, value in some["cond"].items()
        }
        x, count, classes_of = some["x"], len(data), kind.classes(data)
        return cls(data.shape, embeddings, kind.std(x), count, x, data.vocab, classes_of, kind)

    def encoded(self, codec: Codec) -> Facts:
        """The facts of the same data seen through a codec: latents, and maps that it takes as latents too.

        Raises:
            BadValue: samples that the codec doesn't take.
        """
        sides = self.shape[1:]
        embeddings = {name: _encoded(spec, codec, sides) for name, spec in self.embeddings.items()}
        with torch.no_grad():
            examples = None if self.examples is None else codec.encode(self.examples)
        std = self.std if examples is None else float(examples.double().std())
        return Facts(codec.latent_shape(self.shape), embeddings, std, self.count, examples)

    def network(self) -> Any:
        """The default network for this data."""
        return (self.kind or kind_of(self)).network(self)

    def training(self) -> TrainConfig:
        """The default training for this data."""
        return (self.kind or kind_of(self)).training(self)

    def dropout(self, p: float) -> Dropout | None:
        """Condition dropout for classifier-free guidance; None without conditions."""
        return Dropout(p) if self.embeddings else None

    def with_endpoint(self, method: str) -> Facts:
        """The same facts, with the one condition that is a picture like the sample as the process's endpoint.

        Raises:
            BadValue: there is none such, or several.
        """
        like = [n for n, spec in self.embeddings.items() if isinstance(spec, Map | Endpoint)]
        if len(like) != 1 or self.embeddings[like[0]].extra_channels != self.shape[0] + 1:
            raise BadValue(
                f"{method} goes from a given picture to a sample of the same shape {self.shape}: the data needs one "
                f"such condition (condiff train pairs --data DEGRADED --data CLEAN), it has {list(self.embeddings)}"
            )
        return replace(self, embeddings={**self.embeddings, like[0]: Endpoint(self.shape[0])})

    def need_tokens(self, method: str) -> int:
        """The vocabulary.

        Raises:
            BadValue: data that isn't tokens.
        """
        if self.vocab is None:
            raise BadValue(f"{method} makes token sequences: condiff train text --data FILE; this data has values")
        return self.vocab

    def need_conditions(self, method: str) -> None:
        """Refuse data without conditions."""
        if not self.embeddings:
            raise BadValue(f"{method} guides by a condition, and the data has none: give labels, or use flow-matching")


def _encoded(spec: Spec, codec: Codec, sides: tuple[int, ...]) -> Spec:
    """How the network is told of a condition when a codec encodes it."""
    if not isinstance(spec, Map | Endpoint) or not codec.takes((spec.channels, *sides)):
        return spec
    return replace(spec, channels=codec.latent_shape((spec.channels, *sides))[0])
