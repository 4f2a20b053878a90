"""What every operator says about units: one file per operator family, found by the registry (docs/rules.md).

In: a traced program. Out: ``Facts``, that is the value of every node as axes of the algebra, roles of stored tensors, and
what was contracted, chosen by number or not understood. ``interpret`` walks the program and ``registry`` finds the rule
of a node; ``op`` is the node as a rule sees it, ``operators`` reads names and arguments.
"""
