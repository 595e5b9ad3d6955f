from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.few_shot import FewShot
from foveal.evaluate.knn import pixel_features, run, run_pixels, score
from foveal.evaluate.labelled import Labelled
from foveal.evaluate.results import Measure
from foveal.features.extract import Model
from foveal.features.neighbours import knn_accuracy
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD


def _sets(colours: Path) -> tuple[ImageSet, ImageSet]:
    return ImageSet.open(colours / "train"), ImageSet.open(colours / "test")


def test_colours_are_told_apart(model: Model, colours: Path) -> None:
    assert run(model, *_sets(colours), ks=[1, 5]) == [
        Measure("knn-1 top-1", 100.0, "%", 100.0, 100.0),
        Measure("knn-5 top-1", 100.0, "%", 100.0, 100.0),
    ]


def test_rows_are_the_accuracies_of_the_extracted_features(model: Model, colours: Path) -> None:
    train, test = _sets(colours)
    (colours / "train" / "red" / "3.png").write_bytes(b"damaged")
    wrong = torch.tensor([0, 1, 2] * 7)  # labels that do not follow the colours, so that some answers are wrong
    train = ImageSet(train.rows.set_column(3, "label", [["abc"[i] for i in wrong.tolist()]]), root=train.root)
    test = ImageSet(test.rows.set_column(3, "label", [list("abcabcabc")]), root=test.root)
    rows = run(model, train, test, ks=[3, 4])
    found = model.extract_set(train)
    expected = knn_accuracy(
        found.arrays["cls"], wrong[found.indices], model.extract_set(test).arrays["cls"], wrong[:9], ks=[3, 4]
    )
    assert [row.value for row in rows] == pytest.approx([100 * expected[3].top1, 100 * expected[4].top1])
    assert len(found.indices) == 20


def test_labels_and_overlap_are_checked_before_any_work(model: Model, colours: Path) -> None:
    train = ImageSet.open(colours / "train")
    (colours / "test" / "red").rename(colours / "test" / "crimson")
    with pytest.raises(ImageSetError, match="labels that the train set lacks: crimson"):
        run(model, train, ImageSet.open(colours / "test"))
    with pytest.raises(ImageSetError, match="21 of 21 test images are train images"):
        run(model, train, train)
    with pytest.raises(ImageSetError, match="without a label"):
        run(model, train, ImageSet.open(colours / "test" / "blue"))


def test_no_k_that_fits_is_an_error(model: Model, colours: Path) -> None:
    with pytest.raises(FovealError, match="k=100, 200 with 21 train images; choose a k up to that"):
        run(model, *_sets(colours), ks=[100, 200])


def _noisy(num: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 5
    return Labelled(torch.eye(5)[labels] + 0.8 * torch.randn(num, 5, generator=generator), labels)


def test_few_shot_gives_mean_and_deviation_of_the_draws() -> None:
    train, test = _noisy(50, 0), _noisy(40, 1)
    rows = score(train, test, ks=[3], few_shot=FewShot(2, 4), seed=7)
    assert [row.metric for row in rows] == [
        "knn-3 top-1, 2 per class, mean of 4",
        "knn-3 top-1, 2 per class, deviation",
        "knn-3 top-5, 2 per class, mean of 4",
        "knn-3 top-5, 2 per class, deviation",
    ]
    singles = []
    for number in range(4):
        generator = np.random.default_rng((7, number))
        drawn = [generator.choice(np.flatnonzero(train.labels.numpy() == c), 2, replace=False) for c in range(5)]
        index = torch.from_numpy(np.sort(np.concatenate(drawn)))
        found = knn_accuracy(train.features[index], train.labels[index], *test, ks=[3])
        singles.append(100 * found[3].top1)
    assert rows[0].value == pytest.approx(np.mean(singles))
    assert rows[1].value == pytest.approx(np.std(singles, ddof=1))
    assert rows[1].value > 0
    assert rows[0].low < rows[0].value < rows[0].high
    assert score(train, test, ks=[3], few_shot=FewShot(2, 4), seed=7) == rows
    assert score(train, test, ks=[3], few_shot=FewShot(2, 4), seed=8) != rows


def test_few_shot_with_all_images_is_the_whole_train_set() -> None:
    train, test = _noisy(50, 0), _noisy(40, 1)
    rows = score(train, test, ks=[10], few_shot=FewShot(10, 1))
    assert rows[0].value == score(train, test, ks=[10])[0].value
    assert rows[1].value == 0


@pytest.mark.parametrize(
    ("n_per_class", "n_tries", "message"), [(11, 1, "has 10 readable train"), (0, 1, "n_per_c"), (1, 0, "n_tries=0")]
)
def test_impossible_draws_are_named(n_per_class: int, n_tries: int, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        score(_noisy(50, 0), _noisy(40, 1), ks=[3], few_shot=FewShot(n_per_class, n_tries))


def test_pixel_features_are_the_resized_normalised_pixels(colours: Path) -> None:
    images = ImageSet.open(colours / "test")
    found = pixel_features(images, size=5, batch_size=4)
    assert found.arrays["pixels"].shape == (9, 75)
    assert found.indices.tolist() == list(range(9))
    with Image.open(colours / "test" / images.uri(7)) as picture:
        small = np.asarray(picture.resize((5, 5), Image.Resampling.BICUBIC))
    expected = (small / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(
        found.arrays["pixels"][7].numpy(), expected.transpose(2, 0, 1).ravel(), atol=1e-6, rtol=0
    )


def test_pixel_rows_say_so(colours: Path) -> None:
    rows = run_pixels(*_sets(colours), size=8, ks=[3])
    assert rows == [Measure("raw pixels knn-3 top-1", 100.0, "%", 100.0, 100.0)]
