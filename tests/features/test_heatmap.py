"""Heat maps are the cosines of whole vectors, whatever a store keeps of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.errors import FovealError
from foveal.features import heatmap
from foveal.features.heatmap import HeatMaps
from foveal.features.store import FeatureStore

WIDTH, GRID, COUNTS = 12, (3, 2), (5, 4)


def made(folder: Path, dtype: str, pca: int | None) -> tuple[FeatureStore, np.ndarray]:
    """A store of two shards, and the vectors (N, P, D) that it means, float64."""
    import json

    from foveal.features.packing import pack
    from foveal.features.store import StoreCard

    rng = np.random.default_rng(3)
    channels = pca or WIDTH
    stamp = {"dtype": dtype, "shard_size": COUNTS[0], "pca": pca, "model": {}}
    card = StoreCard(stamp, {"num_images": sum(COUNTS), "hash": "", "root": "."}, {"patches": (*GRID, channels)})
    (folder / "shards").mkdir(parents=True)
    (folder / "card.json").write_text(card.to_json())
    mean, components = np.zeros(WIDTH), np.eye(WIDTH)
    if pca is not None:
        mean, components = rng.standard_normal(WIDTH), np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:pca]
        (folder / "pca").mkdir()
        np.save(folder / "pca" / "patches.mean.npy", mean.astype(np.float32))
        np.save(folder / "pca" / "patches.components.npy", components.astype(np.float32))
    meant = []
    for shard, count in enumerate(COUNTS):
        values = rng.standard_normal((count, *GRID, channels)).astype(np.float32)
        values[0, 0, 0] = 0
        part = folder / "shards" / f"{shard:05d}"
        part.mkdir()
        packed = pack(values, dtype=dtype, name="patches")  # type: ignore[arg-type]
        for name, array in packed.items():
            np.save(part / f"{name}.npy", array)
        (part / "done.json").write_text(json.dumps({"num_features": count, "files": {}}))
        stored = packed["patches"].astype(np.float64)
        stored = stored * packed["patches.scale"][..., None] if dtype == "int8" else stored
        meant.append((stored @ components + mean).reshape(count, -1, WIDTH))
    return FeatureStore.open(folder), np.concatenate(meant)


def cosines(meant: np.ndarray, vector: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(meant, axis=-1) * np.linalg.norm(vector)
    return np.divide(meant @ vector, norms, out=np.zeros(meant.shape[:2]), where=norms > 0)


@pytest.mark.parametrize("pca", [None, 7])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_cosines_of_a_patch_and_of_any_vector(tmp_path: Path, dtype: str, pca: int | None) -> None:
    store, meant = made(tmp_path / "store", dtype, pca)
    maps = HeatMaps(store)
    np.testing.assert_allclose(maps.vector(7, 4), meant[7, 4], atol=1e-5)
    foreign = np.random.default_rng(8).standard_normal(WIDTH).astype(np.float32)
    for vector in (maps.vector(7, 4), foreign, 1000 * foreign, np.zeros(WIDTH, np.float32)):
        wanted = cosines(meant, vector.astype(np.float64)) if vector.any() else np.zeros(meant.shape[:2])
        rows = [8, 0, 3]
        np.testing.assert_allclose(maps.maps(vector, rows).reshape(3, -1), wanted[rows], atol=1e-5)
        found = maps.scan(vector)
        np.testing.assert_allclose(maps.maps(vector, rows).reshape(3, -1), wanted[rows], atol=1e-5)  # lengths known now
        np.testing.assert_allclose(found.scores, wanted.max(axis=1), atol=1e-5)
        np.testing.assert_allclose(wanted[np.arange(len(wanted)), found.patches], wanted.max(axis=1), atol=1e-5)
    assert maps.scan(maps.vector(7, 4)).patches[7] == 4


def test_lengths_measured_ahead_by_part_or_whole_change_no_answer(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "store", "int8", 7)
    query, ahead, none = np.ones(WIDTH, np.float32), HeatMaps(store), HeatMaps(store)
    ahead._chunk = 2
    steps = ahead.measure()
    next(steps)
    assert (ahead.num_measured, none.num_measured) == (2, 0)
    ahead.maps(query, [8, 0])
    assert ahead.num_measured == 3
    for one in (ahead, none):
        np.testing.assert_array_equal(one.scan(query).scores, HeatMaps(store).scan(query).scores)
        assert one.num_measured == sum(COUNTS)
    assert len(list(steps)) == 4  # five in three chunks, four in two


def test_what_a_store_lacks_is_said(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "store", "int8", 7)
    with pytest.raises(FovealError, match=r"no 'patches\.layer3', which heat maps need; make a store with"):
        HeatMaps(store, "patches.layer3")
    maps = HeatMaps(store)
    for patch in (-1, 6):
        with pytest.raises(FovealError, match=rf"patch {patch}; an image of .* has 0 to 5"):
            maps.vector(0, patch)
    with pytest.raises(FovealError, match="rows from 9 to 9"):
        maps.vector(9, 0)
    with pytest.raises(FovealError, match=r"a query of shape \(7,\); patches of .* are of 12"):
        maps.scan(np.zeros(7, np.float32))


def test_processors_without_exact_int8_products_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, meant = made(tmp_path / "store", "int8", 7)
    monkeypatch.setattr(heatmap, "_multiplies_int8", lambda: False)
    maps = HeatMaps(store)
    vector = maps.vector(2, 3)
    found = maps.maps(vector, list(range(sum(COUNTS)))).reshape(sum(COUNTS), -1)
    np.testing.assert_allclose(found, cosines(meant, vector.astype(np.float64)), atol=1e-5)


def test_three_digits_of_int8_are_as_good_as_float32(tmp_path: Path) -> None:
    store, meant = made(tmp_path / "store", "int8", None)
    query = np.random.default_rng(8).standard_normal(WIDTH).astype(np.float32)
    found = HeatMaps(store).scan(query)
    np.testing.assert_allclose(found.scores, cosines(meant, query.astype(np.float64)).max(axis=1), atol=3e-7)


def test_threads_of_the_caller_stay_as_many(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "store", "int8", 7)
    before = torch.get_num_threads()
    HeatMaps(store).scan(np.ones(WIDTH, np.float32))
    assert torch.get_num_threads() == before
