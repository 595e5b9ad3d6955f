from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture
def fast() -> tuple[str, ...]:
    """Overrides for a demo in seconds: a tiny backbone, two steps."""
    return FAST


@pytest.fixture
def own_photos(tmp_path: Path) -> Path:
    """Three usable pictures, one that is too small, one that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, size in enumerate(((170, 240), (300, 200), (165, 165), (20, 400))):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "poem.jpg").write_text("not an image")
    return folder
