"""Stories over several rooms: the demo."""
