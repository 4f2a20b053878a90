"""What ``make demo`` runs: two pairs of small models trained, fused, compared with controls; everything that only the demo needs."""
