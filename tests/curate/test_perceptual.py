import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveal.curate import perceptual
from foveal.curate.perceptual import (
    first_of_equal,
    near_components,
    near_hash_pairs,
    near_pair_blocks,
    num_bands,
    perceptual_hash,
)
from foveal.curate.unionfind import UnionFind
from foveal.errors import FovealError


def planted(num_rows: int, num_bytes: int, seed: int) -> np.ndarray:
    """Random hashes, of which every third is an earlier one with 0 to 40 bits changed."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, (num_rows, 8 * num_bytes), dtype=np.uint8)
    for row in range(3, num_rows, 3):
        changed = generator.permutation(8 * num_bytes)[: generator.integers(0, 41)]
        bits[row] = bits[generator.integers(0, row)]
        bits[row, changed] ^= 1
    return np.packbits(bits, axis=1)


@pytest.mark.parametrize(
    ("num_bytes", "max_distance"), [(32, 0), (32, 7), (32, 8), (32, 15), (32, 16), (32, 31), (8, 1), (8, 3), (8, 7)]
)
def test_pairs_are_those_of_comparing_all_with_all(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, max_distance: int
) -> None:
    monkeypatch.setattr(perceptual, "_PAIRS_AT_ONCE", 50)
    hashes = planted(301, num_bytes, seed=max_distance)
    hashes[200:204] = hashes[7]
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    expected = [
        (i, j, distances[i, j]) for i in range(301) for j in range(i + 1, 301) if distances[i, j] <= max_distance
    ]
    pairs, found = near_hash_pairs(hashes, max_distance)
    assert [(*pair, distance) for pair, distance in zip(pairs.tolist(), found.tolist(), strict=True)] == expected
    assert len(expected) >= 3


def test_every_pair_comes_in_one_band_only() -> None:
    hashes = planted(200, 32, seed=1)
    bands = [list(near_pair_blocks(hashes, 20, [band])) for band in range(num_bands(hashes, 20))]
    pairs = np.concatenate([block for blocks in bands for block, _ in blocks])
    assert sum(bool(blocks) for blocks in bands) > 1
    assert sorted(map(tuple, pairs.tolist())) == list(map(tuple, near_hash_pairs(hashes, 20)[0].tolist()))


@pytest.mark.parametrize("max_distance", [5, 12, 20])
def test_components_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, max_distance: int) -> None:
    monkeypatch.setattr(perceptual, "_CROWD", 20)
    crowd = np.repeat(planted(2, 32, seed=0), 60, axis=0)
    bits = np.unpackbits(crowd, axis=1)
    bits[np.arange(120), np.random.default_rng(1).integers(0, 256, (8, 120))] ^= 1
    hashes = np.concatenate([planted(80, 32, seed=2), np.packbits(bits, axis=1)])[
        np.random.default_rng(3).permutation(200)
    ]
    found, _ = near_hash_pairs(hashes, max_distance)
    expected, joined = UnionFind(200), UnionFind(200)
    expected.union(found[:, 0], found[:, 1])
    for band in range(num_bands(hashes, max_distance)):
        joined.union(np.arange(200), near_components(hashes, max_distance, [band]))
    assert joined.labels().tolist() == expected.labels().tolist()
    assert 2 <= len(set(joined.labels().tolist())) < 200


def test_a_distance_beyond_near_copies_is_refused() -> None:
    with pytest.raises(FovealError, match="max_distance=32; choose 0 to 31 of the 256 bits"):
        near_hash_pairs(np.zeros((2, 32), np.uint8), 32)
    assert near_hash_pairs(np.zeros((0, 32), np.uint8), 9)[0].shape == (0, 2)


def test_the_first_of_equal_rows_stands_for_all() -> None:
    rows = np.random.default_rng(0).integers(0, 2, (50, 5), dtype=np.uint8)
    plain = rows.tolist()
    assert first_of_equal(rows).tolist() == [plain.index(row) for row in plain]


def test_copies_of_a_photograph_are_near_and_others_far() -> None:
    pytest.importorskip("pdqhash", reason="the extra curate is not installed")
    photographs = [data.astronaut(), data.chelsea(), data.coffee()]
    hashes = [perceptual_hash(one) for one in photographs]
    for photograph, (code, quality) in zip(photographs, hashes, strict=True):
        height, width = photograph.shape[:2]
        half = np.asarray(Image.fromarray(photograph).resize((width // 2, height // 2), Image.Resampling.BICUBIC))
        assert np.bitwise_count(code ^ perceptual_hash(half)[0]).sum() <= 8
        assert quality >= 90
        assert code.shape == (32,)
    far = [np.bitwise_count(a ^ b).sum() for i, (a, _) in enumerate(hashes) for b, _ in hashes[:i]]
    assert min(far) > 80
    assert perceptual_hash(np.full((40, 90, 3), 130, np.uint8))[1] == 0
