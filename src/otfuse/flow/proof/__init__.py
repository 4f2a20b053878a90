"""The proof: elements of every space's group, applied to the weights, must not change what the model gives.

In: a module, its program and spaces. Out: how far the outputs move when all spaces move, and when one member is left out
(``gate``), or whether one space alone may move (its trials). ``act`` draws and applies elements; nothing here derives.
"""
