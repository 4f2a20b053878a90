"""From a traced program to its flow graph, and the proof that the graph is exact.

``derive`` tells the story; every room holds one idea, and imports only go up this list:

- ``algebra``: which units the axes of tensors are made of.
- ``rules``: what every operator of the program says about these units.
- ``follow``: where every single unit goes, element by element.
- ``spaces``: sets of interchangeable units, with all places where they are stored.
- ``layers``: the steps a person would name, and which units they read and write.
- ``derive``: all of these in order. Beside it ``proof`` moves units and compares outputs, and ``match`` compares graphs.
"""
