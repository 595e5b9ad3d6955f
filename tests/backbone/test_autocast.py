"""bf16 autocast: products in bf16, the residual stream in fp32."""

import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer


def test_branches_scaled_by_1e_5_are_not_rounded_away_under_bf16() -> None:
    config = backbone_config("vit_nano", depth=1, image_size=42, layerscale_init=1e-5)
    vit = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
    images = torch.randn(2, 3, 42, 28, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        packed, groups = vit.embed([images], [None])
        moved = vit.blocks[0](packed, groups) - packed
    assert packed.dtype == torch.float32
    # A branch of size 0.1 times 1e-5 against a stream of size 0.5: 2e-6 relative, above fp32's rounding of 6e-8, and
    # far below bf16's of 4e-3, with which nearly every entry would be 0.
    assert (moved != 0).float().mean() > 0.9


def test_bf16_features_are_near_the_fp32_ones() -> None:
    config = backbone_config("vit_nano", image_size=42, num_registers=2, layerscale_init=0.5)
    vit = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).requires_grad_(False)
    images = torch.randn(3, 3, 42, 28, generator=torch.Generator().manual_seed(1))
    exact = vit(images).cls
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vit(images).cls
    # bf16 has 8 bits: 0.4 % a product, which averages out over 48 terms and three blocks to well under 1 %.
    assert torch.cosine_similarity(exact, rounded.float()).min() > 0.9999
