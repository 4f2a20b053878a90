"""otfuse: align the units of trained transformers with optimal transport, then average them into one model.

``trace``, ``equivalent``, ``verify`` and ``fuse`` are the whole interface; they are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otfuse.pipeline import equivalent, fuse, trace, verify

__all__ = ["equivalent", "fuse", "trace", "verify"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from otfuse import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'otfuse' has no attribute {name!r}")
