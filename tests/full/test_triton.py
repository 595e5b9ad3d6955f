"""A real Triton server starts what `foveal export triton` writes and says what foveal says.

Its Python backend alone is started; configurations for ONNX Runtime and TensorRT are parsed by Triton's schema.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from child import output_of
from environments import ROOT, layered
from PIL import Image
from triton_server import running

import foveal
from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.export.triton import export_triton

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def _save_model(folder: Path) -> None:
    backbone = VisionTransformer(backbone_config("vit_nano", image_size=70, num_registers=2)).eval()
    generator = torch.Generator().manual_seed(0)
    for values in backbone.state_dict().values():
        values.copy_(0.2 * torch.randn(values.shape, generator=generator))
    card = Card(name="model", backbone=backbone.config, crop_size=70, resize_size=80, licence="own")
    save_model(folder, backbone, card)


def _save_pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number, (mode, ending) in enumerate([("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("P", "png")]):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        large = coarse.resize((120 + number, 90 + 7 * number), Image.Resampling.BICUBIC)
        large.convert(mode).save(folder / f"{number}.{ending}")
    return sorted(folder.iterdir())


def test_triton_says_what_foveal_says(tmp_path: Path) -> None:
    packages = ("nvidia-pytriton", "onnxruntime", "pillow", "simplejpeg", "numpy")
    python = layered("triton", *packages, constraints=[ROOT / "tests/full/triton_constraints.txt"], alone=True)
    _save_model(tmp_path / "model")
    pictures = _save_pictures(tmp_path / "pictures")
    export_triton(tmp_path / "model", tmp_path / "python", backend="python", gpu="none", images=tmp_path / "pictures")
    export_triton(tmp_path / "model", tmp_path / "onnx", gpu="l4", images=tmp_path / "pictures")
    export_triton(tmp_path / "model", tmp_path / "plan", backend="tensorrt", gpu="l40s", images=tmp_path / "pictures")
    (tmp_path / "server").mkdir()
    with running(python, tmp_path / "python", tmp_path / "server") as address:
        output_of([python, ROOT / "tests/full/triton_client.py", address, tmp_path], timeout_s=120)
    found = np.load(tmp_path / "answers.npz")
    expected = foveal.load(tmp_path / "model").extract(pictures)
    for name in ("cls", "patches", "registers"):
        values, wanted = torch.from_numpy(found[name]), getattr(expected, name)
        cosine = torch.cosine_similarity(values.flatten(1), wanted.flatten(1))
        assert cosine.min() >= 0.9999, (name, cosine)
