"""Questions that the paper leaves open, one option at a time: softness, token filters, residual policies, query and key, cost.

    python experiments/questions/run.py [--seeds 0 1 2] [--questions softness tokens ...] [--out DIR]

Well-trained pairs of digit classifiers from other seeds (setting same-2-well of experiments/compare); 400 unlabelled training images
are compared, loss and accuracy are of held-out ones. Every finished row is kept in DIR/results.json and not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "compare"), str(HERE.parent / "know"), str(HERE.parents[1] / "benchmarks")]
import digits  # noqa: E402
import job  # noqa: E402

import otfuse  # noqa: E402

PROBE = 400
SOFT = (0.001, 0.01, 0.04, 0.08, 0.2, 1.0, 5.0)
RESIDUAL = ("branch", "skip", "identity", "mean", "scalar", "matrix")
RECIPES = {"activations": "otfusion-acts", "weights": "otfusion-wts"}


def questions() -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    """By question: the name of each row, its recipe, its options."""
    both = RECIPES.items()
    soft = [(f"{f}, EMD", r, {"otfusion.solver": "emd"}) for f, r in both]
    soft += [(f"{f}, Sinkhorn {e:g}", r, {"otfusion.regulariser": e}) for f, r in both for e in SOFT]
    soft += [(f"exact maps, softness {e:g}", "aligned", {"aligned.softness": e}) for e in (0.0, 0.01, 0.04, 0.2, 1.0)]
    auto = {"otfusion.regulariser": "auto"}
    filters = ("all", "cls", "window:2", "window:4")
    tokens = [(f"{t}, {s}", RECIPES["activations"], {"otfusion.tokens": t, **o}) for t in filters for s, o in
              (("Sinkhorn 0.08", {}), ("EMD", {"otfusion.solver": "emd"}))]  # fmt: skip
    residual = [(f"{f}, {p}", r, {"otfusion.residual": p, **auto}) for f, r in both for p in RESIDUAL]
    heads = [
        (f"{f}, {q}", r, {"otfusion.query_key": q, **auto}) for f, r in both for q in ("separate", "tied", "heads")
    ]
    exact = [(name, name, {}) for name in ("vanilla", "aligned", "aligned-acts")]
    exact.append(("aligned, permutations only", "aligned", {"aligned.groups": "permutation"}))
    exact += [(f"aligned, evenness {e:g}", "aligned", {"aligned.evenness": e}) for e in (0.0, 0.25, 0.75, 1.0)]
    return {"softness": soft, "tokens": tokens, "residual": residual, "query_key": heads, "groups": exact}


def measured(recipe: str, options: dict[str, Any], seed: int) -> dict[str, float]:
    """One fusion of the pair of one seed."""
    setting = digits.same_2_well(seed)
    models, inputs = setting.parents, {name: array[:PROBE] for name, array in setting.inputs.items()}
    began = time.process_time()
    fused = otfuse.fuse(models, recipe, None if recipe == "vanilla" else inputs, options=options, verify=False)
    seconds = time.process_time() - began
    return setting.scored([fused.model]) | {"seconds": seconds}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over seeds."""
    lines = ["| | accuracy, % | loss | processor s | seeds |", "|---|---:|---:|---:|---:|"]
    for name, own in rows.items():
        cells = [shown([row[c] for row in own.values()], d) for c, d in (("accuracy", 1), ("loss", 3), ("seconds", 1))]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own)} |")
    return lines


def shown(values: list[float], digits: int) -> str:
    """Mean and spread."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--questions", nargs="*", default=list(questions()), choices=list(questions()))
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    where = given.out / "results.json"
    kept: dict[str, dict[str, dict[str, Any]]] = json.loads(where.read_text()) if where.exists() else {}
    for seed in given.seeds:
        for question in given.questions:
            for name, recipe, options in questions()[question]:
                own = kept.setdefault(question, {}).setdefault(name, {})
                if str(seed) not in own:
                    own[str(seed)] = measured(recipe, options, seed)
                    where.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"seed {seed}: {question}", file=sys.stderr, flush=True)
    text = [
        "# One option at a time",
        "",
        f"`python experiments/questions/run.py`; seeds {', '.join(map(str, given.seeds))}.",
        "",
    ]
    text += [f"Machine: {', '.join(f'{k} {v}' for k, v in job.machine().items())}; one thread.", ""]
    for question, rows in kept.items():
        text += [f"## {question}", "", *table(rows), ""]
    (given.out / "results.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
