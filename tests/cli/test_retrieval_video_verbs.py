"""`foveal evaluate retrieval` and `foveal evaluate video`, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main
from foveal.images.masks import encode_ids


def _rows(out: Path) -> dict[str, dict[str, object]]:
    return {row["metric"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


@pytest.fixture
def base(model_folder: Path) -> list[str]:
    return ["evaluate", "X", "--model", str(model_folder), "--engine", "torch", "--data"]


def test_retrieval_searches_a_set_or_a_list(base: list[str], photos: Path, tmp_path: Path) -> None:
    base[1] = "retrieval"
    assert main([*base, str(photos), "--k", "2", "--out", str(tmp_path / "a")]) == 0
    assert list(_rows(tmp_path / "a")) == ["mAP", "recall@2", "GAP"]
    Image.new("RGB", (31, 43)).save(tmp_path / "new.png")
    (tmp_path / "queries.txt").write_text("new.png\tcat\n")
    command = [*base, str(photos), "--queries", str(tmp_path / "queries.txt"), "--size", "35", "--fit", "resize"]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    row = _rows(tmp_path / "b")["recall@10"]
    assert (row["protocol"], row["data"], row["unit"]) == ("retrieval, 35 resize", "photos", "%")


def test_retrieval_reads_revisited_sets(base: list[str], tmp_path: Path) -> None:
    base[1] = "retrieval"
    (tmp_path / "data" / "jpg").mkdir(parents=True)
    for name, level in (("a", 10), ("b", 200), ("q", 11)):
        Image.new("RGB", (40, 30), (level, 0, 0)).save(tmp_path / "data" / "jpg" / f"{name}.jpg")
    entry = {"bbx": [0, 0, 20, 20], "easy": [0], "hard": [1], "junk": []}
    truth = {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [entry]}
    (tmp_path / "data" / "gnd_x.json").write_text(json.dumps(truth))
    for more, protocol in ([], "retrieval"), (["--whole-queries"], "retrieval, whole queries"):
        assert main([*base, str(tmp_path / "data"), "--k", "1", "--out", str(tmp_path / "out"), *more]) == 0
        row = _rows(tmp_path / "out")["mAP medium"]
        assert (row["protocol"], row["value"], row["data"]) == (protocol, 100, "data")


def test_retrieval_refuses_options_without_effect(
    base: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base[1] = "retrieval"
    assert main([*base, str(photos), "--whole-queries"]) == 2
    assert "--whole-queries has no effect" in capsys.readouterr().err
    (tmp_path / "gnd_x.pkl").write_bytes(b"no pickle")
    assert main([*base, str(tmp_path), "--queries", str(photos)]) == 2
    assert "--queries has no effect" in capsys.readouterr().err
    assert main([*base, str(tmp_path)]) == 2
    assert "is damaged or no pickle of plain data" in capsys.readouterr().err


def _write_sequence(folder: Path, name: str) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p" / name).mkdir(parents=True)
    ids = np.zeros((28, 42), np.uint8)
    ids[7:21, 7:21] = 3
    for number in range(3):
        picture = Image.fromarray(np.stack([ids * 60] * 3, axis=2))
        picture.save(folder / "JPEGImages" / "480p" / name / f"{number:05d}.jpg")
        (folder / "Annotations" / "480p" / name / f"{number:05d}.png").write_bytes(encode_ids(ids))


def test_video_goes_on_after_a_frame_that_could_not_be_read(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base[1] = "video"
    for name in ("cat", "dog"):
        _write_sequence(tmp_path / "tiny", name)
    command = [*base, str(tmp_path / "tiny"), "--short-side", "28", "--out", str(tmp_path / "out")]
    frame = tmp_path / "tiny" / "JPEGImages" / "480p" / "dog" / "00001.jpg"
    whole = frame.read_bytes()
    scan = whole.index(b"\xff\xda") + 20
    frame.write_bytes(whole[:scan] + bytes(len(whole) - scan))
    assert main(command) == 2
    assert "dog/00001.jpg: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("unfinished/video-*/*.json")] == ["cat.json"]
    frame.write_bytes(whole)
    assert main(command) == 0
    assert not (tmp_path / "out" / "unfinished").exists()
    assert main([*command[:-1], str(tmp_path / "again")]) == 0
    first, second = (_rows(tmp_path / name) for name in ("out", "again"))
    assert [row["value"] for row in first.values()] == [row["value"] for row in second.values()]


def test_video_writes_masks_and_rows(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base[1] = "video"
    _write_sequence(tmp_path / "tiny", "dog")
    base.append(str(tmp_path / "tiny"))
    out, masks = tmp_path / "out", tmp_path / "masks"
    assert main([*base, "--short-side", "28", "--masks", str(masks), "--out", str(out)]) == 0
    assert _rows(out)["J&F"]["protocol"] == "video, 28 px"
    assert sorted(path.name for path in (masks / "dog").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    capsys.readouterr()
    assert main([*base, "--split", "val"]) == 2
    assert "choose another split" in capsys.readouterr().err
    assert main([*base, "--short-side", "28", "--masks", str(masks / "dog" / "00000.png")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


def test_clips_are_classified(
    base: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base[1] = "video-classify"
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        clip = tmp_path / "clips" / ("train" if number % 3 else "test") / path.parent.name / path.stem
        clip.mkdir(parents=True)
        path.rename(clip / "0.png")
    command = [*base[:-1], "--train", str(tmp_path / "clips" / "train"), "--test", str(tmp_path / "clips" / "test")]
    command += ["--num-frames", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--k", "1"]) == 0
    row = _rows(tmp_path / "out")["knn-1 top-1"]
    assert (row["protocol"], row["data"]) == ("video-classify, knn, mean of 2", "clips")
    for wrong in (["--k", "1", "--classifier", "linear"], ["--num-steps", "1"]):
        assert main([*command, *wrong]) == 2
        assert f"{wrong[0]} has no effect on --classifier" in capsys.readouterr().err
