"""Extraction into a store, in one process, and reading it back."""

import hashlib
import json
import logging
import os
import shutil
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from disks import no_file_above
from PIL import Image

import foveal
from foveal.backbone.vit import VisionTransformer
from foveal.engine.auto import AutoEngine, Candidate
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError, ImageSetError
from foveal.features.extract import Model
from foveal.features.extraction import check_target, open_extraction, shards_of_part
from foveal.features.lookup import search_store
from foveal.features.packing import unpack
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.features.unchanged import verify_store
from foveal.images.imageset import ImageSet

SMALL = StoreSettings(batch_size=3, shard_size=5)
ALL = replace(SMALL, tokens=("cls", "registers", "patches", "mean"))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Thirteen pictures of one size, with a damaged one fourth in order."""
    for i in range(13):
        path = tmp_path / "many" / ("cat" if i < 7 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(i).integers(0, 256, (31, 43, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path)
    (tmp_path / "many" / "cat" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return tmp_path / "many"


@pytest.fixture
def store_of(model: Model, many: Path, tmp_path: Path) -> Any:
    def make(settings: StoreSettings, name: str = "store") -> FeatureStore:
        open_extraction(tmp_path / name, model, ImageSet.open(many), settings).run()
        return FeatureStore.open(tmp_path / name)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_store_holds_the_features_of_the_set(model: Model, many: Path, store_of: Any, dtype: Any) -> None:
    store = store_of(replace(ALL, dtype=dtype))
    images = ImageSet.open(many)
    expected = model.extract_set(images, what=ALL.tokens, batch_size=4)
    assert store.complete
    assert len(store) == 12
    assert store.names == ["cls", "registers", "patches", "mean"]
    assert store.shape("patches") == (4, 4, 48)
    assert store.rows.column("row").to_pylist() == expected.indices.tolist()  # none missing, none twice
    for name in store.names:
        wanted = expected.arrays[name].numpy()
        # rounding: half a step of 254 for int8, 2^-11 for float16; float32 only by another number of rows in a product
        bound = {"float32": 1e-5, "float16": 2e-3, "int8": 0.5 / 127 + 1e-4}[dtype] * np.abs(wanted).max()
        found = store.read(name)
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= bound


def test_threads_share_a_store_of_more_files_than_stay_open(store_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.features.store._MAX_OPEN_FILES", 1)
    store, before = store_of(SMALL), sys.getswitchinterval()

    def walk(_: int) -> int:
        return sum(len(values) for _ in range(100) for _, values, _ in store.as_stored("cls"))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(walk, range(4))) == [100 * len(store)] * 4
    finally:
        sys.setswitchinterval(before)


def test_sidecar_has_one_row_an_image(store_of: Any, many: Path) -> None:
    store = store_of(SMALL)
    rows = store.rows.to_pydict()
    assert rows["uri"][:4] == ["cat/00.png", "cat/01.png", "cat/02.png", "cat/04.png"]
    assert rows["id"] == rows["uri"]
    assert rows["label"] == ["cat"] * 6 + ["dog"] * 6
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(43, 31)}
    data = (many / "cat/04.png").read_bytes()
    assert rows["sha256"][3] == hashlib.sha256(data).hexdigest()
    assert rows["bytes"][3] == len(data)
    bad = store.bad_rows.to_pylist()
    assert [(row["row"], row["uri"], row["reason"]) for row in bad] == [(3, "cat/03.png", "corrupt")]
    assert bad[0]["sha256"] is not None
    assert "cat/03.png" in (store.path / "bad_images" / "00000.jsonl").read_text()


def test_summary_tells_what_it_costs_and_loses(store_of: Any) -> None:
    store = store_of(replace(ALL, dtype="int8"))
    summary = json.loads((store.path / "summary.json").read_text())
    assert summary["bytes_per_image"] == {"cls": 52, "registers": 104, "patches": 832, "mean": 52}
    assert summary["num_features"] == 12
    assert summary["bad"] == {"corrupt": 1}
    stored = sum(path.stat().st_size for path in (store.path / "shards").rglob("*.*") if path.name != "done.json")
    assert summary["bytes"] == stored
    assert 0.999 < summary["cosine"]["patches"]["min"] <= summary["cosine"]["patches"]["mean"] < 1


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_are_read_in_any_order_across_shards(store_of: Any, dtype: Any) -> None:
    store = store_of(replace(ALL, dtype=dtype))
    whole = store.read("patches")
    for rows in ([11, 0, 4, 4, 3], np.array([2, 3, 4]), [], slice(2, 9, 3), slice(None, -5), None):
        expected = whole if rows is None else whole[rows if len(np.shape(rows)) == 0 else np.asarray(rows, int)]
        assert np.array_equal(store.read("patches", rows), expected)
    blocks = list(store.blocks("patches", rows_per_block=5))
    assert [len(block) for block in blocks] == [5, 5, 2]
    assert np.array_equal(np.concatenate(blocks), whole)
    reused = store.blocks("patches", rows_per_block=5, reuse=True)
    first = next(reused)
    kept = first.copy()
    assert np.array_equal(np.concatenate([kept, *(block.copy() for block in reused)]), whole)
    assert np.array_equal(first[:2], whole[10:])  # the memory of the first block holds the last
    codes = np.load(store.path / "shards/00001/patches.npy", mmap_mode="r")
    scale = np.load(store.path / "shards/00001/patches.scale.npy") if dtype == "int8" else None
    assert np.array_equal(unpack(codes, scale), whole[4:9])  # the first shard has lost one of five


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("patch", None, "has no 'patch'; it has cls, patches; did you mean 'patches'"),
        ("cls", [0, 12], "rows from 0 to 12; .* has 0 to 11"),
        ("cls", [-1], "rows from -1"),
        ("cls", [0.5], "one list of integers"),
    ],
)
def test_what_is_not_in_the_store_is_named(store_of: Any, name: str, rows: Any, message: str) -> None:
    store = store_of(replace(SMALL, tokens=("cls", "patches")))
    with pytest.raises(FovealError, match=message):
        store.read(name, rows)
    with pytest.raises(FovealError, match="rows_per_block=0"):
        next(store.blocks("cls", rows_per_block=0))


def test_finished_shards_are_not_redone_and_bytes_are_the_same(model: Model, many: Path, tmp_path: Path) -> None:
    images = ImageSet.open(many)
    settings = replace(ALL, dtype="int8", layers=(0, 1), pca=5)
    open_extraction(tmp_path / "whole", model, images, settings).run()
    second = open_extraction(tmp_path / "parts", model, images, settings)
    assert second.run([1]) is None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*")}
    partial = FeatureStore.open(tmp_path / "parts")
    assert not partial.complete
    assert partial.rows.column("row").to_pylist() == [5, 6, 7, 8, 9]
    again = open_extraction(tmp_path / "parts", model, images, settings)
    assert again.missing() == [0, 2]
    seen: list[tuple[int, int]] = []
    assert again.run(progress=lambda done, total: seen.append((done, total))) is not None
    assert seen == [(5 + 3, 13), (5 + 5, 13), (5 + 5 + 3, 13)]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} <= {tmp_path / "parts", tmp_path / "parts/shards"}
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_unfinished_store_opens_with_a_warning(
    model: Model, many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL)
    with pytest.raises(FovealError, match="has no finished shard yet"):
        FeatureStore.open(tmp_path / "store")
    extraction.run([2])
    with caplog.at_level(logging.WARNING):
        assert len(FeatureStore.open(tmp_path / "store")) == 3
    assert "is unfinished: 1 of 3 shards" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype is float16 in the store and int8 now"),
        ({"tokens": ("cls", "mean")}, r"tokens is \['cls'\] in the store and \['cls', 'mean'\] now"),
        ({"layers": (1,)}, r"layers is None in the store and \[1\] now"),
        ({"batch_size": 4}, "batch_size is 3 in the store and 4 now"),
        ({"size": 35}, r"size \(of the crop\) is 28 in the store and 35 now"),
    ],
)
def test_another_stamp_is_refused(
    model: Model, many: Path, tmp_path: Path, store_of: Any, change: dict[str, Any], message: str
) -> None:
    before = contents(store_of(SMALL).path)
    with pytest.raises(FovealError, match=rf"another stamp: .*{message}.*or choose another --out"):
        open_extraction(tmp_path / "store", model, ImageSet.open(many), replace(SMALL, **change))
    assert contents(tmp_path / "store") == before


def test_another_model_is_refused(model: Model, many: Path, tmp_path: Path, store_of: Any) -> None:
    store_of(SMALL)
    backbone = deepcopy(model.engine.backbone)
    renamed = Model(TorchEngine(backbone), model.card.model_copy(update={"name": "another file"}))
    assert open_extraction(tmp_path / "store", renamed, ImageSet.open(many), SMALL).missing() == []
    with torch.no_grad():
        backbone.norm.bias[0] += 1
    other = Model(TorchEngine(backbone), model.card)
    with pytest.raises(FovealError, match=r"model\.sha256 is \w{64} in the store and \w{64} now"):
        open_extraction(tmp_path / "store", other, ImageSet.open(many), SMALL)


def test_pth_files_of_different_weights_or_heads_never_share_a_store(model: Model, many: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in model.engine.backbone.state_dict().items()}
    torch.save(tensors, tmp_path / "a.pth")
    tensors["norm.bias"][0] += 1
    torch.save(tensors, tmp_path / "b.pth")
    images = ImageSet.open(many)
    first, second = (foveal.load(tmp_path / name, engine="torch", device="cpu") for name in ("a.pth", "b.pth"))
    open_extraction(tmp_path / "store", first, images, SMALL).run([0])
    with pytest.raises(FovealError, match=r"model\.sha256 is \w{64} in the store and \w{64} now"):
        open_extraction(tmp_path / "store", second, images, SMALL)
    with pytest.raises(FovealError, match="holds features of the model"):
        search_store(FeatureStore.open(tmp_path / "store"), [many / "cat" / "00.png"], model=second, k=2)
    heads = first.card.backbone.model_copy(update={"num_heads": 2 * first.card.backbone.num_heads})
    network = VisionTransformer(heads)
    network.load_state_dict(first.engine.backbone.state_dict())
    other = Model(TorchEngine(network), first.card.model_copy(update={"backbone": heads}))
    with pytest.raises(FovealError, match=r"model\.sha256"):
        open_extraction(tmp_path / "store", other, images, SMALL)


def _with_auto_engine(model: Model) -> Model:
    """The model with a choice between a faint imitation of it, for the last block only, and itself."""
    imitation = deepcopy(model.engine.backbone)
    with torch.no_grad():
        imitation.blocks[0].mlp.fc1.weight.mul_(1.02)
    exact, fast = TorchEngine(model.engine.backbone), TorchEngine(imitation, precision="bf16")
    candidates = [
        Candidate("torch", "bf16", "cpu", lambda *_: fast),
        Candidate("torch", "fp32", "cpu", lambda *_: exact, exact=True),
    ]
    return Model(AutoEngine(exact.backbone, candidates=candidates, reference=exact, limit=0.5), model.card)


def test_store_is_of_one_engine_whatever_was_encoded_before(
    model: Model, many: Path, tmp_path: Path, home: Path
) -> None:
    settings = replace(SMALL, layers=(0,), fit="resize", dtype="float32")
    for number, size in ((10, (90, 45)), (12, (20, 60))):  # grids that come in the last shard alone
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(many / "dog" / f"{number}.png")
    images = ImageSet.open(many)
    auto = _with_auto_engine(model)
    auto.extract([many / "cat" / "00.png"])
    extraction = open_extraction(tmp_path / "whole", auto, images, settings)
    extraction.run()
    assert extraction.card.stamp["engine"] == extraction.model.engine.description
    assert extraction.card.stamp["engine"]["precision"] == "bf16"
    assert len(list((tmp_path / "whole" / "engine").glob("choice-*.json"))) == 1
    plain = open_extraction(
        tmp_path / "plain", Model(auto.engine._candidates[0].open(None, None), model.card), images, settings
    )
    plain.run()
    written = contents(tmp_path / "whole")
    assert {name: written[name] for name in written if name.endswith(".npy")} == {
        name: data for name, data in contents(tmp_path / "plain").items() if name.endswith(".npy")
    }
    # Continued without the cache, by a process that would choose another engine today.
    shutil.rmtree(tmp_path / "whole/shards/00002")
    shutil.rmtree(home)
    later = _with_auto_engine(model)
    later.engine._limit = 1.1
    assert later.settle(images, layers=(0,), fit="resize").engine.description["precision"] == "fp32"
    open_extraction(tmp_path / "whole", later, images, settings).run()
    assert contents(tmp_path / "whole") == written


def test_second_process_that_starts_the_same_store_compares_instead_of_writing(
    model: Model, many: Path, tmp_path: Path
) -> None:
    store, images = tmp_path / "store", ImageSet.open(many)

    class Slow(TorchEngine):
        @property
        def description(self) -> dict[str, str]:  # asked for after the look for a card: another process is faster
            open_extraction(store, model, images, replace(SMALL, batch_size=4))
            return super().description

    slow = Model(Slow(model.engine.backbone), model.card)
    with pytest.raises(FovealError, match="batch_size is 4 in the store and 3 now"):
        open_extraction(store, slow, images, SMALL)
    assert json.loads((store / "card.json").read_text())["stamp"]["batch_size"] == 4
    assert sorted(path.name for path in store.iterdir()) == ["card.json"]


@pytest.mark.parametrize("name", ["{}/outside", "../outside", "cls.layer1x", "rows"])
def test_names_of_a_card_never_lead_out_of_the_store(model: Model, many: Path, tmp_path: Path, name: str) -> None:
    store = open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL).store
    card = json.loads((store / "card.json").read_text())
    card["shapes"] = {name.format(tmp_path): [48]}
    (store / "card.json").write_text(json.dumps(card))
    (tmp_path / "outside.npy").write_bytes(b"mine")
    with pytest.raises(FovealError, match="which no store has"):
        open_extraction(store, model, ImageSet.open(many), SMALL).run()
    assert (tmp_path / "outside.npy").read_bytes() == b"mine"


def test_shapes_of_a_card_are_those_of_its_settings(model: Model, many: Path, tmp_path: Path) -> None:
    store = open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL).store
    card = json.loads((store / "card.json").read_text())
    card["shapes"]["cls"] = [47]
    (store / "card.json").write_text(json.dumps(card))
    with pytest.raises(FovealError, match=r"gives the shapes .*47.* and its settings give .*48"):
        open_extraction(store, model, ImageSet.open(many), SMALL)


def test_another_image_set_is_refused(model: Model, many: Path, tmp_path: Path, store_of: Any) -> None:
    store_of(SMALL)
    with pytest.raises(ImageSetError, match=r"another image set: 13 images, .*this one has 12"):
        open_extraction(tmp_path / "store", model, ImageSet.open(many).subset(range(12)), SMALL)


def change_keeping_size_and_time(path: Path) -> None:
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_images_that_changed_since_are_named(model: Model, many: Path, tmp_path: Path) -> None:
    open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL).run([0, 1])
    change_keeping_size_and_time(many / "cat" / "05.png")
    change_keeping_size_and_time(many / "dog" / "11.png")  # of a shard that is not extracted yet
    images = ImageSet.open(many)
    with pytest.raises(ImageSetError, match=r"changed since shard 1 of .* was extracted: cat/05.png; .*remove .*00001"):
        open_extraction(tmp_path / "store", model, images, SMALL)
    shutil.rmtree(tmp_path / "store/shards/00001")
    open_extraction(tmp_path / "store", model, images, SMALL).run()
    store = FeatureStore.open(tmp_path / "store")
    assert verify_store(store.path, store.card, images) == 13


def test_touched_images_that_are_the_same_are_accepted(model: Model, many: Path, tmp_path: Path) -> None:
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL)
    extraction.run([0])
    for path in many.rglob("*.png"):
        path.touch()
    assert open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL).run() is not None


def test_images_that_differ_from_their_manifest_stop_the_extraction(model: Model, many: Path, tmp_path: Path) -> None:
    ImageSet.open(many).save(tmp_path / "set")
    with (many / "dog" / "09.png").open("ab") as file:
        file.write(b"more")
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(tmp_path / "set"), SMALL)
    with pytest.raises(ImageSetError, match=r"dog/09.png has changed: its bytes is \d+, and the image set says \d+"):
        extraction.run()
    assert sorted(path.name for path in (tmp_path / "store/shards").iterdir()) == ["00000"]  # the finished one stays


def test_verify_finds_damage_and_changes(model: Model, many: Path, store_of: Any) -> None:
    store = store_of(replace(SMALL, tokens=("patches",), pca=3))
    images = ImageSet.open(many)
    assert verify_store(store.path, store.card, images) == 13
    change_keeping_size_and_time(many / "dog" / "12.png")
    with pytest.raises(ImageSetError, match=r"since shard 2 of .*: dog/12.png"):
        verify_store(store.path, store.card, images)
    (many / "dog" / "12.png").unlink()
    with pytest.raises(ImageSetError, match=r"since shard 2 of .*: dog/12.png"):
        verify_store(store.path, store.card, images)
    change_keeping_size_and_time(store.path / "shards/00001/patches.npy")
    with pytest.raises(FovealError, match=r"00001/patches.npy is damaged; remove .*00001 and run"):
        verify_store(store.path, store.card, images)
    change_keeping_size_and_time(store.path / "pca/patches.mean.npy")
    with pytest.raises(FovealError, match=r"pca/patches.mean.npy is damaged"):
        verify_store(store.path, store.card, images)


def test_pca_keeps_what_a_second_implementation_keeps(model: Model, many: Path, store_of: Any) -> None:
    store = store_of(replace(SMALL, tokens=("cls", "patches"), pca=5, dtype="float32"))
    assert store.shape("patches") == (4, 4, 5)
    assert store.shape("cls") == (48,)
    patches = model.extract_set(ImageSet.open(many), what=("patches",)).arrays["patches"].numpy()
    rows = patches.reshape(-1, 48).astype(np.float64)  # fewer than the sample takes: all of them
    centred = rows - rows.mean(axis=0)
    vectors = np.linalg.svd(centred, full_matrices=False)[2][:5]
    projection = store.projection("patches")
    assert store.projection("cls") is None
    restored = projection.invert(store.read("patches")).reshape(-1, 48)
    np.testing.assert_allclose(restored, centred @ vectors.T @ vectors + rows.mean(axis=0), atol=1e-4)
    kept = json.loads((store.path / "pca/pca.json").read_text())["variance_kept"]["patches"]
    assert kept == pytest.approx(np.var(centred @ vectors.T, axis=0).sum() / np.var(rows, axis=0).sum(), abs=1e-5)


def test_too_many_bad_images_stop_within_and_across_shards(model: Model, many: Path, tmp_path: Path) -> None:
    for name in ("cat/01.png", "dog/11.png"):
        (many / name).write_bytes(b"damaged")
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL)
    with pytest.raises(ImageSetError, match=r"2 of 13 images are bad .*00000.jsonl"):
        extraction.run()
    assert extraction.missing() == [0, 1, 2]
    extraction.run([0], max_bad_share=0.2)
    with pytest.raises(ImageSetError, match=r"2 of 13 images are bad .*raise that share to go on"):
        extraction.run()
    assert extraction.run(max_bad_share=0.25)["num_features"] == 10


def test_a_shard_of_bad_images_alone_is_empty(model: Model, many: Path, tmp_path: Path) -> None:
    for name in ("10", "11", "12"):
        (many / "dog" / f"{name}.png").write_bytes(b"damaged")
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many), ALL)
    extraction.run(max_bad_share=0.5)
    store = FeatureStore.open(tmp_path / "store")
    assert store.read("patches").shape == (9, 4, 4, 48)
    assert np.load(store.path / "shards/00002/patches.npy").shape == (0, 4, 4, 48)
    assert len(store.bad_rows) == 4


def test_a_set_without_one_readable_image_is_an_error(model: Model, many: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="none of the 1 images can be read"):
        open_extraction(tmp_path / "store", model, ImageSet.open(many).subset([3]), SMALL)
    assert not (tmp_path / "store/card.json").exists()
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many).subset([2, 3]), SMALL)
    for path in many.rglob("*.png"):
        path.unlink()
    with pytest.raises(ImageSetError, match=r"2 of 2 images are bad \(2 unreadable\)"):
        extraction.run()


def test_patches_of_mixed_sizes_are_refused_by_name(model: Model, many: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 30, 3), np.uint8)).save(many / "dog" / "08.png")
    images = ImageSet.open(many)
    extraction = open_extraction(tmp_path / "patches", model, images, replace(ALL, fit="resize"))
    assert extraction.card.shapes["patches"] == (4, 6, 48)
    with pytest.raises(FovealError, match=r"dog/08.png gives 9 x 4 patches, and the first image of the set 4 x 6"):
        extraction.run()
    mixed = open_extraction(tmp_path / "vectors", model, images, replace(SMALL, tokens=("cls", "mean"), fit="resize"))
    assert mixed.run()["num_features"] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": ("cls", "pixels")}, "tokens=cls,pixels"),
        ({"dtype": "float64"}, "dtype='float64'"),
        ({"pca": 4}, "pca=4 has no effect without patches"),
        ({"pca": 48, "tokens": ("patches",)}, "choose 1 to 47 components"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"size": 30}, "30 is not a multiple of"),
    ],
)
def test_impossible_settings_leave_nothing(
    model: Model, many: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FovealError, match=message):
        open_extraction(tmp_path / "store", model, ImageSet.open(many), replace(SMALL, **settings))
    assert not (tmp_path / "store/card.json").exists()


def test_other_folders_are_left_alone(model: Model, many: Path, tmp_path: Path) -> None:
    before = contents(many)
    with pytest.raises(FovealError, match="exists and is not a feature store; choose another place"):
        open_extraction(many, model, ImageSet.open(many), SMALL)
    assert contents(many) == before
    with pytest.raises(FovealError, match=r"is not a feature store: it has no card\.json"):
        FeatureStore.open(many)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FovealError, match="not a feature store"):
        check_target(tmp_path / "file")
    with pytest.raises(FovealError, match="cannot be written"):
        open_extraction(tmp_path / "file" / "store", model, ImageSet.open(many), SMALL)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "foveal image set", "version": 1}', "{}"])
def test_damaged_cards_are_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(FovealError, match=r"cannot be understood|says kind"):
        FeatureStore.open(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    model: Model, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FovealError, match=r"needs 1,248 bytes for 13 more images, 1,000 are free; .*dtype int8"):
        open_extraction(tmp_path / "store", model, ImageSet.open(many), SMALL)
    assert not (tmp_path / "store/card.json").exists()
    small = replace(SMALL, dtype="int8")
    assert open_extraction(tmp_path / "store", model, ImageSet.open(many), small).run() is not None


def test_a_disk_that_fills_up_keeps_the_finished_shards(model: Model, many: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    extraction = open_extraction(tmp_path / "store", model, ImageSet.open(many), replace(SMALL, tokens=("patches",)))
    extraction.run([0])
    before = contents(tmp_path / "store")
    with no_file_above(4000), pytest.raises(FovealError, match=r"cannot be written .*finished shards stay"):
        extraction.run()
    assert contents(tmp_path / "store") == before
    assert extraction.run() is not None


def test_memory_does_not_grow_with_the_set(model: Model, many: Path, tmp_path: Path) -> None:
    images = ImageSet.open(many)

    def peak(repeats: int) -> int:
        rows = [row for _ in range(repeats) for row in range(13) if row != 3]
        settings = replace(SMALL, tokens=("patches",), dtype="float32", shard_size=10_000)
        extraction = open_extraction(tmp_path / f"store{repeats}", model, images.subset(rows), settings)
        tracemalloc.start()
        extraction.run()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    small, large = peak(4), peak(24)
    stored = 20 * 12 * 16 * 48 * 4  # bytes by which the second store is larger: 0.7 MB
    assert large - small < stored / 3  # its sidecar grows, the features do not stay


def test_parts_of_a_job_array_are_complete_and_disjoint() -> None:
    parts = [list(shards_of_part(f"{i}/3", 8)) for i in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    for wrong in ("3/3", "1", "a/2", "-1/2", "1/", ""):
        with pytest.raises(FovealError, match="write i/n"):
            shards_of_part(wrong, 8)


def test_tar_and_parquet_sources_are_extracted_and_watched(model: Model, many: Path, tmp_path: Path) -> None:
    files = sorted(many.rglob("*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "a.parquet")
    expected = model.extract_set(ImageSet.open(many), batch_size=3).arrays["cls"]
    for source in (tmp_path / "a.tar", tmp_path / "a.parquet"):
        out = tmp_path / f"store{source.suffix}"
        open_extraction(out, model, ImageSet.open(source), replace(SMALL, dtype="float32")).run()
        torch.testing.assert_close(torch.from_numpy(FeatureStore.open(out).read("cls")), expected, atol=1e-5, rtol=0)
    uri = ImageSet.open(tmp_path / "a.tar").uri(0)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[int(uri.partition("#")[2].partition("+")[0])] ^= 1
    (tmp_path / "a.tar").write_bytes(bytes(data))
    with pytest.raises(ImageSetError, match=r"images have changed since shard 0 .*a.tar#"):
        open_extraction(
            out.with_suffix(".tar"), model, ImageSet.open(tmp_path / "a.tar"), replace(SMALL, dtype="float32")
        )


def test_an_image_that_was_unreadable_is_taken_in_once_it_can_be_read(
    model: Model, many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageSet.open(many)
    settings = replace(SMALL, tokens=("cls",))
    open_extraction(tmp_path / "whole", model, images, settings).run(max_bad_share=0.5)
    (many / "dog" / "07.png").rename(tmp_path / "away.png")

    def run() -> dict[str, Any]:
        extraction = open_extraction(tmp_path / "store", model, images, settings)
        summary = extraction.run(max_bad_share=0.5)
        verify_store(tmp_path / "store", extraction.card, images)
        assert summary is not None
        return summary

    def shards() -> dict[str, int]:
        return {path.parent.name: path.stat().st_ino for path in (tmp_path / "store").glob("shards/*/done.json")}

    assert run()["bad"] == {"corrupt": 1, "unreadable": 1}
    before = shards()
    assert run()["bad"] == {"corrupt": 1, "unreadable": 1}
    assert shards() == before
    (tmp_path / "away.png").rename(many / "dog" / "07.png")
    assert run()["bad"] == {"corrupt": 1}
    assert "shard 1 of" in caplog.text
    assert {name for name, number in shards().items() if before[name] != number} == {"00001"}
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
