"""The axes of the table of compositions, and exact models for all of them; see :mod:`condiff.methods.composition`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condiff.conditions import Condition, Conditions, as_conditions
from condiff.denoiser import Denoiser
from condiff.guidance import Blend, Combine, Energy, Free, Superpose, Switch, Term, auto, nested, product
from condiff.process import (
    EDM,
    VE,
    Absorbing,
    Bridge,
    Cosine,
    Discrete,
    EndpointLaw,
    Gaussian,
    Interpolant,
    Joint,
    Level,
    LogLinear,
    MaskAndUniform,
    Moments,
    Prediction,
    Prior,
    Process,
    Rectified,
    Residual,
    StudentT,
    SubVP,
    TokenProcess,
    UniformTokens,
    VPLinear,
    oracles,
)
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    Adaptive,
    DPMSolver,
    DPMSolverPP,
    DPMSolverV3,
    Euler,
    GaussianLaw,
    Heun,
    JointSolver,
    ModelStatistics,
    PredictorCorrector,
    RungeKutta,
    Solver,
    TauLeaping,
    TokenAncestral,
    UniPC,
    Unmask,
)
from condiff.token_denoiser import TokenDenoiser

# The axes

PROCESSES: dict[str, Callable[[], Any]] = {
    "VP linear": lambda: Gaussian(VPLinear()),
    "VP cosine": lambda: Gaussian(Cosine()),
    "VP table": lambda: Gaussian(Discrete.ddpm()),
    "sub-VP": lambda: Gaussian(SubVP()),
    "VE": lambda: Gaussian(VE(sigma_max=20.0)),
    "EDM": lambda: Gaussian(EDM(sigma_max=20.0)),
    "rectified flow": lambda: Gaussian(Rectified()),
    "Student-t EDM (PFGM++)": lambda: Gaussian(EDM(sigma_max=20.0), StudentT(16.0)),
    "Brownian bridge": lambda: Bridge(variance=0.5),
    "interpolant": lambda: Interpolant("linear", "brownian"),
    "interpolant without noise": lambda: Interpolant("linear", "zero"),
    "mirror interpolant": lambda: Interpolant("mirror", "brownian"),
    "residual (RDDM)": lambda: Residual(),
    "absorbing tokens": lambda: Absorbing(3),
    "uniform tokens": lambda: UniformTokens(3, LogLinear(eps=1e-3)),
    "mask-and-uniform tokens": lambda: MaskAndUniform(3),
    "joint": lambda: Joint({"a": Gaussian(Cosine()), "b": Gaussian(Rectified())}),
}
TARGETS: dict[str, tuple[str, ...]] = {
    "x0": ("x0",),
    "noise": ("noise",),
    "velocity": ("velocity",),
    "v": ("v",),
    "score": ("score",),
    "residual": ("residual",),
    "velocity and noise": ("velocity", "noise"),
    "residual and noise": ("residual", "noise"),
    "tokens": (),
}
GUIDANCES: dict[str, Callable[[Any], Any]] = {
    "none": lambda model: model,
    "classifier-free": lambda model: Free(model, scale=1.5),
    "combination": lambda model: Combine(model, [Term(weight=1.4), Term(weight=-0.4, drop=("label",))]),
    "nested": lambda model: nested(model, {"label": 1.5}),
    "blend": lambda model: Blend([model, model], [0.3, 0.7]),
    "product": lambda model: product([model, model], [0.5, 0.5]),
    "auto": lambda model: auto(model, model, 1.5),
    "switch": lambda model: Switch([model, model], [0.5]),
    "energy": lambda model: Energy(model, lambda u, level, cond: 0.1 * u.square().flatten(1).sum(1)),
    "superposition (average)": lambda model: Superpose([model, model], mode="average"),
    "superposition (or)": lambda model: Superpose([model, model], mode="or"),
    "superposition (and)": lambda model: Superpose([model, model], mode="and"),
}
UNGUIDED = (  # of one model with itself
    "none", "blend", "product", "auto", "switch", "superposition (average)", "superposition (or)",
    "superposition (and)",
)  # fmt: skip
SOLVERS: dict[str, Callable[[Any], Solver]] = {
    "DDIM": lambda model: DDIM(),
    "DDIM, eta = 1": lambda model: DDIM(eta=1.0),
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
    "adaptive": lambda model: Adaptive(),
    "predictor-corrector": lambda model: PredictorCorrector(DDIM()),
    "token ancestral": lambda model: TokenAncestral(),
    "tau-leaping": lambda model: TauLeaping(),
    "unmask": lambda model: Unmask(),
    "joint": lambda model: JointSolver(DDIM()),
}
NOT_AFFINE = ("predictor-corrector", "adaptive")
CONDITIONS: dict[str, Callable[[], dict[str, Condition]]] = {
    "none": dict,
    "label": lambda: {"label": Condition(torch.tensor([1]), "label")},
    "scalar": lambda: {"scalar": Condition(torch.tensor([0.7]), "scalar")},
    "vector": lambda: {"vector": Condition(torch.tensor([[0.4, 0.9]]), "vector")},
    "tokens": lambda: {"tokens": Condition(torch.tensor([[[0.4], [0.9], [0.1]]]), "tokens")},
    "map": lambda: {"map": Condition(torch.tensor([[[0.4, 0.9]]]), "map")},
    "frames": lambda: {"frames": Condition(torch.tensor([[[[0.4, 0.9]]]]), "frames")},
    "endpoint": lambda: {"endpoint": Condition(torch.tensor([[0.8, -0.3]]), "endpoint")},
    "observation": lambda: {
        "observation": Condition(torch.tensor([[0.6, -0.2]]), "observation", mask=torch.tensor([[1.0, 1.0]]))
    },
}
KINDS = {name: name for name in CONDITIONS if name != "none"}


def complete(chosen: Mapping[str, str]) -> dict[str, str]:
    """The axes that weren't chosen, to suit those that were."""
    case = dict(chosen)
    target, solver = case.get("target"), case.get("solver")
    if "process" not in case:
        token = target == "tokens" or solver in ("token ancestral", "tau-leaping", "unmask")
        ends = target in ("residual", "residual and noise") or case.get("condition") == "endpoint"
        case["process"] = "absorbing tokens" if token else "residual (RDDM)" if ends else "VP cosine"
        case["process"] = "joint" if solver == "joint" else case["process"]
    tokens, joint = "tokens" in case["process"], case["process"] == "joint"
    fields = {"interpolant": "velocity and noise", "interpolant without noise": "velocity"}
    case.setdefault("target", "tokens" if tokens else fields.get(case["process"], "x0"))
    case.setdefault("guidance", "none")
    moves = "DDPM" if case["guidance"] in ("superposition (or)", "superposition (and)") else "DDIM"
    case.setdefault("solver", "token ancestral" if tokens else "joint" if joint else moves)
    needs_end = case["process"] in WITH_ENDPOINT
    guided = case["guidance"] not in UNGUIDED
    case.setdefault("condition", "+".join(["endpoint"] * needs_end + ["label"] * guided) or "none")
    return case


def dims(case: Mapping[str, str]) -> int:
    """Numbers of a sample. Langevin steps are scaled by norms, which say little in few dimensions."""
    return 64 if case["solver"] == "predictor-corrector" else 2


def conditions(case: Mapping[str, str]) -> Conditions:
    """The conditions of a case, one row in float64."""
    names = case["condition"].split("+")
    if case["process"] in WITH_ENDPOINT and not {"none", "endpoint"} & set(names):
        names.append("endpoint")
    entries: dict[str, Condition] = {}
    for name in names:
        entries |= CONDITIONS[name]()
    for name in {"endpoint", "observation"} & set(entries):  # of the sample's shape
        entries[name] = entries[name].map(lambda v: v.repeat(1, dims(case) // 2))
    return Conditions(entries).map(lambda v: v.double() if v.dtype.is_floating_point else v)


WITH_ENDPOINT = ("Brownian bridge", "residual (RDDM)")  # that the model is told


# Exact models


class Told:
    """Gaussian data whose mean is told by conditions: ``x0 | c ~ N(m(c), v)``, exact on every process.

    An absent condition says nothing and leaves more variance. Under Student-t noise the data are one point, ``v = 0``.
    An interpolant's model doesn't see its endpoint, which is drawn from N(0.2, 0.5), unless it is given.

    Args:
        target: what is predicted; all else follows from that, as with a network.
        dims: numbers of a sample, even.
        deaf: conditions make no difference.
    """

    def __init__(self, process: Process, target: str, dims: int = 2, deaf: bool = False) -> None:
        self.process, self.deaf, self.kinds, self.shape = process, deaf, KINDS, (dims,)
        self.direction = torch.tensor([1.0, -0.5], dtype=torch.float64).repeat(dims // 2)
        if target == "tokens":
            TokenDenoiser(nn.Identity(), process)  # type: ignore[arg-type]
        self.targets = Denoiser(nn.Identity(), process, TARGETS[target][0]).targets + TARGETS[target][1:]
        self.variance = 0.36 if process.noise_law.gaussian else 0.0

    def moments(self, cond: Conditions, rows: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of x0 in each row, (B, D) each."""
        mean = torch.zeros(rows, *self.shape, dtype=torch.float64)
        var = torch.full_like(mean, self.variance)
        for name, entry in cond.items():
            kept = entry.kept()[:, None]
            value = entry.value.double().reshape(len(entry.value), -1)
            if name == "observation" and self.variance:
                assert entry.mask is not None
                precision = entry.mask.double() / 0.4
                new = 1.0 / (1.0 / var + precision)
                mean, var = torch.where(kept, new * (mean / var + precision * value), mean), torch.where(kept, new, var)
            elif name == "endpoint":
                mean = mean + torch.where(kept, 0.5 * value, 0.0)
            elif not self.deaf:
                mean = mean + torch.where(kept, value.mean(1, keepdim=True) * self.direction, 0.0)
                var = var + torch.where(kept, 0.0, 0.25 if self.variance else 0.0)
        return mean, var

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Prediction:
        level = self.process.at(t)
        cond = as_conditions(cond, KINDS, x_t.device)
        source, blind = self._source(cond)
        a, b, s = (_column(w) for w in (level.data, level.source, level.noise))
        mean, var = self.moments(cond, len(x_t))
        spread = END_VARIANCE if blind else 0.0
        total = a * a * var + b * b * spread + s * s
        away = x_t - a * mean - b * source
        away = torch.where(total > 0.0, away / torch.where(total > 0.0, total, 1.0), 0.0)
        # The noise of a point is what is left of the state, whatever its law.
        values = {"x0": mean + a * var * away} | ({"noise": s * away} if self.variance else {})
        source = source + b * spread * away if self.process.has_source else None
        truth = Prediction(x_t, level, values, source=source)
        said = {kind: truth.to(kind) for kind in self.targets}
        return Prediction(x_t, level, said, source=None if blind else source)

    def _source(self, cond: Conditions) -> tuple[Any, bool]:
        """The mean of the endpoint, and whether it is only its mean."""
        if not self.process.has_source:
            return 0.0, False
        blind = cond.source is None and isinstance(self.process, Interpolant)
        return (END_MEAN if cond.source is None else cond.source.double()), blind

    def law(self, level: Level, cond: Conditions) -> GaussianLaw:
        """Of x_t, with all conditions."""
        mean, var = self.moments(cond, 1)
        start = self.prior_law(level, cond)
        return GaussianLaw(start.mean + level.data * mean[0], start.cov + torch.diag(level.data**2 * var[0]))

    def prior(self, level: Level, cond: Conditions) -> Prior | None:
        """Where sampling starts from, if not from the process's own prior: below t = 1 the moments of the data."""
        if self._source(cond)[1]:
            return EndpointLaw(_Ends(self.shape))
        if level.t < 1.0 and self.variance:
            mean, var = self.moments(cond, 1)
            return Moments(mean[0], float(var[0].max()))
        return None

    def prior_law(self, level: Level, cond: Conditions) -> GaussianLaw:
        """Of the noise and the endpoint in x_t."""
        source, blind = self._source(cond)
        end = torch.as_tensor(source, dtype=torch.float64).flatten()
        center = torch.zeros(self.shape, dtype=torch.float64) + level.source * end
        spread = level.source**2 * END_VARIANCE if blind else 0.0
        return GaussianLaw(center, (level.noise**2 + spread) * torch.eye(*self.shape, dtype=torch.float64))


END_MEAN, END_VARIANCE = 0.2, 0.5


class _Ends:
    """The law of an endpoint that isn't told."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, n: int, rng: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return END_MEAN + END_VARIANCE**0.5 * rng.normal((n, *self.shape), dtype)


def _column(w: Any) -> Any:
    return w.reshape(-1, 1) if isinstance(w, Tensor) and w.ndim else w


class Twins:
    """Two variables that are told nothing of each other; conditions make no difference, so guidance by them neither."""

    def __init__(self, process: Joint, target: str) -> None:
        self.process, self.kinds = process, KINDS
        self.parts = {name: Told(process[name], target, deaf=True) for name in process}
        self.shape = {name: part.shape for name, part in self.parts.items()}

    def __call__(self, x_t: Mapping[str, Tensor], t: Any, cond: Any = None) -> dict[str, Prediction]:
        level = self.process.at(t)
        return {name: part(x_t[name], level[name], cond) for name, part in self.parts.items()}


class TokenTwin:
    """Two tokens of three values with one law for both labels, so that guidance by them makes no difference."""

    law = torch.tensor([0.22, 0.08, 0.05, 0.1, 0.15, 0.02, 0.03, 0.05, 0.3], dtype=torch.float64)

    def __init__(self, process: TokenProcess, target: str) -> None:
        if target != "tokens":
            Denoiser(nn.Identity(), process, TARGETS[target])  # type: ignore[arg-type]
        both = self.law.reshape(1, 3, 3).expand(2, 3, 3)
        self.process, self.oracle = process, oracles.tokens(process, both, torch.tensor([0.5, 0.5]))
        self.shape, self.kinds = self.oracle.shape, self.oracle.kinds

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Any:
        return self.oracle(x_t, t, cond)

    def index(self, x: Tensor) -> Tensor:
        """The number of each sequence in the law."""
        return 3 * x[:, 0] + x[:, 1]
