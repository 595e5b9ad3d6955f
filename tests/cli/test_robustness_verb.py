import json
from pathlib import Path

import pytest
import torch

from foveal.cli.main import main
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS
from foveal.evaluate.robustness import ALEXNET_ERRORS


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
    assert not (out / "unfinished").exists() or not list((out / "unfinished").iterdir())


def test_official_head_on_files_is_the_published_protocol(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    width = json.loads((model_folder / "model.json").read_text())["backbone"]["width"]
    head = tmp_path / "tiny_linear_head.pth"
    torch.save({"weight": torch.zeros(3, 2 * width), "bias": torch.tensor([0.0, 1.0, 0.0])}, head)  # always green
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            (tmp_path / "C" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "C" / name / str(severity)).symlink_to(colours / "test")
    evaluate = ("evaluate", "robustness", "--model", model_folder, "--data", colours, "--head", head)
    assert run(*evaluate, "--corrupted", tmp_path / "C", "--out", tmp_path / "results") == 0
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert {row["protocol"] for row in rows} == {"robustness"}
    values = {row["metric"]: row["value"] for row in rows}
    assert values["clean top-1"] == values["corrupted top-1"] == pytest.approx(100 / 3)
    ratios = [100 * (200 / 3) / error for error in ALEXNET_ERRORS.values()]
    assert values["mCE"] == pytest.approx(sum(ratios) / 15)
    assert run(*evaluate, "--k", 3) == 2
    assert "--k has no effect beside --head" in capsys.readouterr().err
    assert run(*evaluate, "--corruption", "contrast", "--severity", 5, "--out", tmp_path / "results") == 0
    last = json.loads((tmp_path / "results" / "results.jsonl").read_text().splitlines()[-1])
    assert last["protocol"] == "robustness-generated-tiny_linear_head"


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
