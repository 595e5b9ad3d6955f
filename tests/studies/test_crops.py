import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ImageSetError
from foveal.images.photographs import packaged_photographs
from foveal.studies.crops import own_photographs, write_crops


def test_packaged_photographs_are_there() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    found = packaged_photographs()
    assert len(found) >= 12
    assert all(pixels.dtype == np.uint8 and pixels.shape[2] == 3 for pixels in found.values())
    assert {"astronaut", "china"} <= found.keys()


def test_train_and_test_crops_share_no_region(tmp_path: Path) -> None:
    """Thirds in red, green and blue: train crops see red or blue, test crops green (recoloured, but the largest)."""
    pixels = np.zeros((256, 384, 3), dtype=np.uint8)
    for third in range(3):
        pixels[:, third * 128 : (third + 1) * 128, third] = 200
    train, test = write_crops({"flag": pixels}, tmp_path, train_each=8, test_each=6, size=24)
    train_files, test_files = sorted(train.rglob("*.png")), sorted(test.rglob("*.png"))
    assert (len(train_files), len(test_files)) == (8, 6)
    for number, path in enumerate(train_files):
        crop = np.asarray(Image.open(path))
        assert crop.shape == (24, 24, 3)
        assert crop[:, :, 1].max() == 0
        assert crop[:, :, 2 * (number % 2)].min() == 200
    for path in test_files:
        crop = np.asarray(Image.open(path)).astype(int)
        assert (crop[:, :, 1] > np.maximum(crop[:, :, 0], crop[:, :, 2])).all()


def test_crops_are_a_function_of_the_seed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)

    def contents(name: str, seed: int) -> list[bytes]:
        write_crops({"x": pixels}, tmp_path / name, train_each=2, test_each=2, size=16, seed=seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))]

    assert contents("a", 0) == contents("b", 0)
    assert contents("c", 1) != contents("a", 0)


def test_narrow_photographs_give_narrow_crops(tmp_path: Path) -> None:
    pixels = np.full((600, 160, 3), 90, dtype=np.uint8)  # a third is 85 pixels wide at a short side of 256
    train, _ = write_crops({"tall": pixels}, tmp_path, train_each=2, test_each=1, size=16)
    assert len(list(train.rglob("*.png"))) == 2


def test_own_photographs_leave_out_small_and_bad_ones(own_photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = own_photographs(str(own_photos))
    assert sorted(pixels.shape for pixels in found.values()) == [(165, 165, 3), (170, 240, 3), (300, 200, 3)]
    assert "left out: poem.jpg" in caplog.text
    assert len(own_photographs(str(own_photos), limit=2)) == 2


def test_too_few_photographs_are_an_error(own_photos: Path) -> None:
    for name in ("0.png", "1.png"):
        (own_photos / name).unlink()
    with pytest.raises(ImageSetError, match="holds 1 usable images of 160 pixels a side or more; the demo needs 2"):
        own_photographs(str(own_photos))
