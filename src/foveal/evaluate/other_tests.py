"""Further test sets of a classifier: other photographs of some of its classes, or other labels of the same ones.

Shapes: N images, W labels of one image.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.features.labels import check_apart, number_labels
from foveal.images.imageset import ImageSet


@dataclass(frozen=True)
class OtherTest:
    """One further test.

    Attributes:
        name: of the data; public ones by the name under which figures are published.
        images: None where they are those of the first test.
        truth: (N, W) int64 class numbers, any of which is right; -1 fills up. An image with no other does not count.
        classes: class numbers that may be answered; None is all.
        hash: of images and labels, those of the train set included.
    """

    name: str
    images: ImageSet | None
    truth: Tensor
    classes: Tensor | None
    hash: str


def open_other(text: str, train: ImageSet, test: ImageSet) -> OtherTest:
    """Open a further test, NAME=SOURCE.

    The source is a labelled set, such as ImageNet-V2, -A, -R and -Sketch: where it lacks classes of the train set, only
    its own may be answered, as published. Labels that are numbers where the train set has names, as in ImageNet-V2,
    count the train classes in the order of their names. Or it is a JSON file with a list of class numbers for each test
    image, in the order of the names of their files, whatever their folders, as the reassessed labels of ImageNet have
    it: any of them is right, and images with an empty list do not count.

    Args:
        text: NAME=SOURCE.
        train: the train set, which has the classes.
        test: the first test set.

    Raises:
        FovealError: another form, or a file that holds something else.
        ImageSetError: labels that the train set lacks, or images that are in it.
    """
    name, mark, source = text.partition("=")
    if not (mark and name.strip() and source.strip()):
        raise FovealError(f"--also {text}; write NAME=FOLDER or NAME=labels.json, such as ImageNet-V2=imagenetv2")
    name, path = name.strip(), Path(source.strip())
    if path.suffix.lower() == ".json":
        return _relabelled(name, path, train, test)
    images = _by_number(ImageSet.open(path), sorted(set(train.labels or [])))
    check_apart(train, images)
    _, labels, classes = number_labels(train, images)
    own = labels.unique()
    only = None if len(own) == len(classes) else own
    return OtherTest(name, images, labels[:, None], only, _hash(train, images))


def _by_number(images: ImageSet, classes: list[str]) -> ImageSet:
    """Return the set with names of classes for labels, where its labels are their numbers."""
    labels = images.labels
    if labels is None or set(labels) & set(classes) or not all(re.fullmatch(r"[0-9]+", label) for label in labels):
        return images
    if beyond := [label for label in labels if int(label) >= len(classes)]:
        raise ImageSetError(f"{images.root} has the class {beyond[0]}; the train set has {len(classes)}, from 0")
    place = images.rows.column_names.index("label")
    named = pa.array([classes[int(label)] for label in labels], pa.string())
    return ImageSet(images.rows.set_column(place, "label", named), root=images.root)


def _relabelled(name: str, path: Path, train: ImageSet, test: ImageSet) -> OtherTest:
    """Return the images of the test set with the labels of a file."""
    try:
        data = path.read_bytes()
        lists = json.loads(data)
    except (OSError, ValueError) as error:
        raise FovealError(f"{path} cannot be read as JSON ({error}); give a list of lists of class numbers") from error
    num_classes = len(set(train.labels or []))
    if not isinstance(lists, list) or len(lists) != len(test):
        count = f"{len(lists)} entries" if isinstance(lists, list) else "no list"
        raise FovealError(
            f"{path} holds {count}; it must have one list of class numbers for each of {len(test)} images"
        )
    for number, one in enumerate(lists):
        if not isinstance(one, list) or not all(type(c) is int and 0 <= c < num_classes for c in one):
            raise FovealError(
                f"{path}, entry {number}, is {one}; write a list of class numbers, 0 to {num_classes - 1}"
            )
    if not any(lists):
        raise FovealError(f"{path} has no label at all; check the file")
    order = sorted(range(len(test)), key=lambda row: (Path(test.uri(row)).name, test.uri(row)))
    truth = torch.full((len(test), max(map(len, lists))), -1)
    for row, one in zip(order, lists, strict=True):
        truth[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
    return OtherTest(name, None, truth, None, _hash(train, test, data))


def _hash(train: ImageSet, test: ImageSet, labels: bytes = b"") -> str:
    return hashlib.sha256(f"{train.hash} {test.hash} ".encode() + labels).hexdigest()
