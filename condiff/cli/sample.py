"""``condiff sample``: draw from a trained run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from condiff.cli.options import (
    Flag,
    Many,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    RunFolder,
    Several,
    flat,
)
from condiff.cli.output import Progress, note, show_json

SHOWN = 8  # texts that are printed


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run.

    Try:
      condiff sample runs/digits
      condiff sample runs/digits --label 3 --num 64 --guidance 2 --steps 12 --out threes.png
      condiff sample runs/digits --label 3 --label 5 --superpose and --out both.png
      condiff sample runs/foggy-to-clear --condition new_foggy/ --out restored/
      condiff sample runs/corpus --num 4 --prefix "Once upon" --suffix "the end." --top-p 0.9
      condiff sample runs/scans --condition new/t1.nii.gz new/pd.nii.gz --out new/t2.nii.gz
      condiff sample runs/street --condition first.png --frames 80 --out street.gif
      condiff sample runs/digits-and-labels --known image=pic.png --out seen.npz
      condiff sample runs/waves --condition height=2.5 --num 100 --out waves.npz
      condiff sample runs/digits --settings samples.png --out again.png
      torchrun --nproc-per-node 4 -m -- condiff.cli.main sample runs/digits --num 10000 --out many.npz
    """

    folder: RunFolder
    """The run folder."""

    num: OptionalInt = None
    """How many; by default eight of every class."""

    label: Several = ()
    """Class name or index; repeat for several, taken in turn."""

    condition: Many = ()
    """NAME=VALUE, or files: pictures, scans of one case, a folder, .npy, .npz; by default those of held-out data."""

    known: Many = ()
    """NAME=VALUE of what is generated together (train --joint): label=3, image=pic.png; the rest is drawn given it."""

    solver: OptionalText = None
    """Update rule, such as ddim, dpmpp-2m, unipc, euler, heun; the run's own by default."""

    steps: OptionalInt = None
    """Solver steps."""

    guidance: OptionalFloat = None
    """Classifier-free scale; 1 is the plain conditional model."""

    teleport: OptionalPath = None
    """Skip the first steps: statistics of the training data, as `condiff statistics` writes them."""

    skip_sigma: OptionalFloat = None
    """Where --teleport starts, as noise over data; by default as late as the model allows."""

    superpose: OptionalText = None
    """"and" (likely under every --label), "or" (under any) or "average": all of them at once, by their densities."""

    start: OptionalFloat = None
    """Begin at this time below 1, with as many steps; from pure noise without --init, which is better."""

    init: OptionalPath = None
    """Statistics of the data (condiff i2v-stats): begin from the normal law that fits them best."""

    prefix: OptionalText = None
    """Text that every sample begins with."""

    suffix: OptionalText = None
    """Text that every sample ends with."""

    given: Several = ()
    """POSITION=TEXT that every sample holds from that token on; below 0 counted from the end."""

    temperature: OptionalFloat = None
    """Of predicted tokens; 0 takes the most probable one."""

    top_k: OptionalInt = None
    """Draw among the K most probable tokens."""

    top_p: OptionalFloat = None
    """Draw among the most probable tokens with this much probability."""

    frames: OptionalInt = None
    """Of clips: how long, the given frames included; as long as those of the data by default."""

    set: Several = ()
    """KEY=VALUE for any field of the sampler, such as solver.noise=0.5 or grid.start=0.9."""

    settings: OptionalPath = None
    """A .json, .png or .npz that `condiff serve` gave: draw the same samples; other options come before it."""

    seed: OptionalInt = None
    """Sample i depends on seed + i only, whatever the batch; 0 by default."""

    batch: int = 256
    """Samples per network call, and per block that is kept until all are there."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: OptionalPath = None
    """A .png grid, a folder, .nii.gz, .txt, or .npz / .npy arrays; RUN/samples-SEED.png (.txt, .npz) by default."""

    overwrite: Flag = False
    """Replace the output file if it is there."""

    json: Flag = False
    """Print where the samples are, and how they were made, as JSON."""

    def run(self) -> int:
        from condiff.methods.export import draw

        if self.settings is not None:
            return self._again().run()
        made = draw(
            self.folder,
            num=self.num,
            labels=self.label,
            conditions=flat(self.condition),
            modalities=flat(self.known),
            solver=self.solver,
            steps=self.steps,
            guidance=self.guidance,
            start=self.start,
            init=self.init,
            teleport=self.teleport,
            skip_sigma=self.skip_sigma,
            superpose=self.superpose,
            prefix=self.prefix,
            suffix=self.suffix,
            placed=self.given,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            frames=self.frames,
            changes=self.set,
            seed=self.seed or 0,
            batch=self.batch,
            weights=self.weights,
            device=self.device,
            out=self.out,
            overwrite=self.overwrite,
            say=lambda line: note(line, quiet=True),
            progress=Progress(),
        )
        if made is None:  # another process tells of the work that was shared
            return 0
        if self.json:
            show_json(made)
        else:
            texts = made.get("texts", ())
            for text in texts[:SHOWN]:
                note(f"{text}\n{'-' * 40}")
            if len(texts) > SHOWN:
                note(f"... and {len(texts) - SHOWN} more")
            calls = _calls(made["nfe"])
            note(f"{_several(made['num'], 'sample')}, {calls} each, {made['seconds']:.2f} s: {made['out']}")
        return 0

    def _again(self) -> Sample:
        """With the options of downloaded samples where none are given."""
        from condiff.web.kept import options_of, read_kept

        assert self.settings is not None
        found = options_of(read_kept(self.settings), flat(self.condition))
        own = {f.name: f.default for f in fields(self)}
        taken = {k: v for k, v in found.items() if k == "condition" or getattr(self, k) == own[k]}
        return replace(self, **taken, settings=None)


def _calls(nfe: int | list[int]) -> str:
    """Network calls of a sample, which may differ between samples."""
    if isinstance(nfe, int):
        return _several(nfe, "network call")
    low, high = min(nfe), max(nfe)
    return _several(low, "network call") if low == high else f"{low} to {high} network calls"


def _several(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
