"""Frozen records and their laws; nothing here knows a file format, a solver or a model."""
