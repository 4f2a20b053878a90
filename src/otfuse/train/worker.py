"""One process of a training run: its device, its copy of the model, its share of each batch, one update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from otfuse.errors import DeviceError, DivergedError, TrainError
from otfuse.evaluate.run import find_device
from otfuse.program.state import copied
from otfuse.train.options import FinetuneOptions

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


def start(options: FinetuneOptions) -> Accelerator:
    """What accelerate finds in the environment, on the device and in the precision asked for; DeviceError if it cannot."""
    device = None if options.device is None else find_device(options.device)
    on_cpu = device.type == "cpu" if device is not None else not torch.accelerator.is_available()
    # Accelerate keeps one state per process, and refuses a second run in another precision; begin each run afresh. The
    # process group, if there is one, stays: it belongs to the launcher.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())  # noqa: SLF001
    if on_cpu and options.mixed_precision == "fp16":  # accelerate would ignore it
        raise DeviceError("mixed precision 'fp16' does not work on cpu; use bf16, no, or another device")
    try:
        if device is not None and device.index is not None:
            torch.accelerator.set_device_index(device.index)
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=options.mixed_precision, kwargs_handlers=[unused])
    except ValueError as error:
        PartialState._reset_state()  # noqa: SLF001
        raise DeviceError(
            f"accelerate cannot run on {'cpu' if on_cpu else 'this device'} with mixed precision "
            f"{options.mixed_precision!r} ({str(error).rstrip('.')}); use another device or precision"
        ) from None
    if accelerator.distributed_type in _SHARDED:
        raise DeviceError(
            f"accelerate is configured for {accelerator.distributed_type.value}; finetuning runs as plain data parallel: "
            "launch it with --multi_gpu or on one process"
        )
    return accelerator


class Batch(Protocol):
    """Examples of one update, of which every process takes its share."""

    @property
    def examples(self) -> int:
        """Number of examples."""

    @property
    def count(self) -> int:
        """Number of predictions that count."""

    def take(self, rows: slice) -> Self:
        """The examples at ``rows``."""


class Lesson(Protocol):
    """What is to be learned from a batch."""

    def loss(self, model: nn.Module, like: nn.Module, batch: Any, device: torch.device) -> Tensor:
        """The sum of the losses of the batch's predictions; ``model`` is called, ``like`` is the module inside it."""


class Worker:
    """A copy of the model with its optimiser on this process. The model given is never changed, unless it is the worker's ``own``.

    ``training``: whether the model's modules are in training mode (dropout, statistics of batches) or as in evaluation. Weights stored in half precision are trained in float32 and returned as they were stored: an update of a learning
    rate's size would be rounded away otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        lesson: Lesson,
        options: FinetuneOptions,
        accelerator: Accelerator,
        *,
        own: bool = False,
        training: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.lesson, self.options, self.accelerator = lesson, options, accelerator
        self.model = model if own else copied(model)
        self._stored = {name: p.dtype for name, p in self.model.named_parameters()}
        for parameter in self.model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        self._modes = {name: module.training for name, module in model.named_modules()}
        self._home = next(self.model.parameters()).device
        self.model.train(training)
        self.model.to(accelerator.device)
        optimizer = torch.optim.AdamW(_groups(self.model, options.weight_decay), options.learning_rate, betas)
        self._own_forward = "forward" in vars(self.model)
        self._wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)

    def state(self) -> dict[str, Any]:
        """All that an exact continuation needs; chance is a function of seed and step and needs no state."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def begin_anew(self, weights: Mapping[str, Tensor]) -> None:
        """Back to these weights, by name, with an optimiser that has seen nothing."""
        fill(self.model, weights)
        self.optimizer.zero_grad()
        self.optimizer.optimizer.state.clear()

    def update(self, batch: Batch, step: int, learning_rate: float) -> float:
        """One update on the whole batch, of which this process computes its share; the mean loss of the whole batch.

        Each prediction counts once, however the batch is shared out: the sum over the share is divided by the number
        of predictions in the whole batch. DivergedError if the loss or the gradient is not finite.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._chance(step):
            total = self._share(batch, rank, processes)
            count = max(1, batch.count)
            self.accelerator.backward(total * (processes / count))  # parallel training averages over the processes
        loss = float(self.accelerator.reduce(total.detach(), reduction="sum")) / count
        bound = self.options.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), bound))
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler is not None):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise DivergedError(
                f"the {what} is not finite at step {step + 1}; lower the learning rate or check the data"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def finish(self) -> nn.Module:
        """The trained copy, in the modes and precision of the model given, on its device, without accelerate's wrapping."""
        model: nn.Module = self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        if not self._own_forward:
            vars(model).pop("forward", None)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(self._stored[name])
            parameter.grad = None
        for name, module in model.named_modules():
            module.training = self._modes[name]
        return model.to(self._home)

    def _share(self, batch: Batch, rank: int, processes: int) -> Tensor:
        """Sum of the losses of this process's examples; zero, with a graph behind it, if it has none."""
        examples = batch.examples
        rows = slice(rank * examples // processes, (rank + 1) * examples // processes)
        empty = rows.start == rows.stop
        part = batch.take(slice(0, 1) if empty else rows)
        losses = self.lesson.loss(self._wrapped, self.model, part, self.accelerator.device)
        return losses * 0 if empty else losses

    @contextmanager
    def _chance(self, step: int) -> Iterator[None]:
        """Dropout's random numbers as a function of (seed, step, process); torch's own generators are left as they were."""
        words = np.random.SeedSequence([self.options.seed, step, self.accelerator.process_index]).generate_state(
            1, np.uint64
        )
        device = self.accelerator.device
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            torch.manual_seed(int(words[0] >> np.uint64(1)))
            yield


def stored_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts these values, by name, into the model's tensors."""
    tensors = stored_of(model)
    for name, value in weights.items():
        tensors[name].copy_(value)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainError("the model has no parameter to train: all are frozen; set requires_grad where it should learn")
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
