import json
import re
import shutil
from pathlib import Path

import pytest

import foveal
from foveal.cli.main import main
from foveal.evaluate.report import read_rows


def test_knn_prints_one_line_a_number_and_keeps_the_same_rows(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "knn", "--model", str(model_folder), "--data", str(photos), "--k", "3", "--k", "5"]
    arguments += ["--split", "0.4", "--pixels", "--engine", "torch", "--out", str(tmp_path / "results")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "knn-3 top-1",
        "knn-5 top-1",
        "raw pixels knn-3 top-1",
        "raw pixels knn-5 top-1",
    ]
    assert all(re.fullmatch(r"[^\t]+\t\d+\.\d\d\t%\t\d+\.\d\d to \d+\.\d\d", line) for line in lines)
    assert main(arguments) == 0
    history = (tmp_path / "results" / "results.jsonl").read_text().splitlines()
    assert history[:4] == history[4:]
    row = json.loads(history[0])
    assert [f"{row['value']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"] == lines[0].split("\t")[1::2]
    assert (row["protocol"], row["data"], row["model"]) == ("knn", "photos", "tiny")
    assert row["model_hash"] == foveal.load(model_folder).identity
    assert row["command"].startswith(f"foveal evaluate knn --model {model_folder}")


def test_knn_with_a_test_set_and_few_shot(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        path = next((photos / name).iterdir())
        path.rename(tmp_path / "test" / name / path.name)
    arguments = ["evaluate", "knn", "--model", str(model_folder)]
    arguments += ["--train", str(photos), "--test", str(tmp_path / "test"), "--engine", "torch"]
    assert main([*arguments, "--k", "2", "--n-per-class", "3", "--n-tries", "2"]) == 0
    out = capsys.readouterr().out
    assert "knn-2 top-1, 3 per class, mean of 2\t" in out
    assert "deviation" in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--test", "x"], "--test has no effect beside --data; give --train and --test"),
        (["--train", "x"], "--data and --train name two sources"),
        (["--n-tries", "3"], "--n-tries has no effect without --n-per-class"),
        (["--split", "1.5"], "split=1.5"),
        (["--k", "500"], "k=500 with"),
        (["--k", "0"], "Invalid value for '--k'"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--out", "photos/cat/1.png"], "is a file; give a folder for the results"),
    ],
)
def test_knn_explains_what_does_not_work(
    model_folder: Path,
    photos: Path,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos.parent)
    assert main(["evaluate", "knn", "--model", str(model_folder), "--data", str(photos), *extra]) == 2
    assert message in capsys.readouterr().err


def test_model_folder_one_too_high_is_pointed_out(
    model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "knn", "--model", str(model_folder.parent), "--data", str(photos)]) == 2
    assert f"did you mean {model_folder}?" in capsys.readouterr().err


def test_logistic_regression_by_the_command(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "logistic", "--model", str(model_folder), "--data", str(photos), "--engine", "torch"]
    assert main([*arguments, "--out", str(tmp_path / "results")]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["top-1", "C"]
    assert main([*arguments, "--split", "0.8"]) == 2
    assert "give at least 10" in capsys.readouterr().err


def test_linear_classifiers_by_the_command(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "linear-cached", "--model", str(model_folder), "--data", str(photos), "--engine", "torch"]
    assert main([*arguments, "--num-steps", "2", "--out", str(tmp_path / "results")]) == 0
    assert {row.protocol for row in read_rows(tmp_path / "results")} == {"linear-cached, 2 steps"}
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["top-1", "learning rate", "blocks", "mean patch token"]


def test_linear_as_published_by_the_command_goes_on_where_it_failed(
    model_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "results"
    arguments = ["evaluate", "linear", "--model", str(model_folder), "--data", str(photos), "--engine", "torch"]
    (tmp_path / "others" / "cat").mkdir(parents=True)
    shutil.copy(next((photos / "cat").iterdir()), tmp_path / "others" / "cat" / "other.png")
    arguments += ["--num-steps", "3", "--batch-size", "4", "--out", str(out), "--also", f"photos2={tmp_path}/others"]
    (out / "results.jsonl").mkdir(parents=True)  # nothing can be written there, which only the end finds out
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert len(list((out / "unfinished").glob("linear-*/classifiers.safetensors"))) == 1
    (out / "results.jsonl").rmdir()
    with caplog.at_level("INFO"):
        assert main(arguments) == 0
    assert "going on with step 3" in caplog.text
    assert not (out / "unfinished").exists()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (rows[0]["protocol"], rows[0]["metric"], rows[0]["data"]) == ("linear, 3 steps of 4", "top-1", "photos")
    # Only cats are asked for, so that only cats are answered.
    assert [(row["metric"], row["value"]) for row in rows if row["data"] == "photos2"] == [("top-1", 100.0)]
