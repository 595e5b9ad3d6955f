"""An export that says something else is kept aside, and the layer in which that begins is named."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.cli.main import main
from foveal.export.card import read_export
from foveal.export.judging import Trial, open_trial
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.onnx_files import write_graph

Save = Callable[..., Path]


def _damage(graph: Path, weight: str) -> None:
    """Make a weight of a graph three times as large."""
    model = onnx.load(graph)
    (found,) = [one for one in model.graph.initializer if one.name == weight]
    found.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(found), weight))
    onnx.save(model, graph)


def _trial(model: Path, images: Path, folder: Path) -> Trial:
    return open_trial(
        model, out=folder / "out", heads=(), images=images, limit=0.999, accept_licence=None, num_heads=None
    )


@pytest.mark.parametrize("weight", ["blocks.1.attn.proj.weight", "blocks.2.mlp.fc2.weight"])
def test_the_block_of_a_damaged_weight_is_named(save_tiny: Save, few_images: Path, tmp_path: Path, weight: str) -> None:
    trial = _trial(save_tiny(depth=4), few_images, tmp_path)
    write_graph(trial.source, tmp_path / "model.onnx", opset=20)
    card = trial.source.export_card("onnx", inputs=[], outputs=[])
    assert trial.judged(card, OnnxEngine(tmp_path / "model.onnx"), folder=tmp_path / "model.onnx").refused is None
    _damage(tmp_path / "model.onnx", weight)
    refused = trial.judged(card, OnnxEngine(tmp_path / "model.onnx"), folder=tmp_path / "model.onnx").refused
    assert refused is not None
    assert f"the error begins in {weight[:8]}" in refused


class SquareOnly(OnnxEngine):
    """Mixes up the patches of images that are not square."""

    def encode(self, batch: Tensor) -> Tokens:
        tokens = super().encode(batch)
        return tokens if batch.shape[2] == batch.shape[3] else tokens._replace(patches=tokens.patches.flip(1))


def test_an_export_that_is_wrong_at_another_size_only_is_refused(
    save_tiny: Save, few_images: Path, tmp_path: Path
) -> None:
    trial = _trial(save_tiny(), few_images, tmp_path)
    write_graph(trial.source, tmp_path / "model.onnx", opset=20)
    card = trial.source.export_card("onnx", inputs=[], outputs=[])
    right = trial.judged(card, OnnxEngine(tmp_path / "model.onnx"), folder=tmp_path / "model.onnx")
    assert right.refused is None
    assert right.verdict is not None
    assert (right.verdict["num_images"], right.verdict["shapes"]) == (3, [[28, 35], [35, 35]])
    wrong = trial.judged(card, SquareOnly(tmp_path / "model.onnx"), folder=tmp_path / "model.onnx")
    assert wrong.refused is not None
    assert "the limit is 0.999" in wrong.refused


def test_an_export_below_the_limit_is_kept_aside(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--precision", "fp16", "--limit", "0.99999999", "--images", str(few_images)]
    assert main(["export", "openvino", str(save_tiny()), "--out", str(out), *options]) == 2
    told = capsys.readouterr()
    assert "cosine of class tokens, min" in told.out
    assert "is not written: cosine min 0.9999" in told.err
    assert "the error begins in " in told.err
    assert not out.exists()
    card = json.loads((tmp_path / "out.refused" / "export.json").read_text())
    assert card["refused"] == read_export(tmp_path / "out.refused").refused is not None
    assert card["verdict"]["faults"]


def test_limits_and_images_are_checked_before_anything_is_written(
    save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(save_tiny()), str(tmp_path / "out")
    assert main(["export", "onnx", model, "--out", out, "--limit", "1.5"]) == 2
    assert "limit 1.5 is no cosine" in capsys.readouterr().err
    assert main(["export", "onnx", model, "--out", out, "--images", str(tmp_path / "nothing")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
