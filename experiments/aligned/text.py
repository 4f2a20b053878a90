"""One-shot loss of aligned small language models, trained here from two seeds on one text: untied GPT-2 and grouped-head Llama.

    python experiments/aligned/text.py [--steps 500]

The text is that of Python's own documentation topics, by characters; a tenth is held out. The barrier of a fused model is its loss above the
mean of its parents', as a share of the plain average's.
"""

from __future__ import annotations

import argparse
import time
from pydoc_data import topics
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from otfuse import pipeline
from otfuse.testing import small

if TYPE_CHECKING:
    from torch import nn

WINDOW, BATCH, RATE = 64, 24, 3e-3


def untied(**options: Any) -> nn.Module:
    """A GPT-2 whose head is a matrix of its own."""
    model = small.causal_lm(**options)
    head: Any = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


FAMILIES = {"gpt2, untied": untied, "llama": small.grouped_lm}


def characters() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training and held-out windows, and the number of characters."""
    text = "\n".join(topics.topics.values())
    known = {c: i + 5 for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[c] for c in text])
    cut = len(ids) * 9 // 10
    parts = [own[: len(own) // WINDOW * WINDOW].view(-1, WINDOW) for own in (ids[:cut], ids[cut:])]
    return parts[0], parts[1][:300], len(known) + 5


def loss(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next character, in nats."""
    logits = model(input_ids=windows).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def trained(model: nn.Module, windows: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """The model after so many steps of AdamW."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(windows), (BATCH,), generator=chance)
        optimiser.zero_grad()
        loss(model, windows[chosen]).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Both families, one row per recipe."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=500)
    steps = asked.parse_args().steps
    torch.set_num_threads(1)
    train, held_out, vocabulary = characters()
    print(
        "| | parents | plain average | aligned | barrier left, % | aligned-acts | barrier left, % |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for name, build in FAMILIES.items():
        sizes = {"vocabulary": vocabulary, "length": WINDOW, "hidden": 64, "layers": 3, "heads": 4}
        parents = [trained(build(**sizes, seed=seed), train, seed, steps) for seed in (1, 2)]
        with torch.no_grad():
            own = [float(loss(model, held_out)) for model in parents]
            found, began = [], time.process_time()
            for recipe in ("vanilla", "aligned", "aligned-acts"):
                data = {"input_ids": train[:64].numpy()} if recipe == "aligned-acts" else None
                found.append(float(loss(pipeline.fuse(parents, recipe, data=data, verify=False).model, held_out)))
        base, seconds = sum(own) / 2, time.process_time() - began
        left = [100 * (own - base) / (found[0] - base) for own in found[1:]]
        print(
            f"| {name} | {own[0]:.3f}, {own[1]:.3f} | {found[0]:.3f} | {found[1]:.3f} | {left[0]:.0f} | {found[2]:.3f} | {left[1]:.0f} |"
        )
        print(f"{name}: {seconds:.1f} s of processor time for the three recipes", flush=True)


if __name__ == "__main__":
    main()
