"""One picture as a model sees it: its pixels, its patch features, and the way back to the original.

Shapes: D width, C channels, H W pixels; grid_h x grid_w patches.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.features.extract import Model
from foveal.features.geometry import Geometry
from foveal.features.pictures import displayed
from foveal.images.preprocess import ImageLike, Mode, Size, to_array


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture ready for a model.

    Attributes:
        pixels: (H, W, 3) uint8, what the model gets to see, before normalisation.
        batch: (1, C, H, W) float32, normalised.
        geometry: from the pixels of the original to those above, and back.
        name: for labels.
    """

    pixels: np.ndarray
    batch: Tensor = field(repr=False)
    geometry: Geometry
    name: str = ""


@dataclass(frozen=True, eq=False)
class SeenImage:
    """A picture and its patch features.

    Attributes:
        pixels: (H, W, 3) uint8, what the model got to see.
        patches: (grid_h, grid_w, D) float32 after the final norm, on the CPU.
        geometry: from the pixels of the original to those above, and back.
        name: for labels.
    """

    pixels: np.ndarray
    patches: Tensor
    geometry: Geometry
    name: str = ""


def prepare(
    model: Model, image: ImageLike, *, size: Size | None = None, fit: Mode = "resize", name: str = ""
) -> PreparedImage:
    """Make the input that a model takes from one picture.

    Args:
        model: a loaded model.
        image: a path, a Pillow image or an array, in the channels of the model; see `Model.extract`.
        size: the short side, pixels, or (height, width) for fit "resize" and "crop"; None is the card's crop size.
            Larger gives more and finer patches.
        fit: see `Model.extract`. "resize" shows the whole picture: nothing is cut off, every patch is all picture, and
            the proportions change by less than half a patch.
        name: for labels; "" takes the file's name where there is one.
    """
    preprocess = model.preprocessing(size=model.card.crop_size if size is None else size, fit=fit)
    original = to_array(image, channels=preprocess.channels)
    array = preprocess(original)
    return PreparedImage(
        pixels=denormalise(array, mean=preprocess.mean, std=preprocess.std),
        batch=torch.from_numpy(array)[None],
        geometry=Geometry.of(preprocess, *original.shape[:2]),
        name=name or (Path(image).name if isinstance(image, str | Path) else ""),
    )


def see(model: Model, image: ImageLike, *, size: Size | None = None, fit: Mode = "resize", name: str = "") -> SeenImage:
    """Return what a model makes of one picture; see `prepare` for the arguments.

    Pictures go through the model one at a time: memory is that of one picture whatever their number, and the features
    of a picture do not depend on its neighbours.

    Example:
        >>> seen = see(foveal.load("model"), "cat.jpg", size=448)  # doctest: +SKIP
        >>> seen.patches.shape  # doctest: +SKIP
        torch.Size([32, 48, 384])
    """
    prepared = prepare(model, image, size=size, fit=fit, name=name)
    patches = model.engine.encode(prepared.batch).patches[0].cpu().unflatten(0, prepared.geometry.grid)
    return SeenImage(prepared.pixels, patches, prepared.geometry, prepared.name)


def denormalise(array: np.ndarray, *, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Turn a normalised (C, H, W) float array back into (H, W, 3) uint8; see `displayed` for other channels than 3."""
    mean_of, std_of = (np.asarray(values).reshape(-1, 1, 1) for values in (mean, std))
    return displayed(np.rint(np.clip(array * std_of + mean_of, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
