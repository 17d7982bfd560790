"""How long a user waits before anything happens: ``import condiff`` over a bare Python, and ``condiff --help``.

    python benchmarks/startup.py [--json benchmarks/results/startup.json]

Medians over several processes. Aims: the import adds under 0.2 s, help takes under 1 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "bare python": [sys.executable, "-c", "pass"],
    "import condiff": [sys.executable, "-c", "import condiff"],
    "import condiff, first use of torch": [sys.executable, "-c", "import condiff; condiff.process.Rectified"],
    "condiff --help": [sys.executable, "-m", "condiff.cli.main", "--help"],
    "condiff methods --json": [sys.executable, "-m", "condiff.cli.main", "methods", "--json"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    args = parser.parse_args()
    runs: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds):  # interleaved, so that a busy machine slows all alike
        for name, command in CASES.items():
            runs[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    for name, value in medians.items():
        print(f"{name:<36} {value:.3f} s")
    added = medians["import condiff"] - medians["bare python"]
    print(f"{'import condiff adds':<36} {added:.3f} s")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"seconds": medians, "import_adds": added, "rounds": args.rounds, "python": sys.version.split()[0]}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
