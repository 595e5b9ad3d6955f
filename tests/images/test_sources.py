"""Folders, lists, tar shards and Parquet files become rows, in an order that depends on names alone."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.errors import BadImageError, ImageSetError
from foveal.images.imageset import ImageSet
from foveal.images.shards import Reader
from foveal.images.sources import scan


def grey_png(encode, level: int) -> bytes:
    return encode(np.full((3, 5), level, np.uint8), "PNG")


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_000
            tar.addfile(info, io.BytesIO(data))


def levels(images: ImageSet) -> list[int]:
    return [int(images.decode(index)[0, 0, 0]) for index in range(len(images))]


def test_folder_is_sorted_recursive_and_labelled_by_class(encode, tmp_path):
    for level, name in enumerate(["b/2.png", "a/9.PNG", "top.jpg", "a/deep/1.webp", "a/10.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey_png(encode, level))
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"")
    listing = scan(tmp_path)
    assert listing.rows["uri"].to_pylist() == ["a/10.png", "a/9.PNG", "a/deep/1.webp", "b/2.png", "top.jpg"]
    assert listing.rows["label"].to_pylist() == ["a", "a", None, "b", None]
    assert listing.num_ignored == 1
    assert listing.rows["bytes"][0].as_py() == (tmp_path / "a/10.png").stat().st_size
    assert levels(ImageSet.open(tmp_path)) == [4, 1, 3, 0, 2]


def test_linked_folders_are_followed_once_and_loops_end(encode, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").write_bytes(grey_png(encode, 1))
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    assert scan(tmp_path / "root").rows["uri"].to_pylist() == ["link/x.png"]


def test_missing_source_says_what_can_be_given(tmp_path):
    with pytest.raises(ImageSetError, match=r"nowhere does not exist; give a folder, a .txt list, or .tar or .parquet"):
        ImageSet.open(tmp_path / "nowhere")


def test_folder_without_images_says_what_was_looked_for_and_seen(tmp_path):
    for name in ("a.md", "b.md", "c.cr2"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ImageSetError, match=r"looked for .jpg .jpeg .png.*3 other files seen \(2 .md, 1 .cr2\)"):
        ImageSet.open(tmp_path)


def test_dangling_link_is_named(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(ImageSetError, match=r"gone.png cannot be read"):
        ImageSet.open(tmp_path)


def test_file_name_that_is_not_utf8_is_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/pict\xe9.png", "wb"):
        pass
    with pytest.raises(ImageSetError, match=r"pict\\udce9.png' is not UTF-8; rename"):
        ImageSet.open(tmp_path)


def test_relative_folders_give_the_same_rows(encode, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(grey_png(encode, 5))
    monkeypatch.chdir(tmp_path)
    for source in (".", "", "./", tmp_path, f"{tmp_path}/"):
        images = ImageSet.open(source)
        assert images.rows["uri"].to_pylist() == ["a/x.png"]
        assert levels(images) == [5]


def test_list_keeps_order_repeats_and_labels(encode, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x y.png").write_bytes(grey_png(encode, 7))
    (tmp_path / "z.data").write_bytes(grey_png(encode, 9))
    (tmp_path / "list.txt").write_text("z.data\tcat\n\nsub/x y.png\nz.data\tdog\n")
    images = ImageSet.open(tmp_path / "list.txt")
    assert levels(images) == [9, 7, 9]
    assert images.rows["label"].to_pylist() == ["cat", None, "dog"]
    assert images.labels is None


def test_lists_with_commas_read_the_first_label_and_paths_alone_the_folder(tmp_path):
    for name in ("a/1.png", "a/2, 3.png", "b/3.png", "c,d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "ids.txt").write_text("a/1.png, 7, 2\na/2, 3.png,8\nc,d.png, 9\nc,d.png\n")
    images = ImageSet.open(tmp_path / "ids.txt")
    assert images.rows["uri"].to_pylist() == ["a/1.png", "a/2, 3.png", "c,d.png", "c,d.png"]
    assert images.rows["label"].to_pylist() == ["7", "8", "9", None]
    assert images.labels is None
    (tmp_path / "paths.txt").write_text("a/1.png\nb/3.png\na/2, 3.png\n")
    images = ImageSet.open(tmp_path / "paths.txt")
    assert images.labels == ["a", "b", "a"]
    assert images.rows["label"].null_count == 3  # the hash of such a list is what it was
    assert images.subset([0, 2]).labels is None  # one folder is no class
    (tmp_path / "paths.txt").write_text("a/1.png\nc,d.png\n")
    assert ImageSet.open(tmp_path / "paths.txt").labels is None


def test_list_with_missing_files_names_the_first_line(tmp_path):
    (tmp_path / "list.txt").write_text("\nabsent.png 3 5\nabsent2.png\n")
    with pytest.raises(ImageSetError, match=r"names 2 files that do not exist, first 'line 2: absent.png 3 5'.*tab"):
        ImageSet.open(tmp_path / "list.txt")


def test_empty_and_binary_lists_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageSetError, match="lists no image"):
        ImageSet.open(tmp_path / "empty.txt")
    with pytest.raises(ImageSetError, match="must be UTF-8"):
        ImageSet.open(tmp_path / "binary.txt")


def test_tar_groups_samples_by_the_name_before_the_first_dot(encode, tmp_path):
    first, second = grey_png(encode, 11), grey_png(encode, 22)
    members = {"d/0001.jpg": first, "d/0001.cls": b"3\n", "d/0001.txt": b"a caption", "d/0002.cls": b"4"}
    members |= {"d/0002.left.png": second, "d/0002.right.PNG": first, "e/0001.webp": second, "d/.hidden": b"x"}
    write_tar(tmp_path / "shard.tar", members)
    images = ImageSet.open(tmp_path / "shard.tar")
    assert images.rows["label"].to_pylist() == ["3", "4", "4", None]
    assert images.uri(0) == f"shard.tar#512+{len(first)}"
    assert images.read(0) == first
    assert levels(images) == [11, 22, 11, 22]
    assert images.rows["bytes"].to_pylist() == [len(first), len(second), len(first), len(second)]


def test_tar_shards_come_by_brace_by_glob_or_by_folder(encode, tmp_path):
    for shard in range(8, 12):
        write_tar(tmp_path / f"s-{shard:03d}.tar", {"x.png": grey_png(encode, shard)})
    assert levels(ImageSet.open(f"{tmp_path}/s-{{008..010}}.tar")) == [8, 9, 10]
    assert levels(ImageSet.open(f"{tmp_path}/s-{{011,009}}.tar")) == [11, 9]
    assert levels(ImageSet.open(tmp_path / "s-*.tar")) == [8, 9, 10, 11]
    assert levels(ImageSet.open(tmp_path)) == [8, 9, 10, 11]
    with pytest.raises(ImageSetError, match=r"asks for .*s-012.tar, which does not exist"):
        ImageSet.open(f"{tmp_path}/s-{{011..012}}.tar")


def test_images_win_over_shards_with_a_warning(encode, tmp_path, caplog):
    write_tar(tmp_path / "s.tar", {"x.png": grey_png(encode, 1)})
    (tmp_path / "y.png").write_bytes(grey_png(encode, 2))
    assert levels(ImageSet.open(tmp_path)) == [2]
    assert "its 1 tar and Parquet files are ignored" in caplog.text


def test_damaged_tar_files_are_refused(encode, tmp_path):
    write_tar(tmp_path / "whole.tar", {"x.png": b"x" * 5000})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:3000])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "whole.tar", "x.png")
    for name in ("cut.tar", "packed.tar"):
        with pytest.raises(ImageSetError, match="is not a whole, uncompressed tar file"):
            ImageSet.open(tmp_path / name)
    write_tar(tmp_path / "words.tar", {"a.txt": b"x"})
    with pytest.raises(ImageSetError, match="hold no image"):
        ImageSet.open(tmp_path / "words.tar")


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ImageSetError, match=r"all .tar, all .parquet, or one .txt list; found .gz; unpack"):
        ImageSet.open(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("layout", ["binary", "large_binary", "struct"])
def test_parquet_layouts(encode, tmp_path, layout):
    pictures = [grey_png(encode, level) for level in range(7)]
    if layout == "struct":
        column = pa.array([{"bytes": data, "path": None} for data in pictures])
    else:
        column = pa.array(pictures, pa.binary() if layout == "binary" else pa.large_binary())
    table = pa.table({"image": column, "label": list(range(7)), "class_name": list("abcdefg")})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    images = ImageSet.open(tmp_path / "x.parquet")
    assert levels(images) == list(range(7))
    assert [images.read(index) for index in (6, 0, 3)] == [pictures[6], pictures[0], pictures[3]]
    assert images.uri(4) == "x.parquet#4"
    assert images.labels == list("abcdefg")
    assert images.rows["bytes"].null_count == 7


def test_parquet_integer_labels_become_strings_and_folders_of_files_are_joined(encode, tmp_path):
    for name in ("b", "a"):
        table = pa.table({"jpg": [grey_png(encode, ord(name))], "label": [ord(name)]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    images = ImageSet.open(tmp_path)
    assert levels(images) == [97, 98]
    assert images.labels == ["97", "98"]


def test_parquet_without_image_column_says_what_it_found(tmp_path):
    pq.write_table(pa.table({"image": ["a/path.jpg"], "x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ImageSetError, match=r"found image \(string\), x \(int64\)"):
        ImageSet.open(tmp_path / "x.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not")
    with pytest.raises(ImageSetError, match="is not a readable Parquet file"):
        ImageSet.open(tmp_path / "bad.parquet")


def test_parquet_null_image_is_unreadable(tmp_path):
    pq.write_table(pa.table({"image": pa.array([None, b"x"], pa.binary())}), tmp_path / "x.parquet")
    with pytest.raises(BadImageError, match="holds no image bytes") as caught:
        ImageSet.open(tmp_path / "x.parquet").read(0)
    assert caught.value.reason == "unreadable"


def test_parquet_cache_stays_within_its_bound(tmp_path):
    values = [bytes([row]) * 1000 for row in range(40)]
    pq.write_table(pa.table({"image": values}), tmp_path / "x.parquet", row_group_size=5)
    reader = Reader(tmp_path, cache_bytes=12_000)
    for row in [*range(40), 3, 39, 17]:
        assert reader.read(f"x.parquet#{row}") == values[row]
        assert sum(group.nbytes for group in reader._groups.values()) <= 12_000
    tiny = Reader(tmp_path, cache_bytes=1)
    assert [tiny.read(f"x.parquet#{row}") for row in (0, 39)] == [values[0], values[39]]


def test_files_that_vanish_or_shrink_are_unreadable(encode, tmp_path):
    (tmp_path / "x.png").write_bytes(grey_png(encode, 1))
    write_tar(tmp_path / "s.tar", {"x.png": grey_png(encode, 1)})
    folder, shard = ImageSet.open(tmp_path), ImageSet.open(tmp_path / "s.tar")
    (tmp_path / "x.png").unlink()
    os.truncate(tmp_path / "s.tar", 520)
    for images in (folder, shard):
        with pytest.raises(BadImageError, match="cannot be read") as caught:
            images.read(0)
        assert caught.value.reason == "unreadable"


def test_no_more_tar_files_stay_open_than_allowed(tmp_path):
    for shard in range(5):
        write_tar(tmp_path / f"{shard}.tar", {"x.png": bytes([shard])})
    reader = Reader(tmp_path, max_files=2)
    assert [reader.read(f"{shard}.tar#512+1") for shard in (0, 1, 2, 3, 4, 0)] == [
        b"\0",
        b"\1",
        b"\2",
        b"\3",
        b"\4",
        b"\0",
    ]
    assert len(reader._tars) == 2


def test_real_cifar10_parquet_has_labels_and_pictures(real_images):
    path = real_images / "cifar10" / "test.parquet"
    if not path.is_file():
        pytest.skip("cifar10 is not on this machine")
    images = ImageSet.open(path)
    assert len(images) == 5000
    assert len(set(images.labels or [])) == 10
    assert [images.decode(index).shape for index in (0, 4999)] == [(32, 32, 3)] * 2
