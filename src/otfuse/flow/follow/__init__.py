"""Where every single unit goes: the program's own layout operators, run on numbers of units instead of values.

In: a node of the program and numbers laid out like what it reads. Out: the same numbers laid out like what it gives; so
what a view or a slice moves where is never written twice. ``reach`` walks back with masks: which places predictions read.
"""
