"""The 15 common corruptions of pictures."""
