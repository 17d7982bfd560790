"""Clips through a diffusers autoencoder of pictures, frame by frame: the latents of image-to-video models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from condiff.codecs import Codec
from condiff.config import read_json
from condiff.errors import BadFile, require_extra, unknown
from condiff.interop.vae import VAE
from condiff.typing import Float, Tensor

AUTOENCODERS = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")


def load_vae(folder: str | Path) -> VAE:
    """The autoencoder of a diffusers folder on the disk: its own, or the ``vae`` of a pipeline's. Safetensors only.

    Raises:
        BadFile: no such folder, or another model in it.
    """
    folder = Path(folder)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise BadFile(f"{folder} holds no autoencoder: there is no config.json")
    name = read_json(folder / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise unknown("autoencoder of pictures", name, AUTOENCODERS)
    kind: Any = getattr(require_extra("diffusers", "hf"), name)
    try:
        return VAE(kind.from_pretrained(folder, local_files_only=True, use_safetensors=True))
    except OSError as error:
        raise BadFile(f"{folder}: {str(error).splitlines()[0]}") from error


def encode_frames(
    codec: Codec, x: Float[Tensor, "batch frames c h w"], at_once: int = 8
) -> Float[Tensor, "batch frames latent_c latent_h latent_w"]:
    """Latents of all frames, scaled as the diffusion model sees them, ``at_once`` frames a call."""
    parts = [codec.encode(part) for part in x.flatten(0, 1).split(at_once)]
    return torch.cat(parts).unflatten(0, x.shape[:2])
