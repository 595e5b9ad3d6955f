from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_demo import FAST

from foveal.cli.main import main


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
