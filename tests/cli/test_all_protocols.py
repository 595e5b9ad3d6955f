"""`foveal evaluate all`: runs what is not there yet, and goes on after failures and interruptions."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.evaluate import PROTOCOLS, all_protocols
from foveal.cli.main import main

FEW = ("--steps", "3", "--batch-size", "2", "--crop-size", "whole", "--size", "own")
PLAN: dict[str, list[tuple[str, ...]]] = {
    "logistic": [],
    "linear": [],
    "linear-cached": [],
    "robustness": [],
    "segment": [("--kind", "linear", *FEW), ("--kind", "ms", *FEW)],
}


@pytest.fixture
def command(model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(all_protocols, "_QUICK", PLAN)
    for part in ("images", "masks"):
        (tmp_path / "street" / part).mkdir(parents=True)
        for number in range(4):
            shape = (28, 35, 3) if part == "images" else (28, 35)
            Image.fromarray(np.full(shape, number % 2, np.uint8)).save(tmp_path / "street" / part / f"{number}.png")
    places = ["--labelled", str(photos), "--retrieval", str(photos), "--segmentation", str(tmp_path / "street")]
    return ["evaluate", "all", "--model", str(model_folder), *places, "--quick", "--out", str(tmp_path / "results")]


def commands(out: Path) -> list[str]:
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(row["command"] for row in rows))


def outcomes(text: str) -> dict[str, str]:
    lines = text.splitlines()
    start = lines.index("protocol\tdata\toutcome")
    return {name: outcome for name, _, outcome in (line.split("\t") for line in lines[start + 1 :])}


def test_a_failure_stops_no_other_and_a_rerun_takes_up_the_failed_alone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr()
    failure = "failed: a head of four blocks on a network of 1; choose a head of the last block"
    assert outcomes(said.out) == {
        "knn": "measured",
        "segment --kind linear": "measured",
        "segment --kind ms": failure,
        "retrieval": "measured",
    }
    assert "1 of 4 evaluations failed; the same command runs only these again" in said.err
    before = commands(tmp_path / "results")
    assert [shlex.split(one)[2] for one in before] == ["knn", "segment", "retrieval"]
    assert main(command) == 2
    found = outcomes(capsys.readouterr().out)
    assert [found[name] for name in ("knn", "segment --kind linear", "retrieval")] == ["already there"] * 3
    num_rows = len((tmp_path / "results" / "results.jsonl").read_text().splitlines())
    assert main([*shlex.split(before[0])[1:]]) == 0  # the command of a row, typed by hand, measures
    assert len((tmp_path / "results" / "results.jsonl").read_text().splitlines()) > num_rows


def test_changed_data_and_again_are_measured(
    command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del command[command.index("--segmentation") : command.index("--quick")]
    assert main(command) == 0
    assert set(outcomes(capsys.readouterr().out).values()) == {"measured"}
    assert main(command) == 0
    assert set(outcomes(capsys.readouterr().out).values()) == {"already there"}
    assert main([*command, "--again"]) == 0
    assert set(outcomes(capsys.readouterr().out).values()) == {"measured"}
    Image.new("RGB", (31, 43)).save(photos / "cat" / "new.png")
    assert main(command) == 0
    assert set(outcomes(capsys.readouterr().out).values()) == {"measured"}


def test_an_interruption_stops_all(command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foveal.evaluate.segmentation.confusion_matrix", interrupt)
    assert main(command) == 130
    assert [shlex.split(one)[2] for one in commands(tmp_path / "results")] == ["knn"]
    monkeypatch.undo()
    monkeypatch.setattr(all_protocols, "_QUICK", {**PLAN, "segment": PLAN["segment"][:1]})
    assert main(command) == 0
    assert not (tmp_path / "results" / "unfinished").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no data; give at least one of --labelled"),
        (("--depth", "nowhere"), "--depth nowhere does not exist"),
        (("--labelled", "x", "--ignore", "3"), "--ignore has no effect without --segmentation"),
    ],
)
def test_wrong_options_end_with_code_2(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(["evaluate", "all", "--model", str(model_folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_every_protocol_has_data_or_is_left_out_on_purpose() -> None:
    assert {name for name, kind in PROTOCOLS.items() if kind is None} == {"zero-shot"}
