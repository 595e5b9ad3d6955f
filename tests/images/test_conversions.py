"""What becomes of pixels that are not 8-bit RGB, and of pictures that lie on their side."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadImageError
from foveal.images.colour import upright
from foveal.images.decode import decode, from_pillow, read_size

# For each EXIF orientation: how the stored picture is made from the upright one.
STORED_FROM_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def with_orientation(stored: np.ndarray, orientation: int, format_name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = (
        {"lossless": True}
        if format_name == "WEBP"
        else {"quality": 95, "subsampling": 0}
        if format_name == "JPEG"
        else {}
    )
    Image.fromarray(np.ascontiguousarray(stored)).save(file, format_name, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
def test_upright_undoes_the_orientation(photo, orientation):
    pixels = upright(STORED_FROM_UPRIGHT[orientation](photo), orientation=orientation)
    assert np.array_equal(pixels, photo)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(photo, each_jpeg_decoder, format_name, orientation):
    data = with_orientation(STORED_FROM_UPRIGHT[orientation](photo), orientation, format_name)
    pixels = decode(data)
    assert pixels.shape == photo.shape
    assert read_size(data) == (47, 33)
    if format_name == "JPEG":
        assert np.abs(pixels.astype(int) - photo).mean() < 2
    else:
        assert np.array_equal(pixels, photo)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientation_out_of_range_leaves_the_picture_as_stored(photo, orientation):
    assert np.array_equal(decode(with_orientation(photo, orientation, "PNG")), photo)


def test_damaged_exif_leaves_the_picture_as_stored(photo, encode, each_jpeg_decoder):
    plain = encode(photo, "JPEG")
    exif = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken"
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + plain[2:]
    assert np.array_equal(decode(data), decode(plain))


def sixteen_bit_png(values: np.ndarray, colour_type: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape[:2]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


RAMP = np.arange(65536, dtype=np.uint16).reshape(128, 512)
RAMP_IN_8_BIT = np.round(RAMP / 257).astype(np.uint8)  # no value of a 16-bit ramp lies halfway between two levels


def test_16_bit_grey_png_is_divided_by_257():
    pixels = decode(sixteen_bit_png(RAMP, colour_type=0))
    assert np.array_equal(pixels, np.repeat(RAMP_IN_8_BIT[:, :, None], 3, axis=2))
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_grey_tiff_is_divided_by_257(encode, byte_order):
    data = encode(RAMP, "TIFF") if byte_order == "<" else big_endian_tiff(RAMP)
    assert np.array_equal(decode(data)[:, :, 1], RAMP_IN_8_BIT)


def big_endian_tiff(values: np.ndarray) -> bytes:
    height, width = values.shape
    fields = [(256, 4, width), (257, 4, height), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16)]
    fields += [(273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1 << 16), (278, 4, height), (279, 4, values.size * 2)]
    directory = struct.pack(">H", len(fields)) + b"".join(
        struct.pack(">HHII", tag, kind, 1, v) for tag, kind, v in fields
    )
    return b"MM\x00*" + struct.pack(">I", 8) + directory + b"\0\0\0\0" + values.astype(">u2").tobytes()


def test_16_bit_pgm_is_divided_by_257():
    data = b"P5 512 128 65535\n" + RAMP.astype(">u2").tobytes()
    assert np.array_equal(decode(data)[:, :, 2], RAMP_IN_8_BIT)


def test_16_bit_colour_png_is_within_one_level():
    colour = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
    expected = np.round(colour / 257)
    # Pillow keeps the high byte: value // 256 against value / 257, at most one level.
    assert np.abs(decode(sixteen_bit_png(colour, colour_type=2)) - expected).max() <= 1


def test_float_tiff_from_0_to_1_is_scaled_and_other_ranges_are_refused(encode):
    unit = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(encode(unit, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(BadImageError, match=r"values from 0.0 to 2.0; allowed are 0.0 to 1.0") as caught:
        decode(encode(unit * 2, "TIFF"))
    assert caught.value.reason == "unsupported_pixels"


def test_32_bit_integers_outside_16_bit_are_refused(encode):
    with pytest.raises(BadImageError, match=r"values from -1 to 7; allowed are 0 to 65535"):
        decode(encode(np.array([[-1, 7]], dtype=np.int32), "TIFF"))


def test_nan_is_refused():
    with pytest.raises(BadImageError, match="allowed are"):
        from_pillow(Image.fromarray(np.array([[np.nan]], dtype=np.float32)))


def test_palette_is_looked_up(encode):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    image.putdata([2, 0, 1])
    assert decode(encode(image, "PNG")).tolist() == [[[1, 2, 3], [255, 0, 0], [0, 255, 0]]]


def test_transparent_palette_entry_is_white(encode):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    image.putdata([2, 0, 1])
    assert decode(encode(image, "PNG", transparency=0)).tolist() == [[[1, 2, 3], [255, 255, 255], [0, 255, 0]]]
    half = encode(image, "PNG", transparency=bytes([0, 255, 128]))
    assert decode(half).tolist() == [[[128, 128, 129], [255, 255, 255], [0, 255, 0]]]


def test_alpha_is_composited_on_white(encode):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert decode(encode(rgba, "PNG")).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 0)])
    assert decode(encode(grey_alpha, "PNG")).tolist() == [[[255, 255, 255]]]


def test_transparent_colour_of_an_rgb_png_is_white(encode):
    rgb = np.array([[[9, 9, 9], [1, 2, 3]]], dtype=np.uint8)
    assert decode(encode(rgb, "PNG", transparency=(1, 2, 3))).tolist() == [[[9, 9, 9], [255, 255, 255]]]


def test_one_bit_becomes_black_and_white(encode):
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encode(image, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_cmyk_is_converted_arithmetically(encode):
    image = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert decode(encode(image, "TIFF")).tolist() == [[[0, 255, 255]]]


def test_lab_is_refused_with_its_name(encode):
    with pytest.raises(BadImageError, match="pixel mode LAB has no conversion to RGB") as caught:
        decode(encode(Image.new("LAB", (2, 2)), "TIFF"))
    assert caught.value.reason == "unsupported_pixels"
