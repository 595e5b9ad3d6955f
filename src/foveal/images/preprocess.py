"""The evaluation transforms: from any picture to the normalised array that a backbone takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from foveal.errors import BadImageError, FovealError
from foveal.images.decode import DEFAULT_LIMITS, decode, from_pillow

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImageLike = str | Path | Image.Image | np.ndarray
Mode = Literal["crop", "resize", "pad"]


@dataclass(frozen=True)
class Preprocess:
    """Make the (3, H, W) float32 array that a backbone takes, H and W multiples of the patch size.

    | mode | what happens to the size |
    |---|---|
    | "crop" | short side to `resize_size`, then the centre `crop_size` x `crop_size`; DINOv2's evaluation |
    | "resize" | each side to the nearest multiple of `patch_size`; the proportions change by less than half a patch |
    | "pad" | zeros (the mean colour) around the normalised picture up to the next multiple; left = total // 2 |

    All resizing is Pillow's antialiased bicubic on uint8. Then (x / 255 - mean) / std for each channel.

    Attributes:
        mode: see above.
        resize_size: the short side before anything else, pixels. None is `crop_size` * 256 / 224 in mode "crop"
            (256 for 224), and in the other modes the size the picture has.
        crop_size: mode "crop" only, 224 by default, pixels; a multiple of `patch_size`.
        patch_size: pixels.
        mean: of each channel, in 0..1.
        std: of each channel, in 0..1.

    Example:
        >>> Preprocess()(np.zeros((300, 400, 3), dtype=np.uint8)).shape
        (3, 224, 224)
        >>> Preprocess(mode="pad")(np.zeros((300, 400, 3), dtype=np.uint8)).shape
        (3, 308, 406)
    """

    mode: Mode = "crop"
    resize_size: int | None = None
    crop_size: int | None = None
    patch_size: int = 14
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise FovealError(f"mode={self.mode!r}; allowed are {', '.join(get_args(Mode))}")
        if self.patch_size < 1 or (self.resize_size is not None and self.resize_size < 1):
            raise FovealError(f"patch_size={self.patch_size}, resize_size={self.resize_size}; both must be at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise FovealError(f"mean={self.mean}, std={self.std}; give three numbers each, std above 0")
        if self.mode == "crop":
            self._resolve_crop()
        elif self.crop_size is not None:
            raise FovealError(f'crop_size={self.crop_size} has no effect in mode "{self.mode}"; leave it out')

    def _resolve_crop(self) -> None:
        crop_size = 224 if self.crop_size is None else self.crop_size
        resize_size = round(crop_size * 256 / 224) if self.resize_size is None else self.resize_size
        if crop_size < 1 or crop_size % self.patch_size:
            lower = crop_size // self.patch_size * self.patch_size
            raise FovealError(
                f"crop_size={crop_size} is not a multiple of patch_size={self.patch_size}; "
                f"use {' or '.join(str(size) for size in (lower, lower + self.patch_size) if size > 0)}."
            )
        if resize_size < crop_size:
            raise FovealError(f"resize_size={resize_size} is below crop_size={crop_size}; use {crop_size} or more")
        object.__setattr__(self, "crop_size", crop_size)
        object.__setattr__(self, "resize_size", resize_size)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Return one picture as (3, H, W) float32, C-contiguous.

        Args:
            image: whatever `to_rgb_array` takes.
        """
        pixels = to_rgb_array(image)
        if self.resize_size is not None:
            pixels = resize_short_side(pixels, size=self.resize_size)
        if self.mode == "crop":
            assert self.crop_size is not None  # set in __post_init__
            pixels = center_crop(pixels, size=self.crop_size)
        elif self.mode == "resize":
            height, width = (nearest_multiple(side, self.patch_size) for side in pixels.shape[:2])
            pixels = _resize(pixels, height=height, width=width)
        array = normalise(pixels, mean=self.mean, std=self.std)
        return pad_to_multiple(array, multiple=self.patch_size) if self.mode == "pad" else array


def to_rgb_array(image: ImageLike) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB.

    Args:
        image: the path of an image file; a Pillow image (its EXIF orientation is applied, as for a file); or a uint8
            array (H, W, 3) in RGB order, or (H, W) grey.

    Raises:
        BadImageError: when a file cannot be read or decoded.
        FovealError: when it is none of these, or an array of another type or shape.
    """
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise BadImageError("unreadable", f"{image} cannot be read ({error.strerror}); check the path") from error
        return decode(data)
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if isinstance(image, np.ndarray):
        return _checked_array(image)
    raise FovealError(
        f"an image of type {type(image).__name__}; give a path, a Pillow image, or a NumPy array (H, W, 3) of uint8"
    )


def _checked_array(image: np.ndarray) -> np.ndarray:
    allowed = "allowed are uint8 arrays of shape (H, W, 3) in RGB order or (H, W) grey"
    if image.dtype != np.uint8:
        hint = "multiply 0..1 floats by 255, round, then" if image.dtype.kind == "f" else "scale to 0..255, then"
        raise FovealError(f"an image array of type {image.dtype}; {allowed}; {hint} use .astype(np.uint8)")
    if image.ndim == 2 and image.size:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim == 3 and image.shape[2] == 3 and image.size:
        return np.ascontiguousarray(image)
    hint = ""
    if image.ndim == 3 and image.shape[0] == 3:
        hint = "; channels come last: use image.transpose(1, 2, 0)"
    elif image.ndim == 3 and image.shape[2] == 4:
        hint = "; composite the alpha channel first, or drop it: image[:, :, :3]"
    elif image.ndim == 4:
        hint = "; give one image at a time"
    raise FovealError(f"an image array of shape {image.shape}; {allowed}{hint}")


def resize_short_side(pixels: np.ndarray, *, size: int) -> np.ndarray:
    """Resize so that the short side is `size`; the long side is int(size * long / short), as torchvision rounds it.

    Args:
        pixels: (H, W, 3) uint8.
        size: pixels.
    """
    height, width = short_side_shape(*pixels.shape[:2], size=size)
    return _resize(pixels, height=height, width=width)


def short_side_shape(height: int, width: int, *, size: int) -> tuple[int, int]:
    """Return the (height, width) that `resize_short_side` gives a picture of this height and width."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _resize(pixels: np.ndarray, *, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    if height * width > DEFAULT_LIMITS.max_pixels:
        raise BadImageError(
            "too_many_pixels",
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels would become {width} x {height}; crop this strip first",
        )
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def center_crop(pixels: np.ndarray, *, size: int) -> np.ndarray:
    """Cut the centre `size` x `size` out of (H, W, 3); an odd margin is rounded half to even, as torchvision does."""
    height, width = pixels.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def normalise(pixels: np.ndarray, *, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Turn (H, W, 3) uint8 into (3, H, W) float32: (x / 255 - mean) / std, channel by channel."""
    scaled = pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    shape = (-1, 1, 1)
    return (scaled - np.asarray(mean, np.float32).reshape(shape)) / np.asarray(std, np.float32).reshape(shape)


def pad_to_multiple(array: np.ndarray, *, multiple: int) -> np.ndarray:
    """Put zeros around (3, H, W) up to the next multiple; the smaller half goes to the left and the top."""
    margins = [(0, 0)]
    for side in array.shape[1:]:
        total = -side % multiple
        margins.append((total // 2, total - total // 2))
    return np.pad(array, margins)


def nearest_multiple(side: int, multiple: int) -> int:
    """Return the nearest positive multiple; the upper one of two equally near."""
    return max(1, (side + multiple // 2) // multiple) * multiple
