"""Checkpoints, data and model cards: everything that touches the disk."""
