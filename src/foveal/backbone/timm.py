"""The layout of timm's DINOv2 models: official names, no mask token, and registers that fold the class position.

timm adds the position of the class token to the token itself where there are registers (`no_embed_class`): nothing is
lost for inference, but the two cannot be told apart again. We read such a model with a class position of zeros, which
is the same network, and which gives the same file when it is written again.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig

_SIZES = {768: "base", 1024: "large"}


def matches(names: set[str]) -> bool:
    """Whether these are the keys of a timm DINOv2 model: official names without what timm drops or renames."""
    ours = {"patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.ls1.gamma"} <= names
    return ours and not names & {"mask_token", "register_tokens"}


def from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names, with a mask token of zeros and, with registers, a class position of zeros."""
    found = dict(tensors)
    if "reg_token" in found:
        found["register_tokens"] = found.pop("reg_token")
        position = found["pos_embed"]
        found["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    found["mask_token"] = torch.zeros_like(found["cls_token"][0])
    wide, narrow = found.get("blocks.0.mlp.fc1.weight"), found.get("blocks.0.mlp.fc2.weight")
    if wide is not None and narrow is not None and wide.shape[0] == 2 * narrow.shape[1]:
        renamed = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
        for theirs, ours in renamed.items():
            found = {name.replace(theirs, ours): tensor for name, tensor in found.items()}
    return found


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under timm's names, without the mask token and with the class position folded."""
    found = {
        name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in tensors.items()
        if name != "mask_token"
    }
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        cls, position = found["cls_token"], found["pos_embed"]
        # Where the position is 0 the token stays as it is, to the sign of a zero.
        found["cls_token"] = torch.where(position[:, :1] == 0, cls, cls + position[:, :1])
        found["pos_embed"] = position[:, 1:].clone()
    return found


def losses(tensors: Mapping[str, Tensor]) -> list[str]:
    """Say what `to_timm` loses of these tensors."""
    lost = ["mask token (timm has none)"] if tensors["mask_token"].any() else []
    if "register_tokens" in tensors and tensors["pos_embed"][:, 0].any():
        lost.append("the class token's position as a tensor of its own (folded into the class token)")
    return lost


def config_json(
    config: BackboneConfig, *, mean: list[float], std: list[float], crop_size: int, resize_size: int, licence: str
) -> dict[str, object]:
    """Return the `config.json` with which `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the network.

    timm has names for S, B, L and g at patch size 14 with 0 or 4 registers; any other network is the nearest of them
    with its own sizes as arguments.
    """
    registers = {"reg_tokens": config.num_registers, "no_embed_class": True} if config.num_registers else {}
    gated = {"mlp_ratio": (2 * config.ffn_hidden + 0.5) / config.width} if config.ffn == "swiglu" else {}
    size = "giant" if config.ffn == "swiglu" else _SIZES.get(config.width, "small")
    registered = "_reg4" if config.num_registers == 4 else ""
    return {
        "architecture": f"vit_{size}_patch14{registered}_dinov2",
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "in_chans": config.channels,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            **registers,
            **gated,
        },
        "pretrained_cfg": {
            "input_size": [config.channels, config.image_size, config.image_size],
            "fixed_input_size": True,
            "crop_pct": crop_size / resize_size,
            "interpolation": "bicubic",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": licence,
        },
    }
