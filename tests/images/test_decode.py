"""The door for image bytes: formats, limits, damage."""

import io
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from foveal.errors import BadImageError
from foveal.images import jpeg
from foveal.images.decode import DecodeLimits, decode, from_pillow, read_size

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "PPM": {}}


def reason_of(data: bytes, **options) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(data, **options)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def jpeg_with_many_scans(data: bytes, num_scans: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    last_scan = data.rindex(b"\xff\xda")
    return data[:last_scan] + data[last_scan:-2] * num_scans + b"\xff\xd9"


@pytest.mark.parametrize("format_name", LOSSLESS)
def test_lossless_formats_come_back_exactly(photo, encode, format_name):
    data = encode(photo, format_name, **LOSSLESS[format_name])
    pixels = decode(data)
    assert np.array_equal(pixels, photo)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert read_size(data) == (47, 33)


def test_animated_gif_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).tolist() == [[[255, 0, 0]] * 5] * 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_agrees_with_pillow(photo, encode, each_jpeg_decoder, progressive, subsampling):
    data = encode(photo, "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    # Two builds of libjpeg may round the inverse DCT and the colour conversion differently: 2 of 255 levels.
    assert np.abs(decode(data).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_decoder_takes_colour_and_grey_but_leaves_cmyk_to_pillow(photo, encode, each_jpeg_decoder, mode):
    data = encode(Image.fromarray(photo).convert(mode), "JPEG")
    pixels = jpeg.decode_fast(data, header=jpeg.read_header(data), shrink=1)
    assert (pixels is not None) == (each_jpeg_decoder == "simplejpeg" and mode != "CMYK")


def test_grey_jpeg_becomes_three_equal_channels(photo, encode, each_jpeg_decoder):
    pixels = decode(encode(photo[:, :, 0].copy(), "JPEG"))
    assert pixels.shape == (33, 47, 3)
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_cmyk_jpeg_agrees_with_pillow(photo, encode, each_jpeg_decoder):
    data = encode(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - photo).mean() < 4


@pytest.mark.parametrize(
    ("min_short_side", "size"),
    [(None, (335, 401)), (336, (335, 401)), (167, (168, 201)), (80, (84, 101)), (1, (42, 51))],
)
def test_min_short_side_shrinks_by_powers_of_two_only(encode, each_jpeg_decoder, min_short_side, size):
    data = encode(Image.new("RGB", (401, 335), (200, 100, 50)), "JPEG")
    pixels = decode(data, min_short_side=min_short_side)
    assert pixels.shape == (*size, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"these are words, not pixels", "unknown_format"),
        (b"\xff", "unknown_format"),
        (b"%PDF-1.7 ...", "format_not_allowed"),
        (b"\x00\x00\x00\x20ftypheic", "format_not_allowed"),
        (b"8BPS\x00\x01", "format_not_allowed"),
        (b"BM, said the text file", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\xff\xd8\xff\xda\x00\x02\xff\xd9", "corrupt"),
    ],
)
def test_reason_of_what_is_no_image(data, reason):
    assert reason_of(data) == reason


def test_message_says_what_was_seen_and_what_is_allowed():
    with pytest.raises(BadImageError, match=r"start with b'GIF89b.*none of JPEG, PNG, WEBP, BMP, TIFF, GIF, PPM"):
        decode(b"GIF89b and more")
    with pytest.raises(
        BadImageError, match=r"has 11 bytes, allowed are 10; shrink it, or raise DecodeLimits.max_bytes"
    ):
        decode(b"P5 3 1 255 ", limits=DecodeLimits(max_bytes=10))


def test_200_megapixel_header_is_refused_without_decoding():
    data = png_header(20_000, 10_000)
    start = time.monotonic()
    assert reason_of(data) == "too_many_pixels"
    with pytest.raises(BadImageError, match="20000 x 10000 pixels, allowed are 100000000"):
        read_size(data)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_pixel_limit_holds_for_every_format_and_is_inclusive(photo, encode, format_name):
    data = encode(photo, format_name)
    assert decode(data, limits=DecodeLimits(max_pixels=33 * 47)).shape == (33, 47, 3)
    assert reason_of(data, limits=DecodeLimits(max_pixels=33 * 47 - 1)) == "too_many_pixels"
    assert reason_of(data, limits=DecodeLimits(max_pixels=100)) == "too_many_pixels"


def test_scans_are_limited_before_decoding(photo, encode, each_jpeg_decoder):
    data = encode(photo, "JPEG", progressive=True)
    assert decode(data).shape == (33, 47, 3)
    bomb = jpeg_with_many_scans(data, 2_000)
    start = time.monotonic()
    assert reason_of(bomb) == "too_many_scans"
    assert time.monotonic() - start < 5


def test_scan_markers_in_comments_and_after_the_end_do_not_count(photo, encode):
    fake = b"\xff\xda" * 100
    data = encode(photo, "JPEG", progressive=True)
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(fake)) + fake
    data = data[:second_scan] + comment + data[second_scan:] + fake
    assert decode(data).shape == (33, 47, 3)


def test_end_marker_hidden_in_a_comment_does_not_hide_scans(photo, encode):
    data = jpeg_with_many_scans(encode(photo, "JPEG", progressive=True), 100)
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    data = data[:second_scan] + b"\xff\xfe\x00\x04\xff\xd9" + data[second_scan:]
    assert reason_of(data) == "too_many_scans"


def test_truncated_jpeg_is_rejected_at_every_length(photo, encode, each_jpeg_decoder):
    data = encode(photo, "JPEG")
    for length in [*range(3, len(data), 17), len(data) - 2, len(data) - 1]:
        assert reason_of(data[:length]) in ("truncated", "corrupt")


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "BMP", "GIF", "PPM"])
def test_truncated_file_is_rejected_or_complete(photo, encode, format_name):
    """A prefix that still holds every pixel (a PNG without its end chunk) may pass, but never half a picture."""
    data = encode(photo, format_name)
    whole = decode(data)
    for length in [*range(1, len(data), 37), len(data) - 1]:
        try:
            pixels = decode(data[:length])
        except BadImageError:
            continue
        assert np.array_equal(pixels, whole)
        assert length > 0.9 * len(data)


def test_pillow_switches_set_elsewhere_neither_matter_nor_change(photo, encode, each_jpeg_decoder, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format_name in ("JPEG", "PNG", "GIF"):
        data = encode(photo, format_name)
        assert decode(data).shape == (33, 47, 3)
        assert reason_of(data[: len(data) * 2 // 3]) == "truncated"
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 10)


def test_threads_leave_pillow_and_warning_filters_as_they_were(photo, encode):
    filters, data = list(warnings.filters), encode(photo, "PNG")
    threads = [threading.Thread(target=lambda: [decode(data) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == filters
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_mutated_bytes_raise_nothing_but_bad_image(photo, encode, format_name):
    rng = np.random.default_rng(sum(format_name.encode()))
    options = {"compression": "tiff_lzw"} if format_name == "TIFF" else {}
    original = np.frombuffer(encode(photo, format_name, **options), np.uint8)
    limits = DecodeLimits(max_pixels=1_000_000)
    num_bad = 0
    for _ in range(80):
        mutated = original.copy()
        # Half of the damage goes to the header, where it does most.
        places = rng.integers(0, [64, len(mutated), 64, len(mutated)])
        mutated[places] = rng.integers(0, 256, 4)
        try:
            pixels = decode(mutated.tobytes(), limits=limits)
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
        except BadImageError:
            num_bad += 1
    assert num_bad > 0


def test_oddities_that_libjpeg_only_warns_about_are_judged_by_pillow(photo, encode, each_jpeg_decoder):
    """Garbage between two segments is skipped by libjpeg with a warning, which simplejpeg turns into an error."""
    data = encode(photo, "JPEG")
    table = data.index(b"\xff\xdb")
    assert decode(data[:table] + b"\x00\x00\x00" + data[table:]).shape == (33, 47, 3)


def test_jpeg_header_is_read_without_decoding(photo, encode):
    header = jpeg.read_header(encode(photo, "JPEG", progressive=True))
    assert (header.width, header.height, header.num_components, header.bits, header.frame_marker) == (
        47,
        33,
        3,
        8,
        0xC2,
    )


def test_error_crosses_process_borders_with_its_reason():
    with pytest.raises(BadImageError) as caught:
        decode(b"")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == (caught.value.reason, str(caught.value))


def test_pillow_image_cut_short_is_a_bad_image(photo, encode, tmp_path):
    path = tmp_path / "cut.png"
    data = encode(photo, "PNG")
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as image, pytest.raises(BadImageError, match="truncated"):
        from_pillow(image)


def test_importing_the_room_leaves_simplejpeg_alone():
    code = "import sys, foveal.images.decode; sys.exit('simplejpeg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_photographs_decode_alike_with_both_decoders(real_images):
    simplejpeg = pytest.importorskip("simplejpeg")
    folder = real_images / "imagenet_sample"
    if not folder.is_dir():
        pytest.skip("imagenet_sample is not on this machine")
    for path in sorted(folder.glob("*.jpg"))[::100]:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert simplejpeg.is_jpeg(path.read_bytes())
        assert np.abs(decode(path.read_bytes()) - expected).max() <= 2
