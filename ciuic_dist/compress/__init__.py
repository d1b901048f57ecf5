"""Fewer bytes for the same tensors, or nearly."""
