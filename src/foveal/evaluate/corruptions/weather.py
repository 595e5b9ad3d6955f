"""Weather. Each function takes (H, W, 3) float32 in 0..1."""

import cv2
import numpy as np

from foveal.evaluate.corruptions.blur import smear, zoomed

_ICE = np.array([0.82, 0.91, 1.0], np.float32)


def snow(image: np.ndarray, setting: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """Whiten the picture, and let flakes fall over it, in two directions.

    Args:
        image: the picture.
        setting: mean and deviation of the noise that flakes are made of, its enlargement, the value below which there
            is none, radius and deviation of the smear, and the share of the picture that is not whitened.
        generator: draws the noise and the direction.
    """
    mean, deviation, factor, threshold, radius, sigma, kept = setting
    flakes = zoomed(generator.normal(mean, deviation, image.shape[:2]).astype(np.float32), factor)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1))
    flakes = smear(flakes, int(radius), sigma, angle=generator.uniform(-135, -45))[:, :, None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    whitened = kept * image + (1 - kept) * np.maximum(image, 1.5 * grey + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def frost(image: np.ndarray, setting: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Add a share of a picture of frost to a share of the picture.

    The authors took photographs of frost; these are the ridges of a fractal, so this corruption is another one.
    """
    kept, added = setting
    ridges = 1 - np.abs(2 * plasma(image.shape[:2], 1.3, generator) - 1)
    return kept * image + added * (ridges**2)[:, :, None] * _ICE


def fog(image: np.ndarray, setting: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Add a fractal of (this density, this smoothness), and bring the brightest value back to where it was."""
    density, decay = setting
    brightest = float(image.max())
    foggy = image + density * plasma(image.shape[:2], decay, generator)[:, :, None]
    return foggy * brightest / (brightest + density)


def brightness(image: np.ndarray, added: float, _: np.random.Generator) -> np.ndarray:
    """Add to the value of hue, saturation and value."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[:, :, 2] = (hsv[:, :, 2] + added).clip(0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def plasma(shape: tuple[int, ...], decay: float, generator: np.random.Generator) -> np.ndarray:
    """Return a fractal (H, W) in 0..1 by midpoint displacement on a torus.

    Every point is the mean of its four neighbours, half a step away, first across and then along the axes, and uniform
    noise; with each halving of the step the noise falls by decay squared.

    Source: Fournier, Fussell and Carpenter 1982, the diamond-square form.
    """
    side = 1 << max(max(shape) - 1, 1).bit_length()
    grid, step, amplitude = np.zeros((side, side)), side, 1.0
    while step > 1:
        half = step // 2
        corners = grid[::step, ::step]

        def displaced(*neighbours: np.ndarray, amplitude: float = amplitude) -> np.ndarray:
            return sum(neighbours) / 4 + generator.uniform(-amplitude, amplitude, neighbours[0].shape)

        below, right = np.roll(corners, -1, axis=0), np.roll(corners, -1, axis=1)
        centres = displaced(corners, below, right, np.roll(below, -1, axis=1))
        grid[half::step, half::step] = centres
        grid[::step, half::step] = displaced(corners, right, centres, np.roll(centres, 1, axis=0))
        grid[half::step, ::step] = displaced(corners, below, centres, np.roll(centres, 1, axis=1))
        step, amplitude = half, amplitude / decay**2
    grid -= grid.min()
    return (grid / grid.max())[: shape[0], : shape[1]].astype(np.float32)
