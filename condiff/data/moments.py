"""The two moments that the best isotropic Gaussian start needs: a mean per position and one variance, in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import Data
from condiff.data.statistics import Statistics
from condiff.errors import BadFile, BadType, BadValue, Incompatible
from condiff.files import read_tensors, write_tensors
from condiff.process import EDM, Gaussian, Moments
from condiff.random import as_source

FORMAT = "condiff moments 1"
RELEASED = (("Expectation_X0", "Tr_Cov_d"), ("Expectation_x_0", "trCov_d"))
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


@dataclass(frozen=True, eq=False)
class DataMoments:
    """``E[x0]`` and ``tr Cov[x0] / d`` of data, which give the start of Analytic-Init (Zhao 2024, arXiv 2406.15735)::

        min over N(mu, s^2 I) of KL(q_t || N(mu, s^2 I)):   mu = data(t) mean,   s^2 = data(t)^2 var + noise(t)^2

    They belong to x0 itself, the tensor that data(t) multiplies, so that one file serves all levels of all processes of
    one latent space, frame count and resolution.

    Args:
        mean: of a sample's shape, float64.
        var: the variance about the mean, averaged over all positions.
        count: how many samples they are of; 0 where that isn't known.
        scale: they are the moments of ``scale x0``; 1 unless a file says otherwise.

    Raises:
        BadValue: NaN or infinity, a negative variance, a scale that isn't positive.

    Example:
        >>> from condiff.data import TensorData
        >>> stats = DataMoments.of(TensorData(torch.tensor([[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]), range="keep"))
        >>> stats.mean.tolist()
        [0.5, 0.5]
    """

    mean: Tensor
    var: float
    count: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.mean, Tensor) or not self.mean.dtype.is_floating_point:
            raise BadType(f"mean must be a tensor of floats, got {getattr(self.mean, 'dtype', self.mean)}")
        if not bool(torch.isfinite(self.mean).all()):
            raise BadValue("the mean of these statistics holds NaN or infinity")
        if not 0.0 <= self.var < math.inf:
            raise BadValue(f"the variance of statistics must be a finite number >= 0, got {self.var}")
        if not (0.0 < self.scale < math.inf) or self.count < 0:
            raise BadValue(f"scale must be > 0 and count >= 0, got {self.scale} and {self.count}")
        object.__setattr__(self, "mean", self.mean.detach().double().cpu())

    @classmethod
    def of(cls, data: Data, encode: Callable[[Tensor], Tensor] | None = None, batch: int = 8) -> DataMoments:
        """One pass over all rows of a data set, in float64, each at its first augmentation.

        Args:
            encode: x (B, ...) to the space of the model, such as the latents of a VAE *after* its scaling factor.
            batch: rows at once.

        Raises:
            BadValue: fewer than two samples.
        """
        if len(data) < 2:
            raise BadValue(f"statistics need at least two samples, {data.name} has {len(data)}")
        out = Statistics("element")
        with torch.no_grad():
            for rows in torch.arange(len(data)).split(batch):
                x = data.batch(rows)["x"]
                out.update(x if encode is None else encode(x))
        return cls(out.mean, float(out.var.mean()), len(data))

    def prior(self, data_scale: float = 1.0) -> Moments:
        """The start, at any level of a process whose data is ``data_scale x0``.

        Args:
            data_scale: 1 but for models that shrink x0 as well as noising it ("dynamic rescale", DynamiCrafter: 0.7).

        Raises:
            Incompatible: moments of another multiple of x0, such as ``alpha_M x0`` of some variance-preserving level.
        """
        if self.scale not in (1.0, data_scale):
            raise Incompatible(
                f"these are moments of {self.scale:g} x0, not of x0: a process multiplies x0 by data(t) itself. "
                "Divide the mean by that factor and the variance by its square"
            )
        factor = data_scale / self.scale
        return Moments(mean=factor * self.mean, var=factor**2 * self.var)

    def save(self, path: str | Path, **facts: Any) -> None:
        """Write a safetensors file; ``facts`` (where from, frames per second) are noted in it."""
        said = {"format": FORMAT, "count": self.count, "scale": self.scale, **facts}
        tensors = {"mean": self.mean, "var": torch.tensor(self.var, dtype=torch.float64)}
        write_tensors(path, tensors, {k: str(v) for k, v in said.items()})

    @classmethod
    def load(cls, path: str | Path) -> DataMoments:
        """A file of :meth:`save`, or a released one (see :meth:`released`), as safetensors or npz.

        Raises:
            BadFile: a pickle (``.pt``, ``.ckpt``): reading one can run code; a missing or truncated file; other keys.
            BadValue: values that can't be moments.
        """
        path = Path(path)
        if path.suffix.lower() in PICKLES:
            raise BadFile(
                f"{path} is a pickle, and reading one can run code. If you trust it, convert it once: "
                f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), '{path.stem}.safetensors')"
            )
        tensors, said = (_read_npz(path), {}) if path.suffix.lower() == ".npz" else read_tensors(path)
        if set(tensors) == {"mean", "var"}:
            facts = {"count": int(said.get("count", 0)), "scale": float(said.get("scale", 1.0))}
            return cls(tensors["mean"], _number(tensors["var"]), **facts)
        return cls.released(tensors, where=str(path))

    @classmethod
    def released(cls, tensors: Mapping[str, Any], where: str = "these statistics") -> DataMoments:
        """The published initial-noise files of image-to-video models, in the layout (F, C, H, W) of videos here.

        ``Expectation_X0`` (1, C, F, H, W) with ``Tr_Cov_d`` (DynamiCrafter, VideoCrafter), or ``Expectation_x_0``
        (F, C, H, W) with ``trCov_d`` (Stable Video Diffusion).

        Raises:
            BadFile: other keys, or other numbers of axes.
        """
        for (mean, var), axes in zip(RELEASED, (5, 4), strict=True):
            if {mean, var} <= set(tensors):
                value = torch.as_tensor(tensors[mean])
                if value.ndim == 5 and value.shape[0] == 1 and axes == 5:
                    value = value[0].movedim(0, 1)
                if value.ndim != 4:
                    raise BadFile(f"{where}: {mean} of shape {tuple(value.shape)} should have {axes} axes")
                return cls(value.contiguous(), _number(torch.as_tensor(tensors[var])))
        known = " or ".join("/".join(keys) for keys in (("mean", "var"), *RELEASED))
        raise BadFile(f"{where} hold {', '.join(sorted(tensors)) or 'nothing'}, not {known}")

    def start(self, rows: int, sigma: float, rng: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """``mean + sqrt(var + sigma^2) z`` of shape (rows, ...): the start of a model that takes latents, not a prior.

        diffusers' pipelines multiply the latents that they are given by ``scheduler.init_noise_sigma``: divide by it.
        """
        if not 0.0 < sigma < math.inf or rows < 1:
            raise BadValue(f"a start needs rows >= 1 and a finite sigma > 0, got {rows} and {sigma}")
        level = Gaussian(EDM(sigma_max=sigma)).at(1.0)
        return self.prior().sample(level, (rows, *self.mean.shape), as_source(rng), dtype=dtype)

    def __repr__(self) -> str:
        figures = f"mean {float(self.mean.mean()):.4g}, std {math.sqrt(self.var):.4g}"
        return f"DataMoments({tuple(self.mean.shape)}, {figures}, {self.count} samples)"


def _number(value: Tensor) -> float:
    if value.numel() != 1:
        raise BadFile(f"a variance is one number for all positions, got {tuple(value.shape)}")
    return float(value)


def _read_npz(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in file.files}
    except (ValueError, OSError) as error:
        raise BadFile(f"{path} is not a whole npz file of numbers: {error}") from error
