"""The table and the plot of scale.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import random_models

if TYPE_CHECKING:
    from pathlib import Path

GB = 1e9 / (1 << 20)  # MiB
LIMITS = {  # MiB above importing, by job and size (None: every size)
    ("vanilla", None): GB, ("otfusion-wts", "250M"): 2.5 * GB, ("otfusion-wts", "1.2B"): 8 * GB,
    ("otfusion-acts", "250M"): 6 * GB, ("calibrated", "250M"): 8 * GB, ("trace 8B", None): 2 * GB,
}  # fmt: skip
SLOWER = 1.5  # vanilla beside copying
QUIET = 1.0  # load average up to which wall time says something about a plan's seconds
HEAD = (
    "model",
    "job",
    "wall, s",
    "CPU, s",
    "peak, MiB",
    "above importing, MiB",
    "expected, MiB",
    "expected, s",
    "CPU / copy",
    "load",
)


def one(row: dict[str, Any]) -> str:
    """A row in words."""
    return (
        f"{row['size']} {row['job']}: {row['wall']:.1f} s, {row['cpu']:.1f} s of processor, {row['above_mib']:.0f} MiB"
    )


def text(record: dict[str, Any]) -> str:
    """Table, what is over a limit, and where the figures come from, in markdown."""
    rows = sorted(record["rows"], key=lambda r: (random_models.parameters(r["size"]), r["job"]))
    copies = {r["size"]: r for r in rows if r["job"] == "copy"}
    lines = ["# Time and memory from 10M to 1.2B parameters", "", f"| {' | '.join(HEAD)} |"]
    lines.append("|---|---|" + "---:|" * (len(HEAD) - 2))
    for row in rows:
        expected = [f"{row[key]:.0f}" if key in row else "" for key in ("expected_mib", "expected_seconds")]
        copy = copies.get(row["size"])
        cells = [row["size"], row["job"], f"{row['wall']:.1f}", f"{row['cpu']:.1f}", f"{row['peak_mib']:.0f}"]
        cells += [f"{row['above_mib']:.0f}", *expected, f"{row['cpu'] / copy['cpu']:.2f}" if copy else "", row["load"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    plain = {key: ", ".join(f"{k} {v}" for k, v in record[key].items()) for key in ("machine", "seeds", "windows")}
    over = missed(rows)
    lines += ["", "Over a limit, of what was measured: " + ("; ".join(over) if over else "nothing") + ".", ""]
    lines += [f"Machine: {plain['machine']}. Seeds: {plain['seeds']}. Windows: {plain['windows']}.", ""]
    lines += [
        "Load is the average over the minute before the start; beside other work wall time means little, and is not judged."
    ]
    return (
        "\n".join([*lines, "", "Commands:", *(f"- `{r['command']}`" for r in rows if r["size"] in ("250M", "8B"))])
        + "\n"
    )


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Every figure over its limit."""
    found = []
    copies = {r["size"]: r for r in rows if r["job"] == "copy"}
    for row in rows:
        limit = LIMITS.get((row["job"], row["size"]), LIMITS.get((row["job"], None)))
        if limit is not None and not row["above_mib"] <= limit:
            found.append(f"{row['size']} {row['job']} {row['above_mib']:.0f} MiB of {limit:.0f}")
        copy = copies.get(row["size"])
        if row["job"] == "vanilla" and copy and not row["cpu"] <= SLOWER * copy["cpu"]:
            found.append(f"{row['size']} vanilla {row['cpu'] / copy['cpu']:.2f} times the copy of {SLOWER}")
        checks = [("expected_mib", row["above_mib"], 1.5)] if row["size"] in ("250M", "1.2B") else []
        checks += [("expected_seconds", row["wall"], 2.5)] if checks and row["load"] <= QUIET else []
        for key, is_, factor in checks:
            if key in row and not is_ / factor <= row[key] <= is_ * factor:
                found.append(f"{row['size']} {row['job']} {key} {row[key]:.0f} for {is_:.0f}")
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Memory above importing and processor time by parameters, both axes logarithmic, limits as dashes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "otfuse"
    figure, sides = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = [r for r in record["rows"] if r["size"] != "8B"]
    for name in dict.fromkeys(r["job"] for r in rows):
        own = sorted((random_models.parameters(r["size"]) / 1e6, r) for r in rows if r["job"] == name)
        for side, key in zip(sides, ("cpu", "above_mib"), strict=True):
            side.loglog([n for n, _ in own], [max(r[key], 1) for _, r in own], "o-", label=name)
    for (name, size), limit in LIMITS.items():
        if name != "trace 8B":
            at = [8, 1500] if size is None else [random_models.parameters(size) / 1e6 * x for x in (0.8, 1.25)]
            sides[1].plot(at, [limit, limit], "k--", linewidth=0.8)
            sides[1].annotate(f"{name} limit", (at[0], limit * 1.05), fontsize=7)
    for side, what in zip(sides, ("processor time, s", "peak above importing, MiB"), strict=True):
        side.set(xlabel="parameters, millions", ylabel=what)
        side.grid(alpha=0.3)
    sides[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
