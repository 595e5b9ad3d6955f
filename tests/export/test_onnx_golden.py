"""Exported graphs against outputs stored from the reference implementation, at sizes smaller and larger than stored."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.onnx_files import write_graph
from foveal.export.source import Source
from foveal.features.extract import Model

# As of the network itself, whose tests say why.
TOLERANCE = 2e-5
SETTINGS: dict[str, dict[str, object]] = {
    "backbone_mlp": {},
    "backbone_swiglu_registers": {"ffn": "swiglu", "num_registers": 4},
}
SIZES = ["98x98", "126x84", "140x252", "224x224", "518x518", "532x546"]


@pytest.mark.parametrize("name", SETTINGS)
def test_graph_equals_the_reference(golden: Path, tmp_path: Path, name: str) -> None:
    tensors = load_file(golden / f"{name}.safetensors")
    network = VisionTransformer(backbone_config("vit_nano", depth=4, **SETTINGS[name])).eval()
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    network.load_state_dict({re.sub(r"^blocks\.\d+\.", "blocks.", key): value for key, value in weights.items()})
    model = Model(TorchEngine(network), Card(name=name, backbone=network.config, licence=OWN))
    write_graph(Source(model, network, {}, OWN), tmp_path / "model.onnx", opset=20)
    engine = OnnxEngine(tmp_path / "model.onnx")
    for size in SIZES:
        images = tensors[f"{size}.input_div7"].repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)
        found = engine.encode(images)
        for kind in ("cls", "patches", *(["registers"] if network.config.num_registers else [])):
            torch.testing.assert_close(getattr(found, kind), tensors[f"{size}.{kind}"], atol=TOLERANCE, rtol=0)
