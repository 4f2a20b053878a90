"""The steps of the layer-level walk, one file per idea: what an operator does to the units that arrive."""
