"""Modalities: all kinds of data of one sample, and the one latent that carries them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condiff.conditions import Condition, Conditions, Spec
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.multimodal.modality import Encoder, Modality
from condiff.multimodal.values import Continuous
from condiff.networks import Layout, layout_of
from condiff.process.algebra import Weight
from condiff.random import Source
from condiff.typing import Float

Samples = Mapping[str, Tensor]


class Modalities(nn.Module):
    """``E(X) = sum_i w_i E_i(x_i)``: each modality in channels of its own, or added onto all of them.

    Pictures of one grid lie beside each other in disjoint channels, so that they can be told apart; labels and vectors
    are added. Nothing here is learned.

    Args:
        modalities: name -> :class:`Modality`.
        weights: of the modalities in the sum; 1 for those that aren't named.
        latent: the latent's shape, where no modality has channels of its own that say it.
        mixed: modalities of the latent's own shape may be added onto each other's channels, whereby they mix.

    Raises:
        BadType: something that isn't a modality.
        BadValue: no modality, weights that are negative or sum to 0, an unknown name.
        Incompatible: shapes that don't make one latent; pictures that would mix.

    Example:
        >>> both = Modalities({"image": Image(3, 64, 64), "label": Label(10)})
        >>> both.shape
        (3, 64, 64)
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        weights: Mapping[str, float] | None = None,
        latent: tuple[int, ...] | None = None,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.kinds = _checked(modalities)
        self.weights = _weights(self.kinds, weights or {})
        self.given, self.mixed = None if latent is None else tuple(latent), mixed
        self.layout = _layout(self.kinds, self.given)
        self.shape = self.layout.shape
        if not mixed:
            _refuse_mixing(self.kinds, self.shape)
        self.parts = self._parts()
        shapes = {name: self._part_shape(name) for name in self.kinds}
        self.encoders = nn.ModuleDict({name: one.encoder(shapes[name]) for name, one in self.kinds.items()})

    def _parts(self) -> dict[str, tuple[int, int] | None]:
        """Name -> (first channel, number of channels); None for what is added onto all."""
        first, parts = 0, {}
        for name, one in self.kinds.items():
            parts[name] = (first, one.own_channels) if one.own_channels else None
            first += one.own_channels
        return parts

    def _part_shape(self, name: str) -> tuple[int, ...]:
        part, axis = self.parts[name], self.layout.channel_axis
        if part is None:
            return self.shape
        return (*self.shape[:axis], part[1], *self.shape[axis + 1 :])

    def __iter__(self):
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, name: str) -> Modality:
        if name not in self.kinds:
            raise unknown("modality", name, self.kinds)
        return self.kinds[name]

    # Samples

    def check(self, x: Samples, *, whole: bool = True) -> None:
        """Refuse samples of unknown names, shapes and ranges; with ``whole`` also missing ones.

        Raises:
            BadType, BadValue.
        """
        if not isinstance(x, Mapping):
            raise BadType(f"samples are a dictionary over {sorted(self.kinds)}, got {type(x).__name__}")
        for name, value in x.items():
            if not isinstance(value, Tensor):
                raise BadType(f"{name!r} must be a tensor, got {type(value).__name__}")
            self[name].check(name, value)
        missing = [name for name in self.kinds if name not in x]
        if whole and missing:
            raise BadValue(f"samples of {sorted(self.kinds)} are wanted, {', '.join(map(repr, missing))} is missing")

    def place(self, name: str, encoded: Tensor) -> Tensor:
        """A modality's share of the latent, ``w_i E_i`` in its channels and 0 elsewhere: (B, *shape)."""
        value, part, axis = encoded * self.weights[name], self.parts[name], 1 + self.layout.channel_axis
        if part is None or part[1] == self.layout.channels:
            return value
        out = value.new_zeros(len(value), *self.shape)
        out.narrow(axis, *part).copy_(value)
        return out

    def encode(self, name: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``w_i E_i(x_i)``, placed."""
        return self.place(name, self._encoder(name)(x, mask))

    def aggregate(self, x: Samples, mask: Samples | None = None) -> Float[Tensor, "batch *shape"]:
        """``E(X)``; what a mask leaves out adds nothing."""
        return _added([self.encode(name, x[name], (mask or {}).get(name)) for name in self.kinds])

    def expected(self, said: Samples, known: Samples | None = None) -> Float[Tensor, "batch *shape"]:
        """The aggregate of what heads said, with the true samples in place of those that are known."""
        known = known or {}
        return _added(
            [
                self.encode(name, known[name])
                if name in known
                else self.place(name, self._encoder(name).expected(said[name]))
                for name in self.kinds
            ]
        )

    def _encoder(self, name: str) -> Encoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def own(self, name: str, rows: int, mask: Tensor | None = None) -> Tensor:
        """Booleans (rows, *shape), true in the channels that are this modality's alone, there where ``mask`` is.

        Raises:
            Incompatible: one that is added onto the channels of others.
        """
        part = self.parts[name]
        shared = [n for n, p in self.parts.items() if p is None]
        if part is None or shared:
            raise Incompatible(f"{name!r} has no channels of the latent alone: {shared} are added onto them")
        out = torch.zeros(rows, *self.shape, dtype=torch.bool)
        out.narrow(1 + self.layout.channel_axis, *part).copy_(torch.ones(()) if mask is None else mask)
        return out

    # Conditions

    def conditions(self) -> dict[str, Spec]:
        """How a network is told of each one that is known: for its ``conditions=``."""
        return {name: one.condition() for name, one in self.kinds.items()}

    def known(self, x: Samples, keep: Samples | None = None, mask: Samples | None = None) -> dict[str, Condition]:
        """Clean samples as conditions, flagged by ``keep`` (B,); all rows of those given without."""
        keep, mask = keep or {}, mask or {}
        self.check(x, whole=False)
        return {
            name: Condition(self[name].shown(value, mask.get(name)), self[name].condition().kind, keep.get(name))
            for name, value in x.items()
        }

    def split(self, x: Any, cond: Conditions) -> tuple[dict[str, Tensor], Conditions]:
        """The samples of a batch and its other conditions.

        A batch holds a dictionary of all modalities, or the first of them with the others among its conditions, as a
        folder of pictures with classes does.

        Raises:
            BadType, BadValue: as :meth:`check`.
        """
        if not isinstance(x, Mapping):
            first = next(iter(self.kinds))
            found = {name: cond[name].value for name in self.kinds if name in cond and name != first}
            x, cond = {first: x, **found}, Conditions({n: c for n, c in cond.items() if n not in found})
        clash = [name for name in cond if name in self.kinds]
        if clash:
            raise BadValue(f"{clash[0]!r} is a modality and a condition of this batch: name one of them otherwise")
        self.check(x)
        return {name: x[name] for name in self.kinds}, cond

    # What is said

    def decode(self, said: Samples, level: Any, rng: Source | None = None) -> dict[str, Tensor]:
        """Samples from what heads said at the first level: the most likely ones, or with ``rng`` drawn ones."""
        std = decoder_std(level)
        return {name: one.decode(said[name], rng, std) for name, one in self.kinds.items()}

    def log_prob(self, said: Samples, x: Samples, level: Any) -> dict[str, Tensor]:
        """``log p(x_i | z)`` of each modality in nats, (B,) float64."""
        std = decoder_std(level)
        return {name: one.log_prob(said[name], x[name], std) for name, one in self.kinds.items()}


def decoder_std(level: Any) -> Weight:
    """``noise / data``: what a state still doesn't say of standardised values."""
    return level.noise / level.data


def _added(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _checked(modalities: Mapping[str, Modality]) -> dict[str, Modality]:
    if not isinstance(modalities, Mapping):
        raise BadType(f"modalities are a dictionary such as {{'label': Label(10)}}, got {modalities!r}")
    if not modalities:
        raise BadValue("at least one modality is needed, such as {'image': Image(3, 64, 64)}")
    for name, one in modalities.items():
        if not isinstance(one, Modality):
            raise BadType(f"{name!r} must be a modality such as Image(3, 64, 64) or Label(10), got {one!r}")
    return dict(modalities)


def _weights(kinds: Mapping[str, Modality], given: Mapping[str, float]) -> dict[str, float]:
    for name, weight in given.items():
        if name not in kinds:
            raise unknown("modality", name, kinds)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 <= weight < math.inf:
            raise BadValue(f"the weight of {name!r} must be a number >= 0, got {weight!r}")
    weights = {name: float(given.get(name, 1.0)) for name in kinds}
    if sum(weights.values()) == 0.0:
        raise BadValue("the weights of the modalities sum to 0: the latent would carry nothing")
    return weights


def _layout(kinds: Mapping[str, Modality], latent: tuple[int, ...] | None) -> Layout:
    """The latent's layout, from the modalities with channels of their own."""
    forms = {name: one.form for name, one in kinds.items() if isinstance(one, Continuous) and one.own}
    if not forms:
        if latent is None:
            raise Incompatible(
                f"none of {sorted(kinds)} says what the latent looks like: give latent=, its shape, or a modality with "
                "channels of its own, such as Image(3, 64, 64)"
            )
        return layout_of(latent)
    first = next(iter(forms.values()))
    for name, form in forms.items():
        if (form.name, form.spatial) != (first.name, first.spatial):
            raise Incompatible(
                f"{name!r}, a {form.name} of {form.shape}, doesn't lie beside {next(iter(forms))!r}, a {first.name} of "
                f"{first.shape}: bring them to one grid, or add one with own=False"
            )
    channels, axis = sum(one.own_channels for one in kinds.values()), first.channel_axis
    layout = layout_of((*first.shape[:axis], channels, *first.shape[axis + 1 :]), first.name)
    if latent is not None and latent != layout.shape:
        raise Incompatible(f"the modalities make a latent of {layout.shape}, not of latent={latent}")
    return layout


def _refuse_mixing(kinds: Mapping[str, Modality], shape: tuple[int, ...]) -> None:
    added = [n for n, one in kinds.items() if isinstance(one, Continuous) and not one.own and one.shape == shape]
    beside = [n for n, one in kinds.items() if isinstance(one, Continuous) and one.own]
    if added and len(added) + len(beside) > 1:
        raise Incompatible(
            f"{' and '.join(map(repr, [*beside, *added]))} would be added in the same channels, and can't be told "
            "apart there: give each its own channels (own=True), or mixed=True if that is meant"
        )
