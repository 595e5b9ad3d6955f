"""Runs that start from other weights: opening them, and what keeps them from getting worse."""
