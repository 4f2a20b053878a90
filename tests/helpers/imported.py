"""What takes long to import, and the first export: done once by the process from which those of forked.py are forked."""

import accelerate  # noqa: F401
import torch
import transformers.models.llama.modeling_llama
import transformers.models.vit.modeling_vit  # noqa: F401

import otfuse.evaluate.metrics
import otfuse.pipeline
import otfuse.report.table
import otfuse.train.distil
import otfuse.train.finetune  # noqa: F401
from otfuse import cli  # noqa: F401

torch.set_num_threads(1)
torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))  # imports the rest
