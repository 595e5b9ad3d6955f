"""The evaluation transforms against an independent evaluation with Pillow alone."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveal.errors import BadImageError, FovealError
from foveal.images.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    center_crop,
    short_side_shape,
    to_rgb_array,
)


def normalised(image: Image.Image) -> np.ndarray:
    """(x / 255 - mean) / std in float64, pixel by pixel."""
    pixels = np.asarray(image, dtype=np.float64) / 255
    return np.stack([(pixels[:, :, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)])


@pytest.mark.parametrize(
    ("height", "width", "long_side"), [(33, 47, 364), (47, 33, 364), (300, 401, 342), (256, 256, 256)]
)
def test_default_is_resize_256_then_centre_crop_224(height, width, long_side):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = (long_side, 256) if width >= height else (256, long_side)
    margin = (long_side - 224) // 2
    left, top = (margin, 16) if width >= height else (16, margin)
    expected = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    array = Preprocess()(pixels)
    assert array.shape == (3, 224, 224)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    # float32 against float64: values up to 2.7 carry errors of a few 2**-23.
    assert np.allclose(array, normalised(expected), rtol=0, atol=2e-6)


def test_known_values():
    array = Preprocess(mode="resize")(np.full((14, 14, 3), 255, np.uint8))
    assert np.allclose(array[:, 0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


@pytest.mark.parametrize(("side", "nearest"), [(1, 14), (14, 14), (20, 14), (21, 28), (29, 28), (518, 518)])
def test_resize_goes_to_the_nearest_multiple(side, nearest):
    assert Preprocess(mode="resize")(np.zeros((side, 42, 3), np.uint8)).shape == (3, nearest, 42)


def test_pad_puts_zeros_around_with_the_smaller_half_left_and_top(photo):
    array = Preprocess(mode="pad", patch_size=16)(photo[:, :45])
    assert array.shape == (3, 48, 48)  # 33 + 15 rows, 45 + 3 columns
    assert np.allclose(array[:, 7:40, 1:46], normalised(Image.fromarray(photo[:, :45])), rtol=0, atol=2e-6)
    inside = np.zeros((48, 48), bool)
    inside[7:40, 1:46] = True
    assert (array[:, ~inside] == 0).all()


def test_pad_and_resize_take_a_short_side_first(photo):
    assert Preprocess(mode="pad", resize_size=66)(photo).shape == (3, 70, 98)  # 66 x 94
    assert Preprocess(mode="resize", resize_size=66)(photo).shape == (3, 70, 98)


def test_resize_default_follows_the_crop():
    assert (Preprocess().resize_size, Preprocess().crop_size) == (256, 224)
    assert Preprocess(crop_size=518).resize_size == 592
    assert dataclasses.replace(Preprocess(), patch_size=16) == Preprocess(patch_size=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 225}, r"crop_size=225 is not a multiple of patch_size=14; use 224 or 238\."),
        ({"crop_size": 5}, r"use 14\."),
        ({"resize_size": 200}, "resize_size=200 is below crop_size=224; use 224 or more"),
        ({"mode": "stretch"}, "mode='stretch'; allowed are crop, resize, pad"),
        ({"mode": "pad", "crop_size": 224}, 'crop_size=224 has no effect in mode "pad"'),
        ({"patch_size": 0}, "must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (0.5,)}, "a number each"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(FovealError, match=message):
        Preprocess(**settings)


def test_short_side_rounds_the_long_side_down():
    assert short_side_shape(3, 5, size=7) == (7, 11)
    assert short_side_shape(5, 3, size=7) == (11, 7)


def test_a_strip_of_one_pixel_does_not_fill_the_memory():
    with pytest.raises(BadImageError, match="60000 x 1 pixels would become 15360000 x 256"):
        Preprocess()(np.zeros((1, 60_000, 3), np.uint8))


def test_odd_margins_of_the_crop_round_half_to_even():
    pixels = np.arange(7, dtype=np.uint8).reshape(7, 1, 1) * np.ones((7, 5, 3), np.uint8)
    assert center_crop(pixels, size=4)[0, 0, 0] == 2  # margin 1.5
    assert center_crop(pixels[:5], size=4)[0, 0, 0] == 0  # margin 0.5


def test_path_pillow_and_array_give_the_same_picture(photo, encode, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encode(photo, "PNG"))
    with Image.open(path) as image:
        for given in (str(path), path, image, photo, np.asfortranarray(photo)):
            pixels = to_rgb_array(given)
            assert np.array_equal(pixels, photo)
            assert pixels.flags.c_contiguous


def test_grey_array_becomes_three_channels():
    assert to_rgb_array(np.array([[1, 2]], np.uint8)).tolist() == [[[1, 1, 1], [2, 2, 2]]]


def test_pillow_image_is_turned_upright_as_a_file_is(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(to_rgb_array(image), expected)
    assert np.array_equal(to_rgb_array(tmp_path / "x.png"), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"type float32; allowed are uint8.*multiply 0..1 floats by 255"),
        (np.zeros((4, 5, 3), np.uint16), r"type uint16.*scale to 0..255"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*use image.transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\).*alpha"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"one image at a time"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        ([[1, 2]], r"of type list; give a path, a Pillow image, or a NumPy array"),
    ],
)
def test_other_inputs_are_refused_with_the_next_step(given, message):
    with pytest.raises(FovealError, match=message):
        to_rgb_array(given)


def test_missing_path_is_unreadable(tmp_path):
    with pytest.raises(BadImageError, match="cannot be read") as caught:
        to_rgb_array(tmp_path / "none.jpg")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("settings", [{"crop_size": (28, 56)}, {"mode": "resize", "resize_size": (14, 42)}, {}])
def test_a_transform_comes_back_from_json(settings):
    preprocess = Preprocess(**settings, mean=(0.1, 0.2), std=(0.3, 0.4))
    assert Preprocess.from_stamp(json.loads(json.dumps(dataclasses.asdict(preprocess)))) == preprocess


@pytest.mark.parametrize("mode", ["resize", "pad"])
def test_a_strip_of_too_many_patches_is_refused_before_it_is_made(mode: str) -> None:
    strip = np.zeros((1, 4000, 3), np.uint8)
    with pytest.raises(
        BadImageError, match=r"224000 x 56 pixels are 64,000 patches, allowed are 50,000; use a smaller"
    ):
        Preprocess(mode=mode, resize_size=56)(strip)
    assert Preprocess(mode=mode, resize_size=14)(strip).shape == (3, 14, 56_000)
    assert Preprocess(crop_size=56)(strip).shape == (3, 56, 56)
