import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.errors import FovealError
from foveal.features import lookup
from foveal.features.extract import Model, load
from foveal.features.extraction import open_extraction
from foveal.features.gallery import gallery, page, sheet
from foveal.features.index import build_index
from foveal.features.lookup import database_of, identity_of, index_folder, search_store
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet


def _saved_model(folder: Path, seed: int) -> Model:
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed))
    save_model(folder, backbone, Card(name=f"tiny{seed}", backbone=config, crop_size=28, resize_size=32))
    return load(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Model, Path]:
    """A store of 150 pictures of one colour each with some noise, one of them twice, and its model."""
    folder = tmp_path_factory.mktemp("lookup")
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(149):
        pixels = generator.integers(0, 256, 3) + generator.integers(-20, 20, (31, 43, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "photos" / f"{number:03d}.png")
    shutil.copy(folder / "photos" / "007.png", folder / "photos" / "copy.png")
    model = _saved_model(folder / "model", seed=0)
    settings = StoreSettings(tokens=("cls", "patches"), layers=(0, 1), batch_size=16, shard_size=64)
    open_extraction(folder / "store", model, ImageSet.open(folder / "photos"), settings).run()
    return FeatureStore.open(folder / "store"), model, folder


def test_a_picture_of_the_store_finds_itself_and_its_copy(small: tuple[FeatureStore, Model, Path]) -> None:
    store, model, folder = small
    found = search_store(store, [folder / "photos" / "007.png"], model=model, k=3, name="cls.layer1")
    assert found.rows[0, :2].tolist() == [7, 149]
    assert found.uris[0][:2] == ["007.png", "copy.png"]
    np.testing.assert_allclose(found.similarities[0, :2], 1, atol=1e-5)  # the store rounds to float16
    assert found.how == "exact search of 150 rows"


def test_rows_uris_and_pictures_may_be_mixed_and_rows_leave_themselves_out(
    small: tuple[FeatureStore, Model, Path],
) -> None:
    store, model, folder = small
    path = str(folder / "photos" / "007.png")
    found = search_store(store, ["row:7", path, "uri:007.png"], model=model, k=2, name="cls.layer1")
    assert found.rows[:, 0].tolist() == [149, 7, 149]
    features = store.read("cls.layer1").astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features[7]
    cosines[7] = -1
    assert found.rows[0].tolist() == np.argsort(-cosines, kind="stable")[:2].tolist()
    with pytest.raises(
        FovealError, match=r"k=150 neighbours in a store of 150 rows, a row not counted .* choose 1 to 149"
    ):
        search_store(store, ["row:7", path], model=model, k=150, name="cls.layer1")
    assert search_store(store, ["row:7"], k=149, name="cls.layer1").rows.shape == (1, 149)


def test_layers_are_searched_by_their_own_features(small: tuple[FeatureStore, Model, Path]) -> None:
    store, model, folder = small
    for name in ("cls.layer0", "cls.layer1"):
        found = search_store(
            store, [np.asarray(Image.open(folder / "photos" / "012.png"))], model=model, k=1, name=name
        )
        assert found.rows.tolist() == [[12]]
        assert found.similarities[0, 0] == pytest.approx(1, abs=1e-5)


def test_k_beyond_the_store_and_other_mistakes_are_named(small: tuple[FeatureStore, Model, Path]) -> None:
    store, model, folder = small
    picture = folder / "photos" / "000.png"
    search = {"name": "cls.layer1"}
    for queries, options, message in [
        ([picture], {"k": 151, "model": model}, "k=151 neighbours in a store of 150 rows; choose 1 to 150"),
        (["row:150"], {}, "row:150: .* has the rows 0 to 149"),
        (["row:-1"], {}, "row:-1: .* has the rows 0 to 149"),
        (["uri:x.png"], {}, "uri:x.png is not in .*; its uris look like '000.png'"),
        ([], {}, "no queries; give pictures"),
        (["nothing.png"], {}, "nothing.png does not exist; give an image file, or row:NUMBER or uri:NAME$"),
        (["ur:000.png"], {}, "ur:000.png does not exist; .*; did you mean 'uri:'"),
        ([picture], {"device": "tpu"}, "device 'tpu' is not known; choose cpu, cuda"),
        ([picture], {"method": "ann", "index": "nowhere"}, "there is no index nowhere; build one with foveal index"),
        (["row:1"], {"name": "patches.layer1"}, "token 'patches.layer1' cannot be searched .* cls.layer0, cls.layer1"),
        (["row:1"], {"name": None}, "name a token with one vector an image by --token"),
        (["row:1"], {"method": "fast"}, "method='fast' is not known; choose auto, exact, ann"),
        (["row:1"], {"method": "ann"}, "there is no index .*store.cls.layer1.index"),
    ]:
        with pytest.raises(FovealError, match=message):
            search_store(store, queries, **{**search, **options})


def test_another_model_is_refused_and_both_are_named(small: tuple[FeatureStore, Model, Path], tmp_path: Path) -> None:
    store, _, folder = small
    other = _saved_model(tmp_path / "other", seed=1)
    with pytest.raises(FovealError, match=r"the model tiny0 \(sha256 \w+\), and this is tiny1 \(sha256"):
        search_store(store, [folder / "photos" / "000.png"], model=other, name="cls.layer1")


def test_index_is_used_where_asked_for_and_refused_after_a_change(
    small: tuple[FeatureStore, Model, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed (extra ann)")
    shutil.copytree(small[0].path, tmp_path / "store")
    store, name = FeatureStore.open(tmp_path / "store"), "cls.layer1"
    queries = ["row:7", "row:31"]
    build_index(database_of(store, name), index_folder(store, name), identity=identity_of(store, name))
    by_index = search_store(store, queries, k=2, name=name, method="ann")
    assert "by the index" in by_index.how
    assert "recall@10 " in by_index.how
    exact = search_store(store, queries, k=2, name=name, method="exact")
    assert (by_index.rows == exact.rows).mean() >= 0.75
    assert search_store(store, queries, k=2, name=name).how == "exact search of 150 rows"
    monkeypatch.setattr(lookup, "EXACT_ROWS", 149)
    assert search_store(store, queries, k=2, name=name).how == by_index.how
    with pytest.raises(FovealError, match="the store changed since: contents, token differ"):
        search_store(store, queries, k=2, name="cls.layer0", method="ann", index=index_folder(store, name))
    done = tmp_path / "store" / "shards" / "00001" / "done.json"
    manifest = json.loads(done.read_text())
    manifest["files"][f"{name}.npy"]["sha256"] = "0" * 64
    done.write_text(json.dumps(manifest))
    with pytest.raises(FovealError, match="the store changed since: contents differ"):
        search_store(store, queries, k=2, name=name, method="ann")
    assert search_store(store, queries, k=2, name=name).how.startswith("exact search of 150 rows, not by the index: ")
    shutil.rmtree(index_folder(store, name))
    assert "foveal index" in search_store(store, queries, k=2, name=name).how


def test_gallery_shows_every_neighbour_and_a_missing_file_as_an_empty_cell(
    small: tuple[FeatureStore, Model, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, model, folder = small
    shutil.copytree(folder / "photos", tmp_path / "photos")
    card = json.loads((store.path / "card.json").read_text())
    card["image_set"]["root"] = str(tmp_path / "photos")
    shutil.copytree(store.path, tmp_path / "store")
    (tmp_path / "store" / "card.json").write_text(json.dumps(card))
    store = FeatureStore.open(tmp_path / "store")
    (tmp_path / "photos" / "copy.png").unlink()
    picture = folder / "photos" / "007.png"
    found = search_store(store, [picture, "row:3"], model=model, k=5, name="cls.layer1")
    lines = gallery(store, found, cell_size=30)
    assert [len(line) for line in lines] == [6, 6]
    assert [cell.similarity for cell in lines[1][1:]] == found.similarities[1].tolist()
    assert lines[0][0].thumbnail.size == lines[0][1].thumbnail.size == (30, 22)
    assert lines[0][2].thumbnail is None
    assert "1 of " in caplog.text
    assert "copy.png" in caplog.text
    drawn = sheet(lines)
    assert drawn.size == (6 * 64 + 5 * 4, 16 + 64 + 4 + 16 + 47)  # the empty cell is a square
    middle = np.asarray(Image.open(picture))[10:20, 15:28].reshape(-1, 3).mean(0)
    shown = np.asarray(drawn)[31:46, 90:110].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(shown, middle, atol=8)  # of noise of +-20, over hundreds of pixels
    html = page(lines, title="a <b>", how="exact")
    assert html.count("data:image/jpeg;base64,") == 11
    assert "a &lt;b&gt;" in html
    assert "not readable" in html
    assert "http" not in html


def test_a_picture_is_sought_in_a_store_of_an_oblong_size(
    small: tuple[FeatureStore, Model, Path], tmp_path: Path
) -> None:
    _, model, folder = small
    settings = StoreSettings(size=(14, 35), batch_size=16, shard_size=64)
    open_extraction(tmp_path / "store", model, ImageSet.open(folder / "photos"), settings).run()
    found = search_store(FeatureStore.open(tmp_path / "store"), [folder / "photos" / "012.png"], model=model, k=1)
    assert found.rows.tolist() == [[12]]
    assert found.similarities[0, 0] == pytest.approx(1, abs=1e-5)
