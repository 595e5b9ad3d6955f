"""Pictures made on the spot, for engines to be chosen on, warmed up and verified."""

import numpy as np


def probe_images(count: int, *, height: int, width: int, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Return generated pictures (H, W, channels) uint8 with the spectrum of photographs.

    Amplitudes fall with one over the frequency, as those of natural scenes do (Field, J. Opt. Soc. Am. A 4, 1987);
    phases are random; channels are correlated. The same arguments give the same pictures.
    """
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    pictures = []
    for _ in range(count):
        shared = _field(generator, frequency, (height, width))
        planes = [0.8 * shared + 0.6 * _field(generator, frequency, (height, width)) for _ in range(channels)]
        levels = generator.uniform(80, 170) + 55 * np.stack(planes, axis=2)
        pictures.append(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    return pictures


def _field(generator: np.random.Generator, frequency: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    spectrum = np.fft.rfft2(generator.standard_normal(shape)) / frequency
    spectrum[0, 0] = 0.0
    found = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(found / max(float(found.std()), 1e-9))
