"""The steps of the layer-level walk, one file per idea: what an operator does to the units that arrive.

In: the state of the walk and a node of the program. Out: what the node carries; layer-level nodes are added on the way.
"""
