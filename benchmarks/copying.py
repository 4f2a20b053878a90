"""The same bytes as a plain average, in the plainest way: both inputs read tensor by tensor, averaged, written.

    python benchmarks/copying.py ANCHOR SOURCE OUT

What `otfuse fuse --recipe vanilla` is compared with; it hashes nothing and checks nothing. One shard is in memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

INDEX = "model.safetensors.index.json"


def main(anchor: Path, source: Path, out: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    where = [json.loads((folder / INDEX).read_text())["weight_map"] for folder in (anchor, source)]
    out.mkdir(parents=True)
    for file in sorted(set(where[0].values())):
        made = {}
        with safe_open(anchor / file, "pt") as ours:
            for name in ours.keys():  # noqa: SIM118  # no mapping
                with safe_open(source / where[1][name], "pt") as theirs:
                    made[name] = ours.get_tensor(name).add(theirs.get_tensor(name)).mul_(0.5)
        save_file(made, out / file, {"format": "pt"})
    for name in ("config.json", INDEX):
        (out / name).write_bytes((anchor / name).read_bytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
