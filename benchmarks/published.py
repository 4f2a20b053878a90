"""What the published code of arXiv 2310.05719 costs on the job of job.py, as whole processes.

    git clone https://github.com/graldij/transformer-fusion /somewhere/else
    python benchmarks/published.py CHECKOUT FOLDER [--repeats 3] [--threads N]

FOLDER holds the job (made if missing). Writes benchmarks/published.json. Nothing of the published code is part of this
repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import job

HERE = Path(__file__).parent


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, help="threads of the processes measured; default: as the libraries choose"
    )
    parser.add_argument("--out", type=Path, default=HERE / "published.json")
    given = parser.parse_args()
    job.prepare(given.folder)
    results = {}
    for name, mode, stage in (
        ("load", "activations", "load"), ("activations", "activations", "fuse"), ("weights", "weights", "fuse"),
    ):  # fmt: skip
        command = [
            sys.executable,
            str(HERE / "published_process.py"),
            str(given.checkout),
            str(given.folder),
            mode,
            stage,
        ]
        costs = [job.measure(command, threads=given.threads)[0] for _ in range(given.repeats)]
        results[name] = job.median(costs).to_dict()
        print(name, results[name], flush=True)
    record = {
        "machine": job.machine(),
        "threads": given.threads,
        "repeats": given.repeats,
        "seeds": job.SEEDS,
        "median": results,
    }
    given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
