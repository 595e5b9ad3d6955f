"""Distillation: a frozen teacher, its students, and what they are taught."""
