"""A real Triton server starts what `foveal export triton` writes, and says what foveal and `foveal serve` say.

Its Python backend alone is started; configurations for ONNX Runtime and TensorRT are parsed by Triton's schema.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from child import output_of
from environments import ROOT, layered
from foveal_server import serving
from PIL import Image
from triton_server import running

import foveal
from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.engine.torch_engine import TorchEngine
from foveal.export.triton import export_triton
from foveal.features.extract import Model
from foveal.tasks.head import Head, Task, build_network, save_head
from foveal.tasks.kinds import head_card

HEADS: dict[str, tuple[Task, list[str]]] = {
    "animals": ("classification", ["cat", "dog", "owl"]),
    "masks": ("segmentation", ["sky", "road"]),
}
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def _save_model(folder: Path) -> None:
    backbone = VisionTransformer(backbone_config("vit_nano", image_size=70, num_registers=2)).eval()
    generator = torch.Generator().manual_seed(0)
    for values in backbone.state_dict().values():
        values.copy_(0.2 * torch.randn(values.shape, generator=generator))
    card = Card(name="model", backbone=backbone.config, crop_size=70, resize_size=80, licence="own")
    save_model(folder, backbone, card)
    model = Model(TorchEngine(backbone), card)
    torch.manual_seed(0)
    for name, (task, classes) in HEADS.items():
        head = head_card(model, task, "linear", classes=classes)
        save_head(folder.with_name(name), Head(build_network(head).eval(), head))


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
    options = {"heads": [str(tmp_path / name) for name in HEADS], "images": tmp_path / "pictures"}
    export_triton(tmp_path / "model", tmp_path / "python", backend="python", gpu="none", **options)
    export_triton(tmp_path / "model", tmp_path / "onnx", gpu="l4", **options)
    export_triton(tmp_path / "model", tmp_path / "plan", backend="tensorrt", gpu="l40s", **options)
    (tmp_path / "server").mkdir()
    ask = [python, ROOT / "tests/full/triton_client.py"]
    with running(python, tmp_path / "python", tmp_path / "server") as address:
        output_of([*ask, address, tmp_path, "triton.npz", "8"], timeout_s=120)
    with serving(tmp_path, *(f"--head={tmp_path / name}" for name in HEADS)) as address:
        output_of([*ask, address, tmp_path, "embedded.npz", "64"], timeout_s=120)
    found, embedded = np.load(tmp_path / "triton.npz"), np.load(tmp_path / "embedded.npz")
    assert all("encoded" in said for said in found["refusals"])
    model = foveal.load(tmp_path / "model", engine="torch")
    expected = model.extract(pictures)
    assert set(found) == set(embedded) == {"cls", "patches", "registers", *HEADS, "refusals"}
    for name in ("cls", "patches", "registers"):
        wanted = getattr(expected, name).flatten(1)
        assert _least_cosine(found[name], wanted) >= 0.9999, name
        assert _least_cosine(embedded[name], wanted) >= 0.9999, name
    for name in HEADS:
        assert found[name].shape == embedded[name].shape
        assert _least_cosine(found[name], torch.from_numpy(embedded[name]).flatten(1)) >= 0.9999, name
    animals = model.with_head(foveal.load_head(tmp_path / "animals"))
    shares = torch.from_numpy(found["animals"]).softmax(dim=1)
    np.testing.assert_allclose(shares, animals.probabilities(pictures), atol=1e-3)  # type: ignore[union-attr]


def _least_cosine(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(torch.cosine_similarity(torch.from_numpy(found).flatten(1), wanted).min())
