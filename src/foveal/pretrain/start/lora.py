"""Low-rank adaptation (LoRA, arXiv 2106.09685): the attention's linear maps learn a small change, the rest stays."""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.backbone.vit import VisionTransformer

Module = TypeVar("Module", bound=nn.Module)

_ALSO_TRAINED = ("register_tokens", "mask_token")  # public weights come without registers, some without a mask token


class LowRankLinear(nn.Linear):
    """A linear map with the frozen weight W of another, to which (alpha / rank) B A is added.

    The rows are cut into `parts` blocks with A and B of their own. A (parts, rank, in) is drawn from a normal of
    variance 1 / in and B (parts, out / parts, rank) is 0, so that the sum is W at first.
    """

    def __init__(self, linear: nn.Linear, *, parts: int, rank: int, alpha: float, generator: torch.Generator) -> None:
        rows, columns, device = linear.out_features, linear.in_features, linear.weight.device
        super().__init__(columns, rows, device=device)
        self.load_state_dict(linear.state_dict())
        self.requires_grad_(False)
        drawn = nn.init.normal_(torch.empty(parts, rank, columns), std=columns**-0.5, generator=generator)
        self.down = nn.Parameter(drawn.to(device))
        self.up = nn.Parameter(torch.zeros(parts, rows // parts, rank, device=device))
        self.scale = alpha / rank

    def changed_weight(self) -> Tensor:
        """Return W + (alpha / rank) B A."""
        return _changed(self.weight, up=self.up, down=self.down, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.changed_weight(), self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the plain linear map that does the same."""
        plain = nn.Linear(self.in_features, self.out_features, device=self.weight.device)
        plain.load_state_dict({"weight": self.changed_weight(), "bias": self.bias})
        return plain.requires_grad_(False)


def add_low_rank(backbone: VisionTransformer, *, rank: int, alpha: float, generator: torch.Generator) -> None:
    """Freeze a backbone but for low-rank changes of q, k, v and the output projection of every block.

    Register and mask tokens go on being trained: weights of others may lack them. The state dict keeps its names and
    gains those of A and B, `down` and `up`.

    Args:
        backbone: changed in place.
        rank: of each of the four changes of a block; at most the width.
        alpha: the changes are scaled by alpha / rank.
        generator: source of the first A, on the CPU.
    """
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in _ALSO_TRAINED)
    _replace(
        backbone,
        nn.Linear,
        lambda name, linear: LowRankLinear(
            linear, parts=3 if name.endswith("qkv") else 1, rank=rank, alpha=alpha, generator=generator
        ),
    )


def merged(network: Module) -> Module:
    """Return a copy of a network whose low-rank changes are part of its weights; the network itself if it has none."""
    if not any(isinstance(module, LowRankLinear) for module in network.modules()):
        return network
    plain = copy.deepcopy(network)
    _replace(plain, LowRankLinear, lambda _, linear: linear.merged())
    return plain


@torch.no_grad()
def merged_tensors(tensors: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Return the state dict of `merged(network)` from that of a network with low-rank changes.

    Args:
        tensors: names that end in `down` and `up` belong to the `weight` beside them.
        scale: alpha / rank.
    """
    found = dict(tensors)
    for name in tensors:
        place, _, last = name.rpartition(".")
        if last == "up":
            up, down = found.pop(name), found.pop(f"{place}.down")
            found[f"{place}.weight"] = _changed(found[f"{place}.weight"], up=up, down=down, scale=scale)
    return found


def _changed(weight: Tensor, *, up: Tensor, down: Tensor, scale: float) -> Tensor:
    return weight + scale * (up @ down).flatten(0, 1)


def _replace(network: nn.Module, kind: type[Module], new: Callable[[str, Module], nn.Module]) -> None:
    """Replace the linear maps of `kind` in the attention of a network."""
    for name, module in list(network.named_modules()):
        if isinstance(module, kind) and name.endswith((".attn.qkv", ".attn.proj")):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, new(name, module))
