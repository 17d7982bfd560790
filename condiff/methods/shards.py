"""Samples drawn by several processes, or one after another: in blocks that are kept until all are there.

A plan is cut into blocks of ``--batch`` samples. Whoever draws a block writes it to a hidden folder beside the output,
whole or not at all; when all blocks are there, the first process puts them together, and the folder goes. Who is killed
half way is started again, with as many processes as there are then, and the blocks that are there are left as they are.

Block k holds the samples ``k batch ... (k + 1) batch - 1`` whoever draws it: the same network calls, on the same rows,
with the same seeds. So the result doesn't depend on the number of processes or on interruptions, to the last bit.
Another ``--batch`` makes other network calls: the same samples up to the rounding of matrix products.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.config import read_json
from condiff.errors import BadFile, Incompatible
from condiff.files import alone_in, read_tensors, remove, write_json, write_tensors
from condiff.methods.drawing import draw_parts
from condiff.methods.drawn import Drawing, Part, Plan, gather
from condiff.model_files import check_same, versions
from condiff.peers import Peers, world

SETTINGS = "settings.json"
PATIENCE = timedelta(days=30)  # blocks may take long, and who waits for another can't know


class Blocks:
    """The finished blocks of one output.

    Args:
        out: the output, beside which their folder lies.
        settings: everything that the samples depend on, JSON-ready.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        out = out.absolute()
        self.folder, self.settings = out.with_name(f".{out.name}.parts"), dict(settings)

    @property
    def begun(self) -> bool:
        """Whether there is unfinished work."""
        return (self.folder / SETTINGS).is_file()

    def check(self) -> None:
        """
        Raises:
            Incompatible: unfinished work with other settings, naming the first that differ.
        """
        if not self.begun:
            return
        what = f"{self.folder} holds unfinished samples that were asked for otherwise"
        try:
            check_same(read_json(self.folder / SETTINGS), self.settings, what)
        except Incompatible as error:
            hint = "repeat that command, choose another --out, or start anew with --overwrite"
            raise Incompatible(f"{error}: {hint}") from None

    def begin(self, anew: bool = False) -> None:
        """Note the settings in the folder, which must be there; forget what it holds where that is of no use."""
        if anew:
            for old in [self.folder / SETTINGS, *self.folder.glob("samples-*")]:
                remove(old)
        if not self.begun:
            write_json(self.folder / SETTINGS, self.settings)

    def path(self, rows: range) -> Path:
        return self.folder / f"samples-{rows.start:09d}-{rows.stop:09d}.safetensors"

    def there(self, rows: range) -> bool:
        return self.path(rows).is_file()

    def write(self, rows: range, part: Part) -> None:
        """Keep a block, written whole or not at all."""
        tensors = {f"x.{name}": x for name, x in part.x.items()} if isinstance(part.x, Mapping) else {"x": part.x}
        if part.calls is not None:
            tensors["calls"] = part.calls
        write_tensors(self.path(rows), tensors, {"nfe": str(part.nfe)})

    def read(self, rows: range) -> Part:
        """A block that was kept.

        Raises:
            BadFile: a file that was changed since.
        """
        tensors, said = read_tensors(self.path(rows))
        calls = tensors.pop("calls", None)
        x: Any = tensors.get("x")
        if x is None:
            x = {name.removeprefix("x."): value for name, value in tensors.items()}
        return Part(x, int(said["nfe"]), calls)

    def drop(self) -> None:
        """Remove the folder: the samples are where they should be, or aren't wanted any more."""
        remove(self.folder)


def settings_of(plan: Plan, **asked: Any) -> dict[str, Any]:
    """What the samples of a plan depend on: its fields and its sampler's, but for those that are known otherwise.

    Args:
        asked: what stands for those, such as the hash of the weights, and of the file that the initial law is from.
    """
    own = {f.name: _plain(getattr(plan, f.name)) for f in fields(plan) if f.name not in OTHERWISE}
    how = {f.name: _plain(getattr(plan.sampler, f.name)) for f in fields(plan.sampler) if f.name != "prior"}
    return {**own, **how, "versions": versions(), **asked}


# Fields of a plan that follow from the run, from other fields, or change nothing.
OTHERWISE = ("denoiser", "recipe", "sampler", "data", "codec", "truth", "labels", "columns", "progress")


def _plain(value: Any) -> Any:
    """A value as JSON: itself, a hash of tensors, or how it is written."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return value.type
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(bits).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else repr(value)


def needed(plan: Plan, out: Path) -> bool:
    """Whether blocks are kept: for several, by several processes, or where unfinished work lies beside the output."""
    return len(plan.blocks()) > 1 or world() > 1 or Blocks(out, {}).begun


def draw_plan(
    plan: Plan, blocks: Blocks | None = None, *, anew: bool = False, say: Callable[[str], None] | None = None
) -> Drawing | None:
    """All samples of a plan, together with the processes that were started beside this one; None but for the first.

    The caller writes the output and then drops the blocks.

    Args:
        blocks: where finished ones are kept; None keeps none, by a process that is alone.
        anew: unfinished work with other settings is dropped, not refused.
        say: called by the first process with lines of progress.

    Raises:
        Incompatible: unfinished work with other settings.
        BadFile: other processes are drawing this output.
        CondiffError: another process stopped; the blocks that are done stay.
    """
    ranges, started = plan.blocks(), time.perf_counter()
    if blocks is None:
        return gather(plan, draw_parts(plan, ranges), time.perf_counter() - started)
    peers = Peers(patience=PATIENCE)
    tell = say if say is not None and peers.main else lambda line: None
    try:
        stale = _stale(blocks, anew)
        blocks.folder.mkdir(parents=True, exist_ok=True)
        peers.wait()  # all have seen the same before anyone changes it
        with alone_in(blocks.folder if peers.main else None, "drawing samples"):
            if peers.main:
                blocks.begin(anew=stale)
            peers.wait()
            todo = [rows for rows in ranges if not blocks.there(rows)]
            peers.wait()
            tell(_plan_in_words(plan, ranges, todo, peers.world))
            for rows in todo[peers.rank :: peers.world]:
                blocks.write(rows, *draw_parts(plan, [rows]))
                done = sum(len(block) for block in ranges if blocks.there(block))
                tell(f"{done} of {plan.num} samples, {time.perf_counter() - started:.0f} s")
            peers.wait()
            if not peers.main:
                return None
            return gather(plan, [blocks.read(rows) for rows in ranges], time.perf_counter() - started)
    finally:
        peers.close()


def _stale(blocks: Blocks, anew: bool) -> bool:
    """Whether there is unfinished work that is to be dropped."""
    try:
        blocks.check()
    except (Incompatible, BadFile):
        if not anew:
            raise
        return True
    return False


def _plan_in_words(plan: Plan, ranges: list[range], todo: list[range], processes: int) -> str:
    """What the first process says before it starts."""
    line = f"{plan.num} samples in {len(ranges)} blocks of at most {plan.batch}"
    if processes > 1:
        line += f", {processes} at a time"
    if len(todo) < len(ranges):
        line += f"; {len(ranges) - len(todo)} are there already"
    if 0 < len(todo) < processes:
        line += f"; {processes - len(todo)} processes have nothing to do: a smaller --batch makes more blocks"
    return line
