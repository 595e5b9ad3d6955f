"""Parameter groups, AdamW and clipping, as the public recipes set them."""

from typing import Any

import torch
from torch import nn

from foveal.backbone.vit import VisionTransformer


def parameter_groups(
    network: nn.Module, *, layer_decay: float, patch_embed_lr_multiplier: float
) -> list[dict[str, Any]]:
    """Group the parameters of a network's children (backbones and heads) by their multipliers.

    Learning-rate multiplier of a child with L blocks: layer_decay ** (L + 1 - id), where id is 0 for embeddings and
    tokens, i + 1 for block i, and L + 1 for the final norm; 1 for a child without blocks. The patch embedding has
    `patch_embed_lr_multiplier` besides. Weight decay is 0 for names that end in ".bias" or contain "norm" or "gamma";
    class, position, mask and register tokens and the prototypes' gains are decayed, as upstream.

    Returns:
        AdamW groups with the extra keys lr_multiplier, wd_multiplier, is_last_layer, is_backbone and names.
    """
    groups: dict[tuple[float, float, bool, bool], dict[str, Any]] = {}
    for child_name, child in network.named_children():
        depth = len(child.blocks) if isinstance(child, VisionTransformer) else None
        for name, parameter in child.named_parameters():
            if not parameter.requires_grad:
                continue
            lr_multiplier = 1.0 if depth is None else layer_decay ** (depth + 1 - layer_id(name, depth=depth))
            if "patch_embed" in name:
                lr_multiplier *= patch_embed_lr_multiplier
            wd_multiplier = 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0
            key = (lr_multiplier, wd_multiplier, "last_layer" in name, depth is not None)
            group = groups.setdefault(
                key,
                {
                    "params": [],
                    "names": [],
                    "lr_multiplier": lr_multiplier,
                    "wd_multiplier": wd_multiplier,
                    "is_last_layer": "last_layer" in name,
                    "is_backbone": depth is not None,
                },
            )
            group["params"].append(parameter)
            group["names"].append(f"{child_name}.{name}")
    return list(groups.values())


def layer_id(name: str, *, depth: int) -> int:
    """Return what layer decay counts by: 0 for embeddings and tokens, i + 1 for block i, depth + 1 for the norm."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return depth + 1 if parts[0] == "norm" else 0


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """Return fused AdamW (arXiv 1711.05101) over the groups; eps 1e-8. Rates are set every step by `set_rates`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, weight_decay=0.0, fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, last_layer_lr: float, backbone_lr: float
) -> None:
    """Set learning rate and weight decay of every group from the scheduled values and the group's multipliers.

    AdamW multiplies the decay by the rate, so a last layer with rate 0 is truly frozen.
    """
    for group in optimizer.param_groups:
        rate = last_layer_lr if group["is_last_layer"] else backbone_lr if group["is_backbone"] else lr
        group["lr"] = rate * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip_each(network: nn.Module, limit: float) -> dict[str, torch.Tensor]:
    """Clip the gradient norm of each direct child of the network on its own; return the norms before clipping."""
    return {
        name: nn.utils.clip_grad_norm_(list(child.parameters()), limit or float("inf"), foreach=True)
        for name, child in network.named_children()
    }
