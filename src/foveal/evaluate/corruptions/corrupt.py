"""Common corruptions of pictures, each at five severities: the table, and the call that applies one.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
arXiv 1903.12261, section 3 and appendix; the settings are those with which ImageNet-C was made, for 224 x 224 pixels.
The pictures are not those of ImageNet-C: other random numbers, frost of our own, and no JPEG of quality 85 on top, in
which the public files are kept.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from foveal.errors import FovealError, nearest
from foveal.evaluate.corruptions import blur, digital, noise, weather

SEVERITIES = (1, 2, 3, 4, 5)
SIZE = 224  # pixels of the side for which the settings are made


class Corruption(NamedTuple):
    """A function of (image, setting, generator), and its setting for each severity."""

    function: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    settings: tuple[Any, ...]


def _factors(end: float, step: float) -> tuple[float, ...]:
    return tuple(np.arange(1, end, step).tolist())


CORRUPTIONS = {
    "gaussian_noise": Corruption(noise.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(noise.shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(noise.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption(blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption(blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption(blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption(
        blur.zoom_blur,
        (_factors(1.11, 0.01), _factors(1.16, 0.01), _factors(1.21, 0.02), _factors(1.26, 0.02), _factors(1.31, 0.03)),
    ),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(weather.frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Corruption(weather.fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
    "brightness": Corruption(weather.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(digital.contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        (
            (488.0, 170.8, 24.4),
            (488.0, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    ),
    "pixelate": Corruption(digital.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Corruption(digital.jpeg_compression, (25, 18, 15, 10, 7)),
}


def corrupt(pixels: np.ndarray, name: str, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Return a picture with one corruption.

    Args:
        pixels: (H, W, 3) uint8 RGB. Severities are made for 224 x 224; they are in pixels, whatever the size.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: draws whatever is drawn.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FovealError: an unknown corruption or severity.
    """
    check_corruption(name, severity)
    function, settings = CORRUPTIONS[name]
    return digital.to_bytes(function(pixels.astype(np.float32) / 255, settings[severity - 1], generator))


def generator_of(uri: str, name: str, severity: int, *, seed: int) -> np.random.Generator:
    """Return the random numbers of one picture, corruption and severity: the same whatever else is evaluated."""
    digest = hashlib.sha256(f"{seed}\n{name}\n{severity}\n{uri}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def check_corruption(name: str, severity: int = 1) -> None:
    """Raise FovealError for a corruption or a severity that does not exist."""
    if name not in CORRUPTIONS:
        hint = nearest(name, list(CORRUPTIONS))
        raise FovealError(f"no corruption is called '{name}'; choose among {', '.join(CORRUPTIONS)}{hint}")
    if severity not in SEVERITIES:
        raise FovealError(f"severity {severity}; choose 1 to {len(SEVERITIES)}")
