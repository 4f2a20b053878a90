"""A run small enough for a test, which can be a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn

from otfuse.core.dataset import Dataset
from otfuse.train import finetune as training
from otfuse.train.options import FinetuneOptions

EXAMPLES, WIDTH, VOCAB, LENGTH = 21, 5, 7, 6


class Tagger(nn.Module):
    """Dropout, a norm, a bias, a parameter that nothing uses; padding makes the number of predictions uneven."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCAB)
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, input_ids):
        return self.head(self.drop(self.norm(self.table(input_ids))))


def parts(dropout: float) -> tuple[nn.Module, Dataset]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Tagger(dropout)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VOCAB, (EXAMPLES, LENGTH))
    labels = (tokens + 1) % VOCAB
    for row in range(EXAMPLES):
        labels[row, 1 + row % LENGTH :] = -100
    return model, Dataset({"input_ids": tokens}, labels)


def options(**changes: object) -> FinetuneOptions:
    chosen = {"epochs": 3, "batch_size": 8, "learning_rate": 0.03, "save_every": 2, "label_smoothing": 0.1, "seed": 4}
    return FinetuneOptions(**{**chosen, "max_grad_norm": 0.5, "device": "cpu", **changes})


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(out: Path, weights: Path, kill: str = "never", number: int = 0) -> None:
    """One run that ends itself at a step or in a save, if told to."""
    torch.set_num_threads(1)
    saves = []
    true_replace = Path.replace

    def replace(self: Path, target: Path) -> None:
        saves.append(target)
        if len(saves) == number:
            die()
        true_replace(self, target)

    if kill == "save":
        Path.replace = replace  # type: ignore[method-assign, assignment]
    model, data = parts(dropout=0.0 if kill == "never" else 0.3)
    report = training.finetune(
        model, data, options=options(), out=out, on_step=lambda step, *_: kill == "step" and step == number and die()
    )
    if report.is_main:
        torch.save({"processes": report.processes, **report.model.state_dict()}, weights)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
