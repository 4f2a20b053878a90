"""What fusing costs on the job of job.py, as whole processes: `otfuse fuse`, tracing, gate and writing included.

    python benchmarks/fuse.py [FOLDER] [--repeats 3] [--threads N]

FOLDER (build/bench) holds the job, made if missing. Beside it are measured a process that imports torch and transformers and loads
both models, and one batched forward pass of 200 images. Figures of the published code are taken from
benchmarks/published.json (published.py makes it). Prints a table, writes benchmarks/results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import job

HERE = Path(__file__).parent
LOAD = """
import sys, torch, transformers
models = [transformers.ViTForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}") for name in ("anchor", "source")]
"""
FORWARD = (
    LOAD
    + """
import statistics, time, numpy
images, took = torch.from_numpy(numpy.load(f"{sys.argv[1]}/images-200.npz")["pixel_values"]), []
with torch.no_grad():
    for _ in range(4):
        began = time.perf_counter()
        models[0].eval()(pixel_values=images)
        took.append(time.perf_counter() - began)
print(statistics.median(took[1:]))
"""
)
RUNS = {  # name -> recipe, images, options; the published configuration compares the class token and 6 x 6 centre patches
    "activations": ("otfusion-acts", 200, ["otfusion.tokens=window:6"]),
    "weights": ("otfusion-wts", None, []),
    "activations, 2,000 images": ("otfusion-acts", 2000, ["otfusion.tokens=window:6"]),
}


def command(folder: Path, recipe: str, images: int | None, options: list[str]) -> list[str]:
    """The command line of one run."""
    line = [str(Path(sys.executable).with_name("otfuse")), "fuse", str(folder / "anchor"), str(folder / "source")]
    line += ["--out", str(folder / "fused"), "--recipe", recipe, "--quiet"]
    line += ["--data", str(folder / f"images-{images}.npz")] if images else []
    return line + [part for option in options for part in ("--set", option)]


def run(folder: Path, line: list[str], repeats: int, threads: int | None) -> tuple[job.Cost, list[dict[str, Any]]]:
    """The median cost of several runs, and the stages of the last by the product's own clock."""
    costs = []
    for _ in range(repeats):
        shutil.rmtree(folder / "fused", ignore_errors=True)
        costs.append(job.measure(line, threads=threads)[0])
    stages = json.loads((folder / "fused" / "fusion.json").read_text())["stages"]
    shutil.rmtree(folder / "fused")
    return job.median(costs), stages


def rows(figures: dict[str, Any], published: dict[str, Any] | None) -> list[list[str]]:
    """The table: each process, and how it compares."""
    base, pass_seconds = figures["load"]["peak_mib"], figures["forward"]
    lines = [["process", "wall, s", "CPU, s", "peak, MiB", "above loading, MiB", "wall / forward pass"]]
    named = [(f"otfuse, {name}", figures[name], base) for name in ("load", *RUNS)]
    if published:
        theirs = published["median"]
        named += [(f"published, {name}", cost, theirs["load"]["peak_mib"]) for name, cost in theirs.items()]
    for name, cost, floor in named:
        numbers = [cost["wall"], cost["cpu"], cost["peak_mib"], cost["peak_mib"] - floor, cost["wall"] / pass_seconds]
        lines.append([name, *(f"{n:.{d}f}" for n, d in zip(numbers, (1, 1, 0, 0, 1), strict=True))])
    return lines


def ratios(figures: dict[str, Any], published: dict[str, Any]) -> list[str]:
    """How many times faster and leaner than the published code, per mode."""
    said, theirs = [], published["median"]
    for mode in ("activations", "weights"):
        ours = figures[mode]
        faster, work = theirs[mode]["wall"] / ours["wall"], theirs[mode]["cpu"] / ours["cpu"]
        above = (theirs[mode]["peak_mib"] - theirs["load"]["peak_mib"]) / (
            ours["peak_mib"] - figures["load"]["peak_mib"]
        )
        said.append(
            f"{mode}: {faster:.1f} times faster (processor time: {work:.1f}), {above:.1f} times leaner above loading"
        )
    return said


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent / "build" / "bench")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, help="threads of the processes measured; default: as the libraries choose"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    job.prepare(given.folder)
    load = [sys.executable, "-c", LOAD, str(given.folder)]
    figures: dict[str, Any] = {
        "load": job.median([job.measure(load, threads=given.threads)[0] for _ in range(given.repeats)]).to_dict(),
        "forward": float(job.measure([sys.executable, "-c", FORWARD, str(given.folder)], threads=given.threads)[1]),
    }
    stages, commands = {}, {}
    for name, (recipe, images, options) in RUNS.items():
        line = command(given.folder, recipe, images, options)
        cost, stages[name] = run(given.folder, line, given.repeats, given.threads)
        figures[name], commands[name] = cost.to_dict(), " ".join(Path(p).name if "/" in p else p for p in line)
        print(name, figures[name], file=sys.stderr, flush=True)
    record = {"machine": job.machine(), "threads": given.threads, "repeats": given.repeats, "seeds": job.SEEDS}
    record |= {"commands": commands, "median": figures, "stages": stages}
    report(record, given.out)


def report(record: dict[str, Any], out: Path) -> None:
    """Writes the record and the table, and prints the table."""
    source = HERE / "published.json"
    published = json.loads(source.read_text()) if source.exists() else None
    head, *body = rows(record["median"], published)
    text = ["| " + " | ".join(line) + " |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    text += ["", f"One batched forward pass of 200 images: {record['median']['forward']:.2f} s."]
    text += ratios(record["median"], published) if published else ["Run benchmarks/published.py to compare."]
    out.write_text(json.dumps(record, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
