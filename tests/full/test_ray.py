"""Extraction on a Ray cluster equals the single process byte for byte, also when a worker is killed half-way."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from child import output_of
from PIL import Image

import foveal
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = 600

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def python_with_ray(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has Ray over what this one has, in an environment of its own unless Ray is here already."""
    if subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode == 0:
        return sys.executable
    folder = tmp_path_factory.mktemp("ray")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pinned = re.findall(r"^ray==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    install = [folder / "bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *pinned]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        reason = f"Ray cannot be installed here: {done.stderr.strip()[-300:]}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return str(folder / "bin/python")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_store_of_two_nodes_with_a_killed_worker_equals_the_single_process(
    python_with_ray: str, tmp_path: Path
) -> None:
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
            python_with_ray,
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
