"""Short names of solvers, for the command line and for configuration files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from condiff.errors import unknown
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    DPMSolverPP,
    Euler,
    Heun,
    Overshoot,
    Solver,
    TauLeaping,
    TokenAncestral,
    UniPC,
    Unmask,
)

SOLVERS: dict[str, Callable[[], Solver]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "euler": Euler,
    "heun": Heun,
    "dpmpp-2m": lambda: DPMSolverPP(order=2),
    "dpmpp-3m": lambda: DPMSolverPP(order=3),
    "unipc": UniPC,
    "sde": SDE,
    "overshoot": Overshoot,
    "ancestral": TokenAncestral,
    "tau-leaping": TauLeaping,
    "any-order": Unmask,
    "left-to-right": lambda: Unmask(order="left"),
    "confidence": lambda: Unmask(order="confidence"),
}


def solver(name: str) -> Solver:
    """The solver of a short name.

    Raises:
        BadValue: an unknown name, with the nearest ones.
    """
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name]()


def class_number(name: str, classes: Sequence[str]) -> int:
    """The number of a class that is given by its name, or by its number.

    Raises:
        BadValue: neither, with the nearest names.
    """
    if name in classes:
        return list(classes).index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    raise unknown("class", name, classes)
