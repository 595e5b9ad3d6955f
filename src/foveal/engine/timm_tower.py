"""timm's backbones: vision transformers, and networks that end in a feature map."""

from typing import Any

from torch import Tensor

from foveal.backbone.licence import licence_named
from foveal.backbone.variants import BackboneConfig
from foveal.engine.tower import RANDOM, Run, Tower, fill, imported, made, no_patches, num_heads_of, tower_config
from foveal.errors import FovealError


def timm_tower(source: str, name: str, weights: str, seed: int) -> Tower:
    """Return the tower of a model's name; see `foveal.engine.foreign.open_tower`."""
    timm = imported("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:3]) or "timm.list_models() lists them"
        raise FovealError(f"{source}: timm {timm.__version__} has no model '{name}'; near: {near}")
    how: dict[str, Any] = {"num_classes": 0, "pretrained": not weights}
    is_vit = name.startswith(("vit_", "deit", "eva", "beit"))
    how |= {"dynamic_img_size": True} if is_vit else {}
    module = made(source, lambda: timm.create_model(name, **how), seed)
    if weights not in ("", RANDOM):
        fill(source, module, weights)
    data = timm.data.resolve_model_data_config(module)
    tower = _transformer if hasattr(module, "num_prefix_tokens") else _feature_map
    run, config, is_fixed = tower(source, module, data["input_size"][1])
    return Tower(
        name=source,
        library="timm",
        module=module,
        run=run,
        config=config,
        mean=list(data["mean"]),
        std=list(data["std"]),
        crop_size=config.image_size,
        resize_size=round(config.image_size / data["crop_pct"]),
        is_fixed=is_fixed,
        licence=licence_named(module.pretrained_cfg.get("license") or "unknown"),
    )


def _transformer(source: str, module: Any, image_size: int) -> tuple[Run, BackboneConfig, bool]:
    """Return how to run one of timm's vision transformers, its sizes, and whether it takes one image size only."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if patch is None or patch[0] != patch[1]:
        raise no_patches(source)
    size = image_size // patch[0] * patch[0]

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        found = module.forward_intermediates(
            images, indices=layers, return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
        )
        return (
            [(prefix, patches) for patches, prefix in found] if module.num_prefix_tokens else [(None, p) for p in found]
        )

    config = tower_config(
        source, module.embed_dim, len(module.blocks), num_heads_of(module), patch[0], size, module.num_prefix_tokens
    )
    return run, config, not getattr(module, "dynamic_img_size", False)


def _feature_map(source: str, module: Any, image_size: int) -> tuple[Run, BackboneConfig, bool]:
    """Return the same for a network that ends in a feature map (ConvNeXt, ResNet, Swin).

    The places of its last map are the patches; its pooled feature, as the classifier would get it, is the class token.
    It counts as one block, since the maps before have other sizes.
    """
    stride = module.feature_info[-1]["reduction"] if getattr(module, "feature_info", None) else None
    if not isinstance(stride, int) or not hasattr(module, "forward_head"):
        raise no_patches(source)

    def run(images: Tensor, layers: list[int], norm: bool) -> list[tuple[Tensor | None, Tensor]]:
        found = module.forward_features(images)
        pooled = module.forward_head(found, pre_logits=True)
        if found.ndim == 4:
            channels_last = getattr(module, "output_fmt", "NCHW") == "NHWC"
            found = found.flatten(1, 2) if channels_last else found.flatten(2).transpose(1, 2)
        return [(pooled[:, None], found)]  # mixers have tokens all along

    config = tower_config(source, module.num_features, 1, 1, stride, image_size // stride * stride, 1)
    return run, config, bool(getattr(getattr(module, "patch_embed", None), "strict_img_size", False))
