"""Programs that run inside Triton's Python backend: each is copied into a model repository as `1/model.py`."""
