"""The ONNX graph of a backbone, run by ONNX Runtime, beside the backbone itself."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from foveal.backbone.weights import load_model
from foveal.errors import FovealError
from foveal.export.card import ExportError
from foveal.export.onnx import LEAST_OPSET
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.onnx_files import write_graph
from foveal.export.source import open_source

Save = Callable[..., Path]
# The stored grid is 5 x 5: itself, larger, smaller, and oblong ones of which one has a stored side.
GRIDS = [(5, 5), (9, 8), (1, 2), (5, 3), (4, 11)]
TOLERANCE = 2e-5  # float32 in another order of summation, tokens of order 1


def _images(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def _written(model: Path, out: Path, **settings: object) -> OnnxEngine:
    out.parent.mkdir(exist_ok=True)
    write_graph(open_source(model, out=out.parent / "nothing-here"), out, **{"opset": 20, **settings})
    return OnnxEngine(out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_registers": 4},
        {"ffn": "swiglu", "pos_embed_resize": "antialias"},
        {"num_registers": 2, "pos_embed_resize": "offset", "ffn": "swiglu"},
        {"channels": 5, "patch_size": 4, "image_size": 20},
    ],
    ids=["offset", "registers", "swiglu-antialias", "swiglu-registers-offset", "channels"],
)
def test_tokens_are_those_of_the_backbone_at_every_size(save_tiny: Save, tmp_path: Path, changes: dict) -> None:
    model = save_tiny(**changes)
    engine = _written(model, tmp_path / "model.onnx")
    backbone, card = load_model(model)
    side, channels = card.backbone.patch_size, card.backbone.channels
    for number, (grid_h, grid_w) in enumerate(GRIDS):
        images = _images((1, 3)[number % 2], grid_h * side, grid_w * side, channels)
        with torch.no_grad():
            wanted = backbone(images)
        for found, exact in zip(engine.encode(images), wanted, strict=True):
            torch.testing.assert_close(found, exact, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("opset", [LEAST_OPSET, 20, 23, onnx.defs.onnx_opset_version()])
def test_every_opset_gives_the_same_tokens(save_tiny: Save, tmp_path: Path, opset: int) -> None:
    model = save_tiny()
    engine = _written(model, tmp_path / "model.onnx", opset=opset)
    onnx.checker.check_model(engine.path, full_check=True)
    assert onnx.load(engine.path).opset_import[0].version == opset
    images = _images(2, 21, 42)
    with torch.no_grad():
        wanted = load_model(model)[0](images)
    torch.testing.assert_close(engine.encode(images).patches, wanted.patches, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("norm", [True, False])
def test_tokens_after_blocks_are_those_of_the_backbone(save_tiny: Save, tmp_path: Path, norm: bool) -> None:
    model = save_tiny(num_registers=1, depth=3)
    engine = _written(model, tmp_path / "model.onnx")
    images = _images(2, 28, 14)
    with torch.no_grad():
        wanted = load_model(model)[0].intermediate(images, [0, 2], norm=norm)
    for found, exact in zip(engine.intermediate(images, [0, 2], norm=norm), wanted, strict=True):
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_large_weights_lie_in_one_file_beside_the_graph(save_tiny: Save, tmp_path: Path) -> None:
    model = save_tiny()
    engine = _written(model, tmp_path / "written" / "model.onnx", max_bytes_inside=10_000)
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == ["model.onnx", "model.onnx.data"]
    images = _images(1, 14, 14)
    with torch.no_grad():
        wanted = load_model(model)[0].intermediate(images, 2)
    torch.testing.assert_close(engine.intermediate(images, 2)[0].cls, wanted[0].cls, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(engine.encode(images).cls, wanted[1].cls, atol=TOLERANCE, rtol=0)


def test_weights_keep_their_names_and_dimensions_theirs(save_tiny: Save, tmp_path: Path) -> None:
    engine = _written(save_tiny(num_registers=2), tmp_path / "model.onnx")
    graph = onnx.load(engine.path).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    assert shapes["blocks.1.attn.qkv.weight"] == (48, 144)
    assert shapes["blocks.0.mlp.fc2.bias"] == (48,)
    assert {"blocks.0.attn.qkv", "blocks.1.mlp.fc1"} <= {node.name for node in graph.node if node.op_type == "MatMul"}
    dims = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.output)
    }
    assert dims == {
        "images": ["batch", 3, "height", "width"],
        "cls": ["batch", 48],
        "patches": ["batch", "grid_h*grid_w", 48],
        "registers": ["batch", 2, 48],
    }


def test_images_of_other_sizes_or_channels_are_refused(save_tiny: Save, tmp_path: Path) -> None:
    engine = _written(save_tiny(), tmp_path / "model.onnx")
    with pytest.raises(FovealError, match=r"image width=15 is not a multiple of patch_size=7; use 14 or 21"):
        engine.encode(_images(1, 14, 15))
    with pytest.raises(FovealError, match="images have 4 channels; this backbone takes 3"):
        engine.encode(_images(1, 14, 14, 4))
    with pytest.raises(FovealError, match="has no output masks; it has cls, patches"):
        engine.outputs(_images(1, 14, 14), ["masks"])
    for height, width in ((14, 15), (13, 14), (6, 7)):  # and by whoever runs the graph without foveal
        with pytest.raises(ExportError, match="fails on"):
            engine.infer({"images": _images(1, height, width).numpy()}, ["cls"])


def test_files_that_are_no_export_are_refused(save_tiny: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist; foveal export onnx writes it"):
        OnnxEngine(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="cannot be run by ONNX Runtime"):
        OnnxEngine(tmp_path)
