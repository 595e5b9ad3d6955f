"""Exports of a model, with its heads, for other runtimes, and the verdict on each beside the original."""
