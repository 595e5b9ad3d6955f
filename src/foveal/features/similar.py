"""How similar every patch of some pictures is to one patch of a picture: heat maps after a point.

Shapes: D width, grid_h x grid_w patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from foveal.errors import FovealError
from foveal.features.pictures import bands, fitted, marked, overlay, picture_grid, scale_bar, stacked
from foveal.features.seen import SeenImage


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """Similarity of one patch to all patches of a picture.

    Attributes:
        values: (grid_h, grid_w) float32 cosine.
        best: x, y of the centre of the most similar patch, in pixels of the original picture (whole numbers are centres
            of pixels); the first in reading order where several are.
    """

    values: np.ndarray
    best: tuple[float, float]


def similarity_maps(
    image: SeenImage, others: Sequence[SeenImage] = (), *, point: tuple[float, float]
) -> list[SimilarityMap]:
    """Compare the patch of `image` under a point with every patch of `image` itself and of others, by cosine.

    Args:
        image: see `foveal.features.seen.see`.
        others: seen by the same model.
        point: x, y in pixels of the original of `image`; whole numbers are centres of pixels.

    Returns:
        One map for `image`, in which the patch itself has similarity 1, then one for each of `others`.

    Raises:
        FovealError: a point outside the picture or cut away in preprocessing, pictures seen by models of different
            width, or features that are not finite.
    """
    row, column = image.geometry.patch_at(*point)
    wanted = F.normalize(image.patches[row, column].double(), dim=0)
    maps = []
    for seen in (image, *others):
        if seen.patches.shape[2] != len(wanted):
            raise FovealError(
                f"features of width {seen.patches.shape[2]} and {len(wanted)} cannot be compared; see all pictures "
                "with one model"
            )
        values = torch.stack([F.normalize(line.double(), dim=-1) @ wanted for line in seen.patches]).float().numpy()
        if not np.isfinite(values).all():
            raise FovealError("features hold NaN or infinity; the model that made them has diverged")
        x, y = seen.geometry.patch_centres().reshape(-1, 2)[values.argmax()]
        maps.append(SimilarityMap(values, (float(x), float(y))))
    return maps


def similarity_picture(
    images: Sequence[SeenImage],
    maps: Sequence[SimilarityMap],
    *,
    point: tuple[float, float],
    cell_size: int = 224,
) -> Image.Image:
    """Draw each picture above its heat map, all on one scale, which is drawn below.

    Rings mark the point in the first picture and the most similar patch in the others.

    Args:
        images: the picture with the point, then the others.
        maps: those of `similarity_maps`.
        point: as given to it.
        cell_size: longer side of one picture in pixels.
    """
    low, high = (float(pick([pick(found.values) for found in maps])) for pick in (np.min, np.max))
    originals, heats, names, texts = [], [], [], []
    for number, (seen, found) in enumerate(zip(images, maps, strict=True)):
        pixels = np.asarray(fitted(seen.pixels, cell_size))
        x, y = (seen.geometry.to_seen(np.array(found.best if number else point)) + 0.5) * (
            pixels.shape[1] / seen.pixels.shape[1]
        ) - 0.5
        originals.append(marked(pixels, x, y))
        heats.append(marked(overlay(pixels, found.values, low=low, high=high), x, y))
        names.append(seen.name)
        place = "{:.0f},{:.0f}".format(*(found.best if number else point))
        texts.append(f"max {found.values.max():.2f} at {place}" if number else f"point {place}")
    grid = picture_grid(bands([originals, heats]), labels=bands([names, texts]), cell_size=cell_size)
    return stacked([grid, scale_bar(low, high, width=min(grid.width, 224))])
