"""The example database: tiny models of every kind, each with the spaces that theory expects of it."""

from __future__ import annotations

from otfuse.testing import adversarial, decoders, encoders, media, order, plain, seq2seq, vision
from otfuse.testing.record import Example

__all__ = ["EXAMPLES", "Example", "example"]

EXAMPLES: dict[str, Example] = {
    entry.name: entry
    for module in (plain, vision, encoders, decoders, seq2seq, media, adversarial, order)
    for entry in module.EXAMPLES
}


def example(name: str) -> Example:
    """The example of that name; KeyError if there is none."""
    return EXAMPLES[name]
