from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_demo import FAST


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
