"""The Vision Transformer, its variants and its files."""
