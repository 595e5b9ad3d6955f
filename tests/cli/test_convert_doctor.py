from pathlib import Path

import pytest
import torch

from foveal.backbone.weights import load_model
from foveal.cli.main import main


def test_convert_there_and_back(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "x.pth", tmp_path / "back"
    assert main(["convert", str(model_folder), str(there), "--to", "official"]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {there}: vit_nano, patch 7, no registers, foveal -> official\n" in printed
    assert "not held: the card: name, licence, normalisation and lineage" in printed
    assert main(["convert", str(there), str(back), "--to", "foveal"]) == 0
    assert "assumed: channel statistics: those of ImageNet\n" in capsys.readouterr().out
    one, other = load_model(model_folder)[0].state_dict(), load_model(back)[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_doctor_describes_a_good_file(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(model_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "network      vit_nano, patch 7, no registers"
    assert any(line.startswith("weights      random, not trained") for line in lines)
    assert lines[-1] == f"{model_folder} loads: foveal.load({str(model_folder)!r})"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "nowhere.pth"], "error: nowhere.pth does not exist, and is no known checkpoint"),
        (["doctor", "dinov2_vitz14"], "no known checkpoint; did you mean 'dinov2_vit"),
        (["doctor", "dinov2_vits14"], "is a known checkpoint and not in the cache; foveal models dinov2_vits14 says"),
        (["doctor", "photos"], "photos is not a model folder: it has no model.json, nor a file of weights"),
        (
            ["doctor", "train.py"],
            "train.py is no file of weights that is known here (it is text and begins with b'import",
        ),
        (["doctor", "web.pth"], "error: web.pth is a web page"),
        (["doctor", "model", "--expect", "vits14_reg4"], "num_registers is 0 instead of 4"),
        (["doctor", "model", "--num-heads", "16"], "num_heads=16, and the card of model says 3"),
        (["convert", "web.pth", "out", "--to", "timm"], "error: web.pth is a web page"),
        (["convert", "model", "out", "--to", "tim"], "--to tim is not known; did you mean 'timm'?"),
        (["convert", "model", "photos", "--to", "timm"], "photos exists; choose another place"),
        (["convert", "model", "out"], "Missing option '--to'"),
    ],
)
def test_what_does_not_work_is_explained(
    home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(model_folder.parent)
    Path("photos").mkdir()
    Path("web.pth").write_text("<!doctype html>")
    Path("train.py").write_text("import torch\n")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["model", "photos", "train.py", "web.pth"]
