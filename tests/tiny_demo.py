"""Overrides for a demo in seconds: a tiny backbone, two steps."""

FAST = (
    "total_steps=2",
    "batch_size=8",
    "backbone.variant=vit_nano",
    "backbone.width=48",
    "backbone.depth=1",
    "backbone.num_heads=3",
    "backbone.patch_size=8",
    "backbone.image_size=32",
    "views.global_size=32",
    "views.local_size=16",
    "views.num_local=1",
    "features.crop_size=32",
    "features.resize_size=32",
    "heads.dino.num_prototypes=16",
    "optimizer.warmup_steps=1",
    "teacher.temperature_warmup_steps=1",
)
