"""Every fused tensor against the one that the published code (arXiv 2310.05719) made of the same models.

    python experiments/parity.py FOLDER

FOLDER holds ``index.json``, two parents of one width and a wider one, probe inputs, and the published result of every case
(``tests/align/golden`` is a part of it). Prints a table in Markdown; exits with 1 if a tensor is off by more than 1e-3.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from otfuse.align.pair import Pair
from otfuse.align.scheme import measure, set_aside, walk
from otfuse.core import recipe as recipes
from otfuse.core.dataset import Dataset
from otfuse.fusion.apply import fused
from otfuse.fusion.sides import traced
from otfuse.io.parents import given

ALLOWED = 1e-3


@dataclass(frozen=True, eq=False)
class Golden:
    """A folder of published results, in today's tensor names."""

    folder: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        return json.loads((self.folder / "index.json").read_text())

    @cached_property
    def data(self) -> Dataset:
        return Dataset({name: value.numpy() for name, value in load_file(self.folder / "probe.safetensors").items()})

    def tensors(self, path: str) -> dict[str, torch.Tensor]:
        """Tensors of a file under the names that transformers gives them today."""
        names = {
            old.replace("N", str(n)): new.replace("N", str(n))
            for old, new in self.index["names"].items()
            for n in range(self.index["architecture"]["num_hidden_layers"])
        }
        renamed = {}
        for key, value in load_file(self.folder / path).items():
            module, _, own = key.rpartition(".")
            renamed[f"{names.get(module, module)}.{own}".replace("encoder.layer.", "layers.")] = value
        return renamed

    def model(self, which: str) -> torch.nn.Module:
        """One of the parents."""
        sizes = {
            k: v[which] if isinstance(v, dict) else v for k, v in self.index["architecture"].items() if k != "kind"
        }
        model = ViTForImageClassification(ViTConfig(**sizes)).eval()
        model.load_state_dict(self.tensors(f"{which}.safetensors"))
        return model

    @cached_property
    def sides(self) -> dict[str, Any]:
        """The parents, traced once for all cases."""
        inputs = {name: torch.from_numpy(array[:5]) for name, array in self.data.inputs.items()}
        wanted = {"anchor", *(case["source"] for case in self.index["cases"])}
        return {which: traced(given(self.model(which), which), inputs) for which in sorted(wanted)}

    def deviations(self, case: dict[str, Any]) -> dict[str, float]:
        """Largest difference from the published result, relative to the largest value, of every tensor with one answer."""
        recipe = recipes.read({"scheme": "otfusion", "otfusion": case["options"]})
        pair = Pair(self.sides["anchor"], self.sides[case["source"]])
        value, aside = recipe.otfusion.regulariser, set_aside(pair.anchor, recipe)  # the value is a number in all cases
        found = walk(pair, recipe, measure(pair, recipe, self.data), value, aside=aside)
        made = fused(pair.anchor.weights, [pair.source.weights], [found], [0.5, 0.5])
        published = self.tensors(f"cases/{case['name']}.safetensors")
        if made.keys() != published.keys():
            message = f"{case['name']}: other tensors: {sorted(made.keys() ^ published.keys())}"
            raise ValueError(message)
        return {
            name: relative(made[name], published[name]) for name in published if name not in case.get("not_unique", [])
        }


def relative(made: torch.Tensor, published: torch.Tensor) -> float:
    """Largest difference over the largest published value."""
    return float((made - published).abs().max() / published.abs().max())


def main(folder: str) -> int:
    torch.set_num_threads(1)
    golden, worst = Golden(Path(folder)), []
    print("| case | largest deviation | tensor |\n|---|---|---|")
    for case in golden.index["cases"]:
        tensor, value = max(golden.deviations(case).items(), key=lambda item: item[1])
        worst.append(value)
        print(f"| {case['name']} | {value:.1e} | {tensor} |", flush=True)
    close = sum(value <= 1e-5 for value in worst)
    print(f"\n{close} of {len(worst)} cases within 1e-5 of the published code, the worst {max(worst):.1e}")
    return int(max(worst) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
