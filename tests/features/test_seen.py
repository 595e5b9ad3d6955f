from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.seen import denormalise, prepare, see


def test_seen_features_are_those_of_extract(model: Model, pictures: list[np.ndarray]) -> None:
    for fit in ("crop", "resize", "pad"):
        seen = see(model, pictures[0], size=35, fit=fit)
        expected = model.extract(pictures[0], size=35, fit=fit)
        assert torch.equal(seen.patches, expected.patches[0])
        assert seen.pixels.shape[:2] == tuple(7 * side for side in seen.patches.shape[:2]) == seen.geometry.seen


def test_whole_picture_is_seen_at_the_card_s_size(model: Model, pictures: list[np.ndarray]) -> None:
    assert see(model, pictures[3]).pixels.shape == (28, 147, 3)  # 17 x 90: short side 28, the other 148 -> 147


def test_pixels_are_those_before_normalisation(model: Model) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (28, 35, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(model, picture).pixels, picture)


def test_denormalise_clips_what_resizing_overshot() -> None:
    array = np.array([-3.0, 0.0, 9.0], dtype=np.float32).reshape(3, 1, 1)
    assert denormalise(array, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).tolist() == [[[0, 128, 255]]]


def test_name_is_the_file_s_unless_given(model: Model, tmp_path: Path, pictures: list[np.ndarray]) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "cat.png")
    assert see(model, tmp_path / "cat.png").name == "cat.png"
    assert see(model, tmp_path / "cat.png", name="tom").name == "tom"
    assert see(model, pictures[0]).name == ""


def test_size_that_is_no_multiple_is_explained_for_crops_only(model: Model, pictures: list[np.ndarray]) -> None:
    with pytest.raises(FovealError, match="30 is not a multiple of the patch size 7"):
        see(model, pictures[0], size=30, fit="crop")
    assert see(model, pictures[0], size=30).geometry.seen == (28, 49)
