"""The model of a store is found again, is the same, and runs as it ran."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.errors import FovealError
from foveal.features.extract import load
from foveal.features.extraction import open_extraction
from foveal.features.lookup import search_store
from foveal.features.origin import open_store_model
from foveal.features.stamp import StoreSettings
from foveal.features.store import CARD, FeatureStore
from foveal.images.imageset import ImageSet


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (31, 43, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def network(seed: int = 0) -> VisionTransformer:
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=28, layerscale_init=1.0)
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    backbone = network()
    save_model(tmp_path / "model", backbone, Card(name="tiny", backbone=backbone.config, crop_size=28, resize_size=32))
    return tmp_path / "model"


def store_of(photos: Path, model: Path, **options: object) -> FeatureStore:
    loaded = load(model, **options)  # type: ignore[arg-type]
    folder = photos.parent / "store"
    open_extraction(folder, loaded, ImageSet.open(photos), StoreSettings(shard_size=5)).run()
    return FeatureStore.open(folder)


def test_search_finds_the_model_by_itself_and_another_place_when_told(
    photos: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_of(photos, Path("model"))
    monkeypatch.chdir("/")
    found = search_store(store, [photos / "4.png"], k=1)
    assert found.uris == [["4.png"]]
    assert found.similarities[0, 0] == pytest.approx(1, abs=1e-5)
    shutil.move(place, tmp_path / "moved")
    with pytest.raises(
        FovealError, match=rf"tiny \(sha256 \w+\), was at {place}, which is gone; give its new place by --model"
    ):
        search_store(store, [photos / "4.png"], k=1)
    assert search_store(store, [photos / "4.png"], model=tmp_path / "moved", k=1).uris == [["4.png"]]
    assert search_store(store, ["row:4"], k=1).rows.shape == (1, 1)  # needs no model


def test_another_model_in_its_place_is_refused(photos: Path, place: Path) -> None:
    store = store_of(photos, place)
    save_model(place, network(seed=1), load(place).card)
    with pytest.raises(FovealError, match=r"holds features of the model tiny \(sha256 .*, and this is tiny \(sha256"):
        search_store(store, [photos / "4.png"], k=1)


def test_heads_that_were_given_are_given_again(photos: Path, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth", num_heads=6)
    settings = StoreSettings(size=28)
    open_extraction(tmp_path / "store", loaded, ImageSet.open(photos), settings).run()
    store = FeatureStore.open(tmp_path / "store")
    assert open_store_model(store).card.backbone.num_heads == 6


def test_store_that_does_not_say_asks_for_its_model(photos: Path, place: Path) -> None:
    store = store_of(photos, place)
    card = json.loads((store.path / CARD).read_text())
    del card["origin"]
    (store.path / CARD).write_text(json.dumps(card))
    with pytest.raises(
        FovealError, match=r"does not say where its model lies, tiny \(sha256 \w+\); give it by --model"
    ):
        search_store(FeatureStore.open(store.path), [photos / "4.png"], k=1)


def test_pictures_are_encoded_by_the_engine_of_the_store(
    photos: Path, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the extra cpu is not installed")
    monkeypatch.setenv("FOVEAL_HOME", str(photos.parent / "home"))
    store = store_of(photos, place, engine="openvino", precision="fp32")  # alone it would run on torch, being small
    before = sorted(path.name for path in (store.path / "engine").iterdir())
    opened = open_store_model(store)
    search_store(store, [photos / "4.png"], model=opened, k=1)
    assert opened.engine.description == store.stamp["engine"]
    assert sorted(path.name for path in (store.path / "engine").iterdir()) == before
    assert "pictures are encoded by" not in caplog.text
    search_store(store, [photos / "4.png"], model=load(place), k=1)
    assert "was made by openvino fp32 on cpu, and pictures are encoded by torch fp32 on cpu" in caplog.text


def test_engine_that_is_not_here_is_replaced_with_a_warning(
    photos: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(photos, place, engine="torch", precision="bf16")
    assert open_store_model(store).engine.description["precision"] == "bf16"
    stamp = {**store.stamp, "engine": {**store.stamp["engine"], "device": "cuda:99"}}
    elsewhere = FeatureStore(store.path, replace(store.card, stamp=stamp), {})
    assert open_store_model(elsewhere).engine.description["precision"] == "fp32"
    assert "torch bf16 on cuda:99, cannot be used here: device 'cuda:99'" in caplog.text
