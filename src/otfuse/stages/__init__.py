"""Schemes that work on one model after another: a start, then stages that each take weights and give weights."""
