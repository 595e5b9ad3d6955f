import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveal.errors import RunError
from foveal.images.imageset import ImageSet
from foveal.pretrain.run import read_metrics
from foveal.studies.demo import loss_curves, neighbour_grid, run_demo, verdict


def _check_page(page: Path) -> str:
    """A page that needs nothing but itself."""
    html = page.read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert len(sources) == 6  # three grids, two PCA pictures, the curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|file:|@import|url\(|<script|<link", html)
    return html


def test_demo_on_own_images_continues_and_shows_everything(
    own_photos: Path, tmp_path: Path, fast: tuple[str, ...]
) -> None:
    said: list[str] = []
    heard: list[int] = []
    out = tmp_path / "demo"
    result = run_demo(
        out, images=str(own_photos), overrides=fast, listener=lambda p: heard.append(p.step), say=said.append
    )
    assert result.page == out / "demo.html"
    assert heard == [1, 2]
    assert said[:2] == ["cutting photographs into crops", "pretraining on 330 crops, 2 steps of 8 images"]
    assert list(result.accuracy) == ["raw pixels", "untrained network", "trained teacher"]
    assert all(0 <= value <= 100 for value in result.accuracy.values())
    html = _check_page(result.page)
    assert "3 photographs were cut into 330 crops" in html
    for name, value in result.accuracy.items():
        assert f"<td>{name}</td>" in html
        assert f"{value:.1f} %" in html
    assert html.count("the trained teacher is ") == 6
    wanted = {"images", "run", "untrained", "demo.html", "pca_untrained.png", "pca_trained.png"}
    assert wanted <= {path.name for path in out.iterdir()}

    again = run_demo(out, images=str(own_photos), overrides=fast, listener=lambda p: heard.append(p.step))
    assert heard == [1, 2]  # nothing was trained again
    assert again.accuracy == result.accuracy
    _check_page(again.page)

    with pytest.raises(RunError, match=r"holds a demo of .*mine; choose another --out"):
        run_demo(out, overrides=fast)
    with pytest.raises(RunError, match=r"holds another run: .*total_steps was 2, is 3"):
        run_demo(out, images=str(own_photos), overrides=(*fast, "total_steps=3"))


def test_a_demo_interrupted_while_cutting_starts_that_again(
    own_photos: Path, tmp_path: Path, fast: tuple[str, ...]
) -> None:
    stale = tmp_path / "demo" / ".images.tmp" / "train" / "another photograph"
    stale.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(stale / "000.png")
    result = run_demo(tmp_path / "demo", images=str(own_photos), overrides=fast)
    assert len(ImageSet.open(result.page.parent / "images" / "train")) == 330


@pytest.mark.parametrize("name", ["thesis.txt", "images"])
def test_a_folder_with_something_else_is_left_alone(
    own_photos: Path, tmp_path: Path, fast: tuple[str, ...], name: str
) -> None:
    (tmp_path / "demo" / name).mkdir(parents=True)
    with pytest.raises(RunError, match="is not empty and not a demo; choose another --out"):
        run_demo(tmp_path / "demo", images=str(own_photos), overrides=fast)
    assert [path.name for path in (tmp_path / "demo").rglob("*")] == [name]


def test_verdict_says_what_is_not_better_too() -> None:
    table = {
        "raw pixels": [50.0, 40.0, 30.0],
        "untrained network": [20.0, 45.0, 30.0],
        "trained teacher": [60.0, 42.0, 30.0],
    }
    sentences = verdict(table)
    assert sentences[0] == ("k=1: the trained teacher is better than the untrained network: 60.0 against 20.0 (+40.0).")
    assert sentences[2] == (
        "k=10: the trained teacher is NOT better than the untrained network: 42.0 against 45.0 (-3.0)."
    )
    assert sum("NOT better" in sentence for sentence in sentences) == 3  # equal is not better


def test_neighbour_grid_frames_hits_green_and_misses_red(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, colour in (("a", (10, 20, 30)), ("b", (200, 210, 220))):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (40, 30), colour).save(tmp_path / part / label / "0.png")
    train, test = ImageSet.open(tmp_path / "train"), ImageSet.open(tmp_path / "test")
    grid = neighbour_grid(train, test.subset([1]), torch.tensor([[1, 0]]), cell=20)
    assert grid.size == (26 * 3 + 8, 15 + 6)  # the crops are 40 x 30
    assert grid.getpixel((30, 0)) == (30, 150, 60)
    assert grid.getpixel((30 + 30, 0)) == (200, 50, 40)
    assert grid.getpixel((13, 10)) == (200, 210, 220)
    assert grid.getpixel((30 + 13, 10)) == (200, 210, 220)
    assert grid.getpixel((60 + 13, 10)) == (10, 20, 30)


def test_loss_curves_leave_gaps_for_skipped_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, Any]] = [{"step": step, "dino_local": 1.0, "koleo": 0.5} for step in range(3)]
    lines[1]["dino_local"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = loss_curves(read_metrics(tmp_path))
    assert picture.size == (1100, 286)
