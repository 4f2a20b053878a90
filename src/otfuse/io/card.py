"""What is written beside the weights: the model card (README.md) and fusion.json."""

from __future__ import annotations

import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otfuse.core.report import Compared, Report, SourceInfo

TAGS = ("merge", "otfuse")


def model_card(
    *,
    anchor: SourceInfo,
    sources: Sequence[SourceInfo],
    recipe_yaml: str,
    gate: dict[str, float] | None = None,
    weights: Sequence[float] = (),
    compared: Sequence[Compared] = (),
    compared_by: str = "",
) -> str:
    """README.md as Hugging Face expects it: YAML front matter, what was done, recipe, parents, how it was checked."""
    parents = [anchor, *sources]
    front = {
        "base_model": [_shown(p.name) for p in parents],
        "library_name": "transformers",
        "base_model_relation": "merge",
        "tags": list(TAGS),
    }
    scheme = yaml.safe_load(recipe_yaml).get("scheme")
    rows = [
        f"| {'anchor' if i == 0 else 'source'} | {_cell(_shown(p.name))} | `{p.hash}` |" for i, p in enumerate(parents)
    ]
    done = (
        f"{len(parents)} trained models were fused into one with otfuse {_version('otfuse')}, scheme `{scheme}`. The result "
        "has the anchor's architecture, names and basis. `fusion.json` tells what was solved, with which versions, in which time."
    )
    mixed = f"\n\nMixed with the weights {', '.join(f'{w:.4g}' for w in weights)}, anchor first." if weights else ""
    blocks = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---",
        f"# {_shown(anchor.name)}, fused with {', '.join(_shown(p.name) for p in sources)}",
        done,
        f"## Recipe\n\n```yaml\n{recipe_yaml.rstrip()}\n```",
        "## Parents\n\n| role | model | SHA-256 |\n|---|---|---|\n" + "\n".join(rows) + mixed,
        *([_compared(compared, compared_by)] if compared else []),
        "## How it was checked\n\n" + _checked(gate),
    ]
    return "\n\n".join(blocks) + "\n"


def fusion_json(report: Report) -> str:
    """fusion.json: the report and the versions of what made it. Values that are not finite become null."""
    versions = {name: _version(name) for name in ("otfuse", "torch", "transformers")} | {
        "python": platform.python_version()
    }
    return json.dumps(finite({"versions": versions, **report.to_dict()}), indent=2, allow_nan=False) + "\n"


def _checked(gate: dict[str, float] | None) -> str:
    if gate is None:
        return "The flow graph was not checked on these weights in this run."
    figures = "\n".join(f"| {_cell(name)} | {value:.3g} |" for name, value in gate.items())
    return (
        "Random elements of the groups of all spaces were applied to the real weights: the outputs must not change "
        "(error), and must change when one member is left out (control).\n\n| relative change of the outputs | |\n|---|---|\n"
        + figures
    )


def _compared(rows: Sequence[Compared], by: str) -> str:
    cells = []
    for row in rows:
        verdict = "" if row.kept is None else "kept" if row.kept else "undone"
        seconds = "" if row.seconds is None else f"{row.seconds:.3g}"
        cells.append(f"| {_cell(_shown(row.name))} | {row.figure:.4f} | {seconds} | {verdict} |")
    return (
        f"## Stages\n\nOn held-back unlabelled inputs: {by} (less is better, and no measure of how often it is right).\n\n"
        "| parent or stage | figure | seconds | |\n|---|---|---|---|\n" + "\n".join(cells)
    )


def _shown(name: str) -> str:
    """A hub name as it is; of a folder its last part alone, since a card travels and paths of a machine do not."""
    path = Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() or len(path.parts) > 2 else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def finite(value: Any) -> Any:
    """The same plain value without NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
