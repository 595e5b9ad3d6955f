"""The terms of the DINOv2 objective, as functions of tensors."""
