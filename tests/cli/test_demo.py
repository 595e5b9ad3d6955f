from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_demo import FAST

import foveal
from foveal.cli.main import main
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.service import Service
from foveal.serve.web.pages import Page


def test_demo_prints_the_numbers_and_the_page_and_goes_on_to_its_own_model_in_the_explorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is exchanged for one that ends at once; nothing opens a browser here."""
    served: list[tuple[object, str]] = []
    opened: list[str] = []

    def serve(service: Service, pages: list[Page], *, listening: Callable[[str], None]) -> None:
        served.append((service.loaded.model.card.backbone, pages[0].path))
        listening("http://127.0.0.1:1")

    monkeypatch.setattr("foveal.serve.server.serve", serve)
    monkeypatch.setattr("typer.launch", opened.append)
    (tmp_path / "mine").mkdir()
    for number in range(2):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((200, 170)).save(tmp_path / "mine" / f"{number}.png")
    out = tmp_path / "demo"
    assert main(["demo", "--open", "--out", str(out), "--images", str(tmp_path / "mine"), *FAST]) == 0
    captured = capsys.readouterr()
    numbers, page, *_, where, _ending = captured.out.splitlines()
    assert numbers.startswith("kNN top-1 (k=20): raw pixels ")
    assert numbers.count(" %") == 3
    assert page.endswith(f" s; page: {out / 'demo.html'}")
    assert "pretraining on 220 crops, 2 steps of 8 images" in captured.err
    assert (out / "demo.html").is_file()
    assert served == [(foveal.load(out / "run/model").card.backbone, "/explore")]
    assert opened[0].startswith("http://127.0.0.1:1/explore?token=")
    assert where == f"explore at {opened[0]}"
    assert len(FeatureStore.open(out / "explore/features")) == len(ImageSet.open(out / "images/test"))


def test_demo_in_a_used_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(["demo", "--out", str(tmp_path), *FAST]) == 2
    assert "is not empty and not a demo" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "x"), "--images", str(tmp_path / "no"), *FAST]) == 2
    assert "does not exist" in capsys.readouterr().err
