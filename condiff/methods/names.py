"""Short names of solvers, for the command line and for configuration files."""

from __future__ import annotations

from collections.abc import Callable

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
