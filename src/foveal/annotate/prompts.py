"""Clicks, strokes and boxes on a picture make a mask of it, by the similarity of its patches.

What was pointed at is compared with the whole picture; cells that are alike come to agree; the result follows the edges
of the picture. Nothing is trained: any model that has patches will do.

Shapes: H W pixels of the original picture; h w cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from foveal.annotate.cells import Cells, Sharpness
from foveal.annotate.types import Prompt
from foveal.errors import FovealError
from foveal.features.geometry import Geometry
from foveal.features.seen import SeenImage

_MAX_SAMPLES = 256  # cells that stand for a long stroke, or for all that is outside of a box


@dataclass(frozen=True)
class PromptSettings:
    """How prompts become a mask.

    Attributes:
        sharpness: how it follows edges. Its trust is lower than elsewhere, since what was pointed at is certain and
            what is alike is only a hint: 0.003 took fewer clicks than 0.03 and 0.01 on CamVid's training part. With
            less, an answer takes longer.
        like: cosine to what was pointed at from which a cell is believed to be the same.
        softness: cosine over which the belief changes; above 0.
        whole: all that is alike belongs to the mask; else only what hangs together with something pointed at.
    """

    sharpness: Sharpness = field(default_factory=lambda: Sharpness(trust=0.003))
    like: float = 0.4
    softness: float = 0.1
    whole: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.softness <= 0:
            raise FovealError(f"softness={self.softness}; it must be above 0")


class PromptSession:
    """One picture whose features are at hand, so that each answer is quick.

    Args:
        seen: the picture and its patches; see `foveal.features.seen.see`. A larger size gives finer patches.
        settings: how prompts become a mask.

    Example:
        >>> session = PromptSession(see(foveal.load("model"), "cat.jpg", size=448))  # doctest: +SKIP
        >>> likely = session.mask([Prompt("point", ((120, 80),))])  # doctest: +SKIP
        >>> cat = Mask.of(likely > 0.5)  # doctest: +SKIP
    """

    def __init__(self, seen: SeenImage, settings: PromptSettings | None = None) -> None:
        self.geometry = seen.geometry
        self.settings = settings or PromptSettings()
        self._cells = Cells(seen, self.settings.sharpness)

    def mask(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return how likely each pixel of the original belongs to what is meant, (H, W) float32; a mask is above 0.5.

        What a point or a stroke covers is as it says. Of a positive box the outside does not belong, of a negative one
        the inside. Later prompts win over earlier ones.

        Args:
            prompts: all that was done on the picture, in its order; at least one is positive.

        Raises:
            FovealError: no positive prompt, or one without its points, outside the picture, or on a part of it that the
                model does not see.
        """
        if not any(prompt.positive for prompt in prompts):
            raise FovealError("nothing shows yet what is meant; give a positive point, stroke or box")
        for prompt in prompts:
            _check(prompt, self.geometry)
        seeds = _painted(prompts, self._cells.shape, self.geometry)
        if not (seeds >= 0).any():
            raise FovealError("the prompts leave nothing of the picture; take one back")
        found = self._cells.settled(self._belief(seeds), seeds)
        if not self.settings.whole and (seeds > 0).any():
            found = np.where((found <= 0.5) | _joined(found > 0.5, seeds > 0), found, 0)
        values = self._cells.to_original(found)
        said = _painted(prompts, values.shape)
        return np.where(said > 0, np.float32(1), np.where(said < 0, np.float32(0), values))

    def _belief(self, seeds: np.ndarray) -> np.ndarray:
        """Return (h, w) from 0 to 1: how much more a cell is like what is wanted than like what is not."""
        unlike = _likeness(self._cells.features, seeds < 0)
        wanted = seeds > 0
        if not wanted.any():  # boxes alone: what is least like the outside is meant
            wanted = (seeds >= 0) & (unlike <= np.median(unlike[seeds >= 0]))
        margin = _likeness(self._cells.features, wanted) - np.maximum(unlike, self.settings.like)
        belief: np.ndarray = 1 / (1 + np.exp(-margin / self.settings.softness))
        return belief


def _likeness(features: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the largest cosine (h, w) of each cell to any of some cells, -1 where there is none."""
    samples = features[where]
    if not len(samples):
        return np.full(features.shape[:2], -1, np.float32)
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), _MAX_SAMPLES)).round().astype(int)
    found: np.ndarray = (features @ samples[chosen].T).max(axis=2)
    return found


def _joined(mask: np.ndarray, touched: np.ndarray) -> np.ndarray:
    """Return the connected parts of a mask that hold a touched cell."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return mask & np.isin(parts, np.unique(parts[touched & mask]))


def _painted(prompts: Sequence[Prompt], shape: tuple[int, ...], geometry: Geometry | None = None) -> np.ndarray:
    """Return what prompts say of each pixel or cell, int8: 1 wanted, -1 not, 0 nothing.

    Args:
        prompts: in their order.
        shape: of the original picture, or of its cells.
        geometry: of the cells; None for pixels of the original.
    """
    found = np.zeros(shape, np.int8)
    for prompt in prompts:
        points, scale = np.array(prompt.points, np.float64), 1.0
        if geometry is not None:
            per_pixel = shape[1] / geometry.seen[1]
            points = (geometry.to_seen(points) + 0.5) * per_pixel - 0.5
            scale = per_pixel * geometry.resized[1] / geometry.original[1]
        mark = np.zeros(shape, np.uint8)
        places = np.clip(np.rint(points), -(2**14), 2**14).astype(np.int32)
        if prompt.kind == "box":
            cv2.rectangle(mark, places.min(axis=0).tolist(), places.max(axis=0).tolist(), 1, -1)
            found[(mark == 0) if prompt.positive else (mark > 0)] = -1
            continue
        radius = round(prompt.radius * scale)
        cv2.polylines(mark, [places[:, None]], isClosed=False, color=1, thickness=2 * radius + 1)
        for place in places[[0, -1]]:
            cv2.circle(mark, place.tolist(), radius, 1, -1)
        found[mark > 0] = 1 if prompt.positive else -1
    return found


def _check(prompt: Prompt, geometry: Geometry) -> None:
    """Refuse a prompt that does not say where."""
    needed = {"point": 1, "box": 2}.get(prompt.kind)
    if not prompt.points or (needed and len(prompt.points) != needed):
        allowed = "two opposite corners" if prompt.kind == "box" else "x and y of one" if needed else "at least one"
        raise FovealError(f"a {prompt.kind} with {len(prompt.points)} points; give {allowed}")
    if not 0 <= prompt.radius < np.inf:
        raise FovealError(f"a {prompt.kind} of radius {prompt.radius}; give pixels, at least 0")
    if prompt.kind != "box":
        for x, y in prompt.points:
            geometry.patch_at(x, y)
        return
    corners = np.array(prompt.points, np.float64)
    height, width = geometry.original
    if not np.isfinite(corners).all() or (corners.min(axis=0) > (width - 1, height - 1)).any() or corners.max() < 0:
        raise FovealError(
            f"the box {corners.tolist()} is outside the picture of {width} x {height} pixels; draw it over the picture"
        )
