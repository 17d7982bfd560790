"""``condiff``: the entry point. Parses, runs a command, turns errors into a line and an exit code.

Exit codes: 0 done; 1 the work failed; 2 bad input; 130 interrupted; 143 stopped by SIGTERM after saving.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

from condiff import __version__
from condiff.cli.classify import Classify
from condiff.cli.distill import Distill
from condiff.cli.edit import Edit
from condiff.cli.evaluate import Evaluate
from condiff.cli.hub import Pull, Push
from condiff.cli.i2v import I2VStats
from condiff.cli.info import Info
from condiff.cli.interpolate import Interpolate
from condiff.cli.methods import Cite, Methods, Reproduce
from condiff.cli.restore import Restore
from condiff.cli.sample import Sample
from condiff.cli.series import Forecast, Impute, Refine
from condiff.cli.serve import Serve
from condiff.cli.statistics import Kinetic, Statistics
from condiff.cli.stream import Stream
from condiff.cli.tie import Companions, Tie
from condiff.cli.train import Train
from condiff.errors import BadFile, BadType, BadValue, CondiffError, Incompatible, MissingExtra

DESCRIPTION = """Conditional diffusion and flow models: train on your data, sample, evaluate, reproduce.

Start with:  condiff train digits
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if list(sys.argv[1:] if argv is None else argv) == ["--version"]:
        print(f"condiff {__version__}")
        return 0
    try:
        import tyro
    except ImportError:
        print("error: the command line needs an extra: pip install 'condiff[cli]'", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _parse(tyro, argv).run()
        sys.stdout.flush()
        return code
    except (BadValue, BadType, BadFile, Incompatible, MissingExtra) as error:
        return _fail(error, 2)
    except CondiffError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # what reads our output has seen enough, as in `condiff info RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parse(tyro: Any, argv: Sequence[str] | None) -> Any:
    """The command that the words name; prints help or what is wrong with them and exits."""
    command = tyro.conf.subcommand
    return tyro.cli(
        Annotated[Train, command("train")]
        | Annotated[Distill, command("distill")]
        | Annotated[Sample, command("sample")]
        | Annotated[Serve, command("serve")]
        | Annotated[Restore, command("restore")]
        | Annotated[Tie, command("tie")]
        | Annotated[Companions, command("companions")]
        | Annotated[Edit, command("edit")]
        | Annotated[Interpolate, command("interpolate")]
        | Annotated[Stream, command("stream")]
        | Annotated[Evaluate, command("evaluate")]
        | Annotated[Classify, command("classify")]
        | Annotated[I2VStats, command("i2v-stats")]
        | Annotated[Statistics, command("statistics")]
        | Annotated[Kinetic, command("kinetic")]
        | Annotated[Forecast, command("forecast")]
        | Annotated[Impute, command("impute")]
        | Annotated[Refine, command("refine")]
        | Annotated[Info, command("info")]
        | Annotated[Push, command("push")]
        | Annotated[Pull, command("pull")]
        | Annotated[Methods, command("methods")]
        | Annotated[Reproduce, command("reproduce")]
        | Annotated[Cite, command("cite")],
        args=argv,
        prog="condiff",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _warn(message: Warning | str, *_: Any) -> None:
    """A line; where in the code it was raised is nothing to who types commands."""
    print(f"warning: {message}", file=sys.stderr)


def _fail(error: Exception, code: int) -> int:
    from condiff.peers import rank, world

    who = f" (process {rank()} of {world()})" if world() > 1 else ""
    print(f"error{who}: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
