"""Which patches belong to something, learnt from a few masked pictures in closed form.

Shapes: D width, P patches; grid_h x grid_w patches of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.geometry import Geometry
from foveal.features.seen import SeenImage

_RIDGE = 1e-3  # of the mean variance of a feature
_COVERED = 0.5  # of a patch, from which it counts as part of a mask


class Example(NamedTuple):
    """A picture and what is meant in it.

    Attributes:
        seen: the picture; see `foveal.features.seen.see`.
        mask: (H, W) bool, in pixels of the original; empty where the picture does not show it.
    """

    seen: SeenImage
    mask: np.ndarray


class Moments(NamedTuple):
    """What is needed of pictures to fit a head: sums over the patches inside of masks and over those outside.

    Attributes:
        counts: (2,) float64, outside and inside.
        sums: (2, D + 1) float64; the last feature is the constant 1.
        products: (2, D + 1, D + 1) float64.
    """

    counts: Tensor
    sums: Tensor
    products: Tensor


@dataclass(frozen=True, eq=False)
class PatchHead:
    """A linear score of patches: above 0 where a patch looks more like the inside of the masks.

    Attributes:
        weights: (D,) float32.
        bias: of the score.
        threshold: score above which a patch is taken.
        scale: of the score; the belief is 1 / (1 + exp(-(score - threshold) / scale)).
    """

    weights: Tensor
    bias: float
    threshold: float = 0.0
    scale: float = 0.25

    def score(self, patches: Tensor) -> Tensor:
        """Return the scores (...) of patches (..., D)."""
        return unit(patches) @ self.weights + self.bias

    def belief(self, patches: Tensor) -> np.ndarray:
        """Return how likely patches belong, 0 to 1, as an array."""
        return torch.sigmoid((self.score(patches) - self.threshold) / self.scale).numpy()


def moments(example: Example) -> Moments:
    """Return what a picture adds to a head."""
    rows = unit(example.seen.patches).flatten(0, 1).double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    inside = torch.from_numpy(coverage(example.mask, example.seen.geometry).ravel()).double()
    weights = torch.stack([1 - inside, inside])
    return Moments(weights.sum(dim=1), weights @ rows, torch.stack([(rows * w[:, None]).T @ rows for w in weights]))


def fit(gathered: Moments) -> PatchHead:
    """Fit a head by ridge regression to 1 inside and -1 outside, both sides of equal weight.

    Raises:
        FovealError: not one patch is inside of a mask, or not one outside.
    """
    if (gathered.counts < _COVERED).any():
        side = "inside" if gathered.counts[1] < _COVERED else "outside"
        raise FovealError(f"no patch lies {side} of the masks; give a picture whose mask covers a part of it")
    system = (gathered.products / gathered.counts[:, None, None]).sum(dim=0)
    wanted = gathered.sums[1] / gathered.counts[1] - gathered.sums[0] / gathered.counts[0]
    ridge = _RIDGE * system.diagonal()[:-1].mean()
    system.diagonal()[:-1].add_(ridge)
    solution = torch.linalg.solve(system, wanted).float()
    return PatchHead(solution[:-1], float(solution[-1]))


def coverage(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return the share of each patch that a mask covers, (grid_h, grid_w) float32.

    Args:
        mask: (H, W) bool, in pixels of the original.
        geometry: of the picture.

    Raises:
        FovealError: a mask of another size than the picture.
    """
    if mask.shape != geometry.original:
        raise FovealError(
            f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels for a picture of {geometry.original[1]} x "
            f"{geometry.original[0]}; the picture has changed, or the mask is of another one"
        )
    resized = cv2.resize(mask.astype(np.float32), geometry.resized[::-1], interpolation=cv2.INTER_AREA)
    (top, left), (height, width) = geometry.offset, geometry.seen
    margins = [
        (max(-start, 0), max(start + side - whole, 0))
        for start, side, whole in zip(geometry.offset, geometry.seen, geometry.resized, strict=True)
    ]
    window = np.pad(resized, margins)[max(top, 0) :, max(left, 0) :][:height, :width]
    size = geometry.patch_size
    found: np.ndarray = window.reshape(height // size, size, width // size, size).mean(axis=(1, 3))
    return found


def unit(patches: Tensor) -> Tensor:
    """Return patches at length 1, float32."""
    return F.normalize(patches.float(), dim=-1)


def best_threshold(scores: Sequence[np.ndarray], shares: Sequence[np.ndarray]) -> float:
    """Return the score that cuts patches so that the intersection over union with masks is largest, all together.

    It lies in the middle between the last score inside and the first outside, so that no patch is at the very edge.
    """
    score, share = np.concatenate([s.ravel() for s in scores]), np.concatenate([s.ravel() for s in shares])
    order = np.argsort(-score, kind="stable")
    inside = np.cumsum(share[order])
    union = np.arange(1, len(order) + 1) + share.sum() - inside
    last = int(np.argmax(inside / union))
    return float(score[order][last : last + 2].mean())
