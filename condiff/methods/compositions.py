"""The axes of the table of compositions; see :mod:`condiff.methods.composition`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.guidance import (
    ANCHOR,
    Anchored,
    Blend,
    Classifier,
    Combine,
    Distilled,
    Energy,
    Free,
    Given,
    Guided,
    Proximal,
    SquaredError,
    Superpose,
    Switch,
    Term,
    auto,
    nested,
    product,
)
from condiff.methods.composition_models import ToldScale
from condiff.process import (
    EDM,
    VE,
    Absorbing,
    Bridge,
    ClippedCosine,
    Clocks,
    Cosine,
    CosineKeep,
    Discrete,
    Driven,
    Gaussian,
    Geometric,
    Interpolant,
    Joint,
    LogLinear,
    MaskAndUniform,
    OffsetCosine,
    Rectified,
    Residual,
    Retimed,
    Sigmoid,
    StudentT,
    SubVP,
    Tabulated,
    TokenProcess,
    UniformTokens,
    VPLinear,
)
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    Adaptive,
    Consistency,
    DPMSolver,
    DPMSolverPP,
    DPMSolverV3,
    Euler,
    Heun,
    ImplicitDDIM,
    JointSolver,
    ModelStatistics,
    Overshoot,
    PredictorCorrector,
    RelaxedAncestral,
    Renoise,
    RungeKutta,
    Solver,
    TauLeaping,
    TokenAncestral,
    UniPC,
    Unmask,
)

PROCESSES: dict[str, Callable[[], Any]] = {
    "VP linear": lambda: Gaussian(VPLinear()),
    "VP cosine": lambda: Gaussian(Cosine()),
    "VP clipped cosine": lambda: Gaussian(ClippedCosine()),
    "VP offset cosine": lambda: Gaussian(OffsetCosine()),
    "VP sigmoid": lambda: Gaussian(Sigmoid()),
    "VP table": lambda: Gaussian(Discrete.ddpm()),
    "driven chain": lambda: Driven(schedule=Discrete.ddpm(), drive=(1.0, *[3e-4] * 999)),
    "driven chain from an endpoint": lambda: Driven(schedule=Discrete.ddpm(), start=True),
    "sub-VP": lambda: Gaussian(SubVP()),
    "VE": lambda: Gaussian(VE(sigma_max=20.0)),
    "EDM": lambda: Gaussian(EDM(sigma_max=20.0)),
    "rectified flow": lambda: Gaussian(Rectified()),
    "values at times": lambda: Gaussian(
        Tabulated(times=(0.0, 0.4, 1.0), alphas=(1.0, 0.8, 0.0), sigmas=(0.0, 0.5, 1.0))
    ),
    "Student-t EDM (PFGM++)": lambda: Gaussian(EDM(sigma_max=20.0), StudentT(16.0)),
    "Brownian bridge": lambda: Bridge(variance=0.5),
    "interpolant": lambda: Interpolant("linear", "brownian"),
    "interpolant without noise": lambda: Interpolant("linear", "zero"),
    "mirror interpolant": lambda: Interpolant("mirror", "brownian"),
    "residual (RDDM)": lambda: Residual(),
    "residual, then noise": lambda: Residual(schedule=Clocks(residual=(0.0, 0.8, 1.0), noise=(0.0, 0.4, 1.0))),
    "absorbing tokens": lambda: Absorbing(3),
    "absorbing tokens, cosine": lambda: Absorbing(3, CosineKeep()),
    "uniform tokens": lambda: UniformTokens(3, LogLinear(eps=1e-3)),
    "uniform tokens, geometric": lambda: UniformTokens(3, Geometric()),
    "mask-and-uniform tokens": lambda: MaskAndUniform(3),
    "joint": lambda: Joint({"a": Gaussian(Cosine()), "b": Gaussian(Rectified())}),
    "joint with tokens": lambda: Joint({"a": Gaussian(Cosine()), "b": Absorbing(3)}),
}
TARGETS: dict[str, tuple[str, ...]] = {
    "x0": ("x0",),
    "noise": ("noise",),
    "velocity": ("velocity",),
    "v": ("v",),
    "score": ("score",),
    "residual": ("residual",),
    "mean velocity": ("mean_velocity",),
    "velocity and noise": ("velocity", "noise"),
    "residual and noise": ("residual", "noise"),
    "tokens": (),
}


def _size(u: Tensor, level: Any, cond: Conditions) -> Tensor:
    """An energy that is as good on all states."""
    return 0.1 * u.square().flatten(1).sum(1)


def _log_prob(x_t: Tensor, level: Any, cond: Conditions) -> Tensor:
    """A classifier that is as sure at all levels, whatever the size of the noise."""
    return -_size(x_t, level, cond) / (1.0 + level.noise**2)


GUIDANCES: dict[str, Callable[[Any], Any]] = {
    "none": lambda model: model,
    "classifier-free": lambda model: Free(model, scale=1.5),
    "told scale (distilled)": lambda model: Distilled(ToldScale(model), scale=1.5),
    "combination": lambda model: Combine(model, [Term(weight=1.4), Term(weight=-0.4, drop=("label",))]),
    "nested": lambda model: nested(model, {"label": 1.5}),
    "proximal": lambda model: Proximal(model, 1.5, source={"label": [0]}, quantile=0.0),
    "residual (anchored)": lambda model: Anchored(
        model, scale=lambda level: 1.0 + 0.3 * level.noise / (1.0 + level.noise)
    ),
    "bound conditions": lambda model: Given(model, {"label": [1]}),
    "blend": lambda model: Blend([model, model], [0.3, 0.7]),
    "product": lambda model: product([model, model], [0.5, 0.5]),
    "auto": lambda model: auto(model, model, 1.5),
    "switch": lambda model: Switch([model, model], [0.5]),
    "classifier": lambda model: Classifier(model, _log_prob),
    "energy": lambda model: Energy(model, _size),
    "energy, on means": lambda model: Energy(model, _size, shift="mean"),
    "energy, on states": lambda model: Energy(model, _size, shift="state"),
    "energy of observations": lambda model: Energy(model, SquaredError(), scale=0.3),
    "superposition (average)": lambda model: Superpose([model, model], mode="average"),
    "superposition (or)": lambda model: Superpose([model, model], mode="or"),
    "superposition (and)": lambda model: Superpose([model, model], mode="and"),
    "superposition of told scales": lambda model: Superpose([Distilled(ToldScale(model), 1.5)] * 2, mode="and"),
    "re-timed": lambda model: Retimed(model, Gaussian(Rectified())),
}
UNGUIDED = (  # of one model with itself
    "none", "blend", "product", "auto", "switch", "superposition (average)", "superposition (or)",
    "superposition (and)", "re-timed",
)  # fmt: skip
SAME_LAW = {  # as that of another guidance, whose field says where it leads
    "energy, on means": "energy",
    "energy, on states": "energy",
    "superposition of told scales": "classifier-free",
}
BY_NOISE = ("energy, on means", "energy, on states", "superposition (or)", "superposition (and)",
            "superposition of told scales")  # fmt: skip
SOLVERS: dict[str, Callable[[Any], Solver]] = {
    "DDIM": lambda model: DDIM(),
    "DDIM, eta = 1": lambda model: DDIM(eta=1.0),
    "overshoot": lambda model: Overshoot(),
    "consistency": lambda model: Consistency(),
    "implicit DDIM": lambda model: ImplicitDDIM(),
    "DDPM": lambda model: DDPM(),
    "Euler": lambda model: Euler(),
    "SDE": lambda model: SDE(),
    "Heun": lambda model: Heun(),
    "Runge-Kutta 4": lambda model: RungeKutta("rk4"),
    "Adams-Bashforth": lambda model: AdamsBashforth(2),
    "DPM-Solver": lambda model: DPMSolver(2),
    "DPM-Solver++": lambda model: DPMSolverPP(2),
    "DPM-Solver-v3": lambda model: DPMSolverV3(ModelStatistics.constant(model.process, start=0.9975)),
    "UniPC": lambda model: UniPC(),
    "renoise": lambda model: Renoise(DDIM()),
    "adaptive": lambda model: Adaptive(rtol=0.01, atol=0.01),
    "predictor-corrector": lambda model: PredictorCorrector(Heun(), snr=0.16 if _plain(model) else 0.01),
    "token ancestral": lambda model: TokenAncestral(),
    "relaxed ancestral": lambda model: RelaxedAncestral(),
    "tau-leaping": lambda model: TauLeaping(),
    "unmask": lambda model: Unmask(),
    "joint": lambda model: JointSolver(DDIM()),
    "joint, each its own": lambda model: JointSolver(_each(model.process)),
}
NOT_AFFINE = ("predictor-corrector", "adaptive")
NO_NOISE = ("renoise", "predictor-corrector")  # of the reverse SDE, as long as the grid goes down


def _plain(model: Any) -> bool:
    """Langevin steps settle on the law whose score is guided, level by level, which isn't where a guided flow leads:
    next to guidance they are small."""
    return getattr(model, "plain", not isinstance(model, Guided))


def _each(process: Any) -> Any:
    """A rule for each variable."""
    if not isinstance(process, Joint):
        return DDIM()
    rules = {name: TokenAncestral() if isinstance(process[name], TokenProcess) else DPMSolver(2) for name in process}
    return rules | ({"b": SDE()} if not isinstance(process["b"], TokenProcess) else {})


CONDITIONS: dict[str, Callable[[], dict[str, Condition]]] = {
    "none": dict,
    "label": lambda: {"label": Condition(torch.tensor([1]), "label")},
    "absent label": lambda: {"label": Condition(torch.tensor([1]), "label", keep=torch.tensor([False]))},
    "scalar": lambda: {"scalar": Condition(torch.tensor([0.7]), "scalar")},
    "vector": lambda: {"vector": Condition(torch.tensor([[0.4, 0.9]]), "vector")},
    "tokens": lambda: {"tokens": Condition(torch.tensor([[[0.4], [0.9], [0.1]]]), "tokens")},
    "map": lambda: {"map": Condition(torch.tensor([[[0.4, 0.9]]]), "map")},
    "frames": lambda: {"frames": Condition(torch.tensor([[[[0.4, 0.9]]]]), "frames")},
    "endpoint": lambda: {"endpoint": Condition(torch.tensor([[0.8, -0.3]]), "endpoint")},
    "observation": lambda: {
        "observation": Condition(torch.tensor([[0.6, -0.2]]), "observation", mask=torch.tensor([[1.0, 1.0]]))
    },
    "known": lambda: {"known": Condition(torch.tensor([[True, False]]), "known")},
    "strength": lambda: {"strength": Condition(torch.tensor([0.7]), "strength")},
}
KINDS = {name: name for name in CONDITIONS if name not in ("none", "absent label")}
TOKEN_SOLVERS = ("token ancestral", "relaxed ancestral", "tau-leaping", "unmask")
WITH_ENDPOINT = ("Brownian bridge", "residual (RDDM)", "residual, then noise", "driven chain from an endpoint")
LAST = {"driven chain": 1e-3, "driven chain from an endpoint": 1e-3}  # of the first step; data is the drive beyond it
OWN_TARGETS = {  # of processes for which x0 isn't enough
    "interpolant": "velocity and noise",
    "interpolant without noise": "velocity",
    "mirror interpolant": "x0",
}


@functools.cache
def process(name: str) -> Any:
    """One of the processes, made once."""
    return PROCESSES[name]()


def complete(chosen: Mapping[str, str]) -> dict[str, str]:
    """The axes that weren't chosen, to suit those that were."""
    case = dict(chosen)
    target, solver = case.get("target"), case.get("solver")
    if "process" not in case:
        token = target == "tokens" or solver in TOKEN_SOLVERS
        ends = target in ("residual", "residual and noise") or case.get("condition") == "endpoint"
        case["process"] = "absorbing tokens" if token else "residual (RDDM)" if ends else "VP cosine"
        joint = {"joint": "joint", "joint, each its own": "joint with tokens"}
        case["process"] = joint.get(solver or "", case["process"])
    tokens = "tokens" in case["process"] and not case["process"].startswith("joint")
    joint = {"joint": "joint", "joint with tokens": "joint, each its own"}.get(case["process"])
    case.setdefault("target", "tokens" if tokens else OWN_TARGETS.get(case["process"], "x0"))
    case.setdefault("guidance", "none")
    by_noise = case["guidance"] in BY_NOISE or case.get("hook") == "Itô density"
    moves = "DDPM" if by_noise else "DDIM"
    case.setdefault("solver", "token ancestral" if tokens else joint or moves)
    case.setdefault("condition", "+".join(_needed(case)) or "none")
    return case


def _needed(case: Mapping[str, str]) -> list[str]:
    """The conditions that a process and a guidance can't do without."""
    needed = ["endpoint"] if case["process"] in WITH_ENDPOINT else []
    if case["guidance"] == "energy of observations":
        return [*needed, "observation"]
    return needed if case["guidance"] in UNGUIDED else [*needed, "label"]


def dims(case: Mapping[str, str]) -> int:
    """Numbers of a sample. Langevin steps are scaled by norms, which say little in few dimensions."""
    return 64 if case["solver"] == "predictor-corrector" else 2


def conditions(case: Mapping[str, str], dims: int) -> Conditions:
    """The conditions of a case, one row in float64."""
    names = case["condition"].split("+")
    if case["process"] in WITH_ENDPOINT and not {"none", "endpoint"} & set(names):
        names.append("endpoint")
    entries: dict[str, Condition] = {}
    for name in names:
        entries |= CONDITIONS[name]()
    if case["guidance"] == "residual (anchored)":
        entries[ANCHOR] = Condition(torch.tensor([[0.5, -0.4]]), "map")
    for name in {"endpoint", "observation", ANCHOR} & set(entries):  # of the sample's shape
        entries[name] = entries[name].map(lambda v: v.repeat(1, dims // 2))
    return Conditions(entries).map(lambda v: v.double() if v.dtype.is_floating_point else v)
