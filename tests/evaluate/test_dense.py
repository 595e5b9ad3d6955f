"""Metrics of masks and depth against scikit-learn and the formulas."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix as theirs
from sklearn.metrics import jaccard_score, root_mean_squared_error

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate import depth, segmentation
from foveal.tasks.samples import DenseSet, Depths, Masks, Pair, window_of


class Fixed:
    """Answers every picture with the next of some arrays."""

    class _Side:
        class card:
            classes = ("a", "b", "c", "nowhere")

            class backbone:
                channels = 3

    model = head = _Side

    def __init__(self, answers: list[np.ndarray]) -> None:
        self.answers = iter(answers)

    def predict(self, pixels: np.ndarray, **_: object) -> np.ndarray:
        return next(self.answers)


def written(folder: Path, targets: list[np.ndarray], reader: Masks | Depths) -> DenseSet:
    pairs = []
    for number, target in enumerate(targets):
        pair = Pair(folder / f"{number}.png", folder / f"{number}_target.png")
        Image.fromarray(np.zeros((*target.shape, 3), np.uint8)).save(pair.image)
        Image.fromarray(target).save(pair.target)
        pairs.append(pair)
    return DenseSet(pairs, reader)


def test_segmentation_agrees_with_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 4, (7, 11), dtype=np.uint8) for _ in range(5)]
    for mask in masks:
        mask[mask == 3] = 255
    answers = [generator.integers(0, 3, (7, 11)).astype(np.uint16) for _ in range(5)]
    test = written(tmp_path, masks, Masks(["a", "b", "c", "nowhere"]))
    found = segmentation.run(Fixed(answers), test, name="linear")  # type: ignore[arg-type]
    kept = np.concatenate([mask.ravel() for mask in masks]) != 255
    true, guess = (np.concatenate([one.ravel() for one in many])[kept] for many in (masks, answers))
    np.testing.assert_array_equal(found.confusion, theirs(true, guess, labels=range(4)))
    by_name = {one.metric: one for one in found.measures}
    ious = 100 * jaccard_score(true, guess, average=None)
    assert by_name["linear mIoU"].value == pytest.approx(ious.mean())
    assert [by_name[f"linear IoU {name}"].value for name in "abc"] == pytest.approx(ious)
    assert by_name["linear pixel accuracy"].value == pytest.approx(100 * (true == guess).mean())
    assert "linear IoU nowhere" not in by_name
    assert by_name["linear mIoU"].low < by_name["linear mIoU"].value < by_name["linear mIoU"].high


def test_depth_agrees_with_the_formulas_over_pictures(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    targets = [generator.integers(500, 12_000, (48, 64)).astype(np.uint16) for _ in range(3)]
    for target in targets:
        target[generator.random(target.shape) < 0.3] = 0
    answers = [generator.uniform(0.0, 12, (48, 64)).astype(np.float32) for _ in range(3)]
    test = written(tmp_path, targets, Depths())
    found = {one.metric: one.value for one in depth.run(Fixed(answers), test, crop="nyu", name="lin.1")}  # type: ignore[arg-type]
    wanted = []
    for target, answer in zip(targets, answers, strict=True):
        t, f = target[4:47, 4:60] / 1000, np.clip(answer, 0.001, 10)[4:47, 4:60]
        kept = (t > 0.001) & (t < 10)
        ratio = np.maximum(t[kept] / f[kept], f[kept] / t[kept])
        error = np.abs(t - f)[kept]
        wanted.append(
            [root_mean_squared_error(t[kept], f[kept]), (error / t[kept]).mean(), 100 * (ratio < 1.25).mean()]
        )
    means = np.mean(wanted, axis=0)
    assert [found["lin.1 RMSE"], found["lin.1 AbsRel"], found["lin.1 delta1"]] == pytest.approx(means, rel=1e-5)
    assert found["lin.1 delta1"] < found["lin.1 delta2"] < found["lin.1 delta3"]


def test_crops_are_the_published_rows_and_columns() -> None:
    rows, columns = np.nonzero(depth.cropped((480, 640), "nyu"))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    rows, columns = np.nonzero(depth.cropped((352, 1216), "garg"))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (143, 348, 43, 1171)
    assert depth.cropped((4, 5), "none").all()


def test_depth_of_zeros_and_unknown_crops_are_refused(tmp_path: Path) -> None:
    test = written(tmp_path, [np.zeros((4, 6), np.uint16)], Depths())
    with pytest.raises(ImageSetError, match=r"none of the 1 pictures has a depth between 0\.001 and 10 m"):
        depth.run(Fixed([np.ones((4, 6), np.float32)]), test)  # type: ignore[arg-type]
    with pytest.raises(FovealError, match="crop='kitty' is not known"):
        depth.run(Fixed([]), test, crop="kitty")  # type: ignore[arg-type]


def test_parts_of_pictures_are_the_published_ones(tmp_path: Path) -> None:
    assert window_of((375, 1242), "bottom") == (slice(23, 375), slice(13, 1229))
    assert window_of((480, 640), "framed") == (slice(45, 472), slice(43, 608))
    assert window_of((60, 80), "framed") == window_of((60, 80), "bottom") == (slice(0, 60), slice(0, 80))
    depth_map = np.arange(360 * 1220, dtype=np.uint32).reshape(360, 1220).astype(np.uint16)
    whole = written(tmp_path, [depth_map], Depths(1.0))
    pixels, target = replace(whole, part="bottom").load(0)
    np.testing.assert_array_equal(target, depth_map[8:, 2:-2])
    assert pixels.shape == (352, 1216, 3)
    assert replace(whole, part="bottom").hash != whole.hash
