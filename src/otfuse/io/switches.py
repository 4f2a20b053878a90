"""Settings that only concern running, and parts of a class that files may leave out: neither stops a fusion.

The result keeps the anchor's own config.json; what is neutral here is only what is loaded, traced and trained.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def left_out(kind: Any, stored: Iterable[str]) -> dict[str, bool]:
    """Keywords that build the class ``kind`` without the pooling layer that nobody stored; none if it has no such choice."""
    known = inspect.signature(kind.__init__).parameters
    return (
        {"add_pooling_layer": False} if "add_pooling_layer" in known and not any("pooler." in n for n in stored) else {}
    )
