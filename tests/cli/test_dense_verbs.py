"""`foveal evaluate segment` and `foveal evaluate depth`, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main

STEPS = ("--steps", 30, "--batch-size", 4, "--learning-rate", 0.03, "--size", "own", "--crop-size", "whole")


@pytest.fixture
def street(street: Path) -> Path:
    """Pictures with masks, whose classes have names."""
    (street / "classes.txt").write_text("road\nsky\n")
    return street


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_masks_are_fitted_and_measured(model_folder: Path, street: Path, tmp_path: Path) -> None:
    out, head = tmp_path / "results", tmp_path / "head"
    command = ("evaluate", "segment", "--model", model_folder, "--data", street, *STEPS)
    assert run(*command, "--out", out, "--head-out", head) == 0
    found = {row["metric"]: row for row in rows(out)}
    assert list(found) == ["linear mIoU", "linear pixel accuracy", "linear IoU road", "linear IoU sky"]
    assert found["linear mIoU"]["value"] > 80  # type: ignore[operator]
    assert found["linear mIoU"]["protocol"] == "segment, 30 steps of 4, rate 0.03, own size, whole pictures"
    (matrix,) = (out / "confusion").iterdir()
    assert [len(line.split(",")) for line in matrix.read_text().splitlines()[1:]] == [3, 3]
    assert "confusion matrix" in (out / "results.html").read_text()
    assert (head / "head.json").is_file()
    assert not (out / "unfinished").exists()


def test_depth_is_fitted_and_measured(model_folder: Path, street: Path, tmp_path: Path) -> None:
    command = ("evaluate", "depth", "--model", model_folder, "--data", street.with_name("rooms"), *STEPS)
    assert run(*command, "--max-depth", 4, "--out", tmp_path / "results") == 0
    found = {row["metric"]: row for row in rows(tmp_path / "results")}
    assert list(found) == [f"lin.1 {name}" for name in ("RMSE", "AbsRel", "delta1", "delta2", "delta3")]
    assert found["lin.1 RMSE"]["value"] < 1  # type: ignore[operator]
    assert str(found["lin.1 RMSE"]["protocol"]).endswith("whole pictures, up to 4 m")


def test_an_interrupted_evaluation_goes_on_to_the_same_rows(
    model_folder: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("evaluate", "segment", "--model", model_folder, "--data", street, *STEPS, "--out")
    assert run(*command, tmp_path / "whole") == 0
    picture = street / "test" / "1.png"
    good = picture.read_bytes()
    picture.write_bytes(good[: len(good) // 2] + b"\0" * (len(good) - len(good) // 2))  # of the same size
    assert run(*command, tmp_path / "parts") == 2
    assert f"{picture}:" in capsys.readouterr().err
    (folder,) = (tmp_path / "parts" / "unfinished").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["head", "measured.safetensors"]
    picture.write_bytes(good)
    assert run(*command, tmp_path / "parts") == 0
    values = [
        [(row["metric"], row["value"], row["low"]) for row in rows(tmp_path / name)] for name in ("whole", "parts")
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("segment", "--kind", "lin.1"), "'lin.1' is not one of 'linear', 'ms', 'mlp', 'dpt'"),
        (("segment", "--crop-size", "3x4"), "--crop-size 3x4; give one side in pixels, or whole"),
        (("segment", "--size", "3x4"), "--size 3x4; give the short side in pixels, or own"),
        (("depth", "--max-depth", 0), "max_depth=0; the range begins at 0.001 m"),
        (("depth", "--head-out", "."), ". exists and is not a head folder"),
    ],
)
def test_wrong_options_end_with_code_2(
    model_folder: Path, street: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], said: str
) -> None:
    assert run("evaluate", *arguments, "--model", model_folder, "--data", street) == 2
    assert said in capsys.readouterr().err


def test_targets_that_cannot_be_used_are_named_before_the_first_step(
    model_folder: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = street / "trainannot" / "2.png"
    Image.fromarray(np.full((28, 35), 7, np.uint8)).save(mask)
    base = ("--model", model_folder, "--out", tmp_path / "results")
    assert run("evaluate", "segment", "--data", street, *base) == 2
    assert f"{mask} holds the value 7; allowed are 0 to 1 for 2 classes" in capsys.readouterr().err
    rooms = street.with_name("rooms")
    for path in (rooms / "testdepth").iterdir():
        Image.fromarray(np.zeros((28, 35), np.uint16)).save(path)
    assert run("evaluate", "depth", "--data", rooms, *base) == 2
    assert "no pixel of the 2 test pictures of rooms counts" in capsys.readouterr().err
    assert not (tmp_path / "results" / "unfinished").exists()
