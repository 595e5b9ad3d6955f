import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.cli.main import main
from foveal.tasks.head import load_head


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _fit(model_folder: Path, data: Path, head: Path, kind: str = "linear") -> int:
    steps = ("--steps", 60, "--batch-size", 8, "--learning-rate", 0.01)
    return run("head", "fit", "classification", kind, "--model", model_folder, "--data", data, "--out", head, *steps)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_classes_are_fitted_measured_and_predicted(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, out = tmp_path / "head", tmp_path / "results"
    assert _fit(model_folder, colours, head) == 0
    said = capsys.readouterr().out
    assert "3 classes, fitted on images of colours; top-1 of a tenth that was held out: 100.00 %" in said
    used = ("--model", model_folder, "--head", head)
    assert run("head", "evaluate", *used, "--data", colours, "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("linear top-1\t100.00")
    name = f"classify, head {load_head(head).identity[:8]}"
    assert {json.loads(line)["protocol"] for line in (out / "results.jsonl").read_text().splitlines()} == {name}
    (by_class,), (confusion,) = (out / "by_class").iterdir(), (out / "confusion").iterdir()
    assert _rows(by_class)[2] == {"class": "red", "images": "3", "top-1 in %": "100.00"}
    assert list(_rows(confusion)[1].values()) == ["green", "0", "3", "0"]
    assert f"{name}, linear on tiny, colours" in (out / "results.html").read_text()
    answers = tmp_path / "answers"
    assert run("head", "predict", colours / "test", *used, "--out", answers, "--probabilities") == 0
    rows = _rows(answers / "predictions.csv")
    assert list(rows[0]) == ["image", *(f"{c}{e}" for e in ("", "_2", "_3") for c in ("label", "probability"))]
    assert [row["label"] for row in rows] == [Path(row["image"]).parent.name for row in rows]
    assert all(Path(row["image"]).is_file() for row in rows)  # the same names are in three folders
    probabilities = np.load(answers / "probabilities.npy")
    assert probabilities.shape == (9, 3)
    assert float(rows[4]["probability"]) == pytest.approx(probabilities[4].max(), abs=1e-4)


def test_pictures_of_several_folders_are_told_apart(model_folder: Path, colours: Path, tmp_path: Path) -> None:
    assert _fit(model_folder, colours, tmp_path / "head") == 0
    sources = (colours / "test" / "red", colours / "test" / "blue", colours / "test" / "green" / "1.png")
    head = ("--model", model_folder, "--head", tmp_path / "head")
    assert run("head", "predict", *sources, *head, "--out", tmp_path / "out") == 0
    found = [(row["image"], row["label"]) for row in _rows(tmp_path / "out" / "predictions.csv")]
    wanted = [(str(colours / "test" / name / f"{i}.png"), name) for name in ("red", "blue") for i in range(3)]
    assert found == [*wanted, (str(colours / "test" / "green" / "1.png"), "green")]


def test_public_head_is_used_with_names(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    width = json.loads((model_folder / "model.json").read_text())["backbone"]["width"]
    head = tmp_path / "dinov2_linear_head.pth"
    torch.save({"weight": torch.zeros(3, 2 * width), "bias": torch.tensor([0.0, 1.0, 0.0])}, head)
    (tmp_path / "names.txt").write_text("sky\nmeadow\nbrick\n")
    used = ("--model", model_folder, "--head", head)
    picture = colours / "test" / "red" / "0.png"
    assert run("head", "predict", picture, *used, "--out", tmp_path / "out", "--names", tmp_path / "names.txt") == 0
    assert _rows(tmp_path / "out" / "predictions.csv")[0]["label"] == "meadow"
    assert run("head", "predict", picture, *used, "--out", tmp_path / "out") == 0
    assert _rows(tmp_path / "out" / "predictions.csv")[0]["label"] == "class 1"
    capsys.readouterr()
    assert run("head", "evaluate", *used, "--data", colours) == 0  # three classes, in the order of their names
    assert capsys.readouterr().out.splitlines()[0].startswith("linear top-1\t33.33")
    (tmp_path / "names.txt").write_text("sky\n\nbrick\n")
    assert run("head", "predict", picture, *used, "--out", tmp_path / "out", "--names", tmp_path / "names.txt") == 2
    assert "has an empty line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("linear", "--crop-size", 28), "--crop-size has no effect on labels"),
        (("linear", "--unit", 1), "--unit has no effect on labels"),
        (("ms",), "no classification head is called 'ms'; choose linear, linear4, mlp, attentive"),
        (("linear4",), "a head of four blocks on a network of 1"),
        (("linear", "--learning-rate", 0), "learning_rate=0.0"),
    ],
)
def test_wrong_options_end_with_code_2(
    model_folder: Path,
    colours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    said: str,
) -> None:
    fit = ("head", "fit", "classification", *options, "--model", model_folder, "--data", colours)
    assert run(*fit, "--out", tmp_path / "head") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "head").exists()


def test_images_without_labels_are_refused(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(colours.glob("train/*/*.png"))):
        path.rename(flat / f"{number}.png")
    assert _fit(model_folder, flat, tmp_path / "head") == 2
    assert "without a label" in capsys.readouterr().err
