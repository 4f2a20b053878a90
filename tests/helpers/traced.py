"""Models of the example database, each made and traced once in a process: tests of one model run in one (tests/conftest.py)."""

from __future__ import annotations

import functools

import otfuse
from otfuse.testing.examples import EXAMPLES
from otfuse.testing.law import Bench


@functools.cache
def built(name):
    """The model and its inputs."""
    return EXAMPLES[name].build(0)


@functools.cache
def checked(name):
    """Its flow graph, with what the gate found."""
    return otfuse.verify(*built(name), seed=0)


@functools.cache
def bench(name):
    """Where its spaces are moved."""
    return Bench(*built(name))
