"""Self-supervised pretraining: views, masks, the step and the loop around it."""
