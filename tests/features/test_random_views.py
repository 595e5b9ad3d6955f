from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.errors import FovealError
from foveal.features.random_views import RandomViews, random_view
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess

_PREPROCESS = Preprocess(crop_size=14, patch_size=7)


def _views(images: ImageSet, **settings: int) -> RandomViews:
    return RandomViews(images, _PREPROCESS, **{"batch_size": 5, "seed": 3, **settings})


def test_a_view_is_the_box_resized_by_pillow_and_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    draws = [0.5, 0.5] * 10 + [0.3, 0.6]  # half of the way from 8 to 100 % of 1200 pixels, square: sides of 25.46
    box = Image.fromarray(pixels).crop((3, 4, 28, 29))  # left int(0.6 * 6), top int(0.3 * 16)
    expected = np.asarray(box.resize((21, 14), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(random_view(pixels, [*draws, 0.5], size=(14, 21)), expected)
    np.testing.assert_array_equal(random_view(pixels, [*draws, 0.4], size=(14, 21)), expected[:, ::-1])


def test_every_image_comes_once_a_pass_in_new_views(colours: Path) -> None:
    images = ImageSet.open(colours / "train")  # 21
    found = list(_views(images, batch_size=7).batches(range(6)))
    indices = np.concatenate([one.numpy() for one, _ in found])
    views = np.concatenate([np.stack(arrays) for _, arrays in found])
    assert views.shape == (42, 3, 14, 14)
    assert views.dtype == np.float32
    passes = indices[:21], indices[21:]
    assert [sorted(one) for one in passes] == [list(range(21))] * 2
    assert list(passes[0]) != list(passes[1])
    again = views[21:][np.argsort(passes[1])]
    assert all((a != b).any() for a, b in zip(views[:21][np.argsort(passes[0])], again, strict=True))


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_step_is_the_same_wherever_it_begins(colours: Path, num_threads: int) -> None:
    images = ImageSet.open(colours / "train")
    whole = list(_views(images).batches(range(9)))
    rest = list(_views(images, num_threads=num_threads).batches(range(4, 9)))  # passes end within steps 4 and 8
    for (indices, views), (same_indices, same_views) in zip(whole[4:], rest, strict=True):
        assert indices.tolist() == same_indices.tolist()
        np.testing.assert_array_equal(views, same_views)
    assert whole[0][0].tolist() != next(_views(images, seed=4).batches(range(1)))[0].tolist()


def test_an_unreadable_image_leaves_its_step_smaller(colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = colours / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    images = ImageSet.open(colours / "train")
    sizes = [len(views) for _, views in _views(images, batch_size=21).batches(range(2))]
    assert sizes == [20, 20]
    assert [record.message.startswith("image 1 of 21 skipped") for record in caplog.records] == [True]
    with pytest.raises(FovealError, match="batch_size=0"):
        _views(images, batch_size=0)
