"""Class names of image sets as class numbers, the same in train and test."""

import hashlib

import torch
from torch import Tensor

from foveal.errors import ImageSetError
from foveal.images.imageset import ImageSet


def number_labels(train: ImageSet, test: ImageSet) -> tuple[Tensor, Tensor, list[str]]:
    """Number the classes of the train set in the order of their names, and the labels of both sets by it.

    Returns:
        Labels of train (N,) and of test (Q,), int64, and the class names by number.

    Raises:
        ImageSetError: a set without labels, or test labels that train lacks.
    """
    train_names, test_names = _names(train, "train"), _names(test, "test")
    classes = sorted(set(train_names))
    if unknown := sorted(set(test_names) - set(classes)):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ImageSetError(
            f"the test set has labels that the train set lacks: {', '.join(unknown[:5])}{more}; "
            f"train has {len(classes)} classes, e.g. {', '.join(classes[:5])}; give both sets the same class names"
        )
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[n] for n in train_names]), torch.tensor([number[n] for n in test_names]), classes


def split_by_uri(images: ImageSet, *, share: float) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of a set by the hash of each uri, so that an image stays on its side when others come or go.

    Args:
        images: the set.
        share: held out, above 0 and below 1; met on average, not exactly.

    Returns:
        The rest and the held-out images.

    Raises:
        ImageSetError: a share out of range, or a side that is left empty.
    """
    if not 0 < share < 1:
        raise ImageSetError(f"split={share}; choose a share above 0 and below 1, e.g. 0.2")
    held_out = [_fraction(images.uri(i)) < share for i in range(len(images))]
    if all(held_out) or not any(held_out):
        raise ImageSetError(
            f"a split of {share} leaves one side of {len(images)} images empty; "
            "give more images, another share, or a test set"
        )
    rest = images.subset([i for i, out in enumerate(held_out) if not out])
    return rest, images.subset([i for i, out in enumerate(held_out) if out])


def split_by_column(images: ImageSet) -> tuple[ImageSet, ImageSet] | None:
    """Return the train and the test images of a set whose column split names both, and every image one; else None."""
    if "split" not in images.rows.column_names:
        return None
    split = images.rows.column("split").to_pylist()
    if set(split) != {"train", "test"}:
        return None
    train, test = ([i for i, name in enumerate(split) if name == part] for part in ("train", "test"))
    return images.subset(train), images.subset(test)


def check_apart(train: ImageSet, test: ImageSet) -> None:
    """Raise ImageSetError when a file is in both sets: an image is its own nearest neighbour."""
    in_train = {str(train.root / train.uri(i)) for i in range(len(train))}
    if shared := sum(str(test.root / test.uri(i)) in in_train for i in range(len(test))):
        raise ImageSetError(
            f"{shared} of {len(test)} test images are train images as well, so that accuracy would mean nothing; "
            "give other test images, or none and a split"
        )


def _fraction(uri: str) -> float:
    return int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8]) / 2**64


def _names(images: ImageSet, role: str) -> list[str]:
    if (names := images.labels) is None:
        raise ImageSetError(
            f"the {role} set has images without a label ({images.root}); put each image into a folder named after its "
            "class (CLASS/name.jpg), or give a .txt list with a tab and the label after each path"
        )
    return names
