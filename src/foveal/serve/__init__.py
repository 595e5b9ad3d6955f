"""A model behind HTTP: one process, its own batcher, and deliberate answers to everything that can go wrong."""
