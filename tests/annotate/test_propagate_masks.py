import numpy as np
import pytest
import torch
from hand_made import PATCH, iou, picture, things

from foveal.annotate.patch_head import Example, best_threshold, coverage, fit, moments
from foveal.annotate.propagate_masks import MaskPropagator, Trust, propagate_masks
from foveal.errors import FovealError
from foveal.features.geometry import Geometry
from foveal.images.preprocess import Preprocess

HEIGHT, WIDTH = 32, 44


def _example(number: int, mask: np.ndarray | None = None) -> Example:
    top, left = number * 3 % 14, number * 7 % 20
    mask = things(HEIGHT, WIDTH, [(top, left, top + 15, left + 19)]) if mask is None else mask
    return Example(picture(mask, seed=number), mask)


def test_one_mask_finds_the_thing_elsewhere_and_is_unsure_of_it() -> None:
    seen, truth = _example(5)
    (found,) = propagate_masks([_example(0)], [("b.jpg", seen)], class_name="brick")
    assert found is not None
    assert found.mask is not None
    assert iou(found.mask.pixels(), truth) > 0.9
    assert (found.image, found.class_name, found.state, found.source, found.score) == (
        "b.jpg",
        "brick",
        "unsure",
        "propagated",
        None,
    )


def test_held_out_examples_earn_trust() -> None:
    """23 right answers of 23 are the fewest that show a precision of 80 %."""
    propagator = MaskPropagator([_example(number) for number in range(23)])
    assert (propagator.calibration.num_held_out, propagator.calibration.num_right) == (23, 23)
    answer = propagator.answer(_example(29).seen)
    assert answer is not None
    state, probability = propagator.trusted(answer)
    assert state == "proposed"
    assert probability is not None
    assert probability > 0.9


def test_examples_that_contradict_each_other_are_not_trusted() -> None:
    examples = [_example(number) for number in range(30)]
    wrong = [Example(seen, np.roll(mask, 16, axis=0) if n % 2 else mask) for n, (seen, mask) in enumerate(examples)]
    propagator = MaskPropagator(wrong, trust=Trust(min_iou=0.9))
    answer = propagator.answer(_example(31).seen)
    assert answer is None or propagator.trusted(answer)[0] == "unsure"


def test_a_picture_without_the_thing_gets_no_mask() -> None:
    empty = np.zeros((HEIGHT, WIDTH), bool)
    examples = [_example(0), _example(1), _example(2, empty)]
    assert list(propagate_masks(examples, [("x", picture(empty, seed=9))], class_name="brick")) == [None]


def test_a_correction_teaches_what_the_first_example_did_not_show() -> None:
    """Red and a second colour are one thing only after the second is shown."""
    mask = things(HEIGHT, WIDTH, [(8, 12, 24, 32)])
    first, other = picture(mask), picture(mask, seed=1)
    other.patches[..., [0, 2]] = other.patches[..., [2, 0]]  # the thing lies in another direction of the features
    before = MaskPropagator([Example(first, mask)]).answer(other)
    after = MaskPropagator([Example(first, mask), Example(other, mask)]).answer(picture(mask, seed=2))
    assert after is not None
    assert iou(after.mask, mask) > 0.9
    again = MaskPropagator([Example(first, mask), Example(other, mask)]).answer(other)
    assert again is not None
    assert iou(again.mask, mask) > 0.9
    assert before is None or iou(before.mask, mask) < iou(again.mask, mask)


def test_the_head_is_ridge_regression_with_balanced_weights() -> None:
    examples = [_example(0), _example(1)]
    first, second = (moments(example) for example in examples)
    head = fit(type(first)(*(a + b for a, b in zip(first, second, strict=True))))
    rows = torch.cat([torch.nn.functional.normalize(e.seen.patches, dim=-1).flatten(0, 1) for e in examples]).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).numpy()
    inside = np.concatenate([coverage(e.mask, e.seen.geometry).ravel() for e in examples])
    weights, targets = (
        np.concatenate([inside / inside.sum(), (1 - inside) / (1 - inside).sum()]),
        np.ones(2 * len(rows)),
    )
    targets[len(rows) :] = -1
    both = np.concatenate([rows, rows])
    system = both.T @ (both * weights[:, None])
    system[range(9), range(9)] += 1e-3 * np.diag(system)[:9].mean()
    expected = np.linalg.solve(system, both.T @ (weights * targets))
    np.testing.assert_allclose([*head.weights.numpy(), head.bias], expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["resize", "crop", "pad"])
def test_coverage_is_the_mean_of_what_is_seen(mode: str) -> None:
    mask = np.random.default_rng(0).random((19, 30)) > 0.6
    crop = 12 if mode == "crop" else None
    geometry = Geometry.of(Preprocess(mode=mode, resize_size=19, crop_size=crop, patch_size=PATCH), 19, 30)
    found = coverage(mask, geometry)
    assert found.shape == geometry.grid
    if mode == "crop":
        top, left = geometry.offset
        assert found[1, 2] == pytest.approx(mask[top + 4 : top + 8, left + 8 : left + 12].mean())
    if mode == "pad":
        assert found.sum() * PATCH**2 == pytest.approx(mask.sum())
    if mode == "resize":
        assert found.mean() == pytest.approx(mask.mean(), abs=0.01)


def test_the_best_threshold_has_the_largest_intersection_over_union() -> None:
    generator = np.random.default_rng(0)
    scores, shares = generator.normal(size=50), generator.random(50)

    def value(threshold: float) -> float:
        taken = scores >= threshold
        return shares[taken].sum() / (taken.sum() + shares[~taken].sum())

    assert value(best_threshold([scores], [shares])) == pytest.approx(max(map(value, scores)))


def test_examples_that_do_not_fit_are_refused() -> None:
    example = _example(0)
    with pytest.raises(FovealError, match="no example"):
        MaskPropagator([])
    with pytest.raises(FovealError, match="are empty"):
        MaskPropagator([Example(example.seen, np.zeros((HEIGHT, WIDTH), bool))])
    with pytest.raises(FovealError, match="a mask of 32 x 44 pixels for a picture of 44 x 32"):
        MaskPropagator([Example(example.seen, example.mask.T)])
    with pytest.raises(FovealError, match="no patch lies outside"):
        MaskPropagator([Example(example.seen, np.ones((HEIGHT, WIDTH), bool))])
    narrow = picture(example.mask)
    narrow.patches.resize_(*narrow.patches.shape[:2], 5)
    with pytest.raises(FovealError, match="width 5, 9"):
        MaskPropagator([example, Example(narrow, example.mask)])
    with pytest.raises(FovealError, match="features of width 5, the examples of 9"):
        MaskPropagator([example]).answer(narrow)
    with pytest.raises(FovealError, match="min_iou=0"):
        Trust(min_iou=0)
