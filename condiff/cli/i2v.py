"""``condiff i2v-stats``: what the start of an image-to-video model should know of its clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from condiff.cli.options import Flag, OptionalFloat, OptionalInt, OptionalPath
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class I2VStats:
    """Mean and variance of a folder of clips, from which a sampler may start late (Analytic-Init).

    Try:
      condiff i2v-stats videos/ --frames 16 --size 320 512 --fps 3 --vae models/svd --out stats.safetensors
      condiff i2v-stats clips/ --frames 8
      condiff sample runs/clips --start 0.94 --init stats.safetensors
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
    """Clips: folders of frames, animated pictures, video files."""

    out: Path = Path("stats.safetensors")
    """The file to write."""

    frames: int = 16
    """Frames of a clip."""

    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint="")] = ()
    """Resize and crop frames to HEIGHT x WIDTH, or to a square; as they are by default."""

    fps: OptionalFloat = None
    """Frames per second of a clip, for files that say their own rate."""

    stride: OptionalInt = None
    """In its place, take every N-th frame."""

    hop: OptionalInt = None
    """Start another clip every N frames of a recording; one each by default."""

    vae: OptionalPath = None
    """Folder of a diffusers autoencoder or pipeline: statistics of its latents in place of those of the pixels."""

    batch: int = 4
    """Clips at once."""

    device: str = "cpu"
    """Where the autoencoder computes: cpu, cuda, cuda:1, mps."""

    skip_bad: Flag = False
    """Leave out clips that are too short or can't be read."""

    overwrite: Flag = False
    """Replace the file if it is there."""

    json: Flag = False
    """Print what was measured as JSON."""

    def run(self) -> int:
        from condiff.data import DataMoments, clips
        from condiff.errors import BadFile, BadValue

        if self.out.exists() and not self.overwrite:
            raise BadFile(f"{self.out} exists already: choose another --out, or say --overwrite")
        if self.out.suffix != ".safetensors":
            raise BadValue(f"--out must end in .safetensors, got {self.out.name!r}")
        if len(self.size) not in (0, 1, 2):
            raise BadValue(f"--size takes HEIGHT WIDTH or one number, got {' '.join(map(str, self.size))}")
        if self.batch < 1:
            raise BadValue(f"--batch must be at least 1, got {self.batch}")
        size: Any = self.size if len(self.size) == 2 else self.size[0] if self.size else None
        data = clips(
            self.folder,
            self.frames,
            size,
            fps=self.fps,
            stride=self.stride,
            hop=self.hop,
            skip_bad=self.skip_bad,
            cache=0,
            channels=None if self.vae is None else 3,
        )
        note(data.describe(), quiet=self.json)
        stats = DataMoments.of(data, self._encoder(data.shape), self.batch)
        facts = {
            "frames": self.frames,
            "fps": self.fps,
            "stride": self.stride,
            "of": "pixels" if self.vae is None else "latents",
        }
        stats.save(self.out, **{k: v for k, v in facts.items() if v is not None})
        said = {
            "out": str(self.out),
            "count": stats.count,
            "shape": list(stats.mean.shape),
            "mean": float(stats.mean.mean()),
            "variance": stats.var,
        }
        if self.json:
            show_json(said)
        else:
            note(f"{stats}\n{self.out}")
        return 0

    def _encoder(self, shape: tuple[int, ...]) -> Any:
        """Clips to latents, with sides checked first; None for pixels."""
        if self.vae is None:
            return None
        from condiff.interop.frames import encode_frames, load_vae
        from condiff.methods.runs import check_device

        device = check_device(self.device)
        codec = load_vae(self.vae).to(device)
        codec.latent_shape(shape[1:])
        return lambda x: encode_frames(codec, x.to(device)).cpu()
