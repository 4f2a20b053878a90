"""Spaces: sets of interchangeable units with all places where they are stored.

In: the facts of a program, its algebra solved. Out: a draft of a space for every leaf that a live stored tensor holds, with
its members, its copies (which units may move differently in every head or expert), its group and what pins it.
"""
