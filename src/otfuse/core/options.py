"""Options of every scheme, one closed section each."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Start = Literal["plain", "anchor", "aligned", "aligned-acts"]  # where a scheme that works on one model begins


class Closed(BaseModel):
    """A section of a recipe: closed to unknown keys, checked when made, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OTFusion(Closed):
    """Options of the published method (arXiv 2310.05719), in the words of docs/method.md, section 6."""

    features: Literal["activations", "weights"] = "activations"
    transform: Literal["standardize", "center", "normalize", "none", "unit"] = "standardize"
    tokens: str = "all"
    unread: Literal["skip", "compare"] = "skip"
    cost: Literal["euclidean", "sqeuclidean", "cosine", "correlation"] = "euclidean"
    cost_scale: Literal["max", "mean", "median", "none"] = "max"
    solver: Literal["sinkhorn", "emd"] = "sinkhorn"
    regulariser: Positive | Literal["auto"] = 0.08
    residual: Literal["branch", "skip", "identity", "mean", "scalar", "matrix"] = "mean"
    query_key: Literal["separate", "tied", "heads"] = "separate"
    classifier: Literal["fuse", "anchor"] = "fuse"
    unequal: Literal["balanced", "published"] = "balanced"

    @model_validator(mode="before")
    @classmethod
    def _transform_of_features(cls, data: Any) -> Any:
        """Weights are compared as unit rows unless the recipe says otherwise."""
        if isinstance(data, dict) and data.get("features") == "weights":
            return {"transform": "unit"} | data
        return data

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: str) -> str:
        if value not in ("all", "cls") and not re.fullmatch(r"window:[1-9]\d*", value):
            msg = "allowed: all, cls, window:N (N x N centre patches and the class token)"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _transform_fits_features(self) -> Self:
        allowed = ("unit", "none") if self.features == "weights" else ("standardize", "center", "normalize", "none")
        if self.transform not in allowed:
            msg = f"transform {self.transform!r} does not go with features {self.features!r}; allowed: {', '.join(allowed)}"
            raise ValueError(msg)
        return self


class Aligned(Closed):
    """Options of one map per space (docs/method.md): what is compared, which groups, what a near-symmetry may cost."""

    features: Literal["weights", "activations"] = "weights"
    groups: Literal["full", "permutation"] = "full"
    tolerance: NotNegative = 0.01  # nats; chosen by measuring: docs/experiments.md
    softness: NotNegative = 0.0
    evenness: Share = 0.5  # 0 counts every number alike, 1 every tensor; chosen by measuring: docs/decisions.md


class Calibrated(Closed):
    """Options of solving every layer again in closed form."""

    start: Start | Literal["refined"] = "plain"
    sweeps: Count = 1
    ridge: Positive | Literal["auto"] = "auto"
    blend: Share | Literal["auto"] = 1.0
    norms: bool = False


class Refined(Closed):
    """Options of gradient steps on the maps alone."""

    start: Literal["aligned", "aligned-acts"] = "aligned"
    steps: Count | Literal["auto"] = "auto"
    batch_size: Count = 64
    learning_rate: Positive | Literal["auto"] = "auto"
    target: Literal["mean"] = "mean"
    soft: Literal["none", "units"] = "none"


class Distilled(Closed):
    """Options of training all weights towards what the parents predict together."""

    start: Start | Literal["calibrated", "refined", "auto"] = "auto"
    steps: Count = 500
    batch_size: Count = 32
    learning_rate: Positive | Literal["auto"] = "auto"
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.2


class Auto(Closed):
    """Options of the fixed order align, calibrate, distil: how long (``budget``, or a number of ``steps``), what is held back."""

    budget: str = "60s"
    steps: Annotated[int, Field(ge=0)] | None = None
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @field_validator("budget")
    @classmethod
    def _duration(cls, value: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?(s|m|h)", value):
            msg = "allowed: a number with s, m or h, for example 60s or 5m"
            raise ValueError(msg)
        return value

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        return float(self.budget[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[self.budget[-1]]
