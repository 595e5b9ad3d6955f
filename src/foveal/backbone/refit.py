"""Fit the weights of a backbone to a network that differs in its inputs: channels, stored positions, registers."""

import torch
from torch import Tensor, nn

from foveal.backbone.channels import inflate_patch_embedding
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError

_MUST_BE_EQUAL = ("width", "depth", "num_heads", "ffn", "patch_size")
_REGISTER_STD = 1e-6  # as new registers are drawn in `VisionTransformer.init_weights`


@torch.no_grad()
def refit(
    backbone: VisionTransformer, config: BackboneConfig, *, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of `backbone` for a network of `config`, and in words what in them is new.

    Channels: see `inflate_patch_embedding`. Positions: the stored grid becomes that of `config.image_size`, resized as
    the network itself does for images of that size, so that those images get the same features as before. Registers:
    those there are stay, further ones are drawn as in a new network. Everything else is passed on as it is.

    Args:
        backbone: the weights.
        config: of the network that will hold them.
        generator: source of new registers.

    Raises:
        WeightsError: the width, depth, heads, feed-forward or patch size differ, or registers would be lost.
    """
    old = backbone.config
    check_refit(old, config)
    state: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in backbone.state_dict().items()}
    new = []
    if config.channels != old.channels:
        state = inflate_patch_embedding(state, channels=config.channels)
        new.append(f"patch_embed.proj.weight: {config.channels} channels from {old.channels}")
    if config.grid_size != old.grid_size:
        cls, patches = backbone.position(config.grid_size, config.grid_size)
        state["pos_embed"] = torch.cat([cls, patches], dim=1)
        new.append(
            f"pos_embed: resized from {old.grid_size} x {old.grid_size} to {config.grid_size} x {config.grid_size}"
        )
    if added := config.num_registers - old.num_registers:
        drawn = nn.init.normal_(torch.empty(1, added, config.width), std=_REGISTER_STD, generator=generator)
        kept = [state["register_tokens"]] if old.num_registers else []
        state["register_tokens"] = torch.cat([*kept, drawn], dim=1)
        new.append(f"register_tokens: {added} new beside {old.num_registers}")
    return state, new


def check_refit(old: BackboneConfig, new: BackboneConfig) -> None:
    """Raise the WeightsError of `refit` where weights of `old` do not fit a network of `new`."""
    different = [
        f"{name} is {getattr(old, name)} in the weights and {getattr(new, name)} here"
        for name in _MUST_BE_EQUAL
        if getattr(old, name) != getattr(new, name)
    ]
    if different:
        raise WeightsError("; ".join(different) + ": only channels, image_size and num_registers may differ")
    if new.num_registers < old.num_registers:
        raise WeightsError(
            f"num_registers={new.num_registers} would drop registers that the weights were trained with; "
            f"use {old.num_registers} or more"
        )
