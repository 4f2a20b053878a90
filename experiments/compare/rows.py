"""The rows of every table: what is compared, each a function from parents and unlabelled inputs to one model.

Candidates and controls get the same inputs, and the same procedure chooses learning rates and stops: recipe `distilled` on
inputs that it holds back. No row sees a label or a test input, but for those called finetuned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import transplant

import otfuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from otfuse.core.dataset import Dataset


@dataclass
class Setting:
    """Parents and data of one seed. ``inputs`` are unlabelled, ``test`` is labelled, ``few`` are some labels to finetune with."""

    parents: list[nn.Module]
    inputs: Mapping[str, Any]
    test: Dataset
    few: Dataset | None = None
    steps: int = 200
    batch: int = 32
    notes: list[str] = field(default_factory=list)


@dataclass
class Made:
    """One row's model, and the processor seconds and steps that it took."""

    model: nn.Module
    seconds: float
    told: str = ""


def fused(
    setting: Setting, recipe: str, options: Mapping[str, Any] | None = None, order: Sequence[int] | None = None
) -> Made:
    """A named recipe; ``order`` puts another parent first."""
    models = [setting.parents[i] for i in order] if order is not None else setting.parents
    data = None if recipe == "vanilla" else dict(setting.inputs)
    began = time.process_time()
    found = otfuse.fuse(models, recipe, data, options=dict(options or {}), verify=False)
    told = "; ".join(n for n in found.report.notes if "distilled for" in n or "undone" in n or "clearly better" in n)
    return Made(found.model, time.process_time() - began, told)


def distilled(setting: Setting, start: str, order: Sequence[int] | None = None) -> Made:
    """All weights trained for the setting's steps, from a start."""
    options = {"distilled.start": start, "distilled.steps": setting.steps, "distilled.batch_size": setting.batch}
    return fused(setting, "distilled", options, order)


def transplanted(setting: Setting) -> Made:
    """Neuron transplantation."""
    began = time.process_time()
    inputs = {name: __import__("torch").from_numpy(array[:4]) for name, array in setting.inputs.items()}
    return Made(transplant.fuse(setting.parents, inputs), time.process_time() - began)


def rows(setting: Setting) -> dict[str, Callable[[], Made]]:
    """Every row by name, in the order of the table."""
    k = len(setting.parents)
    auto = {"auto.steps": setting.steps, "distilled.batch_size": setting.batch}
    found: dict[str, Callable[[], Made]] = {
        "plain average": lambda: fused(setting, "vanilla"),
        "otfusion-wts, auto": lambda: fused(setting, "otfusion-wts", {"otfusion.regulariser": "auto"}),
        "otfusion-acts, auto": lambda: fused(setting, "otfusion-acts", {"otfusion.regulariser": "auto"}),
        "otfusion-emd": lambda: fused(setting, "otfusion-emd"),
        "neuron transplantation": lambda: transplanted(setting),
        "aligned": lambda: fused(setting, "aligned"),
        "aligned-acts": lambda: fused(setting, "aligned-acts"),
        "calibrated (plain)": lambda: fused(setting, "calibrated"),
        "calibrated (aligned)": lambda: fused(setting, "calibrated", {"calibrated.start": "aligned"}),
        "refined": lambda: fused(setting, "refined", {"refined.steps": setting.steps}),
        "auto": lambda: fused(setting, "auto", auto),
        "plain average, distilled": lambda: distilled(setting, "plain"),
        "calibrated (plain), distilled": lambda: distilled(setting, "calibrated"),
    }
    for i in range(k):
        order = [i, *(j for j in range(k) if j != i)]
        found[f"parent {i + 1}, distilled"] = lambda order=order: distilled(setting, "anchor", order)
    return found
