"""Block masks for masked image modelling (iBOT): which patches of which images the student does not see."""

import math

import numpy as np
import numpy.typing as npt

from foveal.errors import RecipeError

_MIN_BLOCK_AREA = 4.0
_LOG_ASPECT = math.log(1 / 0.3)
_TRIES_PER_BLOCK = 10
_MASK_STREAM = 2  # keeps these draws apart from those of views.py

Mask = npt.NDArray[np.bool_]


def make_masks(
    *,
    num_images: int,
    grid_h: int,
    grid_w: int,
    seed: int,
    step: int,
    group: int = 0,
    mask_probability: float = 0.5,
    ratio_min: float = 0.1,
    ratio_max: float = 0.5,
) -> Mask:
    """Return the patches to mask in each image, as a pure function of (seed, step, group).

    n = int(num_images * mask_probability) images get a mask. The mask ratios are stratified: the i-th is drawn from
    U(p_i, p_{i+1}) with p = linspace(ratio_min, ratio_max, n + 1), so every batch holds few-masked and much-masked
    images in equal numbers. Which image gets which ratio is shuffled.

    Args:
        num_images: Global crops in the group, B * 2 for two views.
        grid_h: Patches in a column of the crop.
        grid_w: Patches in a row of the crop.
        seed: Seed of the run, any integer.
        step: Optimizer update, from 0.
        group: Number of the micro-group within the global batch; each has masks of its own.
        mask_probability: Share of the images that get a mask.
        ratio_min: Smallest share of masked patches.
        ratio_max: Largest share of masked patches. Blocks that do not fit are given up, so the count may stay below.

    Returns:
        (num_images, grid_h * grid_w) bool, True where masked; patches in row-major order.

    Raises:
        RecipeError: Shares outside 0 <= ratio_min <= ratio_max <= 1, or a grid without patches.

    Source: iBOT section 3.3 with the block masks of BEiT (algorithm 1); DINOv2 stratifies the ratios.
    """
    if not (0 <= mask_probability <= 1 and 0 <= ratio_min <= ratio_max <= 1):
        raise RecipeError(
            f"mask_probability={mask_probability}, ratio_min={ratio_min}, ratio_max={ratio_max}: "
            "need 0 <= mask_probability <= 1 and 0 <= ratio_min <= ratio_max <= 1."
        )
    if grid_h < 1 or grid_w < 1:
        raise RecipeError(f"grid_h={grid_h}, grid_w={grid_w}: a mask needs at least 1 x 1 patches; enlarge the crop.")
    key = np.array([seed % 2**64, step], dtype=np.uint64)
    counter = np.array([0, 0, _MASK_STREAM, group], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
    num_masked = int(num_images * mask_probability)
    bounds = np.linspace(ratio_min, ratio_max, num_masked + 1)
    ratios = rng.uniform(bounds[:-1], bounds[1:])
    places = rng.permutation(num_images)[:num_masked]
    masks = np.zeros((num_images, grid_h, grid_w), dtype=bool)
    for place, ratio in zip(places, ratios, strict=True):
        _mask_blocks(masks[place], target=int(grid_h * grid_w * ratio), rng=rng)
    return masks.reshape(num_images, grid_h * grid_w)


def _mask_blocks(mask: Mask, *, target: int, rng: np.random.Generator) -> None:
    """Mask blocks in place until `target` patches are masked or no block fits in ten tries."""
    remaining = target
    while remaining > 0:
        added = _mask_one_block(mask, limit=min(remaining, mask.size / 2), rng=rng)
        if added == 0:
            return
        remaining -= added


def _mask_one_block(mask: Mask, *, limit: float, rng: np.random.Generator) -> int:
    """Mask one rectangle that adds between 1 and `limit` patches; return how many it added, 0 when none was found.

    Blocks are smaller than the grid in both directions. Where fewer than 4 patches remain, areas come from
    U(limit, 4): a block that overlaps others may still add few enough.
    """
    grid_h, grid_w = mask.shape
    for _ in range(_TRIES_PER_BLOCK):
        area_draw, aspect_draw, top_draw, left_draw = rng.random(4).tolist()
        area = _MIN_BLOCK_AREA + (limit - _MIN_BLOCK_AREA) * area_draw
        aspect = math.exp(_LOG_ASPECT * (2 * aspect_draw - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < grid_h and 0 < width < grid_w):
            continue
        top = int(top_draw * (grid_h - height + 1))
        left = int(left_draw * (grid_w - width + 1))
        block = mask[top : top + height, left : left + width]
        added = block.size - int(np.count_nonzero(block))
        if 0 < added <= limit:
            block[...] = True
            return added
    return 0
