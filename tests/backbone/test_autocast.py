"""bf16 autocast: products in bf16, the residual stream in fp32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone import layers
from foveal.backbone.layers import MLP, Attention, Group
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


@pytest.mark.parametrize("scores_at_once", [1, 500, 3_000_000])
def test_bf16_gradients_of_attention_are_as_near_to_the_exact_ones_as_pytorchs(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_SCORES_AT_ONCE", scores_at_once)
    group = Group(5, 13)
    attention = Attention(48, num_heads=3)
    generator = torch.Generator().manual_seed(0)
    qkv, gradient = (torch.randn(group.rows, width, generator=generator).bfloat16() for width in (144, 48))

    def found(dtype: torch.dtype, *, ours: bool) -> Tensor:
        leaf = qkv.detach().to(dtype, copy=True).requires_grad_()
        if ours:
            mixed = attention._mix(leaf, group)
        else:
            q, k, v = leaf.view(*group, 3, 3, 16).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(group.rows, -1)
        mixed.backward(gradient.to(dtype))
        assert leaf.grad is not None
        return leaf.grad.double()

    exact = found(torch.float64, ours=False)
    error, error_of_pytorch = ((found(torch.bfloat16, ours=ours) - exact).norm() for ours in (True, False))
    assert 0 < error <= 1.5 * error_of_pytorch
    torch.testing.assert_close(found(torch.float32, ours=True), exact, atol=1e-5, rtol=0)


def test_training_keeps_what_enters_the_gelu_and_no_more() -> None:
    mlp = MLP(8, 32)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        out = mlp(x)
    assert kept.count(torch.Size([5, 32])) <= 1
    (found,) = torch.autograd.grad(out.square().sum(), mlp.fc1.weight)
    plain = mlp.fc2(F.gelu(mlp.fc1(x)))
    (expected,) = torch.autograd.grad(plain.square().sum(), mlp.fc1.weight)
    assert torch.equal(found, expected)
