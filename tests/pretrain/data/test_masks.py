import math
import random

import numpy as np
import pytest

from foveal.errors import RecipeError
from foveal.pretrain.data.masks import make_masks


def masks_of_ratio(ratio: float, *, num_images: int, grid_h: int, grid_w: int, seed: int = 0) -> np.ndarray:
    masks = make_masks(
        num_images=num_images,
        grid_h=grid_h,
        grid_w=grid_w,
        seed=seed,
        step=0,
        mask_probability=1.0,
        ratio_min=ratio,
        ratio_max=ratio,
    )
    return masks.reshape(num_images, grid_h, grid_w)


def block_mask(grid_h: int, grid_w: int, target: int, rng: random.Random) -> np.ndarray:
    """An independent, cell by cell evaluation of the block masks."""
    cells: set[tuple[int, int]] = set()
    while len(cells) < target:
        limit = min(target - len(cells), grid_h * grid_w / 2)
        for _ in range(10):
            area, aspect = rng.uniform(4, limit), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h >= grid_h or w >= grid_w:
                continue
            top, left = rng.randint(0, grid_h - h), rng.randint(0, grid_w - w)
            new = {(top + y, left + x) for y in range(h) for x in range(w)} - cells
            if 0 < len(new) <= limit:
                cells |= new
                break
        else:
            break
    mask = np.zeros((grid_h, grid_w), dtype=bool)
    for cell in cells:
        mask[cell] = True
    return mask


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_blocks_have_the_distribution_of_an_independent_evaluation(ratio: float) -> None:
    """Mean count, edges between masked and unmasked, and the map of frequencies, each within 5 standard errors."""
    num, grid_h, grid_w = 1500, 11, 13
    rng = random.Random(7)
    ours = masks_of_ratio(ratio, num_images=num, grid_h=grid_h, grid_w=grid_w)
    theirs = np.stack([block_mask(grid_h, grid_w, int(grid_h * grid_w * ratio), rng) for _ in range(num)])

    def statistics(masks: np.ndarray) -> np.ndarray:
        edges = (masks[:, 1:] != masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))
        return np.column_stack([masks.sum((1, 2)), edges, masks.reshape(num, -1)]).astype(float)

    a, b = statistics(ours), statistics(theirs)
    error = np.sqrt((a.var(0) + b.var(0)) / num)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) <= 5 * error + 1e-12)


def test_half_of_the_images_get_stratified_ratios() -> None:
    num_images, patches, strata = 22, 16 * 16, 11
    masks = make_masks(num_images=num_images, grid_h=16, grid_w=16, seed=3, step=5)
    counts = np.sort(masks.sum(1))
    assert masks.shape == (num_images, patches)
    assert masks.dtype == np.bool_
    assert np.count_nonzero(counts) == strata
    upper = np.linspace(0.1, 0.5, strata + 1)[1:]
    assert np.all(counts[-strata:] <= patches * upper)
    assert counts[-strata:].sum() > 0.9 * patches * 0.3 * strata


def test_masks_land_on_every_image_over_the_steps() -> None:
    masked = sum(make_masks(num_images=6, grid_h=8, grid_w=8, seed=0, step=s).any(1).astype(int) for s in range(400))
    assert np.all(np.abs(masked - 200) < 5 * 10)


def test_masks_are_a_pure_function_of_seed_step_and_group() -> None:
    def masks(seed: int, step: int, group: int) -> bytes:
        return make_masks(num_images=8, grid_h=7, grid_w=9, seed=seed, step=step, group=group).tobytes()

    assert masks(1, 2, 3) == masks(1, 2, 3)
    assert len({masks(1, 2, 3), masks(0, 2, 3), masks(1, 0, 3), masks(1, 2, 0), masks(2, 1, 3)}) == 5


@pytest.mark.parametrize(("grid_h", "grid_w"), [(1, 1), (1, 9), (2, 2), (2, 3), (4, 4), (3, 7)])
def test_small_grids_end_and_never_mask_more_than_asked(grid_h: int, grid_w: int) -> None:
    for ratio in (0.0, 0.1, 0.5, 1.0):
        counts = masks_of_ratio(ratio, num_images=50, grid_h=grid_h, grid_w=grid_w).sum((1, 2))
        assert counts.max() <= grid_h * grid_w * ratio


def test_four_by_four_grids_reach_half() -> None:
    counts = masks_of_ratio(0.5, num_images=200, grid_h=4, grid_w=4).sum((1, 2))
    assert counts.mean() > 7


def test_without_images_or_probability_nothing_is_masked() -> None:
    assert make_masks(num_images=0, grid_h=4, grid_w=4, seed=0, step=0).shape == (0, 16)
    assert not make_masks(num_images=9, grid_h=4, grid_w=4, seed=0, step=0, mask_probability=0.0).any()
    assert not make_masks(num_images=1, grid_h=4, grid_w=4, seed=0, step=0).any()


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(RecipeError, match=r"ratio_min=0\.6.*ratio_min <= ratio_max"):
        make_masks(num_images=2, grid_h=4, grid_w=4, seed=0, step=0, ratio_min=0.6)
    with pytest.raises(RecipeError, match="at least 1 x 1"):
        make_masks(num_images=2, grid_h=0, grid_w=4, seed=0, step=0)
