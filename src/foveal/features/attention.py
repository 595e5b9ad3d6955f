"""Attention maps: where the class token and the registers of one picture look.

Source: the maps of arXiv 2104.14294, figure 1, and arXiv 2309.16588 (registers): the weights softmax(q k^T /
sqrt(head_dim)) with which one token gathers from the patches, head by head, on the patch grid.

Shapes: R registers, grid_h x grid_w patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.features.pictures import bands, enlarged, heat, picture_grid
from foveal.features.seen import prepare
from foveal.images.preprocess import ImageLike, Mode, Size


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the tokens in front of the patches look, float32 weights on the patch grid.

    What a token gathers from the class token and the registers is left out: a map sums to at most 1.

    Attributes:
        pixels: (H, W, 3) uint8, what the model got to see.
        cls: (heads, grid_h, grid_w), of the class token.
        registers: (R, heads, grid_h, grid_w); R is 0 for a model without registers.
        name: for labels.
    """

    pixels: np.ndarray
    cls: np.ndarray
    registers: np.ndarray
    name: str = ""


def attention_maps(
    model: Model,
    image: ImageLike,
    *,
    layer: int = -1,
    size: Size | None = None,
    fit: Mode = "resize",
    name: str = "",
) -> AttentionMaps:
    """Return where the class token and each register look in one picture.

    Only their rows of the attention matrix are formed, so that memory grows with the patches, not with their square.

    Args:
        model: a loaded model.
        image: a path, a Pillow image or an (H, W, 3) uint8 array.
        layer: number of the block from 0, or from the end: -1 is the last.
        size: see `foveal.features.seen.prepare`.
        fit: see `foveal.features.seen.prepare`.
        name: for labels; "" takes the file's name where there is one.

    Raises:
        FovealError: a layer that the model does not have, no picture, or an engine without attention weights.

    Example:
        >>> attention_maps(foveal.load("model"), "cat.jpg", size=224).cls.shape  # doctest: +SKIP
        (6, 16, 24)
    """
    attention = getattr(model.engine, "attention", None)  # foreign engines do not show their inside
    if attention is None:
        raise FovealError(f"{type(model.engine).__name__} gives no attention weights; load a model folder")
    prepared = prepare(model, image, size=size, fit=fit, name=name)
    num_prefix = 1 + model.card.backbone.num_registers
    weights = attention(prepared.batch, layer=layer, queries=range(num_prefix))[0]
    maps = weights[..., num_prefix:].transpose(0, 1).unflatten(-1, prepared.geometry.grid).cpu().numpy()
    return AttentionMaps(prepared.pixels, maps[0], maps[1:], prepared.name)


def attention_picture(
    images: Sequence[AttentionMaps], *, heads: bool = False, registers: bool = False, cell_size: int = 224
) -> Image.Image:
    """Draw each picture and, beside it, its attention maps: patches as squares, from dark blue to yellow.

    Every map has its own scale, from 0 to its largest weight, which is written above it: heads differ by orders of
    magnitude, and on one scale most would be black.

    Args:
        images: see `attention_maps`.
        heads: show each head of the class token after their mean.
        registers: show each register, as the mean over its heads.
        cell_size: longer side of one picture in pixels.

    Raises:
        FovealError: no image, or registers of a model that has none.
    """
    if registers and any(not len(image.registers) for image in images):
        raise FovealError("this model has no registers; leave the registers out of the picture")
    pictures, labels = [], []
    for image in images:
        maps = {"mean of heads": image.cls.mean(axis=0)}
        if heads:
            maps |= {f"head {number}": values for number, values in enumerate(image.cls)}
        if registers:
            maps |= {f"register {number}": values.mean(axis=0) for number, values in enumerate(image.registers)}
        drawn = [enlarged(heat(values, low=0, high=float(values.max())), cell_size) for values in maps.values()]
        texts = [f"{name}: max {values.max():.2g}" for name, values in maps.items()]
        pictures += bands([[image.pixels, *drawn]])
        labels += bands([[image.name, *texts]])
    return picture_grid(pictures, labels=labels, cell_size=cell_size)
