"""What reusing evaluations saves when tokens are sampled in many steps (RADD): seconds with and without it.

``python benchmarks/token_reuse.py [--json OUT] [--length 64] [--vocab 8192]``

One sequence, a network that isn't told the time, the same seed on both sides, which give the same tokens. Seconds are
those of the processor in one thread. The paper says up to 3.5 times, at 1024 tokens of GPT-2's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from condiff.networks import TokenTransformer
from condiff.process import Absorbing
from condiff.sampling import TokenAncestral, TokenFilter, trajectory
from condiff.token_denoiser import TokenDenoiser

PLAIN, NUCLEUS = TokenFilter(), TokenFilter(top_p=0.9)
CASES = (("plain", PLAIN, 1), ("plain", PLAIN, 4), ("plain", PLAIN, 16), ("top-p 0.9", NUCLEUS, 4))  # steps a token


def model(length: int, vocab: int) -> TokenDenoiser:
    """A network whose answers differ from place to place."""
    torch.manual_seed(0)
    network = TokenTransformer(shape=(length,), vocab=vocab, width=192, depth=6, heads=6)
    torch.nn.init.normal_(network.output.weight, std=0.2)
    return TokenDenoiser(network, Absorbing(vocab), (length,), time_free=True).eval()


def drawn(denoiser: Any, length: int, steps: int, kept: TokenFilter, reuse: bool) -> dict[str, Any]:
    """One sequence: seconds, network calls, tokens."""
    start = torch.full((1, length), denoiser.process.mask_id)
    solver = TokenAncestral(filter=kept, reuse=reuse)
    began = time.process_time()
    *_, last = trajectory(denoiser, start, solver=solver, steps=steps, rng=0)
    return {
        "seconds": time.process_time() - began,
        "calls": int(last.state.extra["nfe"]),
        "tokens": last.x_s.tolist(),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "token_reuse.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, rows = model(options.length, options.vocab), []
    drawn(denoiser, options.length, 4, TokenFilter(), True)  # the first calls are slower
    for name, kept, each in CASES:
        steps = each * options.length
        sides = [drawn(denoiser, options.length, steps, kept, reuse) for reuse in (False, True)]
        assert sides[0].pop("tokens") == sides[1].pop("tokens")
        ratio = sides[0]["seconds"] / sides[1]["seconds"]
        rows.append({"filter": name, "steps": steps, "each step": sides[0], "reused": sides[1], "ratio": ratio})
        print(
            f"{name}, {steps} steps: {sides[0]['seconds']:.2f} s in {sides[0]['calls']} calls, "
            f"{sides[1]['seconds']:.2f} s in {sides[1]['calls']}: {ratio:.2f} times",
            flush=True,
        )
    facts = {"length": options.length, "vocab": options.vocab, "device": platform.machine(), "torch": torch.__version__}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
