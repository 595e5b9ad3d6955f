"""Checkpoints: what a run writes down to go on from, and the model folders made of it."""
