"""Random resized crops, with chance and pixels kept apart: the box is a function of numbers that the caller drew."""

import math
from collections.abc import Sequence

CROP_TRIES = 10
NUM_CROP_DRAWS = 2 * CROP_TRIES + 2
CROP_RATIO = (3 / 4, 4 / 3)


def random_box(
    draws: Sequence[float],
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random box: its share of the area in `scale`, width/height in `ratio`.

    Ten tries of (uniform area, log-uniform ratio); an image too narrow for all of them gives its centre at the
    nearest allowed ratio. This is torchvision's RandomResizedCrop.

    Args:
        draws: `NUM_CROP_DRAWS` uniforms in [0, 1); further ones are not read.
        height: of the image, pixels.
        width: of the image, pixels.
        scale: least and largest share of the area.
        ratio: least and largest width / height.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for k in range(0, 2 * CROP_TRIES, 2):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[k])
        aspect = math.exp(log_low + (log_high - log_low) * draws[k + 1])
        box_w, box_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_w <= width and 0 < box_h <= height:
            top_draw, left_draw = draws[2 * CROP_TRIES : NUM_CROP_DRAWS]
            return int(top_draw * (height - box_h + 1)), int(left_draw * (width - box_w + 1)), box_h, box_w
    box_w = min(width, max(1, round(height * ratio[1])))
    box_h = min(height, max(1, round(width / ratio[0])))
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w
