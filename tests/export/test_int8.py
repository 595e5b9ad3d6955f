"""Int8 in exported graphs beside the same rounding done by PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.backbone.weights import load_model
from foveal.cli.main import main
from foveal.engine.calibrate import quantise_all
from foveal.engine.linears import linears_of
from foveal.engine.quantise import Quantised
from foveal.export.card import read_export
from foveal.export.int8 import MAX_INTEGER, calibrated
from foveal.export.judging import open_trial
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.onnx_files import write_graph
from foveal.export.source import open_source

Save = Callable[..., Path]


@torch.no_grad()
def _rounded(backbone: VisionTransformer, layers: Mapping[str, Quantised], images: torch.Tensor) -> Tokens:
    """Run a backbone whose linear layers are rounded as they are described; LayerScale must be 1."""
    hooks = []
    for number in range(backbone.config.depth):
        for layer in linears_of(backbone, number):
            if layer.name in layers:

                def run(
                    _: object, args: tuple, __: object, name: str = layer.name, weight: torch.Tensor = layer.weight
                ):  # type: ignore[no-untyped-def]
                    return layers[name].run(args[0], weight)

                hooks.append(layer.module.register_forward_hook(run))
    try:
        return backbone(images)
    finally:
        for hook in hooks:
            hook.remove()


def _cosine(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(F.cosine_similarity(found.double(), exact.double(), dim=-1).min())


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_graph_rounds_as_the_layers_say(save_tiny: Save, tmp_path: Path, ffn: str) -> None:
    folder = save_tiny(ffn=ffn, num_registers=1)
    backbone, _ = load_model(folder)
    with torch.no_grad():
        for block in backbone.blocks:
            block.ls1.gamma.fill_(1.0)
            block.ls2.gamma.fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 35, 35, generator=generator)
    layers, worst_first = quantise_all(backbone, images, max_integer=MAX_INTEGER)
    layers = {name: layers[name] for name in worst_first[1:]}  # one stays in float
    source = open_source(folder, out=tmp_path / "nothing")
    source.backbone.load_state_dict(backbone.state_dict())
    write_graph(source, tmp_path / "model.onnx", opset=20, quantised=layers)
    found = OnnxEngine(tmp_path / "model.onnx").encode(images)
    wanted = _rounded(backbone, layers, images)
    with torch.no_grad():
        exact = backbone(images)
    for ours, theirs, unrounded in ((found.cls, wanted.cls, exact.cls), (found.patches, wanted.patches, exact.patches)):
        # Values next to the middle of two steps may be rounded to either, by the order of sums.
        assert _cosine(ours, theirs) > 0.9999
        assert _cosine(ours, theirs) > _cosine(ours, unrounded)
    types = {one.name: one.data_type for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    int8 = {name.removesuffix(".weight") for name, kind in types.items() if kind == onnx.TensorProto.INT8}
    assert int8 == set(layers)


def test_a_batch_changes_no_answer(save_tiny: Save, tmp_path: Path) -> None:
    folder = save_tiny()
    images = torch.randn(3, 3, 35, 35, generator=torch.Generator().manual_seed(0))
    images[1] *= 5  # with ranges of the batch the others would be rounded to other steps
    layers, _ = quantise_all(load_model(folder)[0], images, max_integer=MAX_INTEGER)
    write_graph(open_source(folder, out=tmp_path / "nothing"), tmp_path / "model.onnx", opset=20, quantised=layers)
    engine = OnnxEngine(tmp_path / "model.onnx")
    together = engine.encode(images)
    for number in range(3):
        torch.testing.assert_close(
            engine.encode(images[number : number + 1]).cls[0], together.cls[number], atol=1e-5, rtol=0
        )


def _pictures(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((48, 44), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "count", "num_images", "said"),
    [
        ("openvino", 23, 8, "from 24 images on, a quarter is kept for it alone"),
        ("onnx", 24, 8 + 6, "6 images of the verdict had no part in the calibration"),
    ],
)
def test_int8_is_calibrated_judged_on_other_images_and_smaller(
    save_tiny: Save,
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    count: int,
    num_images: int,
    said: str,
) -> None:
    model, images = save_tiny(), _pictures(tmp_path / "images", count)
    for precision in ("fp32", "int8"):
        options = ["--out", str(tmp_path / precision), "--precision", precision, "--images", str(images)]
        assert main(["export", kind, str(model), *options, "--limit", "0.99"]) == 0
    card = read_export(tmp_path / "int8")
    assert card.precision == "int8"
    assert card.notes[0].startswith("8 of 8 linear layers in int8") or "in float: blocks." in card.notes[0]
    assert card.verdict is not None
    assert card.verdict["num_images"] == num_images
    assert said in card.notes[1]
    assert said in capsys.readouterr().out.replace("\n", " ")
    sizes = [read_export(tmp_path / precision).verdict["export"]["size_bytes"] for precision in ("fp32", "int8")]  # type: ignore[index]
    assert sizes[1] < (0.6 if kind == "onnx" else 0.9) * sizes[0]


def test_too_few_images_are_told(
    save_tiny: Save, few_images: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "out"), "--precision", "int8", "--images", str(few_images)]
    assert main(["export", "onnx", str(save_tiny()), *options]) == 2
    assert "calibrating takes at least 16 images, and 3 were given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_of_the_verdict_are_spread_over_the_set_and_have_no_part_in_the_calibration(
    save_tiny: Save, tmp_path: Path, home: Path
) -> None:
    folder = _pictures(tmp_path / "images", 27)
    options = {"out": tmp_path / "out", "heads": (), "limit": 0.99, "accept_licence": None, "num_heads": None}
    trial = open_trial(save_tiny(), images=folder, **options)  # type: ignore[arg-type]
    images = torch.cat(list(trial.batches))
    found = calibrated(trial, opset=20)
    judged = torch.cat(list(found.trial.batches))
    # Those by which layers were chosen, the last of the others, and every fourth.
    others = [number for number in range(27) if number % 4 != 3]
    assert torch.equal(judged, images[[*others[-8:], 3, 7, 11, 15, 19, 23]])
    # What is kept apart changes nothing that was found.
    torch.manual_seed(0)
    changed = images.clone()
    changed[3::4] = torch.randn_like(changed[3::4])
    again = calibrated(replace(trial, batches=[changed]), opset=20)
    assert list(again.layers) == list(found.layers)
    for name, layer in found.layers.items():
        assert torch.equal(layer.bias, again.layers[name].bias), name
