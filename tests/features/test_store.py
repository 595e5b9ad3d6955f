import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import foveal
from foveal.errors import FovealError, ImageSetError
from foveal.features.extract import Model
from foveal.features.store import write_features
from foveal.images.imageset import ImageSet


def test_folder_holds_arrays_rows_and_card(model: Model, photos: Path, tmp_path: Path) -> None:
    images = ImageSet.open(photos)
    card = write_features(tmp_path / "out", model, images, what=("cls", "patches"), batch_size=2)
    expected = model.extract_set(images, what=("cls", "patches"), batch_size=2)
    cls, patches = np.load(tmp_path / "out" / "cls.npy"), np.load(tmp_path / "out" / "patches.npy")
    assert cls.dtype == np.float32
    assert np.array_equal(cls, expected.arrays["cls"].numpy())
    assert np.array_equal(patches, expected.arrays["patches"].half().numpy())
    rows = pq.read_table(tmp_path / "out" / "rows.parquet").to_pydict()
    assert rows["index"] == expected.indices.tolist()
    assert rows["uri"] == [images.uri(i) for i in rows["index"]]
    assert rows["label"] == ["cat", "cat", "dog", "dog", "dog"]
    assert json.loads((tmp_path / "out" / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["arrays"]["patches.npy"] == {"shape": [5, 4, 4, 48], "dtype": "float16"}
    assert card["preprocessing"]["crop_size"] == 28
    assert card["image_set"] == {"hash": images.hash, "num_images": 6}
    assert sum(card["bad"].values()) == 1
    assert card["versions"]["foveal"] == foveal.__version__
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


def test_an_earlier_feature_folder_is_replaced_and_nothing_else(model: Model, photos: Path, tmp_path: Path) -> None:
    images = ImageSet.open(photos)
    write_features(tmp_path / "out", model, images, what=("cls", "registers"))
    write_features(tmp_path / "out", model, images.subset([0, 1]))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["card.json", "cls.npy", "rows.parquet"]
    assert np.load(tmp_path / "out" / "cls.npy").shape == (2, 48)
    before = sorted(photos.rglob("*"))
    with pytest.raises(FovealError, match="exists and is not a feature folder"):
        write_features(photos, model, images)
    assert sorted(photos.rglob("*")) == before


def test_a_failure_leaves_the_earlier_folder_and_no_rest(model: Model, photos: Path, tmp_path: Path) -> None:
    images = ImageSet.open(photos)
    write_features(tmp_path / "out", model, images)
    damaged = images.subset([i for i in range(len(images)) if "damaged" in images.uri(i)])
    with pytest.raises(ImageSetError, match="none of the 1 images"):
        write_features(tmp_path / "out", model, damaged)
    with pytest.raises(FovealError, match=r"patches of shapes|different patch grids"):
        write_features(tmp_path / "out", model, images, what=("patches",), fit="resize", batch_size=1)
    assert np.load(tmp_path / "out" / "cls.npy").shape == (5, 48)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


def test_a_place_that_cannot_be_written_is_an_error(model: Model, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FovealError, match="cannot be written"):
        write_features(tmp_path / "file" / "out", model, ImageSet.open(photos))
    with pytest.raises(FovealError, match="not a feature folder"):
        write_features(tmp_path / "file", model, ImageSet.open(photos))


def test_features_beyond_float16_are_refused(photos: Path, tmp_path: Path, model: Model) -> None:
    class Loud(Model):
        def _encode(self, arrays, what):  # type: ignore[no-untyped-def]
            return {name: torch.full((len(arrays), 2, 2, 3), 1e5) for name in what}

    with pytest.raises(FovealError, match="patches features are not finite in float16"):
        write_features(tmp_path / "out", Loud(model.engine, model.card), ImageSet.open(photos), what=("patches",))
