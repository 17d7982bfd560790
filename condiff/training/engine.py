"""Engine: one optimizer step, over parts and processes.

Every draw of a step comes from generators seeded with (seed, step): times, noise and corruptions are drawn for the
global batch, of which each part of the batch takes its rows; dropout from torch's global generator, seeded for the
part and put back afterwards. The gradient of a step is that of the mean over the global batch, however it is split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from condiff.errors import BadValue
from condiff.random import Shard, Source, Stream, derive_seed
from condiff.training.batch import Batch
from condiff.training.config import TrainConfig
from condiff.training.ema import EMA
from condiff.training.modules import Together, blocks_of, compiled, optimizer_of, recomputing
from condiff.training.objective import Losses
from condiff.training.order import share
from condiff.training.parallel import Parallel, whole


class Engine:
    """What a step changes: weights, optimizer, averages, loss scale.

    Args:
        denoiser, objective: see :class:`Trainer`.
        optimizer: ``groups -> Optimizer`` instead of AdamW.

    Raises:
        BadValue: nothing to train, or fewer rows than parts.
        Incompatible: blocks are asked for and there are none.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Any,
        config: TrainConfig,
        parallel: Parallel,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.denoiser, self.objective, self.config, self.parallel = denoiser, objective, config, parallel
        self.device = parallel.device
        self.parts = parallel.world * config.accumulate
        if config.batch < self.parts:
            raise BadValue(f"a batch of {config.batch} can't be shared among {self.parts} processes and parts")
        self.mine = [m * parallel.world + parallel.rank for m in range(config.accumulate)]
        self.module = Together(denoiser, objective).to(self.device)
        parallel.same_start(self.module)
        self.blocks = blocks_of(denoiser) if config.checkpoint_activations or parallel.sharded else []
        self.wrapped = parallel.wrap(self.module, self.blocks)
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if not named:
            raise BadValue("there is nothing to train: no parameter requires a gradient")
        self.parameters = list(named.values())
        self.names: dict[Tensor, str] = {p: n for n, p in named.items()}
        self.optimizer = optimizer_of(self.parameters, config, optimizer)
        self.ema = EMA(denoiser, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    # One step

    def advance(self, step: int, batches: Iterator[Batch]) -> tuple[list[Losses], Tensor]:
        """Step ``step`` (the first is 0): ``(losses of this process's parts, gradient norm)``.

        The losses are weighted by their part's share of the global batch, so that sums of them are its mean.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step)
        out = self._gradient(step, batches)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(step + 1)
        return out, norm

    def rehearse(self, batches: Iterator[Batch]) -> tuple[list[Losses], Tensor]:
        """What :meth:`advance` gives for the first step, without taking it: the gradients are thrown away."""
        out = self._gradient(0, batches)
        norm = self._clip() / self.scaler.get_scale()
        self.optimizer.zero_grad(set_to_none=True)
        return out, norm

    def _gradient(self, step: int, batches: Iterator[Batch]) -> list[Losses]:
        if hasattr(self.objective, "begin"):
            self.objective.begin(step, self.config.steps)
        out = []
        for part in self.mine:
            with self.parallel.syncing(self.wrapped, part == self.mine[-1]), self.seeded("dropout", step, part):
                out.append(self._part(next(batches), step, part))
        return out

    def _part(self, batch: Batch, step: int, part: int) -> Losses:
        source = self.source(part, self.parts, self.config.batch, "step", step)
        with self.autocast():
            losses = self.wrapped(batch.to(self.device, non_blocking=True), source, True)
        fraction = len(batch) / self.config.batch
        # DDP and FSDP average over processes, hence the factor.
        self.scaler.scale(losses.loss * (fraction * self.parallel.world)).backward()
        parts = {k: v.detach() * fraction for k, v in losses.parts.items()}
        return Losses(losses.loss.detach() * fraction, losses.per_sample.detach(), parts, losses.t)

    def _clip(self) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        return whole(norm)

    @torch.no_grad()
    def loss(self, batch: Batch, rng: Source) -> Tensor:
        """The objective's loss without training."""
        with self.autocast():
            return self.module(batch.to(self.device), rng, False).loss

    # Randomness

    def source(self, part: int, parts: int, rows: int, *keys: int | str) -> Source:
        """The draws of one part of a batch of ``rows`` rows: a function of the seed and the keys."""
        device = self.device if self.device.type == "cuda" else "cpu"
        stream = Stream(torch.Generator(device).manual_seed(derive_seed(self.config.seed, *keys)))
        return stream if parts == 1 else Shard(stream, *share(rows, part, parts), rows)

    @contextmanager
    def seeded(self, *keys: int | str) -> Iterator[None]:
        """Inside, torch's global generator is seeded with the seed and the keys; outside, it is untouched."""
        # torch.manual_seed would do, but it also queues seeds for absent devices, at milliseconds a step.
        generators = [torch.default_generator]
        if self.device.type == "cuda":
            generators.append(torch.cuda.default_generators[self.device.index])
        before = [g.get_state() for g in generators]
        for g in generators:
            g.manual_seed(derive_seed(self.config.seed, *keys))
        try:
            yield
        finally:
            for g, state in zip(generators, before, strict=True):
                g.set_state(state)

    # Modes

    def autocast(self) -> Any:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside: training mode, compiled, recomputed and TF32 as configured; outside as before."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.config.tf32
        recomputed = self.blocks if self.config.checkpoint_activations else []
        self.denoiser.train()
        try:
            with recomputing(recomputed), compiled(self.denoiser, self.config.compile):
                yield
        finally:
            matmul.allow_tf32 = before
            self.denoiser.eval()

    @contextmanager
    def judged(self, *keys: int | str) -> Iterator[nn.Module]:
        """Inside: the denoiser with averaged weights, in evaluation mode, with seeded global draws."""
        self.denoiser.eval()
        try:
            with self.seeded(*keys):
                if self.ema is None:
                    yield self.denoiser
                else:
                    with self.ema.swap():
                        yield self.denoiser
        finally:
            self.denoiser.train()
