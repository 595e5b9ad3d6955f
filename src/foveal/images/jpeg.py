"""Read a JPEG's header without decoding it; decode the common kinds faster where simplejpeg is installed."""

import functools
import importlib
import itertools
import logging
import re
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from PIL import Image

from foveal.errors import BadImageError
from foveal.images.colour import exif_orientation

_log = logging.getLogger(__name__)

_SOI, _EOI, _SOS, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # C4 Huffman tables, C8 reserved, CC arithmetic conditioning
_NO_PAYLOAD = frozenset([0x01, *range(0xD0, 0xD9)])  # TEM, restart markers, SOI
_SCAN_MARKER = re.compile(rb"\xff\xda")
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the pixels of a JPEG, with the sizes as stored (before EXIF orientation)."""

    width: int
    height: int
    num_components: int
    bits: int
    frame_marker: int
    adobe_transform: int | None
    exif: bytes | None
    first_scan: int  # offset of the first start-of-scan marker


def read_header(data: bytes) -> JpegHeader:
    """Walk the markers of a JPEG up to its first scan.

    Raises:
        BadImageError: reason "truncated" when the file ends before the first scan, "corrupt" when no
            frame stands before it.
    """
    frame: tuple[int, int, int, int, int] | None = None
    adobe_transform, exif = None, None
    position = 2
    while True:
        position, marker, payload = _next_segment(data, position)
        if marker == _SOS:
            break
        if marker in _FRAMES and len(payload) >= 6:
            height, width = int.from_bytes(payload[1:3]), int.from_bytes(payload[3:5])
            frame = width, height, payload[5], payload[0], marker
        elif marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            adobe_transform = payload[11]
        elif marker == _APP1 and payload[:6] == b"Exif\x00\x00" and exif is None:
            exif = payload
        position += 2 + (2 + len(payload) if marker not in _NO_PAYLOAD else 0)
    if frame is None or frame[0] == 0 or frame[1] == 0:
        raise BadImageError("corrupt", "this JPEG names no image size before its first scan")
    return JpegHeader(*frame, adobe_transform=adobe_transform, exif=exif, first_scan=position)


def orientation(header: JpegHeader) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none. Pillow reads it, and may warn of damaged EXIF."""
    return 1 if header.exif is None else exif_orientation(functools.partial(_parse_exif, header.exif))


def _next_segment(data: bytes, position: int) -> tuple[int, int, bytes]:
    """Return (offset of the marker's 0xFF, marker, payload) of the first marker at or after `position`."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise BadImageError("truncated", "this JPEG ends before its first scan")
        marker = data[position + 1]
        if marker not in (0x00, 0xFF):
            break
        position += 1
    if marker in _NO_PAYLOAD or marker == _SOS:
        return position, marker, b""
    length = int.from_bytes(data[position + 2 : position + 4])
    if marker == _EOI or length < 2 or position + 2 + length > len(data):
        raise BadImageError("truncated", "this JPEG ends before its first scan")
    return position, marker, data[position + 4 : position + 2 + length]


def _parse_exif(payload: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(payload)
    return exif


def exceeds_scans(data: bytes, *, header: JpegHeader, max_scans: int) -> bool:
    """Say whether a JPEG holds more than `max_scans` scans, without decoding any.

    Each scan of a progressive JPEG visits the whole picture again, so a file of a few kilobytes can cost seconds.
    Counting the two bytes of the marker is an upper bound (they may occur by chance inside tables, comments or
    after the end), so the exact walk runs only for files over the limit by that count.
    """
    found = _SCAN_MARKER.finditer(data, header.first_scan)  # three times as fast as bytes.count
    if next(itertools.islice(found, max_scans, None), None) is None:
        return False
    return _count_scans(data, first_scan=header.first_scan) > max_scans


def _count_scans(data: bytes, *, first_scan: int) -> int:
    """Count start-of-scan markers up to the end-of-image marker, stepping over tables and comments between scans."""
    bytes_ = np.frombuffer(data, dtype=np.uint8)
    second = bytes_[1:]
    is_marker = (bytes_[:-1] == 0xFF) & (second != 0x00) & (second != 0xFF) & ((second < 0xD0) | (second > 0xD8))
    offsets = np.flatnonzero(is_marker)
    count, position = 0, first_scan
    while True:
        index = int(np.searchsorted(offsets, position))
        if index == len(offsets):
            return count
        offset = int(offsets[index])
        marker = data[offset + 1]
        if marker == _EOI:
            return count
        count += marker == _SOS
        position = offset + 2 + (int.from_bytes(data[offset + 2 : offset + 4]) if marker not in _NO_PAYLOAD else 0)


def reduction(width: int, height: int, *, min_short_side: int | None) -> int:
    """Return the largest of 8, 4, 2, 1 by which a JPEG may be shrunk while its short side stays >= `min_short_side`."""
    if min_short_side is None:
        return 1
    return next((s for s in (8, 4, 2) if min(width, height) // s >= min_short_side), 1)


def decode_fast(data: bytes, *, header: JpegHeader, shrink: int) -> np.ndarray | None:
    """Decode with simplejpeg to (H, W, 3) uint8 RGB as stored, or return None where Pillow must decide.

    None means: simplejpeg is not installed, the file is not an 8-bit grey or YCbCr Huffman-coded JPEG, or simplejpeg
    complained. Complaints are not errors here, so that whether a file is good never depends on what is installed.
    """
    simplejpeg = _simplejpeg()
    common = header.bits == 8 and header.frame_marker in _HUFFMAN_FRAMES and header.num_components in (1, 3)
    if simplejpeg is None or not common or header.adobe_transform == 0:
        return None
    size = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)} if shrink > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True, **size)
    except Exception as error:  # the border "decoding one sample": Pillow gives the verdict
        _log.debug("simplejpeg declined (%s); decoding with Pillow", error)
        return None


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
