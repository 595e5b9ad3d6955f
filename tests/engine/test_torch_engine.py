import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError


@pytest.fixture
def backbone() -> VisionTransformer:
    config = backbone_config("vit_nano", num_registers=2, image_size=28, layerscale_init=1.0)
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(1))


def test_encode_equals_the_backbone(backbone: VisionTransformer, batch: torch.Tensor) -> None:
    found = TorchEngine(backbone).encode(batch)
    with torch.no_grad():
        expected = backbone(batch)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found.cls.shape == (2, 48)
    assert found.registers.shape == (2, 2, 48)
    assert found.patches.shape == (2, 6, 48)
    assert not found.cls.requires_grad


def test_bf16_stays_near_fp32_and_returns_float32(backbone: VisionTransformer, batch: torch.Tensor) -> None:
    exact = TorchEngine(backbone).encode(batch)
    found = TorchEngine(backbone, precision="bf16").encode(batch)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.999  # bf16 keeps 8 bits: 1 - 2^-8 or so
    assert not torch.equal(found.cls, exact.cls)
    assert backbone.cls_token.dtype == torch.float32


@pytest.mark.parametrize("norm", [True, False])
def test_intermediate_layers_are_the_backbone_s(backbone: VisionTransformer, batch: torch.Tensor, norm: bool) -> None:
    found = TorchEngine(backbone).intermediate(batch, [0, 2], norm=norm)
    with torch.no_grad():
        expected = backbone.intermediate(batch, [0, 2], norm=norm)
    assert len(found) == 2
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(found, expected, strict=True))


def test_attention_is_the_backbone_s(backbone: VisionTransformer, batch: torch.Tensor) -> None:
    found = TorchEngine(backbone).attention(batch, layer=1, queries=[0, 1])
    with torch.no_grad():
        expected = backbone.attention(batch, layer=1, queries=[0, 1])
    assert torch.equal(found, expected)
    assert found.shape == (2, backbone.config.num_heads, 2, 9)
    assert TorchEngine(backbone, precision="bf16").attention(batch).dtype == torch.float32


def test_engine_puts_the_backbone_into_evaluation_mode(backbone: VisionTransformer) -> None:
    backbone.train()
    assert not TorchEngine(backbone).backbone.training


def test_unknown_precision_is_named(backbone: VisionTransformer) -> None:
    with pytest.raises(FovealError, match="precision='int4' is not known; choose fp32, bf16, fp16"):
        TorchEngine(backbone, precision="int4")  # type: ignore[arg-type]


def test_size_that_does_not_fit_is_explained(backbone: VisionTransformer) -> None:
    with pytest.raises(FovealError, match="image height=15 is not a multiple of patch_size=14"):
        TorchEngine(backbone).encode(torch.zeros(1, 3, 15, 14))
