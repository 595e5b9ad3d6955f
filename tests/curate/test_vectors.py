from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.curate.stage import open_stage, read_stage
from foveal.curate.vectors import Vectors, check_same_descriptor
from foveal.errors import FovealError

MakeStore = Callable[..., Path]
VECTORS = np.random.default_rng(0).normal(size=(17, 5)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def test_rows_of_a_store_have_unit_length_in_the_order_asked_for(make_store: MakeStore) -> None:
    vectors = Vectors(make_store(VECTORS))
    np.testing.assert_allclose(vectors.read(3, 11), UNIT[3:11], rtol=1e-6)
    np.testing.assert_allclose(vectors.take(np.array([16, 2, 9])), UNIT[[16, 2, 9]], rtol=1e-6)
    assert vectors.uri(9) == "0009.png"
    assert (vectors.num_rows, vectors.width) == (17, 5)


def test_some_rows_are_numbered_from_zero(make_store: MakeStore, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([1, 8, 15]))
    some = Vectors(make_store(VECTORS), rows=tmp_path / "rows.npy")
    again = Vectors.of_sources(some.sources())
    np.testing.assert_allclose(again.read(1, 3), UNIT[[8, 15]], rtol=1e-6)
    assert again.images().rows.column("uri").to_pylist() == ["0001.png", "0008.png", "0015.png"]
    assert again.hash == some.hash != Vectors(some.path).hash
    assert some.numbers(np.array([2, 0])).tolist() == [15, 1]
    assert some.places(np.array([15, 1])).tolist() == [2, 0]
    for wrong in (np.array([1, 8, 17]), np.array([1, 9, 8], np.uint32), np.array([1, 99, 8], np.uint64)):
        np.save(tmp_path / "rows.npy", wrong)
        with pytest.raises(FovealError, match="row numbers from 0 to 16"):
            Vectors(some.path, rows=tmp_path / "rows.npy")


def test_a_stage_opens_the_vectors_that_it_was_given(make_store: MakeStore, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([1, 8]))
    some = Vectors(make_store(VECTORS), rows=tmp_path / "rows.npy")
    open_stage(tmp_path / "s", "dedup", settings={}, inputs={}, sources=some.sources("pool"))
    again = Vectors.of_sources(read_stage(tmp_path / "s").sources, "pool")
    assert again.hash == some.hash


def test_a_file_of_half_precision_is_read_like_a_store(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", (10 * VECTORS).astype(np.float16))
    vectors = Vectors(tmp_path / "v.npy")
    np.testing.assert_allclose(vectors.read(0, 17), UNIT, atol=1e-3)
    assert vectors.uri(4) == "row 4"
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(FovealError, match="give \\(rows, width\\) of a float type"):
        Vectors(tmp_path / "w.npy")


def test_a_row_of_zeros_stays_one_and_nan_names_its_image(make_store: MakeStore) -> None:
    odd = VECTORS.copy()
    odd[4] = 0
    odd[12, 3] = np.nan
    vectors = Vectors(make_store(odd))
    assert not vectors.read(4, 5).any()
    with pytest.raises(FovealError, match=r"the vector of 0012\.png holds NaN"):
        vectors.read(7, 17)


def test_other_models_and_an_unfinished_store_are_refused(make_store: MakeStore) -> None:
    one, other = Vectors(make_store(VECTORS)), Vectors(make_store(VECTORS, "other", model="large"))
    check_same_descriptor(one, one)
    with pytest.raises(FovealError, match="different descriptors: model is"):
        check_same_descriptor(one, other)
    (one.path / "shards/00001/done.json").unlink()
    with pytest.raises(FovealError, match="is unfinished"):
        Vectors(one.path)


def test_a_file_of_float32_is_read_without_being_changed(tmp_path: Path) -> None:
    rows = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    np.save(tmp_path / "rows.npy", rows)
    vectors = Vectors(tmp_path / "rows.npy")
    for _ in range(2):
        np.testing.assert_array_equal(vectors.read(0, 2), np.array([[0.6, 0.8], [0.0, 1.0]], np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)
