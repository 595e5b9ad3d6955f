"""The linear layers of a backbone by name, with each branch's LayerScale folded in."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foveal.backbone.vit import VisionTransformer


class Linear(NamedTuple):
    """A linear layer: `weight` (O, C) and `bias` (O,), float32, multiplied by LayerScale where it ends a branch.

    `module` is the layer in the backbone, without that factor; `gamma` is the factor, (O,) or (1,).
    """

    name: str
    weight: Tensor
    bias: Tensor
    module: nn.Linear
    gamma: Tensor


@torch.no_grad()
def linears_of(backbone: VisionTransformer, block: int) -> Iterator[Linear]:
    """Yield the four linear layers of a block in the order in which they run.

    The factor gamma of `x + gamma * (W h + b)` is a factor of the rows of W and of b: folded in, it costs nothing when
    the network runs, and the error of a quantised layer is measured in units of the residual stream.
    """
    part = backbone.get_submodule(f"blocks.{block}")
    mlp = ("w12", "w3") if backbone.config.ffn == "swiglu" else ("fc1", "fc2")
    scales = {"attn.proj": "ls1", f"mlp.{mlp[1]}": "ls2"}
    for name in ("attn.qkv", "attn.proj", *(f"mlp.{layer}" for layer in mlp)):
        module = part.get_submodule(name)
        assert isinstance(module, nn.Linear)
        gamma = part.get_parameter(f"{scales[name]}.gamma") if name in scales else torch.ones(1)
        weight, bias = module.weight.float() * gamma[:, None], module.bias.float() * gamma
        yield Linear(f"blocks.{block}.{name}", weight.detach(), bias.detach(), module, gamma.detach())
