"""What fusing costs on the job of job.py, as whole processes: `otfuse fuse`, tracing, gate and writing included.

    python benchmarks/run.py [CHECKOUT] [--folder build/bench] [--repeats 3] [--threads N]    # or: make bench PUBLISHED=CHECKOUT

CHECKOUT is the code of arXiv 2310.05719 (git clone https://github.com/graldij/transformer-fusion), measured on the same
job if given; nothing of it is part of this repository. The folder holds the job, made if missing. All processes take
turns, `--repeats` times, with the same number of threads; beside fusing are measured a process that imports and loads
both models only, and one batched forward pass of 200 images. Writes results.json and results.md beside this file, with
medians, and says so if the machine was not quiet. With CHECKOUT it checks the first goal (GOAL): exit status 1 and one
sentence if it is missed. Needs about 10 GB of memory for the published code, 2 GB without.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import job

HERE = Path(__file__).parent
GOAL = {"above loading": 5.0, "whole process": 4.0}  # times faster than the published code, at least
BUSY = 0.5  # load average over the last minute from which on the machine is not called quiet
LOAD = """
import sys, torch, transformers
models = [transformers.ViTForImageClassification.from_pretrained(f"{sys.argv[1]}/{name}") for name in ("anchor", "source")]
"""
FORWARD = """
import statistics, time, numpy
images, took = torch.from_numpy(numpy.load(f"{sys.argv[1]}/images-200.npz")["pixel_values"]), []
with torch.no_grad():
    for _ in range(4):
        began = time.perf_counter()
        models[0].eval()(pixel_values=images)
        took.append(time.perf_counter() - began)
print(statistics.median(took[1:]))
"""
RUNS = {  # name -> recipe, images, options; the published configuration compares the class token and 6 x 6 centre patches
    "activations": ("otfusion-acts", 200, ["otfusion.tokens=window:6"]),
    "weights": ("otfusion-wts", None, []),
    "activations, 2,000 images": ("otfusion-acts", 2000, ["otfusion.tokens=window:6"]),
}
PUBLISHED = {"load": ("activations", "load"), "activations": ("activations", "fuse"), "weights": ("weights", "fuse")}


def processes(folder: Path, checkout: Path | None) -> dict[str, list[str]]:
    """The command line of every process by name, in the order in which they take turns."""
    lines = {"otfuse, load": [sys.executable, "-c", LOAD, str(folder)]}
    for name, (recipe, images, options) in RUNS.items():
        line = [str(Path(sys.executable).with_name("otfuse")), "fuse", str(folder / "anchor"), str(folder / "source")]
        line += ["--out", str(folder / "fused"), "--recipe", recipe, "--quiet"]
        line += ["--data", str(folder / f"images-{images}.npz")] if images else []
        lines[f"otfuse, {name}"] = line + [part for option in options for part in ("--set", option)]
    if checkout is not None:
        script = [sys.executable, str(HERE / "published_process.py"), str(checkout), str(folder)]
        lines |= {f"published, {name}": [*script, *how] for name, how in PUBLISHED.items()}
    return lines


def measured(folder: Path, lines: dict[str, list[str]], repeats: int, threads: int | None) -> dict[str, Any]:
    """Medians by process over rounds in which each runs once, the forward pass, and the stages by the product's clock."""
    costs: dict[str, list[job.Cost]] = {name: [] for name in lines}
    passes, stages = [], {}
    for turn in range(repeats):
        passes.append(float(job.measure([sys.executable, "-c", LOAD + FORWARD, str(folder)], threads=threads)[1]))
        for name, line in lines.items():
            cost, _ = job.measure(line, threads=threads)
            costs[name].append(cost)
            print(
                f"{turn + 1}/{repeats} {name}: {cost.wall:.1f} s, {cost.peak_mib:.0f} MiB", file=sys.stderr, flush=True
            )
            if (folder / "fused").exists():
                stages[name] = json.loads((folder / "fused" / "fusion.json").read_text())["stages"]
                shutil.rmtree(folder / "fused")
    return {
        "forward": statistics.median(passes),
        "median": {name: job.median(found).to_dict() for name, found in costs.items()},
        "each": {name: [cost.to_dict() for cost in found] for name, found in costs.items()},
        "stages": stages,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The processes in markdown; memory above that of loading is counted from the same code's own loading process."""
    lines = [
        "| process | wall, s | CPU, s | peak, MiB | above loading, MiB | wall / forward pass |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, cost in figures["median"].items():
        above = cost["peak_mib"] - figures["median"][f"{name.split(',')[0]}, load"]["peak_mib"]
        passes = cost["wall"] / figures["forward"]
        numbers = (
            f"{cost['wall']:.1f}",
            f"{cost['cpu']:.1f}",
            f"{cost['peak_mib']:.0f}",
            f"{above:.0f}",
            f"{passes:.1f}",
        )
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return [*lines, "", f"One batched forward pass of 200 images: {figures['forward']:.2f} s."]


def ratios(medians: dict[str, Any]) -> list[str]:
    """How many times faster and leaner than the published code, per mode; and memory of ten times the images."""
    peak = {name: cost["peak_mib"] for name, cost in medians.items()}
    growth = peak["otfuse, activations, 2,000 images"] - peak["otfuse, activations"]
    said = [f"2,000 images instead of 200 take {growth:+.0f} MiB."]
    if "published, load" not in medians:
        return [*said, "The published code was not measured: give its checkout to compare."]
    for mode in ("activations", "weights"):
        ours, theirs = medians[f"otfuse, {mode}"], medians[f"published, {mode}"]
        ratio = {key: theirs[key] / ours[key] for key in ("wall", "cpu")}
        lean = (theirs["peak_mib"] - peak["published, load"]) / (ours["peak_mib"] - peak["otfuse, load"])
        times = above_loading(medians, mode)
        above = "we took no more than loading" if times == math.inf else f"{times:.1f}"
        said.append(
            f"{mode.capitalize()}: {ratio['wall']:.1f} times faster than the published code (processor time: "
            f"{ratio['cpu']:.1f}; above loading: {above}), {lean:.1f} times leaner above loading."
        )
    return said


def above_loading(medians: dict[str, Any], mode: str) -> float:
    """How many times faster above importing and loading; infinite where our whole process took no more than loading.

    It may: the product reads tensors as it needs them, where the process that only loads builds both models.
    """
    theirs, ours = (
        medians[f"{whose}, {mode}"]["wall"] - medians[f"{whose}, load"]["wall"] for whose in ("published", "otfuse")
    )
    return theirs / ours if ours > 0 else math.inf


def missed(medians: dict[str, Any]) -> list[str]:
    """What of the first goal is missed, in words; nothing where the published code was not measured."""
    found = []
    for mode in ("activations", "weights") if "published, load" in medians else ():
        whole = medians[f"published, {mode}"]["wall"] / medians[f"otfuse, {mode}"]["wall"]
        times = {"above loading": above_loading(medians, mode), "whole process": whole}
        found += [f"{mode} {how} {times[how]:.1f} of {least}" for how, least in GOAL.items() if not times[how] >= least]
    return found


def text(record: dict[str, Any]) -> str:
    """The record in markdown: table, ratios, and where they come from."""

    def plain(part: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in part.items())

    threads, load = record["threads"] or "as the libraries choose", record["load_average"]
    quiet = "quiet" if record["quiet"] else "NOT QUIET, so these figures are rough"
    lines = ["# Cost of fusing, whole processes", "", *table(record), "", *ratios(record["median"]), ""]
    lines += [
        f"Made by `{record['command']}`: medians of {record['repeats']} runs in turn; seeds: {plain(record['seeds'])}."
    ]
    lines += [
        f"Machine: {plain(record['machine'])}; threads: {threads}; load average at the start {load:.2f}: {quiet}.",
        "",
    ]
    lines += ["Commands:", "", *(f"- {name}: `{line}`" for name, line in record["commands"].items())]
    return "\n".join(lines) + "\n"


def shown(line: list[str]) -> str:
    """A command line without this machine's paths and without the script of `-c`."""
    return " ".join("..." if "\n" in part else Path(part).name if "/" in part else part for part in line)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="of the published code")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "bench")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of every process measured; default: as the libraries choose")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    if given.checkout is not None and not (given.checkout / "otfusion" / "hf_vit_fusion.py").is_file():
        parser.error(f"{given.checkout} holds no otfusion/hf_vit_fusion.py; give a checkout of the published code")
    load = os.getloadavg()[0]
    if load >= BUSY:
        print(f"the machine is not quiet (load average {load:.2f}); figures will be rough", file=sys.stderr)
    job.prepare(given.folder)
    shutil.rmtree(given.folder / "fused", ignore_errors=True)
    lines = processes(given.folder, given.checkout)
    command = ["python benchmarks/run.py", *(["CHECKOUT"] if given.checkout else []), f"--repeats {given.repeats}"]
    command += [f"--threads {given.threads}"] if given.threads else []
    record = {
        "command": " ".join(command),
        "machine": job.machine(), "threads": given.threads, "repeats": given.repeats, "seeds": job.SEEDS,
        "load_average": round(load, 2), "quiet": load < BUSY,
        "commands": {name: shown(line) for name, line in lines.items()},
    }  # fmt: skip
    record |= measured(given.folder, lines, given.repeats, given.threads)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(text(record))
    print(text(record))
    if over := missed(record["median"]):
        sys.exit(f"the first goal is missed, times faster than the published code: {'; '.join(over)}")


if __name__ == "__main__":
    main()
