"""What network a set of tensors is: read off their names and shapes, never off a file name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from foveal.backbone.variants import VARIANTS, BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError


def infer_config(tensors: Mapping[str, Tensor], *, num_heads: int | None = None) -> BackboneConfig:
    """Return the configuration of the network that these tensors, under our names, are the weights of.

    Args:
        tensors: a state dict of `VisionTransformer`.
        num_heads: attention heads, which no shape shows; None takes those of our variant of that width, else
            width / 64, as in every network of this family.

    Raises:
        WeightsError: a tensor that decides is missing or has a shape no such network has; the message names it.
    """
    width = shape_of(tensors, "cls_token", 3)[2]
    out, channels, patch, patch_w = shape_of(tensors, "patch_embed.proj.weight", 4)
    positions = shape_of(tensors, "pos_embed", 3)[1]
    side = math.isqrt(max(positions - 1, 0))
    if out != width or patch != patch_w:
        raise WeightsError(
            f"the patch embedding makes {out} channels of {patch} x {patch_w} pixels; the class token has {width} "
            "channels, and patches must be square"
        )
    if side * side != positions - 1 or side == 0:
        raise WeightsError(
            f"the positional embedding has {positions} places, which is not 1 for the class token and a square grid"
        )
    ffn = "swiglu" if "blocks.0.mlp.w12.weight" in tensors else "mlp"
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    registers = shape_of(tensors, "register_tokens", 3)[1] if "register_tokens" in tensors else 0
    heads = num_heads or heads_of_width(width)
    if heads is None:
        raise WeightsError(
            f"the width {width} is not a multiple of 64, so that the number of heads cannot be told from the weights; "
            "give it (--num-heads)"
        )
    named = [name for name, sizes in VARIANTS.items() if sizes == (width, depth, heads, ffn)]
    try:
        return BackboneConfig.model_validate(
            {
                "variant": named[0] if named else "custom",
                "width": width,
                "depth": depth,
                "num_heads": heads,
                "ffn": ffn,
                "patch_size": patch,
                "image_size": side * patch,
                "channels": channels,
                "num_registers": registers,
            }
        )
    except ValueError as error:
        raise WeightsError(f"no such network can be built: {error}") from error


def heads_of_width(width: int) -> int | None:
    """Return the attention heads of a network of that width: those of our variants, else width / 64, else None."""
    known = {heads for other, _, heads, _ in VARIANTS.values() if other == width}
    if known:
        return min(known)
    return width // 64 if width % 64 == 0 else None


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """Return the shape of a tensor; WeightsError when it is missing or has another number of dimensions."""
    if name not in tensors:
        raise WeightsError(f"{name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(f"{name} has the shape {shape}; expected {ndim} dimensions")
    return shape


def build(tensors: dict[str, Tensor], config: BackboneConfig, *, dtype: torch.dtype | None) -> VisionTransformer:
    """Return the network that holds these tensors, in evaluation mode; dtype None keeps the type of each."""
    with torch.device("meta"):
        network = VisionTransformer(config)
    network.load_state_dict(
        {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}, assign=True
    )
    return network.eval()
