"""Tensors in, tensors out: costs between units and the couplings that solve them."""
