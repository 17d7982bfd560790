"""``condiff push``, ``condiff pull``: runs to and from the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import Flag, OptionalPath, OptionalText, Repository, RunFolder
from condiff.cli.output import note


@dataclass(frozen=True)
class Push:
    """Share a finished run on the Hub: its model, configuration, figures and a card; never its data or checkpoints.

    Try:
      condiff push runs/digits me/digits --private

    Log in before with `hf auth login`, or set HF_TOKEN.
    """

    folder: RunFolder
    """The run folder."""

    repository: Repository
    """owner/name."""

    private: Flag = False
    """Nobody else may see it; of a repository that is made now."""

    overwrite: Flag = False
    """Upload into a repository that holds something already; files of an earlier run go, others stay."""

    def run(self) -> int:
        from condiff.methods.hub import push

        note(push(self.folder, self.repository, private=self.private, overwrite=self.overwrite))
        return 0


@dataclass(frozen=True)
class Pull:
    """Fetch a shared run from the Hub, to sample it here.

    Try:
      condiff pull someone/digits
      condiff sample runs/digits
    """

    repository: Repository
    """owner/name."""

    revision: OptionalText = None
    """Branch, tag or commit."""

    out: OptionalPath = None
    """The new run folder; runs/NAME by default."""

    def run(self) -> int:
        from condiff.methods.hub import pull

        out = pull(self.repository, self.out or Path("runs") / self.repository.split("/")[-1], self.revision)
        note(f"{out}/  condiff sample {out}")
        return 0
