"""Labelled images to learn from and to classify: folders of classes, lists, ImageNet as distributed, or a split."""

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.published import IMAGENET
from foveal.features.labels import split_by_column, split_by_uri
from foveal.images.imageset import ImageSet

_SPLIT = 0.2
_TESTS = ("test", "val")  # the first that is there
_CLS_LOC = Path("ILSVRC/Data/CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"


@dataclass(frozen=True)
class Classification:
    """Two labelled image sets and the name of the data."""

    name: str
    train: ImageSet
    test: ImageSet

    @property
    def hash(self) -> str:
        """The hash of both sets."""
        return hashlib.sha256(f"{self.train.hash} {self.test.hash}".encode()).hexdigest()

    @property
    def sizes(self) -> str:
        """Their sizes in words."""
        return f"{len(self.train)} train and {len(self.test)} test images"


def open_classification(
    data: str | None = None, *, train: str | None = None, test: str | None = None, split: float | None = None
) -> Classification:
    """Open labelled images of a layout that is recognised, or two sets by name.

    Args:
        data: a folder with train.txt and test.txt or val.txt (test where both are there), or else with train/ and test/
            or val/ of CLASS/name.jpg or shards; ImageNet as distributed, that is, with ILSVRC/Data/CLS-LOC and
            LOC_val_solution.csv; or any one labelled set, of which a share is held out, or what its column split says.
        train: instead of `data`: any labelled set.
        test: the set that is classified; None holds out a share of `train`.
        split: the share; None is 0.2.

    Raises:
        FovealError: arguments that contradict each other.
        ImageSetError: a part of a layout is missing, or something is no set of images.
    """
    if (data is None) == (train is None):
        raise FovealError(
            "give the labelled images either as --data, or as --train with --test"
            if data is None
            else "--data and --train name two sources of labelled images; leave one of them out"
        )
    if data is not None and test is not None:
        raise FovealError("--test has no effect beside --data; give --train and --test instead")
    if train is not None:
        name, sets = Path(train).name, (train, test)
    else:
        name, sets = Path(str(data)).resolve().name, _parts(Path(str(data)))
    first, second = sets
    if second is None:
        images = ImageSet.open(first)
        named = split_by_column(images) if split is None else None
        kept, held_out = named or split_by_uri(images, share=_SPLIT if split is None else split)
        return Classification(name, kept, held_out)
    if split is not None:
        raise FovealError(f"--split has no effect where a test set is given ({second}); leave it out")
    train_set, test_set = ImageSet.open(first), _with_solution(ImageSet.open(second), Path(second))
    return Classification(IMAGENET if _is_imagenet(train_set, test_set) else name, train_set, test_set)


def _parts(data: Path) -> tuple[str, str | None]:
    """Return the sources of the train and the test set in a folder; None where it is one set."""
    for folder in (data / _CLS_LOC, data / _CLS_LOC.relative_to("ILSVRC"), data):
        missing = []
        for ending in (".txt", ""):  # lists know more than the folders beside them
            tests = [folder / f"{name}{ending}" for name in _TESTS]
            if folder.name == _CLS_LOC.name:
                tests = tests[1:]  # the labels of its test images were never published
            train, found = folder / f"train{ending}", [path for path in tests if path.exists()]
            if train.exists() and found:
                return str(train), str(found[0])
            if train.exists() or (found and folder != data):
                there, lacking = (train, tests) if train.exists() else (found[0], [train])
                missing.append(f"{folder} has {there.name}, but not {' or '.join(map(str, lacking))}")
        if missing:
            raise ImageSetError(missing[-1])
    return str(data), None


def _with_solution(images: ImageSet, folder: Path) -> ImageSet:
    """Give images that lie in one folder, as ImageNet's validation images do, the labels of their solution file."""
    if images.labels is not None or not images.uri(0).startswith("ILSVRC2012_val_"):
        return images
    places = [folder / _SOLUTION, *(parent / _SOLUTION for parent in folder.parents[:5])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ImageSetError(
            f"{folder} holds validation images without classes; put {_SOLUTION} of the distribution beside ILSVRC/, "
            "or the images into folders of their classes"
        )
    with path.open(newline="", encoding="utf-8") as file:
        label = {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and row[1].strip()}
    names = [Path(images.uri(i)).stem for i in range(len(images))]
    if unknown := [name for name in names if name not in label]:
        raise ImageSetError(f"{path} does not name {len(unknown)} images of {folder}, first {unknown[0]}")
    place = images.rows.column_names.index("label")
    labels = pa.array([label[name] for name in names], pa.string())
    return ImageSet(images.rows.set_column(place, "label", labels), root=images.root)


def _is_imagenet(train: ImageSet, test: ImageSet) -> bool:
    """Tell ImageNet-1k by its 50,000 validation images in 1,000 classes with names of WordNet."""
    classes = set(train.labels or [])
    return len(test) == 50_000 and len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes)
