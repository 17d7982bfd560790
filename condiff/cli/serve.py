"""``condiff serve``: a page in the browser for trying a model."""

from __future__ import annotations

from dataclasses import dataclass

from condiff.cli.options import Flag, OptionalInt, OptionalText, RunOrPipeline, Several, Size
from condiff.cli.output import note


@dataclass(frozen=True)
class Serve:
    """Try a model in the browser: settings, steps as they are taken, two settings side by side.

    Try:
      condiff serve runs/digits
      condiff serve runs/foggy-to-clear --port 0 --open
      condiff serve stabilityai/stable-diffusion-2-1 --dtype float16
      condiff serve runs/digits --host 0.0.0.0
    """

    target: RunOrPipeline
    """A run folder, a folder with a diffusers pipeline, or a pipeline's name on the Hub."""

    port: int = 8000
    """0 takes a free one."""

    host: str = "127.0.0.1"
    """The address to listen on; any other than this machine's own needs a token, which is made and shown."""

    token: OptionalText = None
    """What whoever opens the page has to know, at least 12 characters; the address that is shown holds it."""

    name: Several = ()
    """Another host name that the server goes by, such as that of a proxy; repeat for several."""

    open: Flag = False
    """Open the page in a browser."""

    weights: str = "ema"
    """Of a run: "ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    size: Size = None
    """Of a pipeline: height and width in pixels; by default those that it was trained on."""

    frames: OptionalInt = None
    """Of a pipeline that makes clips."""

    dtype: OptionalText = None
    """Of a pipeline's weights: float32, float16, bfloat16."""

    most_samples: int = 64
    """Samples that may be asked for at once."""

    most_steps: int = 1000
    """Steps that may be asked for."""

    most_waiting: int = 16
    """Requests that may wait in line."""

    most_pages: int = 32
    """Pages that may be connected."""

    most_upload: float = 16.0
    """Megabytes of a picture that is sent."""

    def run(self) -> int:
        from condiff.web import Limits, serve

        limits = Limits(
            num=self.most_samples,
            steps=self.most_steps,
            queue=self.most_waiting,
            clients=self.most_pages,
            upload=int(self.most_upload * 2**20),
        )
        serve(
            self.target,
            host=self.host,
            port=self.port,
            token=self.token,
            names=self.name,
            limits=limits,
            weights=self.weights,
            device=self.device,
            size=self.size,
            frames=self.frames,
            dtype=self.dtype,
            browse=self.open,
            say=note,
        )
        return 0
