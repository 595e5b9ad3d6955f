"""Images of other than three channels, from the bytes to the array that a backbone takes."""

import io
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.images.decode import DecodeLimits, decode, from_pillow, read_size
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess, covering_shape, resize, short_side_shape, to_array
from foveal.images.statistics import channel_statistics

tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    layout = {"planarconfig": "contig"} if values.ndim == 3 and values.shape[2] > 1 else {}
    tifffile.imwrite(file, values, **({"photometric": "minisblack"} | layout | options))
    return file.getvalue()


def bands(channels: int, dtype: str = "u2", height: int = 33, width: int = 47) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(channels).integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)


def reason_of(data: bytes, **options) -> tuple[str, str]:
    with pytest.raises(BadImageError) as caught:
        decode(data, **options)
    return caught.value.reason, str(caught.value)


# ---- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("channels", [1, 2, 4, 9])
@pytest.mark.parametrize(
    "layout",
    [{}, {"planar": True}, {"tile": (16, 32)}, {"planar": True, "tile": (32, 16)}, {"rowsperstrip": 5}, {"pages": 1}],
)  # fmt: skip
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bands_come_back_as_they_were_written(dtype, channels, layout, compression):
    values = bands(channels, dtype)
    options = {"compression": compression} | {k: v for k, v in layout.items() if k in ("tile", "rowsperstrip")}
    if layout.get("pages"):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for c in range(channels):
                writer.write(values[:, :, c], photometric="minisblack", **options)
        data = file.getvalue()
    elif layout.get("planar") and channels > 1:
        data = tiff(np.moveaxis(values, 2, 0), planarconfig="separate", **options)
    else:
        data = tiff(values, **options)
    read = decode(data, channels=channels)
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, values)
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert read_size(data, channels=channels) == (47, 33)


def test_other_ways_of_writing_are_undone(encode):
    values = bands(4)
    assert np.array_equal(decode(tiff(values, byteorder=">"), channels=4), values)
    assert np.array_equal(decode(tiff(values, bigtiff=True), channels=4), values)
    picture = Image.fromarray(bands(4, "u1"))
    for options in ({"compression": "packbits"}, {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}}):
        assert np.array_equal(decode(encode(picture, "TIFF", **options), channels=4), np.asarray(picture))


def test_a_compression_that_nothing_here_reads_is_named(encode):
    reason, message = reason_of(encode(Image.fromarray(bands(4, "u1")), "TIFF", compression="tiff_lzw"), channels=4)
    assert reason == "unsupported_pixels"
    assert "TIFF compression LZW is not read; write the file with deflate, or pip install imagecodecs" in message


def test_orientation_of_a_tiff_is_applied():
    values = bands(5)
    data = tiff(values, extratags=[(274, "H", 1, 6, True)])  # first row right, first column top
    assert np.array_equal(decode(data, channels=5), values.transpose(1, 0, 2)[:, ::-1])
    assert read_size(data, channels=5) == (33, 47)


def test_a_single_band_in_which_zero_is_white_is_inverted():
    values = bands(1)
    assert np.array_equal(decode(tiff(values, photometric="miniswhite"), channels=1), 65535 - values)


def test_a_colour_tiff_has_a_luma_and_a_wrong_count_is_named():
    values = bands(3, "u1")
    data = tiff(values, photometric="rgb")
    assert np.array_equal(decode(data, channels=1)[:, :, 0], np.asarray(Image.fromarray(values).convert("L")))
    reason, message = reason_of(tiff(bands(4)), channels=6)
    assert reason == "wrong_channels"
    assert "this TIFF has 4 channels, asked for are 6; use a model and channels=4" in message
    assert reason_of(tiff(bands(6)), channels=1)[0] == "wrong_channels"
    reason, message = reason_of(tiff(bands(4)))
    assert reason == "unsupported_pixels"
    assert "holds bands that are no picture" in message
    for healthy in (tiff(bands(8)), tiff(np.moveaxis(bands(8), 2, 0), planarconfig="separate")):
        reason, message = reason_of(healthy)
        assert reason == "wrong_channels"
        assert "this TIFF has 8 channels, asked for are 3; use a model and channels=8" in message
    file = io.BytesIO()
    Image.new("LA", (5, 4), (90, 255)).save(file, "TIFF")
    assert decode(file.getvalue(), channels=1).tolist() == [[[90]] * 5] * 4


@pytest.mark.parametrize("dtype", ["f4", "i2", "u4"])
def test_other_band_types_are_refused(dtype):
    reason, message = reason_of(tiff(np.zeros((5, 7, 4), dtype)), channels=4)
    assert reason == "unsupported_pixels"
    assert "allowed are flat uint8 and uint16" in message


def test_limits_of_a_tiff_are_checked_before_its_pixels():
    data = tiff(bands(4))
    assert reason_of(data, channels=4, limits=DecodeLimits(max_pixels=33 * 47 - 1))[0] == "too_many_pixels"
    tiles = tiff(np.zeros((1, 5000, 2), "u1"), tile=(1024, 1024), compression="zlib")
    assert reason_of(tiles, channels=2, limits=DecodeLimits(max_pixels=10_000))[0] == "too_many_pixels"


def test_a_strip_that_inflates_beyond_its_size_is_stopped():
    """64 MB of zeros behind the header of a 3 x 5 image: refused without holding them."""
    data = bytearray(tiff(bands(2, "u1", 3, 5), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offset_tag, count_tag = (file.pages[0].tags[code] for code in (273, 279))
    bomb = zlib.compress(bytes(64_000_000), 9)
    data[offset_tag.valueoffset : offset_tag.valueoffset + 4] = len(data).to_bytes(4, "little")
    size = tifffile.TIFF.DATA_FORMATS[count_tag.dtype]
    width = {"1H": 2, "1I": 4}[size]
    bomb = bomb[: 2 ** (8 * width) - 1]
    data[count_tag.valueoffset : count_tag.valueoffset + width] = len(bomb).to_bytes(width, "little")
    tracemalloc.start()
    assert reason_of(bytes(data) + bomb, channels=2)[0] == "corrupt"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_damaged_bytes_raise_nothing_but_bad_image_errors():
    rng = np.random.default_rng(5)
    sources = [tiff(bands(4), compression="zlib", tile=(16, 16)), tiff(bands(2, "u1"))]
    refused = 0
    for number in range(150):
        data = bytearray(sources[number % 2])
        for _ in range(1 + number % 4):
            place = rng.integers(0, 400 if number % 3 else len(data))
            data[place] = rng.integers(0, 256)
        try:
            decode(bytes(data[: len(data) - (number % 5 == 0) * 40]), channels=4 if number % 2 == 0 else 2)
        except BadImageError:
            refused += 1
    assert refused > 20


def test_without_tifffile_the_extra_is_named(monkeypatch):
    data = tiff(bands(4))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    reason, message = reason_of(data, channels=4)
    assert reason == "needs_extra"
    assert message.endswith("pip install 'foveal[tiff]'")


# ---- pictures in one and four channels ------------------------------------------------------------------------------


def test_one_channel_of_a_colour_picture_is_pillows_luma(photo, encode, each_jpeg_decoder):
    expected = np.asarray(Image.fromarray(photo).convert("L"))
    assert np.array_equal(decode(encode(photo, "PNG"), channels=1)[:, :, 0], expected)
    jpeg = encode(photo, "JPEG", quality=95)
    rgb = decode(jpeg)
    assert np.array_equal(decode(jpeg, channels=1)[:, :, 0], np.asarray(Image.fromarray(rgb).convert("L")))
    assert np.array_equal(from_pillow(Image.fromarray(photo), channels=1)[:, :, 0], expected)


def test_grey_stays_what_it_is(encode):
    narrow, wide = bands(1, "u1")[:, :, 0], bands(1, "u2")[:, :, 0]
    assert np.array_equal(decode(encode(narrow, "PNG"), channels=1)[:, :, 0], narrow)
    read = decode(encode(wide, "PNG"), channels=1)
    assert read.dtype == np.uint16
    assert np.array_equal(read[:, :, 0], wide)


def test_four_channels_are_rgba_as_stored_and_never_made_up(encode):
    values = bands(4, "u1")
    assert np.array_equal(decode(encode(values, "PNG"), channels=4), values)
    for data in (encode(values[:, :, :3], "PNG"), encode(values[:, :, :3], "JPEG")):
        reason, message = reason_of(data, channels=4)
        assert reason == "wrong_channels"
        assert "has no alpha" in message
    assert reason_of(encode(values, "PNG"), channels=7)[0] == "wrong_channels"


# ---- preprocessing --------------------------------------------------------------------------------------------------


def plain(channels: int, **options) -> Preprocess:
    return Preprocess(mean=(0.0,) * channels, std=(1.0,) * channels, **options)


def test_eight_bit_channels_are_resized_as_rgb_is():
    pixels = bands(3, "u1")
    four = np.concatenate([pixels, pixels[:, :, :1]], axis=2)
    ours = resize(four, height=21, width=29)
    assert np.array_equal(ours[:, :, :3], resize(pixels, height=21, width=29))
    assert np.array_equal(ours[:, :, 3], ours[:, :, 0])


def test_sixteen_bit_channels_are_resized_as_eight_bit_ones_within_rounding(photo):
    """An 8-bit resize of a smooth picture rounds after rows and after columns: 1 level at most, 0.5 in the mean."""
    small = np.ascontiguousarray(photo[:, :, :1])
    wide = small.astype(np.uint16) * 257
    for height, width in ((21, 29), (90, 128)):
        eight = resize(small, height=height, width=width).astype(float)
        difference = resize(wide, height=height, width=width) / 257 - eight
        assert np.abs(difference).max() <= 1.1
        assert np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_normalisation_takes_shares_of_full_scale(dtype):
    pixels = bands(4, dtype, 14, 28)
    array = Preprocess(mode="resize", mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))(pixels)
    for c in range(4):
        expected = (pixels[:, :, c] / np.iinfo(dtype).max - (0.1, 0.2, 0.3, 0.4)[c]) / (0.5, 0.6, 0.7, 0.8)[c]
        assert np.allclose(array[c], expected, rtol=0, atol=1e-6)
    assert array.dtype == np.float32


def test_arrays_and_files_of_the_wrong_channels_are_refused(tmp_path, encode, photo):
    with pytest.raises(FovealError, match=r"shape \(33, 47, 3\).*uint8 or uint16 arrays of shape \(H, W, 4\)"):
        to_array(photo, channels=4)
    with pytest.raises(FovealError, match=r"channels come last"):
        to_array(np.zeros((4, 9, 9), np.uint8), channels=4)
    with pytest.raises(FovealError, match=r"float32"):
        plain(4)(np.zeros((9, 9, 4), np.float32))
    (tmp_path / "x.png").write_bytes(encode(photo, "PNG"))
    with pytest.raises(BadImageError, match="no alpha"):
        plain(4)(tmp_path / "x.png")
    assert to_array(np.zeros((5, 7), np.uint16), channels=1).shape == (5, 7, 1)


def test_sizes_that_are_not_square():
    pixels = bands(2, "u2", 60, 200)
    assert plain(2, crop_size=(28, 56))(pixels).shape == (2, 28, 56)
    assert Preprocess(crop_size=(28, 56)).resize_size == (32, 64)
    assert plain(2, mode="resize", resize_size=(42, 14))(pixels).shape == (2, 42, 14)
    assert covering_shape(60, 200, (30, 41)) == (30, 100)
    assert covering_shape(60, 200, (30, 131)) == (39, 131)
    assert covering_shape(60, 200, (30, 30)) == short_side_shape(60, 200, size=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": (28, 57)}, r"crop_size=57 is not a multiple of patch_size=14; use 56 or 70\."),
        ({"crop_size": (28, 56), "resize_size": (30, 40)}, r"resize_size=\(30, 40\) is below crop_size"),
        ({"crop_size": (28, 56), "resize_size": 64}, "give both as pairs"),
        ({"mode": "pad", "resize_size": (28, 56)}, "keeps proportions"),
        ({"mode": "resize", "resize_size": (28, 57)}, "resize_size=57 is not a multiple"),
    ],
)
def test_pairs_that_cannot_be_are_refused(settings, message):
    with pytest.raises(FovealError, match=message):
        Preprocess(**settings)


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_pixels(tmp_path):
    every = [bands(2, "u2", 5, 7), bands(2, "u1", 11, 3)]
    (tmp_path / "a.tif").write_bytes(tiff(every[0]))
    (tmp_path / "b.tif").write_bytes(tiff(every[1]))
    (tmp_path / "c.tif").write_bytes(b"II*\x00")
    shares = np.concatenate([(v / np.iinfo(v.dtype).max).reshape(-1, 2) for v in every])
    mean, std = channel_statistics(ImageSet.open(tmp_path), channels=2)
    assert np.allclose(mean, shares.mean(0), rtol=1e-12)
    assert np.allclose(std, shares.std(0), rtol=1e-12)
    first = channel_statistics(ImageSet.open(tmp_path), channels=2, max_images=1)
    assert np.allclose(first.mean, (every[0] / 65535).mean((0, 1)), rtol=1e-12)


def test_statistics_refuse_a_constant_channel_and_an_unreadable_set(tmp_path):
    values = bands(2)
    values[:, :, 1] = 7
    (tmp_path / "a.tif").write_bytes(tiff(values))
    with pytest.raises(ImageSetError, match="channel 1 has the same value everywhere"):
        channel_statistics(ImageSet.open(tmp_path), channels=2)
    with pytest.raises(ImageSetError, match=r"none of 1 images can be read as 4 channels \(1 wrong_channels"):
        channel_statistics(ImageSet.open(tmp_path), channels=4)
