"""Hashes of what pictures look like, and all pairs of nearly equal ones: PDQ, of the library pdqhash.

Shapes: N images, H W pixels.
"""

import functools
import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType

import cv2
import numpy as np
import pyarrow as pa

from foveal.curate.unionfind import UnionFind
from foveal.errors import FovealError

HASH_BITS = 256
MIN_QUALITY = 50  # the authors of PDQ advise against hashes below, which are those of pictures without structure
MAX_DISTANCE = 31  # what the authors of PDQ call a match, and the most that the search finds all pairs of
_SIDE = 64  # PDQ compares the low frequencies of 64 x 64 values
_PAIRS_AT_ONCE = 1 << 20
_CROWD = 512  # hashes that share a piece; beyond, comparing all with all takes long


def perceptual_hash(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the PDQ hash of an image, and how much structure it rests on.

    The image is shrunk to 64 x 64 by areas first. PDQ's own filter works in whole pixels, so that a copy of half the
    size lies some 20 bits away; after this, some 2 bits. Hashes are to be compared with those of this function.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (32,) uint8, the 256 bits; and the quality, 0 to 100.

    Raises:
        FovealError: pdqhash is not installed.

    Source: Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019.
    """
    return hash_of_thumbnail(thumbnail(image))


def hash_of_thumbnail(shrunk: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the `perceptual_hash` of an image that was shrunk by `thumbnail`."""
    bits, quality = import_pdqhash().compute(shrunk)
    return np.packbits(bits.astype(np.uint8)), int(quality)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image as 64 x 64, each pixel the mean of what it covers; shorter sides are interpolated.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (64, 64, 3) uint8, C-contiguous.
    """
    height, width = image.shape[:2]
    smaller = (min(width, _SIDE), min(height, _SIDE))
    shrunk = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller == (_SIDE, _SIDE):
        return shrunk
    return cv2.resize(shrunk, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)


@functools.cache
def import_pdqhash() -> ModuleType:
    """Return the package pdqhash; FovealError says how to install it."""
    try:
        return importlib.import_module("pdqhash")
    except ImportError as error:
        raise FovealError(
            f"perceptual hashes need pdqhash ({error}); install foveal[curate], or leave --max-distance out"
        ) from error


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Return for each row the number of the first row that is equal to it.

    Args:
        rows: (N, bytes) uint8.

    Returns:
        (N,) int64.

    Example:
        >>> first_of_equal(np.array([[7, 7], [0, 1], [7, 7]], np.uint8)).tolist()
        [0, 1, 0]
    """
    data = pa.py_buffer(np.ascontiguousarray(rows))
    values = pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, data])
    codes = values.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    return first[codes].astype(np.int64)


def near_hash_pairs(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of hashes that differ in at most so many bits; none is missed.

    Args:
        hashes: (N, bytes) uint8; whole multiples of 64 bits.
        max_distance: bits; less than twice the number of 16-bit pieces of a hash (32 for PDQ).

    Returns:
        (M, 2) int64, the smaller row first, in ascending order; and (M,) int64, the bits in which each pair differs.

    Raises:
        FovealError: `max_distance` is too large, or negative.

    Example:
        >>> pairs, distances = near_hash_pairs(np.array([[0] * 8, [255] * 8, [3] + [0] * 7], np.uint8), 2)
        >>> pairs.tolist(), distances.tolist()
        ([[0, 2]], [2])
    """
    blocks = list(near_pair_blocks(hashes, max_distance, range(num_bands(hashes, max_distance))))
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(block for block, _ in blocks)])
    distances = np.concatenate([np.empty(0, np.int64), *(found for _, found in blocks)])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]


def num_bands(hashes: np.ndarray, max_distance: int) -> int:
    """Return into how many pieces the search cuts hashes; FovealError for a distance that it cannot do."""
    return _bands(hashes, max_distance)[0].shape[1]


def near_pair_blocks(
    hashes: np.ndarray, max_distance: int, bands: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of `near_hash_pairs` in blocks of bounded size; each pair once over all bands.

    Of m pieces of two hashes that differ in d bits, one differs in at most d // m: only hashes that share a piece, or
    one with a bit changed, are compared (multi-index hashing).

    Args:
        hashes: as there.
        max_distance: as there.
        bands: the pieces to search by; other processes may take others.

    Yields:
        As there, unordered.

    Source: Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012.
    """
    keys, radius = _bands(hashes, max_distance)
    for band in bands:
        order = np.argsort(keys[:, band], kind="stable")
        words = np.ascontiguousarray(hashes[order]).view(np.uint64)
        for left, right in _candidates(keys[order, band], radius):
            near, distances = _within(words, left, right, max_distance)
            rows = np.sort(np.stack([order[left[near]], order[right[near]]], axis=1), axis=1)
            earlier = np.bitwise_count(keys[rows[:, 0], :band] ^ keys[rows[:, 1], :band]) <= radius
            new = ~earlier.any(axis=1)
            if new.any():
                yield rows[new], distances[new]


def near_components(hashes: np.ndarray, max_distance: int, bands: Sequence[int]) -> np.ndarray:
    """Return for each hash the smallest row that pairs of these pieces join it to, not going through all pairs.

    The frames of a camera that stands still are a crowd of nearly equal hashes: once joined, they are not compared.

    Args:
        hashes: as in `near_hash_pairs`.
        max_distance: as there.
        bands: the pieces to search by; joining what each finds gives the components of all pairs.

    Returns:
        (N,) int64.
    """
    keys, radius = _bands(hashes, max_distance)
    joined = UnionFind(len(hashes))
    for band in bands:
        order = np.argsort(keys[:, band], kind="stable")
        _, starts, counts = np.unique(keys[order, band], return_index=True, return_counts=True)
        crowded = (counts > _CROWD) & (radius == 0)
        for start, count in zip(starts[crowded].tolist(), counts[crowded].tolist(), strict=True):
            rows = order[start : start + count]
            joined.union(rows, rows[_crowd_labels(np.ascontiguousarray(hashes[rows]).view(np.uint64), max_distance)])
        order = order[np.repeat(~crowded, counts)]
        words = np.ascontiguousarray(hashes[order]).view(np.uint64)
        for left, right in _candidates(keys[order, band], radius):
            near, _ = _within(words, left, right, max_distance)
            joined.union(order[left[near]], order[right[near]])
    return joined.labels()


def _crowd_labels(words: np.ndarray, max_distance: int) -> np.ndarray:
    """Return the first place of each component; what is near a place joins it and is not compared with the joined."""
    labels = np.arange(len(words))
    unseen = np.arange(len(words))
    while len(unseen):
        first, unseen = unseen[0], unseen[1:]
        waiting = [first]
        while waiting and len(unseen):
            place = waiting.pop()
            near = np.bitwise_count(words[unseen] ^ words[place]).sum(axis=1, dtype=np.int64) <= max_distance
            if near.any():
                labels[unseen[near]] = first
                waiting.extend(unseen[near].tolist())
                unseen = unseen[~near]
    return labels


def _bands(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, int]:
    """Return hashes as (N, pieces), and the bits in which one piece of a pair differs at most."""
    num_bits = 8 * hashes.shape[1]
    if not 0 <= max_distance < num_bits // 8:
        raise FovealError(
            f"max_distance={max_distance}; choose 0 to {num_bits // 8 - 1} of the {num_bits} bits: beyond, pictures "
            "are not near-copies"
        )
    wide = max_distance < num_bits // 32  # fewer pieces, each shared by fewer hashes
    keys = np.ascontiguousarray(hashes).view(np.uint32 if wide else np.uint16)
    return keys, max_distance // keys.shape[1]


def _candidates(keys: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of positions in sorted keys that are equal or, for a radius of 1, differ in one bit."""
    positions = np.arange(len(keys))
    yield from _expanded(positions, positions + 1, np.searchsorted(keys, keys, side="right"))
    for bit in range(8 * keys.itemsize if radius else 0):
        changed = keys.dtype.type(1 << bit)
        unset = np.flatnonzero((keys & changed) == 0)
        wanted = keys[unset] | changed
        first, last = (np.searchsorted(keys, wanted, side=side) for side in ("left", "right"))
        yield from _expanded(unset, first, last)


def _expanded(left: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every pair of left[i] with first[i] to last[i] - 1, about `_PAIRS_AT_ONCE` at a time."""
    some = last > first
    left, first, counts = left[some], first[some], (last - first)[some]
    ends = np.cumsum(counts)
    start = 0
    while start < len(left):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        repeats = counts[start:stop]
        offsets = np.arange(repeats.sum()) - np.repeat(ends[start:stop] - repeats - done, repeats)
        yield np.repeat(left[start:stop], repeats), np.repeat(first[start:stop], repeats) + offsets
        start = stop


def _within(words: np.ndarray, left: np.ndarray, right: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which pairs are near, and their distances; half of the words rules out nearly all others."""
    half = (words.shape[1] + 1) // 2
    near = np.arange(len(left))
    distances = np.zeros(len(left), np.int64)
    for part in (words[:, :half], words[:, half:]):
        distances = distances + np.bitwise_count(part[left[near]] ^ part[right[near]]).sum(axis=1, dtype=np.int64)
        kept = distances <= max_distance
        near, distances = near[kept], distances[kept]
    return near, distances
