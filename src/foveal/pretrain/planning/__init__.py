"""Before the first step: what a run takes, whether it fits, and what images and computer add to its recipe."""
