"""The algebra of units: which factors an axis is made of, and which of them are the same units.

In: what operators force (these axes are equal, this one is the product of those, that one is in order). Out: for every
axis its leaves with what pins them, and the positions at which every unit of a leaf lies. Nothing here knows operators.
"""
