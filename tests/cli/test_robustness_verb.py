import json
from pathlib import Path

import pytest

from foveal.cli.main import main


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_rows_are_kept_under_a_protocol_of_their_own(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    evaluate = ("evaluate", "robustness", "--model", model_folder, "--data", colours, "--k", 3, "--out", out)
    assert run(*evaluate, "--corruption", "contrast", "--severity", 1, "--severity", 5) == 0
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[0] == "clean top-1"
    assert names[-2:] == ["contrast 1 top-1", "contrast 5 top-1"]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["metric"] for row in rows] == names
    assert {(row["protocol"], row["data"]) for row in rows} == {("robustness-generated-knn-3", "colours")}
    assert not (out / ".robustness").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corruption", "mist"), "no corruption is called 'mist'"),
        (("--severity", 0), "severity 0; choose 1 to 5"),
        (("--classifier", "logistic", "--k", 3), "--k has no effect on --classifier logistic"),
        (("--corrupted", "nowhere"), "nowhere has no gaussian_noise/1"),
        ((), "k=20 neighbours among 16 train images"),
    ],
)
def test_bad_options_end_with_2(
    model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], message: str
) -> None:
    assert run("evaluate", "robustness", "--model", model_folder, "--data", photos, *options) == 2
    assert message in capsys.readouterr().err
