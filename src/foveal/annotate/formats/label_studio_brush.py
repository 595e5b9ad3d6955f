"""Label Studio's coding of brush strokes: runs of the values of an RGBA picture, bit by bit.

A header: 32 bits the number of values, 5 bits the width of a value, less 1, four times 4 bits the widths of lengths,
less 1. Then, until there are as many values: 1 bit whether a value is repeated, 2 bits which width the length has, the
length less 1, and the value, or that many values.

Source: the public package rle-pack, whose scheme Label Studio uses; the mask is the fourth channel.
"""

import numpy as np

from foveal.annotate.formats.runs import MAX_PIXELS, run_lengths
from foveal.errors import FovealError

_CHANNELS = 4
_WIDTHS = (3, 4, 8, 16)  # of lengths, bits, as the tool writes them
_LONGEST = 1 << 16
_HALF = 127  # of a value; more is painted


def encode_brush(pixels: np.ndarray) -> list[int]:
    """Return the bytes of a mask (H, W) bool, 255 in all channels where it is set."""
    bits = [f"{pixels.size * _CHANNELS:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for place, run in enumerate(run_lengths(pixels.ravel()) * _CHANNELS):
        value = "11111111" if place % 2 else "00000000"
        left = int(run)
        while left:
            length = min(left, _LONGEST)
            index = next(index for index, width in enumerate(_WIDTHS) if length <= 1 << width)
            bits.append(f"1{index:02b}{length - 1:0{_WIDTHS[index]}b}{value}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(data: list[int], height: int, width: int, *, where: str) -> np.ndarray:
    """Return the mask (height, width) bool of such bytes.

    Raises:
        FovealError: no such coding, or one of another number of values; nothing larger is made of it.
    """
    try:
        stream = _Bits(bytes(data))
        return _decoded(stream, height, width, where=where)
    except (ValueError, TypeError, IndexError) as error:
        raise FovealError(f"{where}: brush strokes that cannot be decoded ({error}); export it again") from error


def _decoded(stream: "_Bits", height: int, width: int, *, where: str) -> np.ndarray:
    total, size = stream.number(32), stream.number(5) + 1
    widths = [stream.number(4) + 1 for _ in range(4)]
    if total != height * width * _CHANNELS or height * width > MAX_PIXELS or size != 8:
        raise FovealError(
            f"{where}: brush strokes of {total} values of {size} bits; a picture of {width} x {height} pixels has "
            f"{height * width * _CHANNELS} of 8"
        )
    values = np.zeros(total, np.uint8)
    place = 0
    while place < total:
        repeated = stream.number(1)
        length = stream.number(widths[stream.number(2)]) + 1
        if length > total - place:
            raise ValueError("more values than the header says")
        values[place : place + length] = stream.number(8) if repeated else stream.octets(length)
        place += length
    return values.reshape(height, width, _CHANNELS)[:, :, 3] > _HALF


class _Bits:
    """Numbers of a few bits each, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._all = np.unpackbits(np.frombuffer(data, np.uint8))
        self._place = 0

    def number(self, size: int) -> int:
        """Return the number in the next bits, at most 32."""
        first, self._place = self._place, self._place + size
        if self._place > len(self._all):
            raise IndexError("it is cut off")
        window = int.from_bytes(self._data[first // 8 : first // 8 + 5].ljust(5, b"\0"), "big")
        return window >> (40 - first % 8 - size) & ((1 << size) - 1)

    def octets(self, count: int) -> np.ndarray:
        """Return the next numbers of 8 bits, uint8."""
        first, self._place = self._place, self._place + 8 * count
        if self._place > len(self._all):
            raise IndexError("it is cut off")
        return np.packbits(self._all[first : self._place])
