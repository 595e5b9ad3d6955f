"""Frozen evaluation: one file a protocol."""
