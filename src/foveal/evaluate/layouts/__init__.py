"""Data sets in the layouts in which they are distributed: one kind a file, checked before the first step."""
