"""The evaluation transforms: from any picture to the normalised array that a backbone takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from foveal.errors import BadImageError, FovealError
from foveal.images.decode import DEFAULT_LIMITS, decode, from_pillow

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Attention grows with the square: so many take a ViT-S minutes on a CPU.
MAX_PATCHES = 50_000

ImageLike = str | Path | Image.Image | np.ndarray
Mode = Literal["crop", "resize", "pad"]
Size = int | tuple[int, int]  # pixels: of one side, or (height, width)


@dataclass(frozen=True)
class Preprocess:
    """Make the (C, H, W) float32 array that a backbone takes, H and W multiples of the patch size.

    | mode | what happens to the size |
    |---|---|
    | "crop" | short side to `resize_size`, then the centre `crop_size` x `crop_size`; DINOv2's evaluation |
    | "resize" | each side to the nearest multiple of `patch_size`; the proportions change by less than half a patch |
    | "pad" | zeros (the mean colour) around the normalised picture up to the next multiple; left = total // 2 |

    With (height, width) for a size, "crop" makes the picture just cover `resize_size` before it cuts out the centre,
    and "resize" makes it `resize_size`, whatever its proportions.

    All resizing is Pillow's antialiased bicubic, channel by channel, rounded to the picture's integers. Then
    (x / full - mean) / std for each channel, full being 255 for uint8 and 65535 for uint16. There are as many channels
    C as means; with 3 the picture is RGB uint8.

    Attributes:
        mode: see above.
        resize_size: the short side before anything else, pixels, or (height, width). None is `crop_size` * 256 / 224 in
            mode "crop" (256 for 224), and in the other modes the size the picture has.
        crop_size: mode "crop" only, 224 by default, pixels, or (height, width); multiples of `patch_size`.
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
    resize_size: Size | None = None
    crop_size: Size | None = None
    patch_size: int = 14
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise FovealError(f"mode={self.mode!r}; allowed are {', '.join(get_args(Mode))}")
        if self.patch_size < 1 or (self.resize_size is not None and min(sides(self.resize_size)) < 1):
            raise FovealError(f"patch_size={self.patch_size}, resize_size={self.resize_size}; both must be at least 1")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise FovealError(f"mean={self.mean}, std={self.std}; give a number each for every channel, std above 0")
        if self.mode == "crop":
            self._resolve_crop()
        elif self.crop_size is not None:
            raise FovealError(f'crop_size={self.crop_size} has no effect in mode "{self.mode}"; leave it out')
        elif isinstance(self.resize_size, tuple):
            if self.mode == "pad":
                raise FovealError(f'resize_size={self.resize_size}: mode "pad" keeps proportions; give the short side')
            self._check_multiples("resize_size", self.resize_size)

    @classmethod
    def from_stamp(cls, settings: Mapping[str, Any]) -> "Preprocess":
        """Return the transform whose fields were written as JSON, where tuples became lists."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**fields)

    @property
    def channels(self) -> int:
        """Channels of the pictures: as many as there are means."""
        return len(self.mean)

    def _resolve_crop(self) -> None:
        crop_size = 224 if self.crop_size is None else self.crop_size
        resize_size = scaled(crop_size, 256 / 224) if self.resize_size is None else self.resize_size
        self._check_multiples("crop_size", crop_size)
        if isinstance(crop_size, tuple) != isinstance(resize_size, tuple):
            raise FovealError(f"crop_size={crop_size} beside resize_size={resize_size}; give both as pairs, or neither")
        if any(side < crop for side, crop in zip(sides(resize_size), sides(crop_size), strict=True)):
            raise FovealError(f"resize_size={resize_size} is below crop_size={crop_size}; use {crop_size} or more")
        object.__setattr__(self, "crop_size", crop_size)
        object.__setattr__(self, "resize_size", resize_size)

    def _check_multiples(self, name: str, size: Size) -> None:
        for side in sides(size):
            if side < 1 or side % self.patch_size:
                lower = side // self.patch_size * self.patch_size
                raise FovealError(
                    f"{name}={side} is not a multiple of patch_size={self.patch_size}; "
                    f"use {' or '.join(str(near) for near in (lower, lower + self.patch_size) if near > 0)}."
                )

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Return one picture as (C, H, W) float32, C-contiguous.

        Args:
            image: whatever `to_array` takes.
        """
        pixels = to_array(image, channels=self.channels)
        height, width = self.resized_shape(*pixels.shape[:2])
        self._check_patches(height, width)
        pixels = resize(pixels, height=height, width=width)
        if self.mode == "crop":
            assert self.crop_size is not None  # set in __post_init__
            pixels = center_crop(pixels, size=self.crop_size)
        elif self.mode == "resize":
            height, width = (nearest_multiple(side, self.patch_size) for side in pixels.shape[:2])
            pixels = resize(pixels, height=height, width=width)
        array = normalise(pixels, mean=self.mean, std=self.std)
        return pad_to_multiple(array, multiple=self.patch_size) if self.mode == "pad" else array

    def _check_patches(self, height: int, width: int) -> None:
        """Refuse a picture that becomes more patches than attention can take, such as a strip of 4000 x 1 pixels."""
        num_patches = height * width // self.patch_size**2
        if self.mode != "crop" and num_patches > MAX_PATCHES:
            raise BadImageError(
                "too_many_patches",
                f"{width} x {height} pixels are {num_patches:,} patches, allowed are {MAX_PATCHES:,}; "
                "use a smaller size, fit='crop', or cut the picture",
            )

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which `resize_size` brings a picture, before it is cut, fitted or padded."""
        if self.resize_size is None:
            return height, width
        if not isinstance(self.resize_size, tuple):
            return short_side_shape(height, width, size=self.resize_size)
        return covering_shape(height, width, self.resize_size) if self.mode == "crop" else self.resize_size


def scaled(size: Size, factor: float) -> Size:
    """Return a size times a factor, each side rounded."""
    return (round(size[0] * factor), round(size[1] * factor)) if isinstance(size, tuple) else round(size * factor)


def sides(size: Size) -> tuple[int, int]:
    """Return a size as (height, width)."""
    return size if isinstance(size, tuple) else (size, size)


def to_rgb_array(image: ImageLike) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB; see `to_array`."""
    return to_array(image, channels=3)


def to_array(image: ImageLike, *, channels: int) -> np.ndarray:
    """Return a picture as (H, W, channels): uint8 RGB where these are 3, else uint8 or uint16.

    Args:
        image: the path of an image file; a Pillow image (its EXIF orientation is applied, as for a file); or an array:
            for 3 channels uint8 (H, W, 3) in RGB order or (H, W) grey, for others uint8 or uint16 (H, W, channels), and
            (H, W) where it is one.
        channels: what is wanted. Files and Pillow images become it by the rules of `foveal.images.decode.decode`.

    Raises:
        BadImageError: when a file cannot be read or decoded, or not to so many channels.
        FovealError: when it is none of these, or an array of another type or shape.
    """
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise BadImageError("unreadable", f"{image} cannot be read ({error.strerror}); check the path") from error
        return decode(data, channels=channels)
    if isinstance(image, Image.Image):
        return from_pillow(image, channels=channels)
    if isinstance(image, np.ndarray):
        return _checked_array(image) if channels == 3 else _checked_bands(image, channels)
    raise FovealError(
        f"an image of type {type(image).__name__}; give a path, a Pillow image, or a NumPy array "
        f"(H, W, {channels}) of uint8"
    )


def _checked_bands(image: np.ndarray, channels: int) -> np.ndarray:
    bands = image[:, :, None] if image.ndim == 2 and channels == 1 else image
    if bands.ndim == 3 and bands.shape[2] == channels and bands.size and bands.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(bands)
    hint = (
        "; channels come last: use image.transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] == channels else ""
    )
    raise FovealError(
        f"an image array of type {image.dtype} and shape {image.shape}; "
        f"this takes uint8 or uint16 arrays of shape (H, W, {channels}){hint}"
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


def short_side_shape(height: int, width: int, *, size: int) -> tuple[int, int]:
    """Return the (height, width) of this short side; the long one is int(size * long / short), as in torchvision."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def covering_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) of the same proportions that covers `size`; for a square, the short side."""
    if height * size[1] <= width * size[0]:  # the picture is the wider one: its height decides
        return size[0], int(size[0] * width / height)
    return int(size[1] * height / width), size[1]


def resize(pixels: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) with Pillow's antialiased bicubic, channel by channel."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if height * width > DEFAULT_LIMITS.max_pixels:
        raise BadImageError(
            "too_many_pixels",
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels would become {width} x {height}; crop this strip first",
        )
    if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    planes = [_resize_plane(pixels[:, :, c], height=height, width=width) for c in range(pixels.shape[2])]
    return np.stack(planes, axis=2)


def _resize_plane(plane: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Resize (H, W) of any channel: in Pillow's 8-bit arithmetic, as RGB is, or for uint16 in float32, rounded."""
    if plane.dtype == np.uint8:
        return np.asarray(
            Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BICUBIC)
        )
    image = Image.fromarray(plane.astype(np.float32))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(np.rint(resized), 0, np.iinfo(plane.dtype).max).astype(plane.dtype)


def center_crop(pixels: np.ndarray, *, size: Size) -> np.ndarray:
    """Cut the centre `size` out of (H, W, C); an odd margin is rounded half to even, as torchvision does."""
    height, width = sides(size)
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


def normalise(pixels: np.ndarray, *, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Turn (H, W, C) integers into (C, H, W) float32: (x / full - mean) / std, full being the type's largest value."""
    shares = pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(np.iinfo(pixels.dtype).max)
    shape = (-1, 1, 1)
    return (shares - np.asarray(mean, np.float32).reshape(shape)) / np.asarray(std, np.float32).reshape(shape)


def pad_to_multiple(array: np.ndarray, *, multiple: int) -> np.ndarray:
    """Put zeros around (C, H, W) up to the next multiple; the smaller half goes to the left and the top."""
    margins = [(0, 0)]
    for side in array.shape[1:]:
        total = -side % multiple
        margins.append((total // 2, total - total // 2))
    return np.pad(array, margins)


def nearest_multiple(side: int, multiple: int) -> int:
    """Return the nearest positive multiple; the upper one of two equally near."""
    return max(1, (side + multiple // 2) // multiple) * multiple
