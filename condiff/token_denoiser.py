"""TokenDenoiser: a network over token sequences with its categorical process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from condiff.conditions import Conditions, as_conditions
from condiff.config import from_config
from condiff.denoiser import built_parts, check_times, part_config, time_tensor
from condiff.errors import BadValue, Incompatible
from condiff.process.categorical import TokenProcess
from condiff.process.token_level import TokenTime
from condiff.process.token_prediction import TokenPrediction, ids

FIELDS = ("network", "process", "shape", "time_free")


class TokenDenoiser(nn.Module):
    """``denoiser(x_t, t, cond) -> TokenPrediction``.

    Args:
        network: ``network(x, time, cond) -> logits (B, ..., V)`` over the data tokens (or ``(logits, aux)``);
            x are ids with MASK = V, or soft one-hots (B, ..., V + 1) where the network takes those.
        process: the law that made the network's inputs.
        shape: shape of one sequence; samplers use it when no initial state is given.
        time_free: the network isn't told the time (it gets None). Absorbing diffusion needs no time: the clean
            tokens given the visible ones don't depend on it (Ou 2025), and samplers may reuse evaluations.

    Raises:
        Incompatible: a process of continuous states; a network of another vocabulary.
        BadValue: a state of another shape than ``shape``; logits that aren't (B, ..., V).
    """

    def __init__(
        self,
        network: nn.Module,
        process: TokenProcess,
        shape: Sequence[int] | None = None,
        *,
        time_free: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(process, TokenProcess):
            raise Incompatible(f"TokenDenoiser predicts clean tokens, and {process} is no process of tokens: Denoiser")
        size = getattr(getattr(network, "config", None), "vocab", process.vocab)
        if size != process.vocab:
            raise Incompatible(f"the network predicts {size} tokens, and {process} has {process.vocab}")
        self.network, self.process, self.time_free = network, process, time_free
        self.shape = tuple(shape) if shape is not None else None

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds of the conditions that the network declares."""
        return getattr(self.network, "condition_kinds", {})

    def forward(self, x_t: Tensor, t: TokenTime, cond: Mapping[str, Any] | Conditions | None = None) -> TokenPrediction:
        now = ids(x_t)
        if self.shape is not None and now.shape[1:] != self.shape:
            raise BadValue(f"a state of shape {tuple(now.shape)} came to a denoiser of sequences {self.shape}")
        level = self.process.at(t)
        check_times(level.t, now)
        cond = as_conditions(cond, self.kinds, x_t.device)
        out = self.network(x_t, None if self.time_free else time_tensor(level.model_time, now), cond)
        logits, aux = out if isinstance(out, tuple) else (out, None)
        return TokenPrediction(x_t, level, logits, aux=aux)

    def config(self) -> dict[str, Any]:
        """Everything needed to build it again, weights apart, as JSON-ready data; see :meth:`from_config`."""
        network = getattr(self.network, "config", self.network)
        return {
            "network": part_config(network if dataclasses.is_dataclass(network) else self.network),
            "process": part_config(self.process),
            "shape": None if self.shape is None else list(self.shape),
            "time_free": self.time_free,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, network: nn.Module | None = None, process: TokenProcess | None = None
    ) -> TokenDenoiser:
        """The denoiser of a :meth:`config`, with fresh weights.

        Args:
            network, process: the parts that are one's own, not condiff's.

        Raises:
            BadValue: unknown parts or fields, or a part of one's own that is missing here.
        """
        return cls(
            *built_parts("token denoiser", config, FIELDS, network, process),
            from_config(config.get("shape")),
            time_free=bool(config.get("time_free")),
        )

    def extra_repr(self) -> str:
        return f"process={self.process}, shape={self.shape}, time_free={self.time_free}"
