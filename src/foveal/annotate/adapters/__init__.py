"""A project inside other tools: its answers go out as their predictions, and what people say there comes back."""
