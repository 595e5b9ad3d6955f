"""The only door through which image bytes enter: limits first, then pixels, upright RGB uint8 by default."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from foveal.errors import BadImageError, FovealError
from foveal.images import jpeg
from foveal.images.colour import (
    exif_orientation,
    luma,
    pillow_to_grey,
    pillow_to_rgb,
    pillow_to_rgba,
    swaps_sides,
    upright,
    wide_grey_to_rgb,
)
from foveal.images.dicom import is_dicom, read_dicom, read_dicom_size
from foveal.images.tiff import check_is_picture, read_bands, read_tiff_size, wrong_channels

# The plugin classes are called directly: Image.open would try other formats too and hide why a file was refused.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
ALLOWED_FORMATS = (*_PLUGINS, "DICOM")
_CONVERSIONS = {1: pillow_to_grey, 3: pillow_to_rgb, 4: pillow_to_rgba}

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
}


@dataclass(frozen=True)
class DecodeLimits:
    """What one image may cost. Checked from the header, before any pixel is decoded.

    Attributes:
        max_bytes: size of the file, bytes.
        max_pixels: width times height as the header claims them; guards against decompression bombs.
        max_scans: scans of a JPEG; encoders write 1 (baseline) to about 12 (progressive), and each costs a pass.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 100_000_000
    max_scans: int = 50


DEFAULT_LIMITS = DecodeLimits()


def decode(
    data: bytes, *, channels: int = 3, limits: DecodeLimits = DEFAULT_LIMITS, min_short_side: int | None = None
) -> np.ndarray:
    """Decode one image: to upright RGB, or to as many channels as are asked for.

    The first frame of an animation and the first page of a TIFF are taken. What becomes of grey, 16-bit, palette,
    transparent and CMYK images is listed at `foveal.images.colour.pillow_to_rgb`; EXIF orientation is applied.
    Common JPEGs are decoded by simplejpeg where it is installed, everything else by Pillow.

    | channels | what comes back |
    |---|---|
    | 3 | RGB uint8, of every format |
    | 1 | 16-bit grey as uint16, as stored; any other picture as its luma, uint8 (`foveal.images.colour.luma`) |
    | 4 | RGBA uint8 of an image with transparency, colours as stored; the bands of a TIFF |
    | others | the bands of a TIFF, uint8 or uint16 as stored: `foveal.images.tiff.read_bands` |

    DICOM is 16-bit grey, by `foveal.images.dicom.read_dicom`; asked for RGB, it is treated as such. Bands of a TIFF
    need the extra `tiff`, DICOM the extra `dicom`.

    Args:
        data: the bytes of one file, in one of `ALLOWED_FORMATS`.
        channels: how many to return, at least 1.
        limits: what the image may cost.
        min_short_side: where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (a multiple faster for large
            photographs) as long as its short side stays at least this many pixels. Other formats come in full size.

    Returns:
        (H, W, channels) uint8 or uint16, C-contiguous, owned by the caller.

    Raises:
        BadImageError: with a stable reason: "empty", "too_many_bytes", "unknown_format", "format_not_allowed",
            "too_many_pixels", "too_many_scans", "unsupported_pixels", "wrong_channels", "truncated", "corrupt", and
            "needs_extra" where an extra that is not installed would read the file.

    Example:
        >>> decode(b"P6 2 1 255 \\xff\\x00\\x00\\x00\\x00\\xff").tolist()
        [[[255, 0, 0], [0, 0, 255]]]
        >>> decode(b"P6 2 1 255 \\xff\\x00\\x00\\x00\\x00\\xff", channels=1).tolist()
        [[[76], [29]]]
    """
    format_name = _check_format(data, limits)
    with _border(format_name):
        if format_name == "JPEG" and channels in (1, 3):
            rgb = _decode_jpeg(data, limits, min_short_side)
            return rgb if channels == 3 else luma(rgb)
        with _strict_libraries(max_pixels=limits.max_pixels):
            if format_name == "DICOM":
                return _decode_dicom(data, limits, channels)
            if format_name == "TIFF" and channels != 3:
                bands = read_bands(data, channels=channels, max_pixels=limits.max_pixels)
                if bands is not None:
                    return bands
            if format_name == "TIFF":
                check_is_picture(data)
            with _open(data, format_name) as image:
                return _upright(image, limits, channels)


def from_pillow(image: Image.Image, *, channels: int = 3, limits: DecodeLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Return a Pillow image that the caller opened or made as (H, W, channels), upright, by the rules of `decode`.

    Raises:
        BadImageError: "too_many_pixels", "unsupported_pixels", "wrong_channels", "truncated" or "corrupt" (Pillow
            decodes at first use).
    """
    with _border("Pillow image"), _strict_libraries(max_pixels=limits.max_pixels):
        return _upright(image, limits, channels)


def decode_ids(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[np.ndarray, bool]:
    """Decode a mask, whose pixels are numbers of classes or objects: those of a palette, or grey values, as stored.

    Args:
        data: the bytes of one file without loss (PNG and the like).
        limits: what the image may cost.

    Returns:
        (H, W) uint8 or uint16, and whether the numbers are those of a palette.

    Raises:
        BadImageError: as `decode`; "wrong_channels" where the picture has colours instead of numbers, and
            "format_not_allowed" for a JPEG, which blurs them.

    Example:
        >>> decode_ids(b"P5 3 1 255 \\x00\\x07\\xff")
        (array([[  0,   7, 255]], dtype=uint8), False)
    """
    format_name = _check_format(data, limits)
    if format_name in ("JPEG", "DICOM"):
        raise BadImageError("format_not_allowed", f"a mask as {format_name}; save its numbers as PNG")
    with _border(format_name), _strict_libraries(max_pixels=limits.max_pixels), _open(data, format_name) as image:
        _check_pixels(*image.size, limits)
        if image.mode not in ("1", "L", "P", "I;16"):
            raise BadImageError(
                "wrong_channels",
                f"a mask of mode {image.mode}; a mask holds one number a pixel: save it as a grey or a palette PNG",
            )
        numbers = np.array(image)
        return numbers.astype(np.uint8) if image.mode == "1" else numbers, image.mode == "P"


def read_size(data: bytes, *, channels: int = 3, limits: DecodeLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return (width, height) in pixels as `decode` would give them (upright), from the header alone.

    Whether the image has so many `channels` is not checked; they decide which reader is asked.

    Raises:
        BadImageError: as `decode`; damage beyond the header is not seen here.
    """
    format_name = _check_format(data, limits)
    with _border(format_name), _strict_libraries(max_pixels=limits.max_pixels):
        if format_name == "JPEG":
            header = jpeg.read_header(data)
            width, height, orientation = header.width, header.height, jpeg.orientation(header)
        elif format_name == "DICOM":
            (width, height), orientation = read_dicom_size(data, max_pixels=limits.max_pixels), 1
        elif format_name == "TIFF" and channels != 3:
            width, height, orientation = read_tiff_size(data)
        else:
            with _open(data, format_name) as image:
                width, height = image.size
                # The TIFF plugin reports the upright size already.
                orientation = 1 if format_name == "TIFF" else exif_orientation(image.getexif)
        _check_pixels(width, height, limits)
        return (height, width) if swaps_sides(orientation) else (width, height)


def _upright(image: Image.Image, limits: DecodeLimits, channels: int) -> np.ndarray:
    if channels not in _CONVERSIONS:
        raise wrong_channels(f"image of mode {image.mode}", len(image.getbands()), channels)
    _check_pixels(*image.size, limits)
    image.load()
    orientation = exif_orientation(image.getexif)  # after load(): the TIFF plugin turns the pixels there itself
    return upright(_CONVERSIONS[channels](image), orientation=orientation)


def _decode_dicom(data: bytes, limits: DecodeLimits, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        raise wrong_channels("DICOM", 1, channels)
    grey = read_dicom(data, max_pixels=limits.max_pixels)
    return grey if channels == 1 else wide_grey_to_rgb(grey[:, :, 0])


def _decode_jpeg(data: bytes, limits: DecodeLimits, min_short_side: int | None) -> np.ndarray:
    header = jpeg.read_header(data)
    _check_pixels(header.width, header.height, limits)
    if jpeg.exceeds_scans(data, header=header, max_scans=limits.max_scans):
        raise BadImageError(
            "too_many_scans",
            f"this JPEG has more than {limits.max_scans} scans; save it again, or raise DecodeLimits.max_scans",
        )
    shrink = jpeg.reduction(header.width, header.height, min_short_side=min_short_side)
    pixels = jpeg.decode_fast(data, header=header, shrink=shrink)
    if pixels is not None and not header.exif:
        return pixels  # without the cost of shielding Pillow, which took no part
    with _strict_libraries(max_pixels=limits.max_pixels):
        if pixels is None:
            with _open(data, "JPEG") as image:
                _check_pixels(*image.size, limits)
                if shrink > 1:
                    image.draft(image.mode, (image.width // shrink, image.height // shrink))
                pixels = pillow_to_rgb(image)
        return upright(pixels, orientation=jpeg.orientation(header))


def _open(data: bytes, format_name: str) -> ImageFile.ImageFile:
    return _PLUGINS[format_name](io.BytesIO(data))


def _check_format(data: bytes, limits: DecodeLimits) -> str:
    if not data:
        raise BadImageError("empty", "the image has 0 bytes; copy or download it again")
    if len(data) > limits.max_bytes:
        raise BadImageError(
            "too_many_bytes",
            f"the image has {len(data)} bytes, allowed are {limits.max_bytes}; "
            "shrink it, or raise DecodeLimits.max_bytes",
        )
    format_name = "DICOM" if is_dicom(data) else _sniff(data)
    allowed = ", ".join(ALLOWED_FORMATS)
    if format_name is None:
        raise BadImageError("unknown_format", f"the bytes start with {data[:8]!r}, which is none of {allowed}")
    if format_name not in ALLOWED_FORMATS:
        raise BadImageError("format_not_allowed", f"{format_name} is not read; convert the image to one of {allowed}")
    return format_name


def _sniff(data: bytes) -> str | None:
    """Name the format from its first bytes; the file's name is never asked."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    if data[4:8] == b"ftyp":
        return "AVIF, HEIC or video"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise BadImageError(
            "too_many_pixels",
            f"the header says {width} x {height} pixels, allowed are {limits.max_pixels} in all; "
            "shrink the image, or raise DecodeLimits.max_pixels",
        )


@contextmanager
def _border(format_name: str) -> Iterator[None]:
    """Let nothing but BadImageError out of the decoding of one image, whatever a library throws at damaged bytes."""
    try:
        yield
    except FovealError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(
            "too_many_pixels", f"{error}; shrink the image, or raise DecodeLimits.max_pixels"
        ) from error
    except Exception as error:  # the border "decoding one sample"; the caller counts by reason
        if "unknown pixel mode" in str(error) or "unknown raw mode" in str(error):  # of Pillow's TIFF plugin
            raise BadImageError(
                "unsupported_pixels",
                f"this {format_name} holds bands that are no picture; read them with a model of as many channels",
            ) from error
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        reason = "truncated" if cut else "corrupt"
        detail = f"{type(error).__name__}: {error}"
        raise BadImageError(reason, f"this {format_name} is {reason} ({detail}); copy or download it again") from error


class _StrictLibraries:
    """Shield decoding from Pillow's process-wide switches and the libraries' warnings, and put all back afterwards.

    ImageFile.LOAD_TRUNCATED_IMAGES, where somebody set it, would pass off half an image as a whole one, and
    Image.MAX_IMAGE_PIXELS would refuse or warn by another limit than ours. These and the warning filters are
    process-wide, so threads that decode at the same time share one saved copy: the first one in saves, the last
    one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._restore = ExitStack()

    @contextmanager
    def __call__(self, *, max_pixels: int) -> Iterator[None]:
        with self._lock:
            if self._num_users == 0:
                self._save()
            self._num_users += 1
            Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._restore.close()

    def _save(self) -> None:
        self._restore.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
        self._restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        self._restore.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"(PIL|pydicom|tifffile)\.")
        ImageFile.LOAD_TRUNCATED_IMAGES = False


_strict_libraries = _StrictLibraries()
