from pathlib import Path

import pyarrow as pa
import pytest

from foveal.errors import FovealError
from foveal.evaluate import knn, linear_cached, logistic
from foveal.evaluate.few_shot import FewShot
from foveal.evaluate.held_out import check_choosable, split_tenth
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet


def _set(labels: str, first: int = 0) -> ImageSet:
    """Images that do not exist: whatever is refused is refused before they are read."""
    uris = [f"{first + i}.png" for i in range(len(labels))]
    return ImageSet(pa.table({"uri": uris, "label": list(labels)}), root=Path("/nowhere"))


def test_a_tenth_is_held_out_and_nothing_lost() -> None:
    held_out, kept = split_tenth(37, seed=3)
    assert (len(held_out), len(kept)) == (3, 34)
    assert sorted([*held_out.tolist(), *kept.tolist()]) == list(range(37))
    assert held_out.tolist() != split_tenth(37, seed=4)[0].tolist()
    with pytest.raises(FovealError, match="9 readable train images; a tenth of them chooses, give at least 10"):
        split_tenth(9, seed=0)


@pytest.mark.parametrize("protocol", [logistic, linear_cached])
@pytest.mark.parametrize(
    ("train", "few_shot", "message"),
    [
        ("aaaabbbbb", None, "9 readable train images"),
        ("aaaaabbbbb", FewShot(1), "n_per_class=1 leaves no image of a class to choose with"),
        ("aaaaabbbbb", FewShot(3), "6 readable train images; a tenth"),
        ("abbbbbcccccd", FewShot(5), r"fewer images of a \(1\), d \(1\); choose at most 1, or leave these"),
    ],
)
def test_what_cannot_be_chosen_with_is_refused_before_an_image_is_read(
    model: Model, protocol: object, train: str, few_shot: FewShot | None, message: str
) -> None:
    with pytest.raises(FovealError, match=message):
        protocol.run(model, _set(train), _set("ab", 50), few_shot=few_shot)  # type: ignore[attr-defined]


def test_classes_of_one_image_are_named_for_knn_too(model: Model) -> None:
    with pytest.raises(FovealError, match=r"n_per_class=2, and the train set has fewer images of a \(1\)"):
        knn.run(model, _set("abbcc"), _set("ab", 50), few_shot=FewShot(2))


def test_sets_without_labels_are_left_to_those_who_number_them() -> None:
    images = ImageSet(pa.table({"uri": ["1.png"]}), root=Path("/nowhere"))
    check_choosable(images, FewShot(2))
