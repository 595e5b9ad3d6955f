"""The study of ways: its rows, its score with and without labels, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.cli.advise import show
from foveal.cli.main import main
from foveal.errors import FovealError
from foveal.studies.advise import Row, advise

SHORT = (
    *("total_steps=2", "batch_size=4", "optimizer.freeze_backbone_steps=1", "optimizer.warmup_steps=0"),
    *("teacher.temperature_warmup_steps=0", "gate.every_steps=2", "gate.num_neighbours=3", "views.num_local=1"),
    *("heads.dino.num_prototypes=16", "heads.dino.hidden=12", "heads.dino.bottleneck=8"),
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = backbone_config("vit_nano", depth=2, patch_size=8, image_size=32, layerscale_init=0.5)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", backbone, Card(name="tiny", backbone=config, crop_size=32, resize_size=32))
    return str(tmp_path / "model")


def write_photos(folder: Path, *, classes: tuple[str, ...]) -> str:
    rng = np.random.default_rng(0)
    for number in range(36):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC).save(place / f"{number}.png")
    return str(folder)


def test_every_way_has_a_row_and_the_best_comes_first(model: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", classes=("red", "green"))
    rows, kind = advise(photos, model=model, out=tmp_path / "study", overrides=SHORT)
    assert {row.way for row in rows} == {"frozen", "adapt", "lora", "distil", "scratch"}
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    (frozen,) = [row for row in rows if row.way == "frozen"]
    assert all(row.gain == pytest.approx(row.score - frozen.score) for row in rows)
    assert all(row.low <= row.gain <= row.high for row in rows)
    assert all(row.hours_on_all > row.minutes / 60 > 0 for row in rows if row.way != "frozen")
    assert kind.startswith("kNN accuracy (k=10)")
    assert json.loads((tmp_path / "study" / "advice.json").read_text())["score"] == kind


def test_without_labels_crops_are_looked_for(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", classes=("",))
    run = str(Path(model).parent)  # a run holds its model in the folder model
    assert main(["advise", photos, "--model", run, "--out", str(tmp_path / "study"), *SHORT]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("crops that find the other crop of their image, ")
    assert {line.split()[0] for line in printed[2:7]} == {"frozen", "adapt", "lora", "distil", "scratch"}


def advised(way: str, *, low: float, high: float) -> Row:
    return Row(way, 50.0 + (low + high) / 2, (low + high) / 2, low, high, 0.1, 0.2)


@pytest.mark.parametrize(
    ("low", "high", "noise"), [(-3.0, 1.0, True), (0.0, 4.0, True), (0.5, 4.0, False), (-4.0, -0.5, False)]
)
def test_a_gain_is_said_to_be_noise_where_its_interval_holds_0(
    low: float, high: float, noise: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show([advised("frozen", low=0.0, high=0.0), advised("adapt", low=low, high=high)], "kNN")
    printed = capsys.readouterr().out
    assert f"{low:+.1f} to {high:+.1f}" in printed
    assert ("within noise" in printed) == noise
    assert ("Nothing is told apart from frozen features" in printed) == noise


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match=r"share=1\.5; choose a share above 0"):
        advise("photos", model="model", out=tmp_path, share=1.5)
