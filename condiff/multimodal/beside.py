"""Beside: a class as a variable of its own, masked and revealed, beside a sample that is noised.

The other way to make a sample and its class together: not one latent that carries both, but a
:class:`~condiff.process.Joint` of two processes, each at its own time. A class that is masked is one that the network
isn't told, a revealed one is told: so one network has the sample given the class, the class given a sample at any
noise, and both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condiff.conditions import Condition, Conditions, as_conditions
from condiff.errors import BadType, Incompatible
from condiff.multimodal.denoiser import MultiModal
from condiff.multimodal.label import Label
from condiff.process import Absorbing, Joint, Prediction, TokenPrediction


class Beside(nn.Module):
    """``Beside(model)``: the denoiser of ``{"image": x_t, "label": ids (B, 1)}``, MASK = the number of classes.

    Args:
        model: of a continuous modality, standardised already (mean 0, std 1), and a label that its latent doesn't
            carry (weight 0): its trunk is the sample's denoiser, its label head says the class.

    Raises:
        BadType: not a :class:`~condiff.multimodal.MultiModal`. Incompatible: other modalities, a network that isn't
            told, a latent that isn't the sample.

    Example:
        >>> kinds = Modalities({"image": Image(1, 8, 8, std=1.0), "label": Label(10)}, {"label": 0.0})
        >>> network = DiT(shape=kinds.shape, width=96, depth=3, conditions=kinds.conditions())
        >>> joint = Beside(MultiModal(network, Gaussian(Cosine()), kinds, "v"))
        >>> x = sample(joint, num=4, steps=20, solver=JointSolver({"image": DDIM(), "label": TokenAncestral()}))
    """

    def __init__(self, model: MultiModal) -> None:
        super().__init__()
        if not isinstance(model, MultiModal):
            raise BadType(f"Beside takes a MultiModal, got {type(model).__name__}")
        self.first, self.label = _names(model)
        label: Any = model.modalities[self.label]
        self.model = model
        self.process = Joint({self.first: model.process, self.label: Absorbing(label.classes)})

    @property
    def shape(self) -> Any:
        """Of one sample of each variable."""
        return {self.first: self.model.shape, self.label: (1,)}

    @property
    def kinds(self) -> Mapping[str, str]:
        """Of the conditions that aren't variables."""
        return {name: kind for name, kind in self.model.kinds.items() if name not in (self.first, self.label)}

    def forward(
        self, x_t: Mapping[str, Tensor], t: Any, cond: Mapping[str, Any] | Conditions | None = None
    ) -> dict[str, Prediction | TokenPrediction]:
        self.process.check("the state", x_t)
        levels, ids = self.process.at(t), x_t[self.label]
        known = ids[:, 0] != self.process[self.label].mask_id
        told = as_conditions(cond, self.kinds, ids.device)
        told = told.replace(**{self.label: Condition(torch.where(known, ids[:, 0], 0), "label", known)})
        said = self.model(x_t[self.first], levels[self.first], told)
        logits = self.model.said(said)[self.label][:, None]
        return {self.first: said, self.label: TokenPrediction(ids, levels[self.label], logits)}


def _names(model: MultiModal) -> tuple[str, str]:
    """The continuous modality and the label."""
    kinds = model.modalities.kinds
    labels = [name for name, one in kinds.items() if isinstance(one, Label)]
    others = [name for name in kinds if name not in labels]
    if len(labels) != 1 or len(others) != 1 or not model.told:
        raise Incompatible(f"Beside takes a model of a sample and a label, which it is told; got {kinds}")
    main: Any = kinds[others[0]]
    if model.modalities.weights[labels[0]] != 0.0 or main.shape != model.shape or (main.mean, main.std) != (0.0, 1.0):
        raise Incompatible(
            "Beside noises the sample itself: give the label weight 0 in the latent, and the sample mean=0, std=1"
        )
    return others[0], labels[0]
