"""Time and memory of whole processes on random Llamas from 10M to 1.2B parameters, beside copying the same bytes.

    python benchmarks/scale.py [--sizes 10M 30M ...] [--jobs copy vanilla ...] [--mergekit PATH] [--folder DIR]

Models are made by random_models.py (seeds below) in a folder that is removed at the end unless it is given. All jobs of a
size run one after another, so the last three columns compare like with like on the same machine in the same minutes.
"above importing" is above a process that imports the very modules that the job has at its end on a model of 0.1M
parameters, and exits. mergekit is measured where its `mergekit-yaml` is given (or named by MERGEKIT). Results go to
scale.json, scale.md and scale.svg beside this file; a row measured again takes the place of the older one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import job
import random_models
import scale_text

HERE = Path(__file__).parent
SEEDS = {"anchor": 1, "source": 2, "windows": 3}
WINDOWS = {"count": 64, "length": 256}
RECIPES = ("vanilla", "otfusion-wts", "otfusion-acts", "aligned", "calibrated")
LOOKING = ("otfusion-acts", "calibrated")  # at windows
JOBS = ("copy", *RECIPES, "mergekit", "inspect", "trace 8B")
SIZES = ("10M", "30M", "100M", "250M", "1.2B")
UP_TO = {
    "otfusion-acts": "100M",
    "aligned": "100M",
    "calibrated": "30M",
}  # longer ones are left out unless named by both options, so that `make bench` ends in little more than an hour
LIST = """
import atexit, json, runpy, sys
out, sys.argv = sys.argv[1], sys.argv[2:]
atexit.register(lambda: open(out, "w").write(json.dumps(sorted(sys.modules))))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IMPORT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except BaseException:
        pass
"""


class Bench:
    """Models of every size in one folder, and the command line of every job on them."""

    def __init__(self, folder: Path, mergekit: Path | None) -> None:
        self._folder, self._mergekit, self._baselines = folder, mergekit, dict[str, float]()

    def model(self, size: str, which: str) -> Path:
        """A checkpoint, made if missing in a process of its own: ours stays small (see job.measure)."""
        where = self._folder / f"{size}-{SEEDS[which]}"
        if not (where / "model.safetensors.index.json").exists():
            job.measure([sys.executable, random_models.__file__, str(self._folder), size, str(SEEDS[which])])
        return where

    def line(self, name: str, size: str, *options: str) -> list[str]:
        """The command line of a job."""
        if name == "trace 8B":
            work = {"config": random_models.SIZES["8B"], "device": "meta", "task": "trace"}
            return [sys.executable, str(HERE / "trace.py"), "--job", json.dumps(work)]
        pair, out = [self.model(size, which) for which in ("anchor", "source")], self._folder / "out"
        otfuse = [sys.executable, str(Path(sys.executable).with_name("otfuse"))]
        if name == "copy":
            return [sys.executable, str(HERE / "copying.py"), *map(str, pair), str(out)]
        if name == "inspect":
            return [*otfuse, "inspect", str(pair[0]), "--json", "--quiet"]
        if name == "mergekit":
            assert self._mergekit is not None  # asked for only where it is
            return [str(self._mergekit.with_name("python")), str(self._mergekit), str(self._linear(pair)), str(out)]
        line = [*otfuse, "fuse", *map(str, pair), "--out", str(out), "--recipe", name, "--quiet", *options]
        return line + (["--data", str(self._windows(size))] if name in LOOKING else [])

    def row(self, name: str, size: str) -> dict[str, Any]:
        """One job measured."""
        line, load = self.line(name, size), os.getloadavg()[0]
        cost, _ = job.measure(line)
        fusion = self._folder / "out" / "fusion.json"
        stages = json.loads(fusion.read_text())["stages"] if fusion.exists() else []
        shutil.rmtree(self._folder / "out", ignore_errors=True)
        row = {"size": "8B" if name == "trace 8B" else size, "job": name, "load": round(load, 2), **cost.to_dict()}
        row |= {"above_mib": round(cost.peak_mib - self.importing(name), 1), "stages": stages, "command": shown(line)}
        if name in RECIPES:
            cost, printed = job.measure(self.line(name, size, "--dry-run", "--json"))
            plan = json.loads(printed)
            row |= {"expected_mib": plan["memory_mib"], "expected_seconds": plan["seconds"], "dry_run": cost.to_dict()}
        return row

    def importing(self, name: str) -> float:
        """Peak in MiB of a process that imports what the job imports, and does nothing."""
        if name not in self._baselines:
            line, told = self.line(name, "tiny"), self._folder / "modules.json"
            job.measure([line[0], "-c", LIST, str(told), *line[1:]])
            shutil.rmtree(self._folder / "out", ignore_errors=True)
            self._baselines[name] = job.measure([line[0], "-c", IMPORT, str(told)])[0].peak_mib
        return self._baselines[name]

    def _windows(self, size: str) -> Path:
        where = self._folder / f"windows-{size}.npz"
        if not where.exists():
            call = f"windows(Path({str(where)!r}), {size!r}, seed={SEEDS['windows']}, **{WINDOWS})"
            script = f"from pathlib import Path; from random_models import windows; {call}"
            subprocess.run([sys.executable, "-c", script], check=True, cwd=HERE)
        return where

    def _linear(self, pair: list[Path]) -> Path:
        parts = [{"model": str(folder.resolve()), "parameters": {"weight": 0.5}} for folder in pair]
        where = self._folder / "linear.yml"
        where.write_text(json.dumps({"merge_method": "linear", "dtype": "bfloat16", "models": parts}))  # JSON is YAML
        return where


def shown(line: list[str]) -> str:
    """A command line without this machine's paths."""
    return " ".join(Path(part).name if "/" in part else part for part in line[1:])


def wanted(sizes: list[str] | None, jobs: list[str] | None) -> list[tuple[str, str]]:
    """Size and job of every row that is asked for, in order."""

    def long(size: str, name: str) -> bool:
        return not (sizes and jobs) and SIZES.index(size) > SIZES.index(UP_TO.get(name, SIZES[-1]))

    pairs = [(size, name) for size in sizes or SIZES for name in jobs or JOBS if name != "trace 8B"]
    whole = [("8B", name) for name in jobs or JOBS if name == "trace 8B"]
    return [own for own in pairs if not long(*own)] + whole


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SIZES)
    parser.add_argument("--jobs", nargs="*", choices=JOBS)
    parser.add_argument("--folder", type=Path, help="holds the models, which stay there; 12 GB with all sizes")
    parser.add_argument("--mergekit", type=Path, default=os.environ.get("MERGEKIT"), help="its mergekit-yaml, 0.1.5")
    parser.add_argument("--out", type=Path, default=HERE / "scale.json")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    build = HERE.parent / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as passing:
        folder = given.folder or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, None if given.mergekit is None else Path(given.mergekit))
        for size, name in wanted(given.sizes, given.jobs):
            if name == "mergekit" and given.mergekit is None:
                continue
            row = bench.row(name, size)
            print(scale_text.one(row), file=sys.stderr, flush=True)
            rows = [old for old in rows if (old["size"], old["job"]) != (size, name)] + [row]
            record = {"machine": job.machine(), "seeds": SEEDS, "windows": WINDOWS, "rows": rows}
            given.out.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(given.out.read_text())
    given.out.with_suffix(".md").write_text(text := scale_text.text(record))
    print(text)
    scale_text.plot(record, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
