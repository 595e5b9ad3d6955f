import json
import re
from pathlib import Path

import pytest

from foveal.cli.main import main


def _cards_hash(model_folder: Path) -> str:
    return json.loads((model_folder / "model.json").read_text())["sha256"]["model.safetensors"]


def test_knn_prints_one_line_a_number_and_writes_json(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_path = tmp_path / "knn.json"
    arguments = ["knn", "--model", str(model_folder), "--train", str(photos), "--k", "3", "--k", "5", "--split", "0.4"]
    assert main([*arguments, "--pixels", "--json", str(report_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "knn-3 top-1",
        "knn-5 top-1",
        "raw pixels knn-3 top-1",
        "raw pixels knn-5 top-1",
    ]
    assert all(re.fullmatch(r"[^\t]+\t\d+\.\d\d\t%", line) for line in lines)
    report = json.loads(report_path.read_text())
    assert [f"{row['value']:.2f}" for row in report["rows"]] == [line.split("\t")[1] for line in lines]
    assert report["train"]["num_images"] + report["test"]["num_images"] == 24
    assert report["model"]["sha256"]["model.safetensors"] == _cards_hash(model_folder)
    assert main([*arguments, "--json", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["test"] == report["test"]  # the split is deterministic


def test_knn_with_a_test_set_and_few_shot(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        path = next((photos / name).iterdir())
        path.rename(tmp_path / "test" / name / path.name)
    arguments = ["knn", "--model", str(model_folder), "--train", str(photos), "--test", str(tmp_path / "test")]
    assert main([*arguments, "--k", "2", "--n-per-class", "3", "--n-tries", "2"]) == 0
    out = capsys.readouterr().out
    assert "knn-2 top-1, 3 per class, mean of 2\t" in out
    assert "deviation" in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--test", "x", "--split", "0.3"], "--split has no effect beside --test"),
        (["--n-tries", "3"], "--n-tries has no effect without --n-per-class"),
        (["--seed", "0"], "--seed has no effect without --n-per-class"),
        (["--test", "no/where"], "no/where does not exist"),
        (["--split", "1.5"], "split=1.5"),
        (["--k", "500"], "k=500 with"),
        (["--k", "0"], "Invalid value for '--k'"),
        (["--json", "no/where/x.json"], "no/where does not exist; create it first"),
        (["--json", "."], "is a folder; give the name of a file"),
    ],
)
def test_knn_explains_what_does_not_work(
    model_folder: Path, photos: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["knn", "--model", str(model_folder), "--train", str(photos), *extra]) == 2
    assert message in capsys.readouterr().err


def test_model_folder_one_too_high_is_pointed_out(
    model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["knn", "--model", str(model_folder.parent), "--train", str(photos)]) == 2
    assert f"did you mean {model_folder}?" in capsys.readouterr().err
