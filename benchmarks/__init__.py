"""Measurements of ciuic_dist against plain PyTorch and against the other sharding engines."""
