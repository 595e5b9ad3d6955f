"""`foveal checkpoint` on whole, damaged and missing checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pretrain import RECIPE

import foveal
from foveal.cli.main import main
from foveal.pretrain.checkpoints.reader import MANIFEST, sha256_of_content


@pytest.fixture
def run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"checkpoints": {"every_steps": 1, "keep": 9}}))
    assert main(["pretrain", f"--recipe={recipe}", f"images={photos}", f"out={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def _call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[list[str]], str]:
    """Exit code, the cells of each line, and what was said besides."""
    code = main(["checkpoint", *map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, [line.split("\t") for line in captured.out.splitlines()], captured.err


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_lists_what_is_there_and_verify_reads_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (head, *rows), _ = _call(capsys, "ls", run)
    assert (code, head) == (0, ["step", "bytes", "processes", "saved", "state"])
    assert [(row[0], row[2], row[4]) for row in rows] == [(step, "1", "complete") for step in "123"]
    files = [file for file in (run / "checkpoints" / "step_00000002").iterdir() if file.name != MANIFEST]
    assert rows[1][1] == f"{sum(file.stat().st_size for file in files):,}"
    code, rows, _ = _call(capsys, "verify", run)
    assert (code, [row[4] for row in rows[1:]]) == (0, ["intact"] * 3)

    _flip(run / "checkpoints" / "step_00000002" / "teacher.safetensors")
    (run / "checkpoints" / "step_00000001" / MANIFEST).unlink()
    _, rows, _ = _call(capsys, "ls", run)
    assert "cannot be read" in rows[1][4]
    assert rows[2][4] == "complete"  # sizes do not tell
    code, rows, said = _call(capsys, "verify", run)
    assert (code, rows[2][4], rows[3][4]) == (2, "teacher.safetensors is damaged", "intact")
    assert "damaged are 2 of 3 checkpoints: step_00000001, step_00000002; a run continues from the newest" in said


def test_exports_the_model_of_any_step(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, _ = _call(capsys, "export", run, tmp_path / "newest")
    assert (code, rows) == (0, [[f"{tmp_path / 'newest'}: vit_nano/8 after 3 steps"]])
    for file in ("model.safetensors", "ssl_heads.safetensors", "model.json"):
        assert (tmp_path / "newest" / file).read_bytes() == (run / "model" / file).read_bytes()
    assert _call(capsys, "export", run, tmp_path / "older", "--step", 1)[0] == 0
    assert foveal.load(tmp_path / "older").card.lineage["steps"] == 1
    assert (tmp_path / "older" / "model.safetensors").read_bytes() != (run / "model" / "model.safetensors").read_bytes()


def test_export_passes_a_damaged_newest_over_and_refuses_one_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(run / "checkpoints" / "step_00000003" / "student.safetensors")
    code, rows, said = _call(capsys, "export", run, tmp_path / "model")
    assert (code, rows[0][0].endswith("after 2 steps")) == (0, True)
    code, _, said = _call(capsys, "export", run, tmp_path / "third", "--step", 3)
    assert code == 2
    assert "student.safetensors is damaged; choose another step" in said
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "RUN", "OUT", "--step", "7"], "has no checkpoint of step 7; it has 1, 2, 3"),
        (["export", "RUN", "OUT", "--model", "mdl"], "holds no mdl; did you mean 'model'?; it has model"),
        (["ls", "OUT"], "is not a run folder: it has no recipe.yaml"),
        (["export", "RUN", "RUN"], "is not a model folder"),
    ],
)
def test_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    places: dict[str, Any] = {"RUN": run, "OUT": tmp_path / "out"}
    code, rows, said = _call(capsys, *(places.get(word, word) for word in words))
    assert (code, rows) == (2, [])
    assert message in said


def test_a_run_without_checkpoints_and_one_of_another_format(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run / "checkpoints" / "step_00000003" / MANIFEST
    content = json.loads(manifest.read_text())["content"] | {"format": 7}
    manifest.write_text(json.dumps({"sha256": sha256_of_content(content), "content": content}))
    code, rows, _ = _call(capsys, "ls", run)
    assert code == 0
    assert "has format 7, this version of foveal reads 1" in rows[3][4]
    (run / "checkpoints").rename(run / "elsewhere")
    code, _, said = _call(capsys, "verify", run)
    assert code == 2
    assert "has no checkpoint yet" in said
