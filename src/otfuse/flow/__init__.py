"""From a program to its flow graph: the algebra of axes, one rule per operator family, spaces, nodes and the gate."""
