"""Multi-band TIFF and GeoTIFF by tifffile: every band of a pixel as it stands in the file."""

import importlib
import importlib.util
import io
import itertools
import math
import zlib
from types import ModuleType
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from foveal.errors import BadImageError
from foveal.images.colour import ORIENTATION_TAG, upright

_PLAIN, _LZW, _DEFLATE, _PACKBITS = 1, 5, (8, 32946), 32773
_COMPRESSIONS = (_PLAIN, _LZW, *_DEFLATE, _PACKBITS)
_PHOTOMETRIC_TAG, _SAMPLES_TAG, _PLANAR_TAG = 262, 277, 284
_PLANES = 2
_MAX_PICTURE = 6  # colour and extra samples, as Pillow takes them
_MIN_IS_WHITE, _MIN_IS_BLACK = 0, 1


def read_bands(data: bytes, *, channels: int, max_pixels: int) -> np.ndarray | None:
    """Return the bands of a TIFF, upright, or None where one channel is asked of a picture that is not plain grey.

    The bands are the samples of the first page, interleaved or in planes; where that page has one sample and the file
    as many equal pages as channels are asked for, each page is a band. Strips and tiles, plain or compressed by deflate
    or PackBits, are read by tifffile itself, LZW where imagecodecs is installed. Values are as stored; only a single
    band whose 0 means white is inverted.

    Returns:
        (H, W, channels) uint8 or uint16, C-contiguous.

    Raises:
        BadImageError: "wrong_channels", "unsupported_pixels", "too_many_pixels", "truncated", "corrupt" or
            "needs_extra" (tifffile).
    """
    with _tifffile().TiffFile(io.BytesIO(data)) as file:
        pages = _pages(file, channels)
        first = pages[0]
        for page in pages:
            _check_size(page, max_pixels)
        if channels == 1 and not _is_plain_grey(first):
            if _holds_bands(first):
                raise wrong_channels("TIFF", first.samplesperpixel, channels)
            return None
        found = sum(page.samplesperpixel for page in pages)
        if found != channels:
            raise wrong_channels("TIFF", found, channels)
        bands = np.concatenate([_read_page(page, data) for page in pages], axis=2)
        tag = first.tags.get(ORIENTATION_TAG)
    if channels == 1 and first.photometric == _MIN_IS_WHITE:
        bands = np.iinfo(bands.dtype).max - bands
    orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
    return upright(bands, orientation=orientation)


def read_tiff_size(data: bytes) -> tuple[int, int, int]:
    """Return (width, height, EXIF orientation) of the first page, from its header alone."""
    with _tifffile().TiffFile(io.BytesIO(data)) as file:
        page = _pages(file, 1)[0]
        tag = page.tags.get(ORIENTATION_TAG)
        orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
        return page.imagewidth, page.imagelength, orientation


def check_is_picture(data: bytes) -> None:
    """Refuse a TIFF of more bands than a picture has, which Pillow would take for a damaged one; needs no tifffile.

    Raises:
        BadImageError: "wrong_channels".
    """
    header = data[: 16 if data[2:3] == b"+" or data[3:4] == b"+" else 8]
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    samples, is_grey = tags.get(_SAMPLES_TAG, 1), tags.get(_PHOTOMETRIC_TAG) in (_MIN_IS_WHITE, _MIN_IS_BLACK)
    in_planes = tags.get(_PLANAR_TAG, 1) == _PLANES
    if samples > _MAX_PICTURE or (is_grey and samples > (1 if in_planes else 4)):
        raise wrong_channels("TIFF", samples, 3)


def wrong_channels(name: str, found: int, wanted: int) -> BadImageError:
    """Return the error for an image whose channels are not as many as were asked for."""
    return BadImageError(
        "wrong_channels",
        f"this {name} has {found} channel{'s' * (found != 1)}, asked for are {wanted}; "
        f"use a model and channels={found}, or write the {wanted} channels you want to a TIFF",
    )


def _pages(file: Any, channels: int) -> list[Any]:
    pages = list(itertools.islice(file.pages, channels + 1))
    if not pages:
        raise BadImageError("corrupt", "this TIFF holds no page; copy or download it again")
    first = pages[0]
    kind = (first.imagewidth, first.imagelength, first.dtype)
    alike = all((p.imagewidth, p.imagelength, p.dtype) == kind and p.samplesperpixel == 1 for p in pages)
    return pages if len(pages) == channels and alike else [first]


def _is_plain_grey(page: Any) -> bool:
    grey = page.samplesperpixel == 1 and page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK)
    return grey and page.dtype in (np.uint8, np.uint16) and page.bitspersample in (8, 16)


def _holds_bands(page: Any) -> bool:
    """Say whether there are more samples than a grey or colour picture and its alpha have."""
    alpha = bool(page.extrasamples) and page.extrasamples[0] in (1, 2)
    picture = 1 if page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK) else 4
    return page.samplesperpixel > picture + (alpha and picture == 1)


def _check_size(page: Any, max_pixels: int) -> None:
    """Refuse what costs too much, tiles included: an image is held padded to whole tiles while it is read."""
    shape = (page.imagewidth, page.imagelength)
    padded = math.prod(page.chunked) * math.prod(page.chunks) // max(page.samplesperpixel, 1) if page.chunks else 0
    if shape[0] * shape[1] > max_pixels or padded > 4 * max_pixels:
        raise BadImageError(
            "too_many_pixels",
            f"the header says {shape[0]} x {shape[1]} pixels, {padded} with the padding of tiles; allowed are "
            f"{max_pixels} in all; shrink the image, or raise DecodeLimits.max_pixels",
        )


def _read_page(page: Any, data: bytes) -> np.ndarray:
    """Return (H, W, samples) of one page."""
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16) or page.imagedepth != 1:
        raise BadImageError(
            "unsupported_pixels",
            f"TIFF bands of {page.bitspersample} bits, type {page.dtype}, depth {page.imagedepth}; "
            "allowed are flat uint8 and uint16; scale the bands to 0..65535 and write them as uint16",
        )
    if page.compression not in _COMPRESSIONS or (page.compression == _LZW and not _has_imagecodecs()):
        hint = "or pip install imagecodecs" if page.compression == _LZW else "with the GDAL option COMPRESS=DEFLATE"
        raise BadImageError(
            "unsupported_pixels",
            f"TIFF compression {getattr(page.compression, 'name', page.compression)} is not read; "
            f"write the file with deflate, {hint}",
        )
    if page.compression in _DEFLATE:
        _check_inflated(page, data)
    planes = page.asarray(squeeze=False, maxworkers=1)  # (planes, 1, H, W, interleaved samples)
    return planes[:, 0].transpose(1, 2, 0, 3).reshape(page.imagelength, page.imagewidth, -1)


def _check_inflated(page: Any, data: bytes) -> None:
    """Refuse a strip or tile that inflates beyond its size: tifffile would inflate it whole, however large."""
    limit = math.prod(page.chunks) * page.dtype.itemsize
    if len(page.dataoffsets) > math.prod(page.chunked):
        raise BadImageError("corrupt", "this TIFF has more strips than its size says; copy or download it again")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if len(zlib.decompressobj().decompress(data[offset : offset + count], limit + 1)) > limit:
            raise BadImageError(
                "corrupt", f"a strip of this TIFF inflates beyond its {limit} bytes; copy or download it again"
            )


def _has_imagecodecs() -> bool:
    return importlib.util.find_spec("imagecodecs") is not None


def _tifffile() -> ModuleType:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise BadImageError(
            "needs_extra",
            "reading the bands of a TIFF needs tifffile, which is not installed; pip install 'foveal[tiff]'",
        ) from error
