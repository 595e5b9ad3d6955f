from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.errors import FovealError, ImageSetError
from foveal.export.real_images import at_another_size, real_batches
from foveal.images.preprocess import Preprocess

CARD = Card(
    name="tiny",
    backbone=backbone_config("vit_nano", image_size=28),
    mean=[0.1, 0.2, 0.3],
    std=[0.5, 0.6, 0.7],
    crop_size=28,
    resize_size=30,
)


def _pictures(folder: Path, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(count)]
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return pictures


def test_images_are_evenly_spread_and_prepared_as_the_card_says(tmp_path: Path) -> None:
    pictures = _pictures(tmp_path, 9)
    prepare = Preprocess(crop_size=28, resize_size=30, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batches = real_batches(CARD, tmp_path, max_images=5, batch_size=2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    expected = np.stack([prepare(pictures[number]) for number in (0, 2, 4, 6, 8)])
    torch.testing.assert_close(torch.cat(batches), torch.from_numpy(expected), rtol=0, atol=0)


def test_bad_images_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _pictures(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no picture")
    assert sum(map(len, real_batches(CARD, tmp_path))) == 2
    assert "1 of 3 images left out" in caplog.text
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ImageSetError, match="none of 3 images"):
        real_batches(CARD, tmp_path)


def test_photographs_of_the_demo_stand_in() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    batches = real_batches(CARD, max_images=3)
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 28, 28)]


def test_neither_images_nor_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FovealError, match="give --images DIR or run pip install"):
        real_batches(CARD)


def test_photographs_do_not_suit_other_channels() -> None:
    card = CARD.model_copy(update={"backbone": backbone_config("vit_nano", image_size=28, channels=5)})
    with pytest.raises(FovealError, match="5 channels"):
        real_batches(card)


def test_another_size_has_one_row_of_patches_less() -> None:
    batch = torch.arange(5 * 3 * 28 * 28).reshape(5, 3, 28, 28).float()
    (other,) = at_another_size(batch, patch_size=7, max_images=2)
    torch.testing.assert_close(other, batch[:2, :, :21], rtol=0, atol=0)
    assert at_another_size(batch, patch_size=28) == []
