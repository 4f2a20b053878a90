"""The rows of every table: what is compared, each a function from parents and unlabelled inputs to one model.

Candidates and controls get the same inputs, and the same procedure chooses learning rates and stops: recipe `distilled` on
inputs that it holds back. No row sees a label or a test input, but for those called finetuned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transplant
from passes import counting

import otfuse
from otfuse.evaluate.metrics import evaluate_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from otfuse.core.dataset import Dataset


LONGER = {2: ("twice", 2), 3: ("four times", 4), 5: ("six times", 6)}
"""How many times the steps take at least as long as ``auto`` with so many parents: its time grows with them."""

TOLD = ("distilled for", "distilled from", "undone", "clearly better", "calibrated from", "nothing was")


@dataclass
class Setting:
    """Parents and data of one seed. ``inputs`` are unlabelled, ``test`` is labelled, ``few`` are some labels to finetune with."""

    parents: list[nn.Module]
    inputs: Mapping[str, Any]
    test: Dataset
    few: Dataset | None = None
    steps: int = 200
    batch: int = 32

    def scored(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Loss on test data, and accuracy in percent where classes are predicted, of one model or of the mean of several."""
        own = {"mask_token_id": getattr(models[0].config, "mask_token_id", None)}
        found = evaluate_ensemble(models, self.test, **own)
        return {"loss": found.loss} | ({} if found.accuracy is None else {"accuracy": 100 * found.accuracy})


@dataclass
class Made:
    """One row's model, the processor seconds and forward passes that it took, and what was said of it.

    ``judged``: what the command's own guard says of parents and stages on held-back inputs.
    """

    model: nn.Module
    seconds: float
    passes: int
    told: str = ""
    judged: Mapping[str, float] = field(default_factory=dict)


def fused(
    setting: Setting, recipe: str, options: Mapping[str, Any] | None = None, order: Sequence[int] | None = None
) -> Made:
    """A named recipe; ``order`` puts another parent first."""
    models = [setting.parents[i] for i in order] if order is not None else setting.parents
    data = None if recipe == "vanilla" else dict(setting.inputs)
    began = time.process_time()
    with counting(models) as passes:
        found = otfuse.fuse(models, recipe, data, options=dict(options or {}), verify=False)
    seconds = time.process_time() - began
    told = "; ".join(n for n in found.report.notes if any(word in n for word in TOLD))
    judged = {row.name: row.figure for row in found.report.compared}
    return Made(found.model, seconds, passes.examples, told, judged)


def distilled(
    setting: Setting, start: str, order: Sequence[int] | None = None, more: Mapping[str, Any] | None = None
) -> Made:
    """All weights trained for the setting's steps, from a start."""
    options = {"distilled.start": start, "distilled.steps": setting.steps, "distilled.batch_size": setting.batch}
    return fused(setting, "distilled", options | dict(more or {}), order)


def transplanted(setting: Setting) -> Made:
    """Neuron transplantation."""
    began = time.process_time()
    inputs = {name: torch.from_numpy(array[:4]) for name, array in setting.inputs.items()}
    with counting(setting.parents) as passes:
        model = transplant.fuse(setting.parents, inputs)
    return Made(model, time.process_time() - began, passes.examples)


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
        "aligned, exact groups only": lambda: fused(setting, "aligned", {"aligned.tolerance": 0.0}),
        "aligned, every number alike": lambda: fused(setting, "aligned", {"aligned.evenness": 0.0}),
        "aligned, every tensor alike": lambda: fused(setting, "aligned", {"aligned.evenness": 1.0}),
        "aligned-acts": lambda: fused(setting, "aligned-acts"),
        "calibrated (plain)": lambda: fused(setting, "calibrated"),
        "calibrated (aligned)": lambda: fused(setting, "calibrated", {"calibrated.start": "aligned"}),
        "refined": lambda: fused(setting, "refined", {"refined.steps": setting.steps}),
        "auto": lambda: fused(setting, "auto", auto),
        "plain average, distilled": lambda: distilled(setting, "plain"),
        "calibrated (plain), distilled": lambda: distilled(setting, "calibrated"),
        "calibrated (aligned), distilled": lambda: distilled(
            setting, "calibrated", more={"calibrated.start": "aligned"}
        ),
    }
    for i in range(k):
        order = [i, *(j for j in range(k) if j != i)]
        found[f"parent {i + 1}, distilled"] = lambda order=order: distilled(setting, "anchor", order)
        word, times = LONGER[k]
        more = {"distilled.steps": times * setting.steps}
        found[f"parent {i + 1}, distilled {word} as long"] = lambda o=order, m=more: distilled(setting, "anchor", o, m)
    return found
