"""Options of finetuning: closed to unknown keys, checked when made."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from otfuse.errors import UsageError

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class FinetuneOptions(BaseModel):
    """How to train. Length is ``epochs`` or ``steps`` (three epochs if neither is given).

    ``batch_size`` is the total over all processes. The learning rate rises linearly over the first ``warmup`` (a share
    of all steps) and falls as a cosine to zero. ``weight_decay`` is not applied to one-dimensional tensors (norms,
    biases). ``max_grad_norm`` None: no clipping. A checkpoint is written every ``save_every`` steps and at the end.
    ``device`` None: what accelerate finds. A bad value raises UsageError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 32
    learning_rate: Positive = 5e-5
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    warmup: Share = 0.1
    label_smoothing: Share = 0.0
    max_grad_norm: Positive | None = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: Count = 100
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_sentence(error)) from None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; give one of them")
        return self

    def total_steps(self, examples: int) -> int:
        """Number of updates on that many examples; the last batch of an epoch may be smaller."""
        return self.steps or (self.epochs or 3) * self.steps_per_epoch(examples)

    def steps_per_epoch(self, examples: int) -> int:
        """Number of batches that hold that many examples."""
        return math.ceil(examples / self.batch_size)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of update ``step`` (from 0) of ``steps``: linear warm-up, then half a cosine towards zero."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"finetuning has no option {key!r}; allowed: {', '.join(FinetuneOptions.model_fields)}"
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    return f"finetuning option {key} cannot be {first['input']!r}: {reason}" if key else f"finetuning: {reason}"
