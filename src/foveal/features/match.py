"""Which patch of one picture is which patch of another: mutual nearest neighbours among the foreground.

Source: the matching figures of arXiv 2304.07193 (figure 10): patch features of the foreground, compared by Euclidean
distance, assigned to each other, then thinned by non-maximum suppression. Differences: the features are L2-normalised,
so that the Euclidean order is that of the cosine (|a - b|^2 = 2 - 2 cos); the assignment keeps the pairs that choose
each other, which leaves parts without a counterpart unmatched instead of forcing a partner on them.

Shapes: M matches, D width, grid_h x grid_w patches.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.neighbours import top_k
from foveal.features.pca import foreground
from foveal.features.pictures import fitted, picture_grid, rainbow
from foveal.features.seen import SeenImage

_FINE = 3  # lines are drawn this much larger and shrunk, which smooths their edges


class Matches(NamedTuple):
    """Matches of two pictures, the most similar first.

    `points_a` and `points_b` are (M, 2) float64: x, y of patch centres in pixels of the two originals, whole numbers
    being centres of pixels. `similarity` is their cosine, (M,) float32. `num_mutual` counts the pairs before
    suppression and the limit.
    """

    points_a: np.ndarray
    points_b: np.ndarray
    similarity: np.ndarray
    num_mutual: int


def mutual_nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pairs of rows of which each is the other's nearest by cosine, exactly.

    Args:
        a: (N, D) float.
        b: (M, D) float.

    Returns:
        Indices into `a` and into `b`, int64, and cosines, float32, in the order of `a`; every index appears once. Of
        equally near rows the first is nearest.
    """
    if not len(a) or not len(b):
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty, torch.zeros(0)
    similarity, nearest_in_b = (found[:, 0] for found in top_k(a, b, k=1))
    nearest_in_a = top_k(b, a, k=1)[1][:, 0]
    chosen = (nearest_in_a[nearest_in_b] == torch.arange(len(a))).nonzero().squeeze(1)
    return chosen, nearest_in_b[chosen], similarity[chosen]


def match(
    a: SeenImage, b: SeenImage, *, keep_foreground: bool = True, nms: float = 0.0, max_matches: int | None = None
) -> Matches:
    """Match the patches of two pictures.

    Args:
        a: see `foveal.features.seen.see`.
        b: the other picture, seen by the same model.
        keep_foreground: match only what `foveal.features.pca.foreground` finds jointly in both; a picture without
            foreground has no matches.
        nms: non-maximum suppression: a match is dropped when a more similar one is less than `nms` patches away from it
            in either picture; 0 keeps all.
        max_matches: keep the most similar ones; None keeps all.

    Raises:
        FovealError: models of different width, or settings below their range.

    Example:
        >>> a, b = see(model, "a.jpg"), see(model, "b.jpg")  # doctest: +SKIP
        >>> match(a, b, nms=2).points_a.shape  # doctest: +SKIP
        (37, 2)
    """
    if not 0 <= nms < math.inf:
        raise FovealError(f"nms={nms}; give a distance in patches, 0 or more")
    if max_matches is not None and max_matches < 1:
        raise FovealError(f"max_matches={max_matches}; it must be at least 1")
    shown = [torch.ones(image.patches.shape[:2], dtype=torch.bool) for image in (a, b)]
    if keep_foreground:
        shown = foreground([a.patches, b.patches])
    places_a, places_b = (mask.nonzero() for mask in shown)
    from_a, from_b, similarity = mutual_nearest(a.patches[shown[0]], b.patches[shown[1]])
    order = similarity.sort(descending=True, stable=True).indices
    places_a, places_b = places_a[from_a[order]], places_b[from_b[order]]
    kept = _suppress(places_a, places_b, nms)[:max_matches]
    points_a, points_b = (
        image.geometry.patch_centres()[tuple(places[kept].T.numpy())]
        for image, places in ((a, places_a), (b, places_b))
    )
    return Matches(points_a, points_b, similarity[order][kept].numpy(), len(order))


def match_picture(a: SeenImage, b: SeenImage, matches: Matches, *, cell_size: int = 448) -> Image.Image:
    """Draw two pictures side by side and a line between the points of each match, coloured from left to right in A.

    Args:
        a: as given to `match`.
        b: as given to `match`.
        matches: of them.
        cell_size: longer side of one picture in pixels.
    """
    left, right = fitted(a.pixels, cell_size), fitted(b.pixels, cell_size)
    gap = cell_size // 16
    size = (left.width + gap + right.width, max(left.height, right.height))
    canvas = Image.new("RGB", size, "white")
    corners = ((0, (size[1] - left.height) // 2), (left.width + gap, (size[1] - right.height) // 2))
    for image, corner in zip((left, right), corners, strict=True):
        canvas.paste(image, corner)
    ends = []
    for seen, shown, corner, points in zip((a, b), (left, right), corners, matches[:2], strict=True):
        factor = np.divide(shown.size, seen.pixels.shape[1::-1])
        ends.append(((seen.geometry.to_seen(points) + 0.5) * factor + corner) * _FINE)
    canvas = canvas.resize((size[0] * _FINE, size[1] * _FINE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    across = ends[0][:, 0] / (left.width * _FINE)
    radius = _FINE * max(2, cell_size // 160)
    for (xa, ya), (xb, yb), colour in reversed(list(zip(*ends, rainbow(across), strict=True))):
        draw.line((xa, ya, xb, yb), fill=colour, width=round(_FINE * max(1, cell_size / 300)))
        for x, y in ((xa, ya), (xb, yb)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black")
    canvas = canvas.resize(size, Image.Resampling.BOX)
    names = " and ".join(filter(None, (a.name, b.name)))
    count = f"{len(matches.similarity)} of {matches.num_mutual} mutual nearest patches"
    return picture_grid([[canvas]], labels=[[": ".join(filter(None, (names, count)))]], cell_size=max(size))


def _suppress(places_a: Tensor, places_b: Tensor, distance: float) -> Tensor:
    """Return which of the matches (M, 2 grid places each), best first, stay; int64 in the same order."""
    if distance == 0:
        return torch.arange(len(places_a))
    kept: list[int] = []
    for number, (place_a, place_b) in enumerate(zip(places_a.double(), places_b.double(), strict=True)):
        near_a = torch.linalg.vector_norm(places_a[kept] - place_a, dim=1) < distance
        near_b = torch.linalg.vector_norm(places_b[kept] - place_b, dim=1) < distance
        if not (near_a | near_b).any():
            kept.append(number)
    return torch.tensor(kept, dtype=torch.int64)
