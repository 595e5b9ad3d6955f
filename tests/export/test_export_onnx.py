"""`foveal export onnx`: the folder that is written, and what is refused before anything is."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from disks import no_file_above

import foveal
from foveal.backbone.licence import licence_named
from foveal.backbone.weights import load_model, save_model
from foveal.cli.main import main
from foveal.export.card import ExportCard, ExportError, ExportRefused, publish_export, read_export, staged
from foveal.export.onnx import CURRENT_OPSET, opset_of
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.source import open_source
from foveal.tasks.head import Head, build_network, save_head
from foveal.tasks.kinds import head_card

Save = Callable[..., Path]


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_says_what_it_is(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(card={"licence": "MIT"}, num_registers=2)
    out = tmp_path / "out"
    assert main(["export", "onnx", str(model), "--out", str(out), "--opset", "20", "--images", str(few_images)]) == 0
    told = capsys.readouterr().out
    assert "model as onnx, fp32" in told
    assert "cosine of class tokens, min" in told
    card = read_export(out)
    assert (card.format, card.opset, card.licence.name, card.refused) == ("onnx", 20, "MIT", None)
    assert card.preprocessing.model_dump() == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize_size": 40,
        "crop_size": 35,
        "patch_size": 7,
        "channels": 3,
    }
    assert [(one.name, one.dtype) for one in card.outputs] == [
        (name, "float32") for name in ("cls", "patches", "registers")
    ]
    assert _names(out) == ["export.json", "model.onnx"]
    metadata = {one.key: one.value for one in onnx.load(out / "model.onnx").metadata_props}
    assert json.loads(metadata["foveal.licence"])["name"] == "MIT"
    assert metadata["foveal.identity"] == card.identity == OnnxEngine(out).identity


def test_the_current_opset_is_the_default_or_the_newest_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opset_of(None) == CURRENT_OPSET
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 24)
    assert opset_of(None) == 24
    with pytest.raises(
        ExportError, match="opset 25: this graph needs at least 17, and the installed onnx knows up to 24"
    ):
        opset_of(25)


def test_terms_have_to_be_accepted_and_travel_unaccepted(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(card={"licence": "CC-BY-NC-4.0"})
    assert "--accept-licence CC-BY-NC-4.0" in _refused(capsys, "onnx", model, "--out", tmp_path / "out")
    assert _names(tmp_path) == ["model"]
    assert (
        main(
            [
                "export",
                "onnx",
                str(model),
                "--out",
                str(tmp_path / "out"),
                "--accept-licence",
                "CC-BY-NC-4.0",
                "--images",
                str(few_images),
            ]
        )
        == 0
    )
    licence = read_export(tmp_path / "out").licence
    assert (licence.terms, licence.accepted) == ("non-commercial", ())


def test_bad_input_is_refused_before_anything_is_written(
    save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_tiny(), tmp_path / "out"
    assert "'onnnx'; did you mean 'onnx'?" in _refused(capsys, "onnnx", model, "--out", out)
    assert main(["onnx", str(model)]) == 2
    assert "No such command 'onnx'; it is foveal export onnx" in capsys.readouterr().err
    assert "needs at least 17" in _refused(capsys, "onnx", model, "--out", out, "--opset", "16")
    assert "exists; choose another place" in _refused(capsys, "onnx", model, "--out", model)
    assert "backbone of another library" in _refused(capsys, "onnx", "timm:vit_tiny_patch16_224", "--out", out)
    assert "no file or folder here" in _refused(capsys, "onnx", tmp_path / "nothing", "--out", out)
    assert _names(tmp_path) == ["model"]


def test_weights_that_are_not_finite_are_named(
    save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, card = load_model(save_tiny())
    with torch.no_grad():
        backbone.blocks[1].mlp.fc1.weight[3, 4] = float("nan")
    save_model(tmp_path / "model", backbone, card)
    error = _refused(capsys, "onnx", tmp_path / "model", "--out", tmp_path / "out")
    assert "holds NaN or infinite values in 1 of 35 tensors (blocks.1.mlp.fc1.weight)" in error
    assert _names(tmp_path) == ["model"]


@pytest.mark.parametrize("package", ["onnx", "onnx_ir", "onnxscript", "onnxruntime"])
@pytest.mark.parametrize("kind", ["onnx", "openvino", "tensorrt"])
def test_missing_package_names_the_extra(
    save_tiny: Save,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    kind: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = _refused(capsys, kind, save_tiny(), "--out", tmp_path / "out")
    assert f"{package} cannot be imported" in error
    assert "run pip install 'foveal[export]'" in error
    assert _names(tmp_path) == ["model"]


def test_missing_openvino_names_its_extra(
    save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.engine.openvino_graph.is_installed", lambda: False)
    assert "run pip install 'foveal[cpu]'" in _refused(capsys, "openvino", save_tiny(), "--out", tmp_path / "out")


def test_a_head_under_other_terms_needs_them_too(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(card={"licence": "MIT"})
    model = foveal.load(folder, engine="torch")
    card = head_card(model, "classification", "linear", classes=["cat", "dog"])
    card = card.model_copy(update={"licence": licence_named("CC-BY-NC-4.0")})
    save_head(tmp_path / "head", Head(build_network(card), card))
    options = ("onnx", folder, "--out", tmp_path / "out", "--head", tmp_path / "head", "--images", few_images)
    assert "export of model with its heads: its licence is CC-BY-NC-4.0" in _refused(capsys, *options)
    source = open_source(folder, out=tmp_path / "out", heads=[str(tmp_path / "head")], accept_licence="cc-by-nc-4.0")
    assert (source.licence.name, source.licence.accepted) == ("CC-BY-NC-4.0", ())


def test_full_disk_leaves_nothing(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny()
    with no_file_above(50_000):
        error = _refused(capsys, "onnx", model, "--out", tmp_path / "out", "--images", few_images)
    assert "cannot be written" in error
    assert _names(tmp_path) == ["model"]


def test_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "out") as staging:
            (staging / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _names(tmp_path) == []


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    left = tmp_path / f".out.{socket.gethostname()}.{gone.pid}.tmp"
    left.mkdir()
    (left / "model.onnx").write_text("half")
    with staged(tmp_path / "out"):
        assert not left.exists()
    assert _names(tmp_path) == []


def test_refused_export_is_kept_aside(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    main(["export", "onnx", str(save_tiny()), "--out", str(tmp_path / "good"), "--images", str(few_images)])
    card = read_export(tmp_path / "good").model_copy(update={"refused": "cosine 0.5, the limit is 0.999"})
    with staged(tmp_path / "out") as staging:
        (staging / "model.onnx").write_text("bad numbers")
        with pytest.raises(ExportRefused, match=r"cosine 0.5.*kept in .*out\.refused"):
            publish_export(staging, tmp_path / "out", card)
    assert not (tmp_path / "out").exists()
    assert read_export(tmp_path / "out.refused").refused == "cosine 0.5, the limit is 0.999"


def test_two_exports_to_one_place_do_not_mix(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    main(["export", "onnx", str(save_tiny()), "--out", str(tmp_path / "good"), "--images", str(few_images)])
    card = read_export(tmp_path / "good")
    with staged(tmp_path / "out") as staging:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("first")
        with pytest.raises(ExportError, match="by another process meanwhile"):
            publish_export(staging, tmp_path / "out", card)
    assert _names(tmp_path / "out") == ["theirs"]


def test_damaged_export_is_told(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    main(["export", "onnx", str(save_tiny()), "--out", str(tmp_path / "out"), "--images", str(few_images)])
    with open(tmp_path / "out" / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(ExportError, match=r"model\.onnx is missing or damaged"):
        read_export(tmp_path / "out")
    (tmp_path / "out" / "export.json").write_text("{}")
    with pytest.raises(ExportError, match="cannot be understood"):
        read_export(tmp_path / "out")
    with pytest.raises(ExportError, match="is no export"):
        read_export(tmp_path)
    assert ExportCard.model_fields["format_version"].default == 1


@pytest.mark.parametrize("name", [".", "..", "kept"])
def test_places_that_cannot_be_written_or_would_be_lost_are_refused(
    name: str, save_tiny: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny()
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    (here.parent / "kept.refused").mkdir()
    (here.parent / "kept.refused" / "notes.txt").write_text("mine")
    monkeypatch.chdir(here)
    expected = {".": "has no name", "..": "has no name", "kept": "is something else"}[name]
    out = here.parent / name if name == "kept" else name
    assert expected in _refused(capsys, "onnx", model, "--out", out)
    assert (_names(here), _names(here.parent)) == ([], ["here", "kept.refused"])
