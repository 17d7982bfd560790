"""DiffusionClassifier: the condition under which a sample is denoised best."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible
from condiff.fields import check_fields
from condiff.scoring.candidates import Noises, candidate_errors, check_candidates
from condiff.scoring.levels import stage_indices
from condiff.scoring.measures import Error, Measure
from condiff.typing import Float, Int

LEVELS = 1000  # that a process without a table is cut into


class Scores(NamedTuple):
    """What was measured.

    * ``errors``: (B, C), the mean error of each candidate over the draws at which it was seen; lower is better. Those
      of candidates that were dropped at different stages aren't comparable.
    * ``seen``: (B, C), the number of those draws.
    * ``best``: (B,), the candidate that is left.
    * ``calls``: network evaluations of one sample.
    """

    errors: Tensor
    seen: Tensor
    best: Tensor
    calls: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DiffusionClassifier:
    """A classifier out of a conditional denoiser, without training (Li 2023).

    ``E(c) = mean_j d(eps_j, eps_hat(a_j x + s_j eps_j, t_j, c))``, with the same levels and noise for every candidate
    c; the lowest wins. In stages: all candidates are compared at a few levels, the best of them at more, until one
    is left. A single candidate isn't evaluated any further.

    Args:
        denoiser: conditional; not a guided one.
        candidates: conditions, a row for each: ``{"label": torch.arange(10)}``, encoded prompts.
        stages: ``(levels, keep)`` each: up to that many noise levels, after which the best ``keep`` stay. The last
            keeps 1. One stage compares all of them everywhere.
        measure: what is compared; :class:`Error`, :class:`Bound`, or their sum.
        classes: the class of each candidate, for several prompts a class: the best prompt decides.
        trials: noises per level.
        levels: how many noise levels there are; those of the process's table, or 1000.
        seed: noise k is a function of (seed, k).
        noise: a table of noises in place of drawn ones.
        batch: (sample, candidate, draw) triples per network call; the result doesn't depend on it.

    Raises:
        BadValue: no candidates or equal ones; stages that don't end in 1, that keep more than there are, or that ask
            for more levels than there are.
        Incompatible: an unconditional or a guided denoiser.

    Example:
        >>> clf = DiffusionClassifier(denoiser=model, candidates={"label": torch.arange(10)}, stages=[(20, 1)])
        >>> clf.predict(images)
    """

    denoiser: Denoises
    candidates: Mapping[str, Any]
    stages: Sequence[tuple[int, int]] = ((50, 1),)
    measure: Measure = field(default_factory=Error)
    classes: Sequence[int] | None = None
    trials: int = 1
    levels: int | None = None
    seed: int = 0
    noise: Tensor | None = None
    batch: int = 256
    _told: Conditions = field(init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "_told", check_candidates(self.denoiser, self.candidates))
        if self.trials < 1 or self.batch < 1:
            raise BadValue(f"trials and batch must be at least 1, got {self.trials} and {self.batch}")
        self._check_stages()
        if self.classes is not None and (len(self.classes) != self._count or min(self.classes) < 0):
            raise BadValue(f"{self._count} candidates need as many classes >= 0, got {list(self.classes)}")

    @property
    def _count(self) -> int:
        return self._told.batch or 0

    @property
    def _levels(self) -> int:
        table = getattr(getattr(self.denoiser.process, "schedule", None), "steps", None)
        known = table if isinstance(table, int) else LEVELS
        return known if self.levels is None else self.levels

    def _check_stages(self) -> None:
        keeps, count = [keep for _, keep in self.stages], self._count
        if not keeps or keeps[-1] != 1:
            raise BadValue(f"stages are pairs (levels, keep), the last of which keeps 1, got {list(self.stages)}")
        if any(a <= b for a, b in itertools.pairwise(keeps)) or keeps[0] > count:
            raise BadValue(f"stages must keep fewer and fewer of {count} candidates, got {keeps}")
        stage_indices(self._levels, [n for n, _ in self.stages])

    # What it says

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "batch *shape"], cond: Mapping[str, Any] | None = None) -> Scores:
        """Errors of all candidates and the one that is left.

        Args:
            x: clean samples of the model, (B, ...); for a model of latents, encoded ones.
            cond: what else the model is told of each sample.

        Raises:
            NonFinite: an error that isn't a number.
        """
        count = self._count
        total = torch.zeros(len(x), count, dtype=torch.float64, device=x.device)
        seen = torch.zeros(len(x), count, dtype=torch.long, device=x.device)
        left = torch.arange(count, device=x.device).expand(len(x), count)
        noises, used, calls = Noises(self.denoiser.process, x.shape[1:], self.seed, self.noise), 0, 0
        for (_, keep), new in zip(self.stages, stage_indices(self._levels, [n for n, _ in self.stages]), strict=True):
            if left.shape[1] == 1:
                break
            times, noise = self._draws(noises, used, new, x)
            errors = candidate_errors(
                self.denoiser, x, self._told, times, noise, [self.measure], choice=left, cond=cond, batch=self.batch
            )[0]
            total.scatter_add_(1, left, errors.double().sum(-1))
            seen.scatter_add_(1, left, torch.full_like(left, len(times)))
            used, calls = used + len(times), calls + left.shape[1] * len(times)
            order = (total / seen).gather(1, left).argsort(dim=1, stable=True)[:, :keep]
            left = left.gather(1, order)
        return Scores(total / seen, seen, left[:, 0], calls)

    def predict(self, x: Float[Tensor, "batch *shape"], cond: Mapping[str, Any] | None = None) -> Int[Tensor, " batch"]:
        """The class of each sample: the number of its best candidate, or what ``classes`` says of that."""
        return self.class_of(self.scores(x, cond).best)

    def class_of(self, candidate: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The classes of candidates by number."""
        return candidate if self.classes is None else torch.tensor(self.classes, device=candidate.device)[candidate]

    def probabilities(
        self, x: Float[Tensor, "batch *shape"], cond: Mapping[str, Any] | None = None, prior: Tensor | None = None
    ) -> Float[Tensor, "batch classes"]:
        """``p(c | x) = softmax_c(log prior(c) - d E(c))``, d the elements of a sample; classes sum their candidates.

        With ``Error(weight="elbo")`` ``d E(c)`` estimates -log p(x | c) up to a constant, and this is Bayes' rule; with
        other measures it is a softmax, whose sureness means little.

        Args:
            prior: (C,) of the candidates; uniform by default.

        Raises:
            Incompatible: several stages, whose errors are means over different draws.
            BadValue: a prior that isn't one.
        """
        errors = self._comparable(x, cond)
        return self.posterior(errors, x[0].numel(), prior)

    def posterior(self, errors: Tensor, dims: int, prior: Tensor | None = None) -> Tensor:
        """Class probabilities of errors (B, C) that were measured on the same draws; see :meth:`probabilities`."""
        count = self._count
        log_prior = _log_prior(prior, count).to(errors.device)
        p = (log_prior - dims * errors.double()).softmax(1)
        if self.classes is None:
            return p
        classes = torch.tensor(self.classes, device=p.device)
        return torch.zeros(len(p), int(classes.max()) + 1, dtype=p.dtype, device=p.device).index_add_(1, classes, p)

    def _comparable(self, x: Tensor, cond: Mapping[str, Any] | None) -> Tensor:
        if len(self.stages) > 1:
            raise Incompatible(
                "probabilities compare all candidates on the same draws, and stages drop some before: use one stage"
            )
        return self.scores(x, cond).errors

    def _draws(self, noises: Noises, used: int, new: list[int], x: Tensor) -> tuple[Tensor, Tensor]:
        """Times and noises of a stage, ``trials`` noises a level; noise is numbered in order of evaluation."""
        times = (torch.tensor(new, dtype=torch.float64) + 1.0) / self._levels
        times = times.repeat_interleave(self.trials)
        return times, noises.rows(used, len(times), x.dtype, x.device)

    def __repr__(self) -> str:
        return f"DiffusionClassifier({self._count} candidates, stages={list(self.stages)}, measure={self.measure})"


def _log_prior(prior: Tensor | None, count: int) -> Tensor:
    if prior is None:
        return torch.zeros(count, dtype=torch.float64).log_softmax(0)
    prior = torch.as_tensor(prior, dtype=torch.float64).cpu()
    if prior.shape != (count,) or not bool((prior >= 0.0).all()) or abs(float(prior.sum()) - 1.0) > 1e-6:
        raise BadValue(f"a prior is {count} numbers >= 0 that sum to 1, got {prior.tolist()}")
    return prior.log()
