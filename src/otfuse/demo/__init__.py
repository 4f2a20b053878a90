"""What ``make demo`` runs: two small models trained, fused in four ways, compared; everything that only the demo needs."""
