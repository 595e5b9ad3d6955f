from pathlib import Path

import pytest

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.layouts.classification import open_classification
from foveal.features.labels import number_labels

SYNSETS = ("n01440764", "n01443537")


def _images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_train_and_val_folders(tmp_path: Path) -> None:
    _images(tmp_path / "train", "a/1.jpg", "b/2.jpg", "b/3.jpg")
    _images(tmp_path / "val", "b/4.jpg")
    found = open_classification(str(tmp_path))
    assert (found.name, found.train.labels, found.test.labels) == (tmp_path.name, ["a", "b", "b"], ["b"])
    assert found.sizes == "3 train and 1 test images"
    _images(tmp_path / "test", "a/5.jpg", "b/6.jpg")
    assert open_classification(str(tmp_path)).test.labels == ["a", "b"]
    assert open_classification(str(tmp_path)).hash != found.hash


def test_lists(tmp_path: Path) -> None:
    _images(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "train.txt").write_text("1.jpg\ta\n")
    with pytest.raises(ImageSetError, match=r"has train.txt, but not .*test.txt or .*val.txt"):
        open_classification(str(tmp_path))
    (tmp_path / "test.txt").write_text("2.jpg\ta\n")
    assert open_classification(str(tmp_path)).test.uri(0) == "2.jpg"


def test_lists_come_before_folders_of_the_same_names(tmp_path: Path) -> None:
    _images(tmp_path, "train/deep/a/1.jpg", "test/deep/b/2.jpg")
    (tmp_path / "train.txt").write_text("train/deep/a/1.jpg, 5, 1\n")
    assert open_classification(str(tmp_path)).train.labels is None  # half of a pair of lists
    (tmp_path / "test.txt").write_text("test/deep/b/2.jpg, 6, 1\n")
    found = open_classification(str(tmp_path))
    assert (found.train.labels, found.test.labels) == (["5"], ["6"])


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "num_classes"), [("caltech101", 3450, 1723, 99), ("grocery", 2640, 2485, 81)]
)
def test_public_lists_are_read(real_images: Path, name: str, num_train: int, num_test: int, num_classes: int) -> None:
    found = open_classification(str(real_images / name))
    assert (len(found.train), len(found.test)) == (num_train, num_test)
    train, test, classes = number_labels(found.train, found.test)
    assert len(classes) == num_classes == len(train.unique()) == len(test.unique())


def test_one_set_is_split(tmp_path: Path) -> None:
    _images(tmp_path, *(f"{'ab'[i % 2]}/{i}.jpg" for i in range(40)))
    found = open_classification(str(tmp_path))
    assert len(found.train) + len(found.test) == 40
    assert len(open_classification(train=str(tmp_path), split=0.6).test) > len(found.test) > 0


@pytest.mark.parametrize("folder", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_as_distributed(tmp_path: Path, folder: str) -> None:
    base = tmp_path / "ILSVRC/Data/CLS-LOC"
    _images(base / "train", *(f"{synset}/{synset}_1.JPEG" for synset in SYNSETS))
    _images(base / "val", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    _images(base / "test", "ILSVRC2012_test_00000001.JPEG")
    with pytest.raises(ImageSetError, match=r"without classes; put LOC_val_solution.csv"):
        open_classification(str(tmp_path / folder))
    lines = ["ImageId,PredictionString", f"ILSVRC2012_val_00000002,{SYNSETS[0]} 1 2 3 4 {SYNSETS[0]} 5 6 7 8"]
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("\n".join(lines))
    with pytest.raises(ImageSetError, match=r"does not name 1 images of .*, first ILSVRC2012_val_00000001"):
        open_classification(str(tmp_path / folder))
    solution.write_text("\n".join([*lines, f"ILSVRC2012_val_00000001,{SYNSETS[1]} 1 2 3 4 "]))
    assert open_classification(str(tmp_path / folder)).test.labels == [SYNSETS[1], SYNSETS[0]]


def test_missing_half_of_imagenet_is_named(tmp_path: Path) -> None:
    _images(tmp_path / "ILSVRC/Data/CLS-LOC/val", "n01440764/1.JPEG")
    with pytest.raises(ImageSetError, match=r"CLS-LOC has val, but not .*CLS-LOC/train"):
        open_classification(str(tmp_path))


def test_contradictions_are_refused(tmp_path: Path) -> None:
    _images(tmp_path, "a/1.jpg")
    with pytest.raises(FovealError, match="either as --data, or as --train"):
        open_classification()
    with pytest.raises(FovealError, match="two sources"):
        open_classification("x", train="y")
    with pytest.raises(FovealError, match="--split has no effect where a test set is given"):
        open_classification(train=str(tmp_path), test=str(tmp_path), split=0.3)
