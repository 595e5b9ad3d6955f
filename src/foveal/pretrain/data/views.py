"""DINOv2 multi-crop: two global and several local views of one image, as a pure function of (seed, epoch, index).

Chance and pixels are kept apart. `plan_views` turns random numbers into plans (which box, flipped or not, which
factors) without looking at a pixel; `make_views` carries the plans out. All uniforms of a view are drawn up front at
fixed places, so that switching one operation off, or asking for more local views, changes no other choice.

Images of other than 3 channels are no colour pictures: crop, flip, blur, and the jitter's brightness and contrast are
applied to them, the latter two with a factor for each channel; saturation, hue, grayscale and solarize are not.

Legend: H W pixels, C channels, L local views, S and s size of a global and a local crop.
"""

import itertools
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foveal.errors import BadImageError
from foveal.images.crops import CROP_RATIO, NUM_CROP_DRAWS, random_box
from foveal.pretrain.data import augment
from foveal.pretrain.data.augment import Image
from foveal.pretrain.data.photometric import plan_row

_NUM_GLOBAL = 2
_VIEW_STREAM = 1  # keeps these draws apart from those of masks.py
_CHANNEL_STREAM = 4  # the factors of channels other than RGB; 2 and 3 are masks and stochastic depth
_SIZE_STREAM = 5
_NUM_DRAWS = NUM_CROP_DRAWS + 11
_JITTER_ORDERS = tuple(itertools.permutations(range(4)))
_JITTER = (augment.adjust_brightness, augment.adjust_contrast, augment.adjust_saturation, augment.adjust_hue)
_BLUR_PROBABILITIES = {"as_trained": (0.0, 0.9, 0.5), "as_intended": (1.0, 0.1, 0.5)}

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class ViewSettings(BaseModel):
    """What the views look like; the defaults are those of DINOv2.

    `blur` names the probability of a Gaussian blur on (global view 1, global view 2, local views). The published
    DINOv2 and DINOv3 weights were trained "as_trained", (0, 0.9, 0.5): the official code passes p to a function
    that applies with 1 - p. The papers describe "as_intended", (1, 0.1, 0.5). Small crops want a smaller kernel.

    Source: DINOv2, appendix B; the inversion is facebookresearch/dinov2 pull request 411.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_size: int = Field(default=224, ge=1)
    local_size: int = Field(default=98, ge=1)
    num_local: int = Field(default=8, ge=0)
    # Mixed resolutions: (global_size, local_size, probability) of further sizes that a micro-batch may have.
    other_sizes: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Probability], ...] = ()
    # Whether every image may be smaller than a global crop: without, that is refused as an oversight.
    enlarge: bool = False
    global_scale: Range = (0.32, 1.0)
    local_scale: Range = (0.05, 0.32)
    ratio: Range = CROP_RATIO
    hflip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grayscale_probability: Probability = 0.2
    blur: Literal["as_trained", "as_intended"] = "as_trained"
    blur_kernel_size: int = Field(default=9, ge=1)
    blur_sigma: Range = (0.1, 2.0)
    solarize_probability: Probability = 0.2
    solarize_threshold: int = Field(default=128, ge=0, le=256)
    # Where jitter, grayscale, blur and solarize run: in the workers, or on batches where the network is.
    photometric: Literal["workers", "device"] = "workers"

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name in ("global_scale", "local_scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}=({low}, {high}) is not a range; use 0 < low <= high.")
        for name in ("global_scale", "local_scale"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share of the image's area; use at most 1.")
        if sum(probability for *_, probability in self.other_sizes) >= 1:
            raise ValueError("other_sizes: their probabilities add up to 1 or more; the rest is global_size's.")
        if self.blur_kernel_size % 2 == 0:
            size = self.blur_kernel_size
            raise ValueError(f"blur_kernel_size={size} has no centre; use {size - 1} or {size + 1}.")
        return self


class ViewPlan(NamedTuple):
    """Everything that chance decides about one view."""

    box: tuple[int, int, int, int]  # top, left, height, width in pixels of the image
    hflip: bool
    jitter: tuple[tuple[int, float], ...]  # (operation, factor) in order; operation indexes brightness .. hue
    grayscale: bool
    blur_sigma: float | None
    solarize: bool
    channel_factors: tuple[tuple[float, ...], ...] | None = None  # brightness and contrast of each; None for RGB


class Views(NamedTuple):
    """The crops of one image, in its channels and integers, not normalised."""

    global_crops: Image  # (2, S, S, C)
    local_crops: Image  # (L, s, s, C)
    anchor_crops: Image  # (2, f S, f S, C), the global crops again, enlarged; (0, ...) where f is 1
    plans: np.ndarray | None = None  # (2 + L, 11) float32, what is left to do on the device; see photometric.py


def sizes_of(settings: ViewSettings, *, seed: int, step: int, group: int) -> ViewSettings:
    """Return the settings of one micro-batch, with the crop sizes that are drawn for it.

    All crops of a micro-batch have the same sizes: one of `other_sizes` with its probability, else `global_size` and
    `local_size`. Source: the mixed resolutions of DINOv3, arXiv 2508.10104, section 5.1, which draws them for whole
    batches.

    Args:
        settings: What the views look like.
        seed: Seed of the run, any integer.
        step: Optimizer update, from 0.
        group: Number of the micro-batch within the step.
    """
    if not settings.other_sizes:
        return settings
    (draw,) = _draws(_SIZE_STREAM, (1,), seed=seed, epoch=step, index=group)
    for global_size, local_size, probability in settings.other_sizes:
        if draw < probability:
            return settings.model_copy(update={"global_size": global_size, "local_size": local_size})
        draw -= probability
    return settings


def make_views(
    image: Image, *, settings: ViewSettings, seed: int, epoch: int, index: int, anchor_factor: int = 1
) -> Views:
    """Return the global and local crops of one image.

    Each view: random resized crop, horizontal flip, colour jitter, grayscale, blur, and on global view 2 solarize.
    The box is cut from the full-size image and resized once, antialiased bicubic, within 2 grey levels (0.01 in the
    mean) of Pillow's, rows before columns.

    Args:
        image: (H, W, 3) RGB uint8, or (H, W, C) uint8 or uint16 with C other than 3; of any size.
        settings: What the views look like.
        seed: Seed of the run, any integer.
        epoch: Epoch of the sample, from 0.
        index: Number of the image in its set, from 0.
        anchor_factor: Above 1, the global crops are made a second time, so many times as large and otherwise alike.

    Raises:
        BadImageError: The array is none of these, or has no pixel.

    Example:
        >>> image = np.zeros((30, 40, 3), dtype=np.uint8)
        >>> make_views(image, settings=ViewSettings(), seed=0, epoch=0, index=7).local_crops.shape
        (8, 98, 98, 3)
    """
    is_rgb = image.ndim == 3 and image.shape[2] == 3
    if image.ndim != 3 or image.size == 0 or image.dtype not in ((np.uint8,) if is_rgb else (np.uint8, np.uint16)):
        raise BadImageError(
            "not_an_image",
            f"image is {image.dtype} of shape {image.shape}; views need RGB uint8 (H, W, 3), "
            "or uint8 or uint16 (H, W, C) in other channels: decode it as such.",
        )
    height, width, channels = image.shape
    plans = plan_views(height, width, channels=channels, settings=settings, seed=seed, epoch=epoch, index=index)
    num_anchor = _NUM_GLOBAL if anchor_factor > 1 else 0
    global_crops, local_crops, anchor_crops = (
        np.empty((num, size, size, channels), dtype=image.dtype)
        for num, size in (
            (_NUM_GLOBAL, settings.global_size),
            (settings.num_local, settings.local_size),
            (num_anchor, settings.global_size * anchor_factor),
        )
    )
    for plan, crop in zip(plans, itertools.chain(global_crops, local_crops), strict=True):
        crop[...] = _render(image, plan, size=crop.shape[0], settings=settings)
    for plan, crop in zip(plans[:num_anchor], anchor_crops, strict=True):
        crop[...] = _render(image, plan, size=crop.shape[0], settings=settings, enlarged=anchor_factor)
    if settings.photometric == "workers":
        return Views(global_crops, local_crops, anchor_crops)
    rows = [
        plan_row(plan.jitter, grayscale=plan.grayscale, blur_sigma=plan.blur_sigma, solarize=plan.solarize)
        for plan in plans
    ]
    return Views(global_crops, local_crops, anchor_crops, np.array(rows, dtype=np.float32))


def plan_views(
    height: int, width: int, *, channels: int = 3, settings: ViewSettings, seed: int, epoch: int, index: int
) -> list[ViewPlan]:
    """Return the plans of the two global views and then of the local views, for an image of height x width pixels.

    View v reads the v-th block of one Philox stream keyed by (seed, epoch, index), and nothing else. With other than 3
    channels it reads the factors of its channels from a second such stream.
    """
    num_views = _NUM_GLOBAL + settings.num_local
    draws = _draws(_VIEW_STREAM, (num_views, _NUM_DRAWS), seed=seed, epoch=epoch, index=index)
    plans = [_plan(draws[view], height, width, view=view, settings=settings) for view in range(num_views)]
    if channels == 3:
        return plans
    factors = _draws(_CHANNEL_STREAM, (num_views, 2, channels), seed=seed, epoch=epoch, index=index)
    return [_without_colour(plan, factors[view], settings) for view, plan in enumerate(plans)]


def _draws(stream: int, shape: tuple[int, ...], *, seed: int, epoch: int, index: int) -> Any:
    """Return nested lists of uniforms in [0, 1)."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, stream, index], dtype=np.uint64))
    return np.random.Generator(bits).random(shape).tolist()


def _without_colour(plan: ViewPlan, draws: list[list[float]], settings: ViewSettings) -> ViewPlan:
    """Return the plan without operations on colour, and with brightness and contrast factors for each channel."""
    factors = tuple(
        tuple(1 + strength * (2 * draw - 1) for draw in row)
        for strength, row in zip((settings.brightness, settings.contrast), draws, strict=True)
    )
    jitter = tuple(pair for pair in plan.jitter if pair[0] < len(factors))
    return plan._replace(jitter=jitter, grayscale=False, solarize=False, channel_factors=factors)


def _plan(draws: list[float], height: int, width: int, *, view: int, settings: ViewSettings) -> ViewPlan:
    """Return the plan of one view from its uniforms in [0, 1), whose places are fixed."""
    scale = settings.global_scale if view < _NUM_GLOBAL else settings.local_scale
    blur_probability = _BLUR_PROBABILITIES[settings.blur][min(view, _NUM_GLOBAL)]
    flip, jitter, order, *factors, grey, blur, sigma, solarize = draws[NUM_CROP_DRAWS:]
    sigma_low, sigma_high = settings.blur_sigma
    return ViewPlan(
        box=random_box(draws, height, width, scale=scale, ratio=settings.ratio),
        hflip=flip < settings.hflip_probability,
        jitter=_jitter(order, factors, settings) if jitter < settings.jitter_probability else (),
        grayscale=grey < settings.grayscale_probability,
        blur_sigma=sigma_low + (sigma_high - sigma_low) * sigma if blur < blur_probability else None,
        solarize=view == 1 and solarize < settings.solarize_probability,
    )


def _jitter(order: float, factors: list[float], settings: ViewSettings) -> tuple[tuple[int, float], ...]:
    """Return the four colour operations in random order, each with its factor; those of strength 0 are left out."""
    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    centres = (1.0, 1.0, 1.0, 0.0)
    return tuple(
        (k, centres[k] + strengths[k] * (2 * factors[k] - 1))
        for k in _JITTER_ORDERS[int(order * len(_JITTER_ORDERS))]
        if strengths[k] > 0
    )


def _render(image: Image, plan: ViewPlan, *, size: int, settings: ViewSettings, enlarged: int = 1) -> Image:
    """Return the (size, size, C) crop that the plan describes; a blur is `enlarged` times as wide."""
    crop = _resized_crop(image, plan.box, size=size)
    if plan.hflip:
        crop = augment.hflip(crop)
    if settings.photometric == "device":
        return crop
    for operation, factor in plan.jitter:
        if plan.channel_factors is None:
            crop = _JITTER[operation](crop, factor)
        else:
            crop = augment.adjust_channels(crop, plan.channel_factors[operation], around_mean=operation == 1)
    if plan.grayscale:
        crop = augment.to_grayscale(crop)
    if plan.blur_sigma is not None:
        kernel_size = enlarged * (settings.blur_kernel_size - 1) + 1
        crop = augment.gaussian_blur(crop, sigma=enlarged * plan.blur_sigma, kernel_size=kernel_size)
    if plan.solarize:
        crop = augment.solarize(crop, settings.solarize_threshold)
    return crop


def _resized_crop(image: Image, box: tuple[int, int, int, int], *, size: int) -> Image:
    """Return the box (top, left, height, width) of the image at (size, size, C), antialiased bicubic.

    For RGB, PyTorch's 8-bit kernel works on interleaved pixels when the strides say "channels last", and is several
    times faster than Pillow's with the same weights. The box is copied first: torch refuses read-only or mirrored
    memory. Other images are resized in float32, then rounded and clipped.
    """
    top, left, height, width = box
    pixels = image[top : top + height, left : left + width]
    if image.shape[2] == 3:
        pixels = pixels.copy().reshape(1, height, width, 3).transpose(0, 3, 1, 2)
    else:
        pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32, order="C")
    resized = F.interpolate(torch.from_numpy(pixels), size=(size, size), mode="bicubic", antialias=True)
    crop = resized.numpy()[0].transpose(1, 2, 0)
    if image.shape[2] == 3:
        return crop
    return np.clip(np.rint(crop), 0, np.iinfo(image.dtype).max).astype(image.dtype, order="C")
