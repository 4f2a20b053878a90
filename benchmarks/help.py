"""How long `otfuse --help` takes: the one command that a user waits for without anything being computed.

    python benchmarks/help.py [--repeats 5]     # part of: make bench

The least of several runs is judged, because a busy machine only adds; exit status 1 if it is over the limit. That nothing
heavy is imported for it is tested (tests/house), whatever the machine does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import job

LIMIT = 0.5  # seconds on an otherwise quiet machine


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    command = [str(Path(sys.executable).with_name("otfuse")), "--help"]
    job.measure(command)  # byte code and file cache
    costs = [job.measure(command)[0] for _ in range(parser.parse_args().repeats)]
    least = min(cost.wall for cost in costs)
    print(
        f"otfuse --help: {least:.2f} s at least, {job.median(costs).wall:.2f} s median of {len(costs)}; limit {LIMIT} s"
    )
    return int(not least < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
