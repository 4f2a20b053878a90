"""The layer-level walk: the steps a person would name (linear, norm, attention, junction), in forward order.

In: a program, its facts, and the spaces found. Out: flow nodes, each with the stored pieces that write its units, its
readings (which units of which nodes it reads) and the value at which its units can be observed.
"""
