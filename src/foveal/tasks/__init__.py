"""Heads on frozen features: fitted, saved, and used."""
