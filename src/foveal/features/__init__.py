"""Frozen features: extraction, neighbours, principal components."""
