import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foveal.curate.runner import Runner
from foveal.curate.stage import open_stage, read_stage, removed_table
from foveal.errors import FovealError
from foveal.images.imageset import ImageSet


def squares(folder: Path, shard: int) -> None:
    stage = read_stage(folder)
    if shard == stage.settings.get("dies_at") and not (folder / "survive").exists():
        os._exit(9)
    if shard == stage.settings.get("fails_at"):
        raise FovealError("shard 2 cannot be made")
    stage.save("squares", shard, {"square": np.array([shard**2]), "none": np.empty((0, 3), np.float32)})


def test_shards_in_one_and_in_two_processes_are_the_same_to_the_byte(tmp_path: Path) -> None:
    files = []
    for workers in (1, 2):
        stage = open_stage(tmp_path / str(workers), "squares", settings={"a": 1}, inputs={"x": "y"}, sources={})
        seen: list[tuple[int, int]] = []
        Runner(num_workers=workers).run(
            squares, stage, "squares", 5, progress=lambda done, total, seen=seen: seen.append((done, total))
        )
        assert seen[-1] == (5, 5)
        files.append([stage.path("squares", shard).read_bytes() for shard in range(5)])
        assert stage.load("squares", 3)["square"].tolist() == [9]
        assert stage.load("squares", 3)["none"].shape == (0, 3)
    assert files[0] == files[1]


def test_a_run_goes_on_after_an_error_with_the_shards_that_are_missing(tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={"fails_at": 2}, inputs={}, sources={})
    with pytest.raises(FovealError, match="shard 2 cannot be made"):
        Runner().run(squares, stage, "squares", 4)
    assert stage.missing("squares", 4) == [2, 3]


def test_a_worker_that_dies_leaves_finished_shards_and_a_clear_error(tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={"dies_at": 3}, inputs={}, sources={})
    with pytest.raises(FovealError, match="a worker process died"):
        Runner(num_workers=2).run(squares, stage, "squares", 4)
    assert 3 in stage.missing("squares", 4)
    (stage.folder / "survive").touch()
    Runner(num_workers=2).run(squares, stage, "squares", 4)
    assert stage.missing("squares", 4) == []


def test_a_stage_of_other_settings_or_another_folder_is_refused(tmp_path: Path) -> None:
    open_stage(tmp_path / "s", "squares", settings={"k": 3}, inputs={"pool": "a"}, sources={})
    with pytest.raises(FovealError, match="k is 3 there and 4 now"):
        open_stage(tmp_path / "s", "squares", settings={"k": 4}, inputs={"pool": "a"}, sources={})
    with pytest.raises(FovealError, match="pool is 'a' there and 'b' now"):
        open_stage(tmp_path / "s", "squares", settings={"k": 3}, inputs={"pool": "b"}, sources={})
    with pytest.raises(FovealError, match="is a stage 'squares', not 'cubes'"):
        open_stage(tmp_path / "s", "cubes", settings={"k": 3}, inputs={"pool": "a"}, sources={})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    with pytest.raises(FovealError, match="is not a stage of curation"):
        open_stage(tmp_path / "photos", "squares", settings={}, inputs={}, sources={})


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_named(tmp_path: Path, how: str) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={}, inputs={}, sources={})
    stage.save("squares", 0, {"square": np.arange(100)})
    path = stage.path("squares", 0)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-20] if how == "cut" else data)
    with pytest.raises(FovealError, match=r"00000\.safetensors is damaged.* remove .* and run the same command again"):
        stage.load("squares", 0)


def test_a_finished_stage_is_an_image_set_and_says_what_it_removed(tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={}, inputs={}, sources={})
    assert stage.summary is None
    kept = ImageSet(pa.table({"uri": ["a.jpg", "c.jpg"], "score": [0.5, 0.25]}), root=tmp_path)
    removed = removed_table({"uri": ["b.jpg"], "reason": ["duplicate"], "kept_uri": ["a.jpg"], "score": [0.9]})
    for _ in range(2):  # again over the first
        stage.finish(kept, removed, {"num_components": 1}, rows=np.array([0, 2]))
    assert np.load(stage.rows).tolist() == [0, 2]
    assert stage.summary == {"num_kept": 2, "num_removed": 1, "by_reason": {"duplicate": 1}, "num_components": 1}
    assert ImageSet.open(tmp_path / "s").rows.column("score").to_pylist() == [0.5, 0.25]
    assert stage.removed().to_pylist()[0]["kept_uri"] == "a.jpg"


def test_arrays_are_read_in_one_order(tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={}, inputs={}, sources={})
    stage.save("squares", 0, {name: np.zeros(1) for name in "hbfdaceg"})
    assert list(stage.load("squares", 0)) == list("abcdefgh")


def test_a_mapped_array_is_what_was_saved_and_other_settings_are_refused(tmp_path: Path) -> None:
    stage = open_stage(tmp_path / "s", "squares", settings={}, inputs={}, sources={})
    stage.save("squares", 0, {"a": np.arange(3, dtype=np.int64), "b": np.array([[1.5, -2.0]], np.float32)})
    assert stage.mapped("squares", 0, "a").tolist() == [0, 1, 2]
    assert stage.mapped("squares", 0, "b").tolist() == [[1.5, -2.0]]
    other = open_stage(tmp_path / "t", "squares", settings={"k": 1}, inputs={}, sources={})
    other.path("squares", 0).parent.mkdir(parents=True)
    other.path("squares", 0).write_bytes(stage.path("squares", 0).read_bytes())
    with pytest.raises(FovealError, match="was made with other settings"):
        other.mapped("squares", 0, "a")
    other.path("squares", 0).write_bytes(stage.path("squares", 0).read_bytes()[:-1])
    with pytest.raises(FovealError, match=r"00000\.safetensors is damaged or missing"):
        other.mapped("squares", 0, "b")
