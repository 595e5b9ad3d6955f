"""Noise. Each function takes (H, W, 3) float32 in 0..1; what leaves that range is clipped by the caller."""

import numpy as np


def gaussian_noise(image: np.ndarray, scale: float, generator: np.random.Generator) -> np.ndarray:
    """Add normal noise of this deviation to every value."""
    return image + generator.normal(scale=scale, size=image.shape)


def shot_noise(image: np.ndarray, photons: float, generator: np.random.Generator) -> np.ndarray:
    """Replace every value by a Poisson count, so many photons being white."""
    return generator.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Set a share of the values, colour by colour, to 0 or 1."""
    extreme = generator.integers(2, size=image.shape)
    return np.where(generator.random(image.shape) < share, extreme, image)
