"""The manifest: hash, subset, save and load, travel to other processes."""

import json
import multiprocessing
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disks import no_file_above

from foveal.errors import BadImageError, ImageSetError
from foveal.images.decode import DecodeLimits
from foveal.images.imageset import ImageSet


@pytest.fixture
def folder(encode, tmp_path):
    """Six grey pictures, level = index, in two class folders; the fourth is a text file named .jpg."""
    root = tmp_path / "photos"
    for level, name in enumerate(["a/0.png", "a/1.png", "a/2.png", "b/3.jpg", "b/4.png", "b/5.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"words" if level == 3 else encode(np.full((3, 5), level, np.uint8), "PNG"))
    return root


def first_level(images: ImageSet) -> int:
    return int(images.decode(0)[0, 0, 0])


def test_bad_image_names_its_uri_and_reason(folder):
    with pytest.raises(BadImageError, match=r"^b/3.jpg: the bytes start with b'words'") as caught:
        ImageSet.open(folder).decode(3)
    assert caught.value.reason == "unknown_format"


def test_limits_reach_the_decoder(folder):
    with pytest.raises(BadImageError, match="allowed are 14 in all"):
        ImageSet.open(folder).decode(0, limits=DecodeLimits(max_pixels=14))


def test_labels_are_given_only_when_all_are_known(folder, encode):
    assert ImageSet.open(folder).labels == ["a"] * 3 + ["b"] * 3
    (folder / "top.png").write_bytes(encode(np.zeros((3, 5), np.uint8), "PNG"))
    assert ImageSet.open(folder).labels is None


def test_hash_ignores_place_and_time_but_not_content_rows(folder, tmp_path):
    before = ImageSet.open(folder).hash
    os.utime(folder / "a/0.png", (0, 0))
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    folder.rename(moved)
    assert ImageSet.open(moved).hash == before
    (moved / "b/3.jpg").write_bytes(b"other words")
    assert ImageSet.open(moved).hash != before


def test_hash_does_not_depend_on_how_the_table_is_chunked(folder):
    rows = ImageSet.open(folder).rows
    chunked = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert ImageSet(chunked, root=folder).hash == ImageSet(rows, root=folder).hash
    assert len(ImageSet(rows, root=folder).hash) == 64


def test_hash_depends_on_order_and_on_extra_columns(folder):
    images = ImageSet.open(folder)
    assert images.subset([1, 0]).hash != images.subset([0, 1]).hash
    split = images.rows.append_column("split", pa.array(["train"] * 6))
    assert ImageSet(split, root=folder).hash != images.hash


def test_parquet_hash_sees_changed_images(tmp_path):
    hashes = set()
    for picture in (b"one", b"two"):
        pq.write_table(pa.table({"image": [picture]}), tmp_path / "x.parquet")
        hashes.add(ImageSet.open(tmp_path / "x.parquet").hash)
    assert len(hashes) == 2


def test_subset_keeps_order_and_repeats(folder):
    chosen = ImageSet.open(folder).subset(np.array([5, 0, 5]))
    assert [chosen.uri(index) for index in range(3)] == ["b/5.png", "a/0.png", "b/5.png"]
    assert chosen.labels == ["b", "a", "b"]
    assert first_level(chosen) == 5
    assert len(chosen.subset([])) == 0


@pytest.mark.parametrize("indices", [[6], [-1], [0.5], [[0]], [True, False]])
def test_subset_refuses_what_are_no_indices(folder, indices):
    with pytest.raises(ImageSetError, match="indices"):
        ImageSet.open(folder).subset(indices)


def test_save_and_open_give_the_same_set(folder, tmp_path):
    images = ImageSet.open(folder)
    rows = images.rows.append_column("split", pa.array(["train"] * 6))
    images = ImageSet(rows, root=folder).subset([4, 2])
    images.save(tmp_path / "saved")
    again = ImageSet.open(tmp_path / "saved")
    assert again.rows.equals(images.rows)
    assert again.hash == images.hash
    assert first_level(again) == 4
    card = json.loads((tmp_path / "saved" / "imageset.json").read_text())
    assert (card["num_images"], card["num_labelled"], card["hash"]) == (2, 2, images.hash)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "saved"]


def test_saved_parquet_set_keeps_its_hash(tmp_path):
    pq.write_table(pa.table({"image": [b"one", b"two"]}), tmp_path / "x.parquet")
    images = ImageSet.open(tmp_path / "x.parquet").subset([1])
    images.save(tmp_path / "saved")
    assert ImageSet.open(tmp_path / "saved").hash == images.hash
    assert ImageSet.open(tmp_path / "saved").read(0) == b"two"


def test_save_overwrites_nothing(folder, tmp_path):
    images = ImageSet.open(folder)
    images.save(tmp_path / "saved")
    with pytest.raises(ImageSetError, match="already exists and is not empty"):
        images.save(tmp_path / "saved")
    with pytest.raises(ImageSetError, match="already exists"):
        images.save(folder / "a" / "0.png")
    (tmp_path / "empty").mkdir()
    images.save(tmp_path / "empty")
    assert len(ImageSet.open(tmp_path / "empty")) == 6


def test_damaged_image_sets_are_refused(folder, tmp_path):
    saved = tmp_path / "saved"
    ImageSet.open(folder).save(saved)
    card = json.loads((saved / "imageset.json").read_text())
    for change, message in [
        ({"hash": "0" * 64}, "do not match the hash"),
        ({"version": 2}, "says kind 'foveal image set', version 2"),
        ({"root": "/does/not/exist"}, "were below /does/not/exist, which does not exist"),
    ]:
        (saved / "imageset.json").write_text(json.dumps(card | change))
        with pytest.raises(ImageSetError, match=message):
            ImageSet.open(saved)
    for text in ("{", "{}", "[]"):
        (saved / "imageset.json").write_text(text)
        with pytest.raises(ImageSetError, match="is a damaged image set"):
            ImageSet.open(saved)
    (saved / "imageset.json").write_text(json.dumps(card))
    (saved / "part-00000.parquet").unlink()
    with pytest.raises(ImageSetError, match="is a damaged image set"):
        ImageSet.open(saved)


def test_rows_without_uri_are_refused(tmp_path):
    with pytest.raises(ImageSetError, match="needs the column uri; found path"):
        ImageSet(pa.table({"path": ["x"]}), root=tmp_path)


def test_missing_standard_columns_become_null(folder):
    images = ImageSet(pa.table({"uri": ["a/1.png"]}), root=folder)
    assert images.labels is None
    assert first_level(images) == 1


def test_pickled_set_reads_on_even_after_files_were_opened(folder):
    images = ImageSet.open(folder)
    images.decode(0)
    copy = pickle.loads(pickle.dumps(images))
    assert (copy.hash, first_level(copy)) == (images.hash, 0)
    assert len(pickle.dumps(images)) < 10_000


def test_other_process_reads_parquet_and_tar(encode, tmp_path):
    picture = encode(np.full((3, 5), 42, np.uint8), "PNG")
    pq.write_table(pa.table({"image": [picture]}), tmp_path / "x.parquet")
    images = ImageSet.open(tmp_path / "x.parquet")
    assert first_level(images) == 42
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(len, (images,)).get(timeout=60) == 1
        assert pool.apply_async(images.read, (0,)).get(timeout=60) == picture


def test_relative_root_survives_a_change_of_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    images = ImageSet.open("photos")
    monkeypatch.chdir("/")
    assert first_level(images) == 0


def test_files_of_a_folder_become_a_set_in_the_order_given(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"12345")
    images = ImageSet.of_files(tmp_path, ["b.jpg", "a.jpg"], labels=["y", "x"])
    assert [images.uri(0), images.uri(1)] == ["b.jpg", "a.jpg"]
    assert images.labels == ["y", "x"]
    (tmp_path / "list.txt").write_text("b.jpg\ty\na.jpg\tx\n")
    assert images.hash == ImageSet.open(tmp_path / "list.txt").hash
    with pytest.raises(ImageSetError, match=r"lacks 4 of 5 files: 0, 1, 2 and 1 more"):
        ImageSet.of_files(tmp_path, ["0", "1", "2", "3", "a.jpg"])
    with pytest.raises(ImageSetError, match="is listed"):
        ImageSet.of_files(tmp_path, [])


def test_a_set_written_over_another_is_whole_or_leaves_that_one(tmp_path):
    rows = [{"uri": f"{number}.png", "sha256": f"{number:064x}"} for number in range(300)]
    few, many = (ImageSet(pa.Table.from_pylist(some), root=tmp_path) for some in (rows[:3], rows))
    few.save_in(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with no_file_above(4000), pytest.raises(OSError, match="too large"):
        many.save_in(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    many.save_in(tmp_path)
    assert ImageSet.open(tmp_path).hash == many.hash
