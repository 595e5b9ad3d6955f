"""The processes of a run: how they join, what each holds, what they add up, and how they end."""
