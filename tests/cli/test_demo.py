from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main

FAST = [
    "total_steps=2",
    "batch_size=8",
    "backbone.variant=vit_nano",
    "backbone.width=48",
    "backbone.depth=1",
    "backbone.num_heads=3",
    "backbone.patch_size=8",
    "backbone.image_size=32",
    "views.global_size=32",
    "views.local_size=16",
    "views.num_local=1",
    "features.crop_size=32",
    "features.resize_size=32",
    "heads.dino.num_prototypes=16",
    "optimizer.warmup_steps=1",
    "teacher.temperature_warmup_steps=1",
]


def test_demo_prints_the_numbers_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    for number in range(2):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((200, 170)).save(tmp_path / "mine" / f"{number}.png")
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--images", str(tmp_path / "mine"), *FAST]) == 0
    captured = capsys.readouterr()
    numbers, page = captured.out.splitlines()
    assert numbers.startswith("kNN top-1 (k=20): raw pixels ")
    assert numbers.count(" %") == 3
    assert page.endswith(f" s; page: {out / 'demo.html'}")
    assert "pretraining on 220 crops, 2 steps of 8 images" in captured.err
    assert (out / "demo.html").is_file()


def test_demo_in_a_used_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(["demo", "--out", str(tmp_path), *FAST]) == 2
    assert "is not empty and not a demo" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "x"), "--images", str(tmp_path / "no"), *FAST]) == 2
    assert "does not exist" in capsys.readouterr().err
