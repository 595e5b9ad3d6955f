"""Which tokens of which blocks, by name, out of one engine.

Shapes: B images, D width, R registers, C channels, H W pixels; grid_h x grid_w patches.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import Tokens
from foveal.engine.base import Engine
from foveal.errors import FovealError, nearest

Token = Literal["cls", "registers", "patches", "mean"]


def check_tokens(tokens: Sequence[str], layers: Sequence[int] | None, backbone: BackboneConfig | None) -> None:
    """Refuse tokens or blocks that a backbone does not have.

    Args:
        tokens: of "cls", "registers", "patches" and "mean" (the mean of the patch tokens).
        layers: block numbers from 0, or None for the last block.
        backbone: whose tokens; None where it is not known yet, and only what no backbone has is refused.

    Raises:
        FovealError: something is unknown, given twice, out of range or absent.
    """
    allowed = get_args(Token)
    unknown = [token for token in tokens if token not in allowed]
    if not tokens or unknown or len(set(tokens)) < len(tokens):
        hint = nearest(unknown[0], allowed) if unknown else ""
        raise FovealError(f"tokens={','.join(tokens)}; choose one or more of {', '.join(allowed)}, each once{hint}")
    if "registers" in tokens and backbone is not None and not backbone.num_registers:
        raise FovealError("this model has no registers; leave them out of the tokens")
    if layers is None:
        return
    beyond = backbone is not None and max(layers, default=0) >= backbone.depth
    if not layers or len(set(layers)) < len(layers) or min(layers) < 0 or beyond:
        blocks = "0 and up" if backbone is None else f"0 to {backbone.depth - 1}"
        raise FovealError(f"layers={','.join(map(str, layers))}; choose among the blocks {blocks}, each once")


def array_names(tokens: Sequence[str], layers: Sequence[int] | None) -> list[str]:
    """Return the name of each array: "cls", or "cls.layer5" where blocks are chosen.

    Example:
        >>> array_names(["cls", "patches"], [5, 11])
        ['cls.layer5', 'patches.layer5', 'cls.layer11', 'patches.layer11']
    """
    if layers is None:
        return list(tokens)
    return [f"{token}.layer{layer}" for layer in sorted(layers) for token in tokens]


def token_shape(token: str, backbone: BackboneConfig, *, grid: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of one image's tokens; `grid` is (grid_h, grid_w)."""
    if token == "registers":
        return backbone.num_registers, backbone.width
    if token == "patches":
        return (*grid, backbone.width)
    return (backbone.width,)


def encode_arrays(
    engine: Engine,
    arrays: Sequence[np.ndarray],
    *,
    tokens: Sequence[str],
    layers: Sequence[int] | None = None,
    patch_size: int,
) -> dict[str, Tensor]:
    """Run prepared images, those of equal size together, and return their tokens after the final norm.

    Args:
        engine: runs the backbone.
        arrays: (C, H, W) float32 each.
        tokens: see `check_tokens`.
        layers: see `check_tokens`.
        patch_size: pixels.

    Returns:
        Arrays by the names of `array_names`, float32 on the CPU, in the order of the images: cls and mean (B, D),
        registers (B, R, D), patches (B, grid_h, grid_w, D).

    Raises:
        FovealError: patches are asked for, and the images have different sizes.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, array in enumerate(arrays):
        by_shape[array.shape].append(number)
    parts = []
    for (_, height, width), numbers in by_shape.items():
        batch = torch.from_numpy(np.stack([arrays[number] for number in numbers]))
        found = [engine.encode(batch)] if layers is None else engine.intermediate(batch, sorted(layers))
        grid = (height // patch_size, width // patch_size)
        values = [_token(one, token, grid).cpu() for one in found for token in tokens]
        parts.append(dict(zip(array_names(tokens, layers), values, strict=True)))
    place = torch.tensor([number for numbers in by_shape.values() for number in numbers]).argsort()
    return {name: values[place] for name, values in concatenate(parts).items()}


def _token(found: Tokens, token: str, grid: tuple[int, int]) -> Tensor:
    if token == "mean":
        return found.patches.mean(dim=1)
    values: Tensor = getattr(found, token)
    return values.unflatten(1, grid) if token == "patches" else values


def concatenate(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the arrays of several batches; FovealError where their patches have different grids."""
    grids = sorted({tuple(values.shape[1:3]) for batch in batches for values in batch.values() if values.ndim == 4})
    if len(grids) > 1:
        listed = ", ".join(f"{h} x {w}" for h, w in grids[:4]) + (", ..." if len(grids) > 4 else "")
        raise FovealError(
            f"the images have different patch grids ({listed}), which cannot be stacked; use fit='crop', "
            "extract images of one size at a time, or use extract_set, which gives cls vectors of mixed sizes"
        )
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
