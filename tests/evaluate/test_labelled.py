from pathlib import Path

import pytest
import torch

from foveal.errors import FovealError
from foveal.evaluate import knn
from foveal.evaluate.labelled import extract_labelled
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet


class _Interrupted(Exception):
    pass


def test_features_by_way_of_a_folder_are_those_without(model: Model, colours: Path, tmp_path: Path) -> None:
    (colours / "test" / "red" / "1.png").write_bytes(b"damaged")
    train, test = ImageSet.open(colours / "train"), ImageSet.open(colours / "test")
    settings = {"what": ("cls", "mean"), "layers": [0, 1], "batch_size": 3}
    *plain, classes = extract_labelled(model, train, test, **settings)  # type: ignore[arg-type]
    *by_folder, same = extract_labelled(model, train, test, **settings, folder=tmp_path)  # type: ignore[arg-type]
    assert classes == same == ["blue", "green", "red"]
    for found, kept, count in zip(plain, by_folder, (21, 8), strict=True):
        assert len(kept.labels) == count
        assert torch.equal(found.labels, kept.labels)
        assert list(found.arrays) == ["cls.layer0", "mean.layer0", "cls.layer1", "mean.layer1"]
        for name, values in found.arrays.items():
            torch.testing.assert_close(kept.arrays[name], values, atol=1e-5, rtol=1e-5)


def test_an_interrupted_evaluation_computes_only_what_is_missing(model: Model, colours: Path, tmp_path: Path) -> None:
    train, test = ImageSet.open(colours / "train"), ImageSet.open(colours / "test")
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if total == 9:
            raise _Interrupted

    with pytest.raises(_Interrupted):
        knn.run(model, train, test, ks=[2], batch_size=5, folder=tmp_path / "work", progress=interrupt)
    seen.clear()
    rows = knn.run(
        model, train, test, ks=[2], batch_size=5, folder=tmp_path / "work", progress=lambda *step: seen.append(step)
    )
    assert {total for _, total in seen} == {9}  # nothing of the train set
    assert rows == knn.run(model, train, test, ks=[2], batch_size=5)
    with pytest.raises(FovealError, match="another stamp"):
        knn.run(model, train, test, ks=[2], batch_size=4, folder=tmp_path / "work")
