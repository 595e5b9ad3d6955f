"""The demo's task: name the photograph of a crop whose region, scale and colours were never seen."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from foveal.errors import BadImageError, ImageSetError
from foveal.images.imageset import ImageSet

_MIN_SIDE = 160

logger = logging.getLogger(__name__)


def own_photographs(source: str, *, limit: int = 18) -> dict[str, np.ndarray]:
    """Return up to `limit` images of the user's source, evenly chosen, with a short side of 160 pixels or more.

    Raises:
        ImageSetError: fewer than two such images.
    """
    images = ImageSet.open(source)
    found: dict[str, np.ndarray] = {}
    for index in np.random.default_rng(0).permutation(len(images)):
        try:
            pixels = images.decode(int(index))
        except BadImageError as error:
            logger.warning("left out: %s", error)
            continue
        if min(pixels.shape[:2]) >= _MIN_SIDE:
            found[f"{len(found):02d}_{Path(images.uri(int(index))).stem[:24]}".replace("/", "_")] = pixels
        if len(found) == limit:
            break
    if len(found) < 2:
        raise ImageSetError(
            f"{source} holds {len(found)} usable images of {_MIN_SIDE} pixels a side or more; the demo needs 2"
        )
    return found


def write_crops(
    photographs: dict[str, np.ndarray], folder: Path, *, train_each: int, test_each: int, size: int, seed: int = 0
) -> tuple[Path, Path]:
    """Cut each photograph into crops for training and crops for testing, and write them as PNG files.

    A photograph is first brought to a short side of 256 pixels. Train crops come from its left and right third, test
    crops from the middle third, so that they share no pixel. A train crop's side is 56 to 72 pixels of that; a test
    crop's 40 to 84, and its brightness, contrast and saturation are changed by up to 40 %.

    Args:
        photographs: name -> (H, W, 3) uint8.
        folder: gets train/NAME/*.png and test/NAME/*.png.
        train_each: train crops of a photograph.
        test_each: test crops of a photograph.
        size: side of the written crops in pixels.
        seed: of all choices.

    Returns:
        The train and the test folder.
    """
    rng = np.random.default_rng(seed)
    for name, pixels in photographs.items():
        picture = Image.fromarray(pixels)
        scale = 256 / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        thirds = [(0, width // 3), (width // 3, 2 * width // 3), (2 * width // 3, width)]
        for part, count, sides in (("train", train_each, (56, 72)), ("test", test_each, (40, 84))):
            target = folder / part / name
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                left, right = thirds[1] if part == "test" else thirds[2 * (number % 2)]
                crop = _crop(picture, left, right, rng, sides=sides, size=size)
                (_recolour(crop, rng) if part == "test" else crop).save(target / f"{number:03d}.png")
    return folder / "train", folder / "test"


def _crop(
    picture: Image.Image, left: int, right: int, rng: np.random.Generator, *, sides: tuple[int, int], size: int
) -> Image.Image:
    side = min(int(rng.integers(sides[0], sides[1] + 1)), right - left)
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, picture.height - side + 1))
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


def _recolour(crop: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = enhance(crop).enhance(float(rng.uniform(0.6, 1.4)))
    return crop
