import io

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadImageError, FovealError
from foveal.images.decode import DecodeLimits, decode, decode_ids
from foveal.images.masks import encode_ids, palette


def test_numbers_survive_and_are_seen_in_their_colours() -> None:
    ids = np.arange(15, dtype=np.int64).reshape(3, 5) * 17
    data = encode_ids(ids)
    found, has_palette = decode_ids(data)
    assert found.tolist() == ids.tolist()
    assert has_palette
    assert np.array_equal(decode(data), palette()[ids])


def test_the_palette_is_that_of_voc() -> None:
    assert palette()[[5, 8, 20, 255]].tolist() == [[128, 0, 128], [64, 0, 0], [0, 64, 128], [224, 224, 192]]
    assert len(np.unique(palette(), axis=0)) == 256


@pytest.mark.parametrize(
    ("values", "dtype"), [([[0, 255]], np.uint8), ([[0, 40_000]], np.uint16), ([[False, True]], bool)]
)
def test_grey_masks_come_as_stored(encode, values, dtype) -> None:
    found, has_palette = decode_ids(encode(np.array(values, dtype), "PNG"))
    assert found.tolist() == np.array(values).astype(int).tolist()
    assert not has_palette


def test_pictures_are_no_masks(encode) -> None:
    colours = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(BadImageError, match="a mask of mode RGB; a mask holds one number a pixel"):
        decode_ids(encode(colours, "PNG"))
    with pytest.raises(BadImageError, match="a mask as JPEG; save its numbers as PNG"):
        decode_ids(encode(colours, "JPEG"))
    with pytest.raises(BadImageError, match="is truncated"):
        decode_ids(encode_ids(np.random.default_rng(0).integers(0, 255, (40, 30)))[:-600])
    with pytest.raises(BadImageError, match="3 x 2 pixels, allowed are 5"):
        decode_ids(encode(colours, "PNG"), limits=DecodeLimits(max_pixels=5))


@pytest.mark.parametrize("ids", [np.zeros((2, 3, 1), int), np.full((2, 3), 256), np.full((2, 3), -1), np.zeros((2, 3))])
def test_what_no_palette_holds_is_refused(ids: np.ndarray) -> None:
    with pytest.raises(FovealError, match="whole numbers from 0 to 255"):
        encode_ids(ids)


def test_files_open_elsewhere_in_palette_mode() -> None:
    with Image.open(io.BytesIO(encode_ids(np.array([[0, 2]])))) as picture:
        assert (picture.mode, picture.size) == ("P", (2, 1))
