"""MultiModal: one network for a latent that carries several modalities, with a head for each (Chen 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from condiff.conditions import Conditions, as_conditions
from condiff.config import from_config
from condiff.denoiser import built_parts, check_times, part_config, time_tensor
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.multimodal.modalities import Modalities
from condiff.multimodal.modality import Modality
from condiff.process import KINDS, Driven, Level, Prediction, Process
from condiff.process.level import Time
from condiff.typing import Float

HEADS = "modalities"  # where a prediction holds what the heads said


class MultiModal(nn.Module):
    """A denoiser of ``z_t``, the aggregate ``E(X)`` noised, which also says each ``x_i`` (``aux["modalities"]``).

    The trunk's own output is the latent's noise (or another ``target``); the heads read its last features. A network
    whose ``conditions`` hold the modalities (:meth:`Modalities.conditions`) can be told any of them, flagged row by
    row: then one model has every conditional law, and ``Free`` guides by them.

    Args:
        network: a :class:`~condiff.networks.DiT`, :class:`~condiff.networks.UNet` or :class:`~condiff.networks.MLP`
            of the latent's shape.
        process: :class:`~condiff.process.Driven`, or any other to Gaussian noise without an endpoint.
        modalities: what the latent carries; a mapping is made :class:`Modalities` of.
        target: the quantity that the trunk outputs.

    Raises:
        BadType: a network without features to read. BadValue: an unknown target.
        Incompatible: a network of another shape, or told of some modalities only; a process with an endpoint or other
            noise, or a drive whose data can't be decoded at z_1.

    Example:
        >>> both = Modalities({"image": Image(1, 8, 8), "label": Label(10)})
        >>> network = DiT(shape=both.shape, width=96, depth=3, conditions=both.conditions())
        >>> model = MultiModal(network, Driven(schedule=Discrete.cosine(200)), both)
    """

    def __init__(
        self,
        network: Any,
        process: Process,
        modalities: Modalities | Mapping[str, Modality],
        target: str = "noise",
    ) -> None:
        super().__init__()
        self.modalities = modalities if isinstance(modalities, Modalities) else Modalities(modalities)
        if target not in KINDS:
            raise unknown("prediction target", target, KINDS)
        self.network, self.process, self.target = network, process, target
        self._check()
        parts = {name: self.modalities._part_shape(name) for name in self.modalities}
        self.heads = nn.ModuleDict({name: self.modalities[name].head(network, parts[name]) for name in parts})

    def _check(self) -> None:
        network: Any = self.network
        process, shape = self.process, self.modalities.shape
        if not hasattr(network, "token_size"):
            raise BadType(f"heads read the features of a DiT, a UNet or an MLP, not of {type(network).__name__}")
        if tuple(network.config.shape) != shape:
            raise Incompatible(f"the latent has shape {shape}, the network is for {tuple(network.config.shape)}")
        if network.config.outputs != 1 or network.config.learned_variance:
            raise Incompatible("a network of one latent has outputs=1 and no learned variance")
        if not isinstance(process, Process) or process.has_source or not process.noise_law.gaussian:
            raise Incompatible(f"the latent goes to Gaussian noise without an endpoint, not by {process}")
        if isinstance(process, Driven) and not process.decodable:
            raise Incompatible(
                f"the signal-to-noise ratio of {process} doesn't fall at every step from above 1: what is fed in after "
                "the first steps is lost before z_1, from which the data is decoded. Put most of drive= first"
            )
        told = [name for name in self.modalities if name in network.condition_kinds]
        if told and len(told) < len(self.modalities):
            raise Incompatible(f"the network is told of {told} only: give it conditions=modalities.conditions()")

    @property
    def told(self) -> bool:
        """Whether the network can be told of modalities that are known."""
        return all(name in self.network.condition_kinds for name in self.modalities)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latent."""
        return self.modalities.shape

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds of the conditions that the network declares, known modalities among them."""
        return self.network.condition_kinds

    @property
    def targets(self) -> tuple[str, ...]:
        """What the trunk predicts."""
        return (self.target,)

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that doesn't hold the modalities; see :meth:`Modalities.split`."""
        self.modalities.split(batch.x, batch.cond)

    def forward(
        self,
        x_t: Float[Tensor, "batch *shape"],
        t: Time,
        cond: Mapping[str, Any] | Conditions | None = None,
        *,
        detach: bool = False,
    ) -> Prediction:
        """The prediction of the latent. With ``detach`` no gradient flows from the heads into the trunk."""
        if x_t.shape[1:] != self.shape:
            raise BadValue(f"a state of shape {tuple(x_t.shape)} came to a denoiser of latents {self.shape}")
        level = self.process.at(t)
        check_times(level.t, x_t)
        hidden = self.network.begin(x_t, time_tensor(level.network_time, x_t), cond)
        for _, layer in self.network.layers():
            self.network.step(layer, hidden)
        out = self.network.head(hidden)
        out, aux = out if isinstance(out, tuple) else (out, {})
        features = self.network.features(hidden)
        features = features.detach() if detach else features
        said = {name: head(features, hidden, self.network) for name, head in self.heads.items()}
        return Prediction(x_t, level, {self.target: out}, aux={**aux, HEADS: said})

    def said(self, prediction: Prediction) -> dict[str, Tensor]:
        """What the heads said of each modality."""
        return prediction.aux[HEADS]

    def log_prob(
        self, name: str, x: Tensor, z: Tensor, t: Time, cond: Mapping[str, Any] | Conditions | None = None
    ) -> Tensor:
        """``log p(x_i | z_t)`` of one modality's head, (B,) float64: a label's head is a classifier of noisy states."""
        self.modalities.check({name: x}, whole=False)
        prediction = self(z, t, cond)
        std = prediction.level.noise / prediction.level.data
        return self.modalities[name].log_prob(self.said(prediction)[name], x, std)

    def classifier(self, name: str, x: Tensor) -> Callable[[Tensor, Level, Conditions], Tensor]:
        """``log_prob(z, level, cond)`` of ``x`` for :class:`condiff.guidance.Classifier`, told nothing of ``name``.

        Example:
            >>> guided = Classifier(model, model.classifier("label", labels), scale=2.0)
        """
        self.modalities.check({name: x}, whole=False)

        def log_prob(z: Tensor, level: Level, cond: Conditions) -> Tensor:
            rest = Conditions({n: c for n, c in as_conditions(cond).items() if n != name})
            return self.log_prob(name, x.to(z.device), z, level, rest)

        return log_prob

    def config(self) -> dict[str, Any]:
        """Everything needed to build it again, weights apart; see :meth:`from_config`."""
        m = self.modalities
        return {
            "modalities": {name: part_config(m[name]) for name in m},
            "weights": m.weights,
            "latent": None if m.given is None else list(m.given),
            "mixed": m.mixed,
            "network": part_config(self.network.config),
            "process": part_config(self.process),
            "target": self.target,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, network: nn.Module | None = None, process: Process | None = None
    ) -> MultiModal:
        """The denoiser of a :meth:`config`, with fresh weights."""
        names = ("modalities", "weights", "latent", "mixed", "network", "process", "target")
        built = built_parts("multimodal denoiser", config, names, network, process)
        kinds = {name: from_config(one) for name, one in config["modalities"].items()}
        latent = config["latent"] and tuple(config["latent"])
        return cls(*built, Modalities(kinds, config["weights"], latent, config["mixed"]), config["target"])

    def extra_repr(self) -> str:
        return f"process={self.process}, target={self.target}, modalities={self.modalities.kinds}"
