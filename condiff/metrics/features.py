"""Where features come from: anything with ``features(x) -> (B, D)``, and networks in files that the user names."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from condiff.errors import BadFile, BadValue, unknown

INPUTS = {"uint8": (127.5, 127.5), "[0, 1]": (0.5, 0.5), "[-1, 1]": (1.0, 0.0)}


@runtime_checkable
class Features(Protocol):
    """A feature extractor for samples of a data set."""

    def features(self, x: Tensor) -> Tensor:
        """(B, ...) in the model's range -> (B, D)."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """A classifier: :class:`condiff.metrics.DigitClassifier` is one."""

    def predict(self, x: Tensor) -> Tensor:
        """(B, ...) -> classes (B,)."""
        ...


class Pixels:
    """The sample itself as its features: the honest choice where no classifier exists."""

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1).double()


class ImageFeatures:
    """Features of images (B, C, H, W) in [-1, 1] from a network, in batches.

    Args:
        network: takes images, returns (B, D) or (B, D, 1, 1).
        size: side to resize to, with antialiasing; None: leave the size to the network.
        input: what it wants: ``"uint8"`` ([0, 255], rounded), ``"[0, 1]"`` or ``"[-1, 1]"``.
        batch: images per call.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], size: int | None = None, input: str = "[-1, 1]", batch: int = 64
    ) -> None:
        if input not in INPUTS:
            raise unknown("input convention", input, INPUTS)
        self.network, self.size, self.input, self.batch = network, size, input, batch

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        scale, shift = INPUTS[self.input]
        return (x * scale + shift).round().clamp(0, 255).to(torch.uint8) if self.input == "uint8" else x * scale + shift

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) with 1 or 3 channels in [-1, 1] -> float64 (B, D)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise BadValue(f"image features need (B, 1 or 3, H, W), got {tuple(x.shape)}")
        if float(x.min()) < -1.001 or float(x.max()) > 1.001:
            raise BadValue(
                f"images lie in [-1, 1], got {float(x.min()):g} to {float(x.max()):g}: clamp or rescale them"
            )
        out = torch.cat([self.network(self._prepared(rows)).double().flatten(1) for rows in x.split(self.batch)])
        if out.ndim != 2 or len(out) != len(x):
            raise BadValue(f"the network gave features of shape {tuple(out.shape)} for {len(x)} images")
        return out


def inception(
    path: str | Path, network: nn.Module | None = None, *, size: int | None = None, input: str = "uint8"
) -> ImageFeatures:
    """Features from a network in a local file: Inception for FID, or any other.

    Args:
        path: a TorchScript archive, such as NVIDIA's ``inception-2015-12-05.pt``, whose features are
            those of FID and which takes uint8 images of any size; or, with ``network``, a ``.safetensors`` file.
            TorchScript is a program: name only files that you trust. Pickled checkpoints are refused.
        network: the module that the safetensors file's weights belong to.
        size, input: see :class:`ImageFeatures`.

    Raises:
        BadFile: no such file, a pickle, or weights that don't fit the module.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"no such file: {path}. condiff downloads no networks: name a local one")
    if network is not None:
        return ImageFeatures(_with_weights(network, path), size, input)
    if not _is_torchscript(path):
        raise BadFile(
            f"{path} is not a TorchScript archive. Weights alone (safetensors) need network=, the module they belong "
            "to; pickled checkpoints are refused"
        )
    script = torch.jit.load(str(path), map_location="cpu").eval()
    named = any(a.name == "return_features" for a in script.forward.schema.arguments)
    return ImageFeatures((lambda x: script(x, return_features=True)) if named else script, size, input)


def _with_weights(network: nn.Module, path: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BadFile(f"the weights in {path} don't belong to {type(network).__name__}: {error}") from error
    return network.eval()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
