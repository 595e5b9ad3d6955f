"""Extraction on a Ray cluster equals the single process byte for byte, also when a worker is killed half-way."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from child import output_of
from environments import ROOT, layered
from PIL import Image

import foveal
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet

NUM_IMAGES = 600

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_store_of_two_nodes_with_a_killed_worker_equals_the_single_process(tmp_path: Path) -> None:
    python = layered("ray", "ray")
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", backbone, Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(NUM_IMAGES):
        picture = generator.integers(0, 256, (31, 43, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"photos/{number:03d}.png")
    (tmp_path / "photos/100.png").write_bytes(b"damaged")
    printed = output_of(
        [
            python,
            ROOT / "tests/full/ray_cluster.py",
            tmp_path / "photos",
            tmp_path / "model",
            tmp_path / "ray",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "default"},
        timeout_s=600,
    )
    assert re.search(rf"killed \[\d.*\]; 30 shards; {NUM_IMAGES - 1} features", printed)
    settings = StoreSettings(tokens=("cls", "patches"), dtype="int8", pca=7, batch_size=16, shard_size=20)
    images = ImageSet.open(tmp_path / "photos")
    open_extraction(tmp_path / "single", foveal.load(tmp_path / "model"), images, settings).run()
    assert contents(tmp_path / "ray") == contents(tmp_path / "single")
