"""The largest exact group of every space, on the canonical form of a model.

In: a program, its flow graph, its stored tensors. Out: folds that bring the tensors to canonical form (``folds`` proposes them
from the program, ``canonical`` evaluates them), one :class:`otfuse.core.symmetry.Symmetry` for every space that is not pinned
(``slots`` tells where it acts, ``kinds`` tries how much it tolerates), and ``element``, which draws elements and lets them act.
``find.symmetries`` is the story.
"""
