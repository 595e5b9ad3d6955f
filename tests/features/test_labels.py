from pathlib import Path

import pyarrow as pa
import pytest

from foveal.errors import ImageSetError
from foveal.features.labels import check_apart, number_labels, split_by_uri
from foveal.images.imageset import ImageSet


def _set(labels: list[str | None], root: str = "/nowhere", first: int = 0) -> ImageSet:
    uris = [f"{first + i}.png" for i in range(len(labels))]
    return ImageSet(pa.table({"uri": uris, "label": pa.array(labels, pa.string())}), root=Path(root))


def test_classes_are_numbered_by_name_alike_in_both_sets() -> None:
    train, test, classes = number_labels(_set(["dog", "ant", "cat", "dog"]), _set(["dog", "cat"]))
    assert classes == ["ant", "cat", "dog"]
    assert train.tolist() == [2, 0, 1, 2]
    assert test.tolist() == [2, 1]


def test_test_labels_that_train_lacks_are_named() -> None:
    with pytest.raises(ImageSetError, match=r"that the train set lacks: eel, elk; train has 2 classes, e\.g\. ant"):
        number_labels(_set(["ant", "dog"]), _set(["elk", "dog", "eel"]))


@pytest.mark.parametrize(("train", "test", "role"), [([None, "a"], ["a"], "train"), (["a"], [None], "test")])
def test_sets_without_labels_say_how_to_give_them(train: list, test: list, role: str) -> None:
    with pytest.raises(ImageSetError, match=rf"the {role} set has images without a label .*CLASS/name\.jpg.* tab"):
        number_labels(_set(train), _set(test))


def test_split_is_complete_disjoint_and_about_the_share() -> None:
    images = _set(["a"] * 1000)
    rest, held_out = split_by_uri(images, share=0.2)
    uris = [{part.uri(i) for i in range(len(part))} for part in (rest, held_out)]
    assert not uris[0] & uris[1]
    assert len(uris[0] | uris[1]) == 1000
    assert abs(len(held_out) - 200) < 5 * (1000 * 0.2 * 0.8) ** 0.5


def test_an_image_stays_on_its_side_when_others_come() -> None:
    small, large = (split_by_uri(_set(["a"] * n), share=0.3)[1] for n in (50, 100))
    in_small = [small.uri(i) for i in range(len(small))]
    assert [large.uri(i) for i in range(len(large))][: len(in_small)] == in_small


@pytest.mark.parametrize(("share", "message"), [(0.0, "split=0.0"), (1.0, "split=1.0"), (1e-9, "leaves one side")])
def test_splits_that_leave_nothing_are_errors(share: float, message: str) -> None:
    with pytest.raises(ImageSetError, match=message):
        split_by_uri(_set(["a"] * 10), share=share)


def test_shared_images_are_counted() -> None:
    check_apart(_set(["a"] * 3), _set(["a"] * 2, first=3))
    check_apart(_set(["a"] * 3), _set(["a"] * 2, root="/elsewhere"))
    with pytest.raises(ImageSetError, match="2 of 4 test images are train images as well"):
        check_apart(_set(["a"] * 3), _set(["a"] * 4, first=1))
