"""From maps to fused weights."""
