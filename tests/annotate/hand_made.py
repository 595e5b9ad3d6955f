"""Pictures whose patch features are known: squares on a ground, told apart by one number."""

import numpy as np
import torch

from foveal.features.geometry import Geometry
from foveal.features.seen import SeenImage
from foveal.images.preprocess import Mode, Preprocess

PATCH = 4


def things(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Return (height, width) bool, True in boxes (top, left, bottom, right)."""
    found = np.zeros((height, width), bool)
    for top, left, bottom, right in boxes:
        found[top:bottom, left:right] = True
    return found


def picture(mask: np.ndarray, *, mode: Mode = "resize", seed: int = 0) -> SeenImage:
    """Return a picture that is red where the mask is and blue elsewhere, with noise, and patches that know which."""
    generator = np.random.default_rng(seed)
    crop = {"crop_size": min(mask.shape) // PATCH * PATCH} if mode == "crop" else {"crop_size": None}
    preprocess = Preprocess(mode=mode, resize_size=min(mask.shape), patch_size=PATCH, **crop)
    geometry = Geometry.of(preprocess, *mask.shape)
    (top, left), (height, width) = geometry.offset, geometry.seen
    shown = np.zeros((height, width), bool)
    part = mask[max(top, 0) :, max(left, 0) :][: height + min(top, 0), : width + min(left, 0)]
    shown[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
    pixels = np.where(shown[..., None], (220, 40, 30), (30, 60, 200)) + generator.integers(-9, 9, (height, width, 3))
    share = shown.reshape(height // PATCH, PATCH, width // PATCH, PATCH).mean(axis=(1, 3))
    noise = generator.normal(0, 0.05, (*share.shape, 7))
    patches = np.concatenate([share[..., None], 1 - share[..., None], noise], axis=2)
    return SeenImage(pixels.astype(np.uint8), torch.from_numpy(patches).float(), geometry)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())
