"""What dense heads read: patch maps and class tokens of some blocks, for pictures of any size.

Shapes: B images, D width, H W pixels; grid_h x grid_w patches.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.errors import FovealError

# Where the public four-layer heads read a network of 24 blocks; of 12 and 40 blocks they read the ends of the quarters.
_QUARTERS = {24: (4, 11, 17, 23)}


class Encoder(Protocol):
    """What turns pictures into tokens: an engine, or a backbone that is being trained."""

    def intermediate(self, batch: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks, in ascending order; see `VisionTransformer.intermediate`."""
        ...


class Level(NamedTuple):
    """The tokens of one block: patches (B, D, grid_h, grid_w), cls (B, D)."""

    patches: Tensor
    cls: Tensor


def quarter_layers(depth: int) -> tuple[int, ...]:
    """Return the four blocks, numbered from 0, that lin.4 and DPT heads read in a network of `depth` blocks.

    Example:
        >>> quarter_layers(12), quarter_layers(24)
        ((2, 5, 8, 11), (4, 11, 17, 23))
    """
    if depth < 4:
        raise FovealError(f"a head of four blocks on a network of {depth}; choose a head of the last block")
    return _QUARTERS.get(depth, tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)))


def levels_of(
    encoder: Encoder, images: Tensor, *, layers: Sequence[int], norm: bool, patch_size: int
) -> tuple[list[Level], tuple[int, int, int, int]]:
    """Run pictures of any one size and return the tokens of some blocks, wherever the encoder leaves them.

    Args:
        encoder: runs the backbone.
        images: (B, C, H, W) float32, normalised. Zeros are put around up to the next multiple of the patch size, the
            smaller half at the left and the top.
        layers: block numbers from 0, ascending.
        norm: apply the final norm.
        patch_size: pixels.

    Returns:
        A level a block, and the window (top, left, height, width) of the picture in the padded one.
    """
    height, width = images.shape[-2:]
    margins = (-height % patch_size, -width % patch_size)
    top, left = margins[0] // 2, margins[1] // 2
    padded = F.pad(images, (left, margins[1] - left, top, margins[0] - top))
    grid = (padded.shape[2] // patch_size, padded.shape[3] // patch_size)
    found = encoder.intermediate(padded, sorted(layers), norm=norm)
    return [_level(tokens, grid) for tokens in found], (top, left, height, width)


def resized(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, h, w) at another size (height, width): bilinear, corners not aligned."""
    if tuple(scores.shape[2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def finite(found: Tensor, *, head: str) -> Tensor:
    """Return what a head of this name said; FovealError where it is no number, which would count as an answer."""
    if not bool(found.isfinite().all()):
        raise FovealError(
            f"the head {head} answers numbers that are not finite; fit it again with a lower learning rate, or run the "
            "backbone with precision fp32"
        )
    return found


def batch_of(arrays: Sequence[np.ndarray]) -> Tensor:
    """Return prepared pictures (C, H, W) of one size as a batch."""
    return torch.from_numpy(np.stack(arrays))


def _level(tokens: Tokens, grid: tuple[int, int]) -> Level:
    # Cloned: tensors made in inference mode cannot take part in training a head.
    patches = tokens.patches.clone().transpose(1, 2).unflatten(2, grid)
    return Level(patches, tokens.cls.clone())
